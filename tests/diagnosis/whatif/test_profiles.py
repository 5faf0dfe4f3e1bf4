"""PyTorch profiles become traces: real recordings of a two-rank job, and made ones whose numbers are known."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from instep_diagnosis.whatif_cli import main

RANK_SCRIPT = Path(__file__).with_name("profiled_rank.py")
STEPS = 6
SLOW_RANK = 1


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiled")
    words = [str(STEPS), str(SLOW_RANK)]
    commands = [[sys.executable, str(RANK_SCRIPT), str(folder), str(rank), *words] for rank in range(2)]
    ranks = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for command in commands]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=120)
            assert rank.returncode == 0, errors.decode()
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return folder


def analysed(capsys, *arguments):
    assert main([*map(str, arguments), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.real
@pytest.mark.parametrize("kind", ["plain", "named"])
def test_a_real_recording_names_the_rank_that_computes_longer(recorded, capsys, kind):
    found = analysed(capsys, recorded / kind)
    assert found["layout"] == {"pp_size": 1, "dp_size": 2, "vpp_size": 1}
    assert found["steps"] + len(found["dropped_steps"]) == STEPS
    kinds = {"forward-compute", "backward-compute", "grads-reduce-scatter", "optimizer"}
    assert set(found["slowdown_by_optype"]) == kinds
    healthy, slow = found["slowdown_by_worker"][0]
    assert slow > healthy
    assert found["slowdown_by_optype"]["forward-compute"] > 1.05


def event(name, start, end, cat="user_annotation"):
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": 1, "ts": start * 1e6, "dur": (end - start) * 1e6}


def plain_step(number, at, forward, *, shift=0.0, slowest):
    """One step at `at`: forward, backward of 2, a reduction that starts within it and ends with the slowest's, 0.5."""
    at += shift
    back = at + forward + 2
    done = at + slowest + 2 + 0.5
    return [
        event(f"ProfilerStep#{number}", at, done + 0.25),
        event("DistributedDataParallel.forward", at, at + forward),
        event("autograd::engine::evaluate_function: MmBackward0", at + forward, back - 1, "cpu_op"),
        event("autograd::engine::evaluate_function: AccumulateGrad", back - 1, back, "cpu_op"),
        event("gloo:all_reduce", back - 0.5, done),
        event("Optimizer.step#SGD.step", done, done + 0.25),
    ]


def write(folder, rank, events, *, name=None, **document):
    folder.mkdir(exist_ok=True)
    document = {"distributedInfo": {"rank": rank}, "traceEvents": events, **document}
    path = folder / (name or f"rank{rank}.json")
    raw = json.dumps(document).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.mark.parametrize("shift", [0.0, 90.0], ids=["one clock", "clocks 90 s apart"])
def test_a_data_parallel_step_is_told_apart_by_torchs_names(tmp_path, capsys, shift):
    """Forward 1 and 2, backward 2, reduction 0.5 behind the slower one, optimizer 0.25."""
    for rank, forward in enumerate((1.0, 2.0)):
        steps = [plain_step(n, 100.0 * n, forward, shift=shift * rank, slowest=2.0) for n in range(3)]
        write(tmp_path / "p", rank, [each for step in steps for each in step])
    found = analysed(capsys, tmp_path / "p")
    assert found["steps"] == 3
    assert found["step_seconds_mean"]["recorded"] == pytest.approx(4.75)
    assert found["step_seconds_mean"]["simulated"] == pytest.approx(4.75)
    assert found["step_seconds_mean"]["ideal"] == pytest.approx(1.5 + 2 + 0.5 + 0.25)
    assert found["slowdown_by_worker"][0] == pytest.approx([1.0, 4.75 / 4.25])


