"""`instep agent` as a process: its exit codes, its sentences, and the way of an event to the server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from ingest_server import IngestServer
from instep_agent import cli
from instep_agent.config import AgentConfig, describe, load_config
from instep_agent.errors import ConfigurationInvalid
from instep_agent.rank_record import Phase
from instep_agent.uplink import spool_slot
from made_nodes import RECORDED
from made_records import new_writer

XID = "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus. instep-drill"


@pytest.fixture
def server():
    server = IngestServer()
    yield server
    server.close()


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*options, token="secret", node="node-a"):
        environment = {**os.environ, "INSTEP_TOKEN": token, "INSTEP_NODE_NAME": node}
        command = [sys.executable, "-c", "import sys; from instep_agent.cli import main; sys.exit(main(sys.argv[1:]))"]
        process = subprocess.Popen([*command, *map(str, options)], env=environment, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def finished(process):
    _, said = process.communicate(timeout=20)
    return process.returncode, said


def test_an_injected_kernel_line_and_a_rank_reach_the_server(server, start, tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kmsg").touch()
    (tmp_path / "proc").symlink_to("/proc")
    new_writer(tmp_path / "records").heartbeat(12, 0, Phase.forward)
    process = start("--server", server.url, "--root", tmp_path, "--record-root", tmp_path / "records", "--interval", 30)
    server.wait_for(lambda it: it.frames)
    assert [(rank.rank, rank.step, rank.phase) for rank in server.frames[0].ranks] == [(0, 12, "forward")]
    with (tmp_path / "dev/kmsg").open("a") as log:
        log.write(XID + "\n")
    before = time.monotonic()
    server.wait_for(lambda it: any(frame.events for frame in it.frames))
    assert time.monotonic() - before < 20.0, "before the next tick"
    (event,) = server.frames[-1].events
    assert (event.kind, event.text, event.is_drill) == ("kernel_line", XID, True)
    process.send_signal(signal.SIGTERM)
    assert finished(process)[0] == 0, "before the next tick"


def test_a_wrong_token_at_the_first_answer_ends_with_3(server, start):
    code, said = finished(start("--server", server.url, token="wrong"))
    assert code == 3
    assert "does not accept the agent's token" in said


def test_a_token_that_is_changed_in_its_file_is_used_without_a_restart(server, start, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret\n")
    process = start("--server", server.url, "--token-file", token, "--interval", 0.05)
    server.wait_for(lambda it: it.frames)
    server.token = "next"
    refused = len(server.requests)
    server.wait_for(lambda it: len(it.requests) > refused + 1)
    (tmp_path / "new").write_text("next\n")
    (tmp_path / "new").rename(token)
    arrived = len(server.frames)
    server.wait_for(lambda it: len(it.frames) > arrived)
    assert process.poll() is None


def test_goes_on_over_a_restart_of_the_server(start, tmp_path):
    first = IngestServer()
    process = start("--server", first.url, "--spool", tmp_path / "spool", "--interval", 0.1)
    first.wait_for(lambda it: len(it.frames) >= 2)
    first.close()
    second = IngestServer(first.port)
    try:
        second.wait_for(lambda it: len(it.frames) >= 3)
        seen = {frame.sequence for frame in first.frames + second.frames}
        assert seen == set(range(1, max(seen) + 1)), "nothing between the two was lost"
        assert process.poll() is None
    finally:
        second.close()


def test_killed_with_a_full_spool_it_loses_no_event_and_nothing_counts_twice(start, tmp_path):
    (tmp_path / "node/dev").mkdir(parents=True)
    log = tmp_path / "node/dev/kmsg"
    log.touch()
    (tmp_path / "node/proc").symlink_to("/proc")
    spool = tmp_path / "spool"
    config = tmp_path / "agent.toml"
    config.write_text("spool_bytes_max = 65536\n")
    options = ("--config", config, "--root", tmp_path / "node", "--spool", spool, "--interval", 0.05)
    first = IngestServer()
    process = start("--server", first.url, *options)
    first.wait_for(lambda it: it.frames)
    first.close()
    said = []
    while len(said) < 180:
        numbers = range(len(said), len(said) + 20)
        lines = [f"NVRM: Xid (PCI:0000:{number:02x}:00): 79, number {number}" for number in numbers]
        said += lines
        with log.open("a") as file:
            file.write("".join(line + "\n" for line in lines))
        wait_written(spool, lines[-1])
    wait_until(lambda: size_bytes(spool) > 60_000)
    process.kill()
    process.wait()
    second = IngestServer(first.port)
    try:
        start("--server", second.url, *options)
        second.wait_for(lambda it: len({event.id for frame in it.frames for event in frame.events}) >= len(said))
    finally:
        second.close()
    events = [event.text for frame in first.frames + second.frames for event in frame.events]
    assert [text for text in events if "number" in text] == said, "all of them, in their order, once"
    frames = [(frame.agent_epoch, frame.sequence) for frame in first.frames + second.frames]
    assert len(frames) == len(set(frames))


def wait_written(spool, line):
    wait_until(lambda: line.encode() in b"".join(written(spool)))


def size_bytes(spool):
    return sum(map(len, written(spool)))


def written(spool):
    for path in (*spool.glob("*.frame"), spool / spool_slot.NAME):
        try:
            yield path.read_bytes()
        except FileNotFoundError:  # it was given up meanwhile
            continue


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def test_metrics_are_served(start, tmp_path):
    new_writer(tmp_path).heartbeat(7, 0, Phase.backward)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start("--listen", f"127.0.0.1:{port}", "--record-root", tmp_path)
    text = _scrape(f"http://127.0.0.1:{port}/metrics")
    assert 'instep_rank_step{job="job",rank="0"} 7.0' in text
    assert 'instep_rank_phase{job="job",phase="backward",rank="0"} 1.0' in text
    assert 'instep_agent_source_success{source="host"} 1.0' in text
    assert 'instep_agent_source_state{source="host"} 0.0' in text


def _scrape(url):
    deadline = time.monotonic() + 15
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
            if "instep_rank_step{" in text and 'source_success{source="host"}' in text:
                return text
        except OSError:
            pass
        assert time.monotonic() < deadline, "the page never came"
        os.sched_yield()


def sentence(arguments, capsys, monkeypatch, **environment):
    for name in ("INSTEP_NODE_NAME", "INSTEP_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code = cli.main([str(each) for each in arguments])
    said = capsys.readouterr().err
    assert said.count("\n") == 1, "one sentence"
    return code, said


def test_a_node_without_a_name_is_refused(capsys, monkeypatch):
    code, said = sentence(["--listen", "127.0.0.1:0"], capsys, monkeypatch)
    assert code == 2
    assert "--node NAME or INSTEP_NODE_NAME" in said


def test_a_missing_token_is_refused(capsys, monkeypatch):
    code, said = sentence(["--node", "n", "--server", "http://127.0.0.1:1"], capsys, monkeypatch)
    assert code == 2
    assert "--token-file FILE or INSTEP_TOKEN" in said


def test_a_missing_token_file_is_refused(capsys, monkeypatch, tmp_path):
    arguments = ["--node", "n", "--server", "http://127.0.0.1:1", "--token-file", tmp_path / "none"]
    code, said = sentence(arguments, capsys, monkeypatch)
    assert code == 2
    assert f"Cannot read the token file {tmp_path}/none" in said


def test_a_port_in_use_is_refused(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = sentence(["--listen", address], capsys, monkeypatch, INSTEP_NODE_NAME="n")
    assert code == 2
    assert f"Cannot listen on {address} (Address already in use)" in said


def test_an_agent_that_would_tell_nobody_is_refused(capsys, monkeypatch):
    assert sentence(["--node", "n"], capsys, monkeypatch)[0] == 2


def test_an_unknown_key_names_file_key_and_what_is_allowed(capsys, monkeypatch, tmp_path):
    (tmp_path / "agent.toml").write_text("serverurl = 'x'\n")
    code, said = sentence(["--config", tmp_path / "agent.toml"], capsys, monkeypatch)
    assert code == 2
    assert f"{tmp_path}/agent.toml has an unknown key 'serverurl': allowed keys are node_name, " in said


@pytest.mark.parametrize("text", ["ranks_interval_seconds = 0", "listen = 5", "not toml"])
def test_a_value_out_of_range_is_refused(capsys, monkeypatch, tmp_path, text):
    (tmp_path / "agent.toml").write_text(text)
    code, said = sentence(["--config", tmp_path / "agent.toml"], capsys, monkeypatch)
    assert code == 2
    assert str(tmp_path / "agent.toml") in said


def test_an_option_overrules_the_file(tmp_path):
    (tmp_path / "agent.toml").write_text("node_name = 'from-file'\nranks_interval_seconds = 2\n")
    assert load_config(tmp_path / "agent.toml") == AgentConfig(node_name="from-file", ranks_interval_seconds=2.0)
    options = cli._parser().parse_args(["--config", str(tmp_path / "agent.toml"), "--node", "given"])
    assert cli.effective_config(options) == AgentConfig(node_name="given", ranks_interval_seconds=2.0)


def test_once_prints_what_every_source_says(capsys, tmp_path):
    new_writer(tmp_path).heartbeat(3, 0, Phase.data)
    arguments = ["--node", "node-a", "--root", str(RECORDED / "a100"), "--record-root", str(tmp_path), "--once"]
    assert cli.main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    outcomes = {name: state["outcome"] for name, state in said["sources"].items()}
    ours = {"kernel_log": "absent", "rank_records": "ok", "gpu_inventory": "ok", "host": "ok"}
    assert ours.items() <= outcomes.items()
    assert [gpu["pci"] for gpu in said["gpus"]] == ["0000:3b:00", "0000:86:00"]
    assert {"name": "instep_host_load1", "labels": {}, "value": 3.52} in said["samples"]
    assert cli.main(arguments) == 0
    assert "gpu_inventory    ok" in capsys.readouterr().out


def test_gpus_that_are_expected_and_not_there_show(capsys, tmp_path):
    (tmp_path / "agent.toml").write_text("expected_gpus = 8\n")
    places = ["--root", RECORDED / "a100", "--record-root", tmp_path / "records", "--config", tmp_path / "agent.toml"]
    assert cli.main(["--node", "n1", "--once", "--json", *map(str, places)]) == 0
    samples = json.loads(capsys.readouterr().out)["samples"]
    seen = {one["labels"]["seen_by"]: one["value"] for one in samples if one["name"] == "instep_gpus"}
    assert (seen["expected"], seen["driver"]) == (8.0, 2.0)


def test_intervals_of_the_file_reach_their_source_and_a_bad_address_stops_the_agent():
    config = AgentConfig(
        ranks_interval_seconds=0.3,
        ranks_calm_interval_seconds=4.0,
        ranks_discovery_interval_seconds=5.0,
    )
    by_name = {source.name: source for source in cli._sources(config)}
    ranks = by_name["rank_records"]
    intervals = ranks.interval_seconds, ranks.calm_interval_seconds, ranks.discovery_interval_seconds
    assert intervals == (0.3, 4.0, 5.0)
    with pytest.raises(ConfigurationInvalid, match="A source cannot be set up"):
        cli._sources(AgentConfig(nccl_ras_addresses=("no port",)))


def test_settings_are_described_with_their_source_and_range(monkeypatch, tmp_path):
    monkeypatch.setenv("INSTEP_NODE_NAME", "node-a")
    (tmp_path / "agent.toml").write_text("ranks_interval_seconds = 2\n")
    rows = {row["key"]: row for row in describe(str(tmp_path / "agent.toml"))}
    assert list(rows) == list(AgentConfig.__struct_fields__)
    assert rows["ranks_interval_seconds"] == {
        "key": "ranks_interval_seconds",
        "value": 2.0,
        "source": str(tmp_path / "agent.toml"),
        "help": "How often rank records are read.",
        "range": "0.05 to 3600",
    }
    assert (rows["node_name"]["value"], rows["node_name"]["source"]) == ("node-a", "INSTEP_NODE_NAME")
    assert rows["listen"]["source"] == "default"
    assert all(row["help"] for row in rows.values())


def test_describing_a_bad_file_says_what_is_wrong(tmp_path):
    (tmp_path / "agent.toml").write_text("nonsense = 1")
    with pytest.raises(ValueError, match="unknown key 'nonsense'"):
        describe(str(tmp_path / "agent.toml"))
