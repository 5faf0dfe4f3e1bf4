"""Encode then decode is the identity; a bundle gives its verdict again; damage is told in one sentence."""

import gzip
import json
import os
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instep_diagnosis.bundles import EvidenceBundle, diagnose
from instep_diagnosis.cli import catalogue, main
from instep_diagnosis.codec import decode, encode, from_builtins, to_builtins
from instep_diagnosis.detectors.hang import localise_hang
from instep_diagnosis.detectors.stall import HangSettings, Stall, detect_stall
from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.evidence import JobState, JobSteps
from instep_diagnosis.files.bundle import read_bundle, write_bundle
from instep_diagnosis.incidents import Incident, opened
from instep_diagnosis.verdict import Verdict

from tests.diagnosis.scenarios import XID_79, Scenario
from tests.diagnosis.training import job_steps, own_work


def hang_bundle():
    scenario = Scenario().waits(0, 1, 3).sits(2, phase="forward", process="stopped")
    job = scenario.dumped(2, ("load", "/srv/train.py", 88)).kernel_line("node-b", XID_79, gpu="GPU-2").job()
    return EvidenceBundle(stall=detect_stall(job, HangSettings()), job=job)


def crash_bundle():
    return EvidenceBundle(job=Scenario().exited(2, -9, ago=0.3).kernel_line("node-b", XID_79).job())


def straggler_bundle():
    own_TR = own_work()
    own_TR[30:, 2] *= 1.3
    return EvidenceBundle(steps=job_steps(own_TR))


def gpu_bundle():
    return EvidenceBundle(facts=tuple(Scenario().kernel_line("node-b", XID_79).facts))


BUNDLES = [hang_bundle, crash_bundle, straggler_bundle, gpu_bundle]


@pytest.mark.parametrize("make", BUNDLES)
def test_encode_then_decode_is_the_identity(make):
    bundle = make()
    assert decode(encode(bundle), EvidenceBundle) == bundle
    for verdict in diagnose(bundle):
        assert decode(encode(verdict), Verdict) == verdict
        assert from_builtins(to_builtins(verdict), Verdict) == verdict
        incident = opened("i1", verdict, now=datetime(2025, 3, 1, tzinfo=UTC))
        assert decode(encode(incident), Incident) == incident


@given(st.lists(st.sampled_from(["stopped", "running", "unknown"]), min_size=4, max_size=4), st.floats(0, 100))
def test_any_job_state_survives_the_wire(processes, seconds):
    scenario = Scenario()
    for rank, process in enumerate(processes):
        scenario.sits(rank, phase="forward", process=process, seconds=seconds)
    job = scenario.job()
    assert decode(encode(job), JobState) == job


def test_steps_and_stalls_survive_the_wire():
    assert decode(encode(straggler_bundle().steps), JobSteps) == straggler_bundle().steps
    assert decode(encode(hang_bundle().stall), Stall) == hang_bundle().stall


def test_unknown_fields_are_ignored():
    document = json.loads(encode(hang_bundle().job))
    assert decode(json.dumps(document | {"added_later": 1}), JobState) == hang_bundle().job


@pytest.mark.parametrize("document", [b"", b"{", b"[1]", b'{"job": 3}', b"\xff"])
def test_damaged_json_is_told_in_one_sentence(document):
    with pytest.raises(EvidenceError, match=r"^Cannot read a JobState from JSON: .*\.$"):
        decode(document, JobState)