def test_named_operations_of_a_pipeline_are_laid_out_by_the_meta_file(tmp_path, capsys):
    """Two stages, two tensor-parallel ranks each, of which the second repeats the first; stage 1 takes longer."""
    for rank, stage in enumerate((0, 0, 1, 1)):
        events = []
        for number in range(2):
            at = 10.0 * number
            events.append(event(f"ProfilerStep#{number}", at, at + 9))
            if stage == 0:
                events += [event("forward-compute", at, at + 1), event("forward-send", at + 1, at + 1.5)]
                events += [event("backward-recv", at + 1, at + 6), event("backward-compute", at + 6, at + 7)]
            else:
                events += [event("forward-recv", at, at + 1.5), event("forward-compute", at + 1.5, at + 3.5)]
                events += [event("backward-compute", at + 3.5, at + 5.5), event("backward-send", at + 5.5, at + 6)]
            events.append(event("optimizer", at + 7 - 1.0 * stage, at + 7.5 - 1.0 * stage))
        write(tmp_path / "p", rank, events, name=f"trace-{rank}.json.gz")
    (tmp_path / "meta.yaml").write_text("pp_size: 2\ndp_size: 1\ntp_size: 2\n")
    found = analysed(capsys, tmp_path / "p", "--meta", tmp_path / "meta.yaml")
    assert found["layout"]["pp_size"] == 2
    assert found["step_seconds_mean"]["simulated"] == pytest.approx(1 + 0.5 + 4 + 0.5 + 1 + 0.5)
    assert found["slowdown_by_worker"][1][0] > 1 > found["slowdown_by_worker"][0][0]


def test_ranges_seen_on_the_device_count_instead_of_the_hosts(tmp_path, capsys):
    for rank in range(2):
        events = [event(f"ProfilerStep#{n}", 10.0 * n, 10.0 * n + 9) for n in range(2)]
        for number in range(2):
            at = 10.0 * number
            events.append(event("forward-compute", at, at + 0.1))
            for start, end in ((at + 0.5, at + 1), (at + 0.75, at + 1.5 + rank)):  # two streams of one range
                seen = event("forward-compute", start, end, "gpu_user_annotation")
                events.append({**seen, "args": {"External id": number}})
            events.append(event("gemm", at + 0.5, at + 1.5 + rank, "kernel"))
        write(tmp_path / "p", rank, events)
    assert analysed(capsys, tmp_path / "p")["slowdown"] == pytest.approx(2 / 1.5)


STEP = plain_step(0, 0.0, 1.0, slowest=1.0)


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ({}, "holds no profile"),
        ({0: []}, "has no steps"),
        ({0: STEP[:1]}, "has no operation"),
        ({0: [*STEP, event("gemm", 0, 1, "kernel")]}, "does not say which operation is which"),
        ({0: STEP, 2: STEP}, "rank 1 is missing"),
        ({0: [*STEP, event("x", 1, -5)]}, "impossible length"),
        ({0: [{**STEP[0], "dur": 1e300}]}, "impossible length"),
        ({0: [{**STEP[0], "ts": "now"}]}, "no Chrome trace"),
        ({0: 5}, "no Chrome trace"),
    ],
)
def test_profiles_that_cannot_be_converted_are_refused(tmp_path, capsys, ranks, words):
    folder = tmp_path / "p"
    folder.mkdir()
    for rank, events in ranks.items():
        write(folder, rank, events)
    assert main([str(folder)]) == 3
    errors = capsys.readouterr().err
    assert words in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("raw", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"traceEvents": null}', b"null"])
@pytest.mark.parametrize("name", ["rank0.json", "rank0.json.gz"])
def test_files_that_are_no_profiles_are_refused(tmp_path, capsys, raw, name):
    (tmp_path / name).write_bytes(raw)
    assert main([str(tmp_path)]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(raw))
        assert main([str(tmp_path)]) == 3


def test_a_rank_is_known_by_its_document_or_its_name_and_only_once(tmp_path, capsys):
    folder = tmp_path / "p"
    write(folder, None, STEP, name="job-rank_0.json")
    write(folder, None, STEP, name="job-rank_1.json")
    assert analysed(capsys, folder)["layout"]["dp_size"] == 2
    write(folder, 1, STEP, name="again.json")
    assert main([str(folder)]) == 3
    assert "rank 1 twice" in capsys.readouterr().err
    write(folder, None, STEP, name="again.json")
    assert main([str(folder)]) == 3
    assert "does not say its rank" in capsys.readouterr().err