@pytest.mark.parametrize("make", BUNDLES)
def test_a_bundle_gives_the_same_verdict_again(make, tmp_path, capsys):
    bundle = make()
    verdicts = diagnose(bundle)
    write_bundle(tmp_path / "evidence.zip", bundle, verdicts)
    read, packed = read_bundle(tmp_path / "evidence.zip")
    assert diagnose(read) == packed == verdicts
    assert main(["bundle", str(tmp_path / "evidence.zip"), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["is_same_as_packed"] is True
    assert printed["verdicts"][0]["summary"] == verdicts[0].summary
    assert main(["bundle", str(tmp_path / "evidence.zip")]) == 1
    assert verdicts[0].summary in capsys.readouterr().out


def test_the_verdict_does_not_depend_on_when_it_is_made():
    bundle = hang_bundle()
    assert localise_hang(bundle.job, bundle.stall) == localise_hang(bundle.job, bundle.stall, bundle.hang)


def test_what_is_no_bundle_is_refused(tmp_path, capsys):
    (tmp_path / "text.zip").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("other.txt", "")
    for name in ("text.zip", "empty.zip", "missing.zip"):
        assert main(["bundle", str(tmp_path / name)]) == 3
        assert "give a bundle that Instep exported" in capsys.readouterr().err


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_bundle_with_any_bytes_changed_or_cut_is_read_or_told_in_one_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("odd") / "evidence.zip"
    write_bundle(path, gpu_bundle(), diagnose(gpu_bundle()))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))])
    try:
        assert read_bundle(path)[0].facts
    except EvidenceError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        ("[" * 100_000, "evidence.json in .* is not what it should be"),
        ('{"job": 3}', "evidence.json in .* is not what it should be"),
        ("{}", "holds no evidence of a job or a node"),
        ('{"version": 99}', "has format 99"),
    ],
)
def test_evidence_that_is_none_is_told_with_its_file(evidence, words, tmp_path):
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        archive.writestr("evidence.json", evidence)
        archive.writestr("verdicts.json", "[]")
    with pytest.raises(EvidenceError, match=words) as refused:
        read_bundle(tmp_path / "odd.zip")
    assert "odd.zip" in str(refused.value) and "\n" not in str(refused.value)


def test_an_encrypted_bundle_is_refused(tmp_path):
    path = tmp_path / "evidence.zip"
    write_bundle(path, gpu_bundle(), diagnose(gpu_bundle()))
    raw = path.read_bytes()
    for mark, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        parts = raw.split(mark)
        raw = mark.join([parts[0], *(part[: flag - 4] + b"\x01" + part[flag - 3 :] for part in parts[1:])])
    path.write_bytes(raw)
    with pytest.raises(EvidenceError, match="encrypted"):
        read_bundle(path)


def test_a_kernel_log_gives_one_object_for_each_line(tmp_path, capsys):
    log = tmp_path / "kern.log"
    log.write_text(f"usb 1-1: new device\n{XID_79}\n" + json.dumps({"line": XID_79.replace("79", "94")}) + "\n")
    assert main(["kernel-log", str(log), "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["kind"], row["code"], row["severity"]) for row in rows] == [
        ("none", None, None),
        ("xid", 79, "fatal"),
        ("xid", 94, "warning"),
    ]
    assert set(rows[0]) >= {"kind", "code", "pci", "severity", "workload", "action", "pid", "name", "link", "subcode"}
    log.write_text("usb 1-1: new device\n")
    assert main(["kernel-log", str(log)]) == 0
    assert capsys.readouterr().out == "No line tells of a fault, of 1.\n"


def test_a_log_that_was_rotated_and_packed_is_read_as_it_is(tmp_path, capsys):
    log = tmp_path / "kern.log.1.gz"
    log.write_bytes(gzip.compress(f"{XID_79}\n".encode()))
    assert main(["kernel-log", str(log), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["code"] == 79
    log.write_bytes(log.read_bytes()[:-12])
    assert main(["kernel-log", str(log), "--json"]) == 3
    assert capsys.readouterr().err.startswith(f"instep diagnose: Cannot read {log} (")


@pytest.mark.parametrize("form", ["--json", None])
def test_letters_that_the_locale_does_not_have_end_no_command(tmp_path, form):
    folder = os.fsencode(tmp_path / "dumps")
    os.mkdir(folder)
    Path(os.fsdecode(folder + b"/\xff_rank_0.json")).write_text("{")
    entry = {"record_id": 1, "collective_seq_id": 1, "profiling_name": "nccl:caf\u00e9", "state": "scheduled"}
    (tmp_path / "dumps" / "rank_1.json").write_text(json.dumps({"entries": [entry]}))
    program = "import sys; from instep_diagnosis.cli import main; raise SystemExit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", program, "flight-recorder", folder, *([form] if form else [])]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(words, env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, b"")
    if form:
        found = json.loads(done.stdout)
        assert "caf\u00e9" in found["verdict"] + str(found["evidence"])
    else:
        assert b"caf\\xe9" in done.stdout


def test_a_log_that_cannot_be_read_is_told(tmp_path, capsys):
    assert main(["kernel-log", str(tmp_path / "missing")]) == 3
    assert "Cannot read" in capsys.readouterr().err


def test_the_catalogue_shows_a_code(capsys):
    assert catalogue(["show", "xid", "94"]) == 0
    assert "Xid 94" in capsys.readouterr().out
    assert catalogue(["show", "xid", "79", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["severity"] == "fatal"
    assert catalogue(["show", "xid", "9999"]) == 1
