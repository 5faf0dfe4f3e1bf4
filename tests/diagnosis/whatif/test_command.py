"""`instep whatif` from the outside: files in, text and files out, and one sentence where it cannot look."""

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from instep_diagnosis.whatif.optypes import OPTYPES
from instep_diagnosis.whatif.synthetic import Plan, synthetic_trace
from instep_diagnosis.whatif.trace import Layout
from instep_diagnosis.whatif_cli import main

LAYOUT = Layout(2, 2)
META = "pp_size: 2\ndp_size: 2\ntrial_name: small\n"


def seconds(step, kind, stage, dp, number):
    if not kind.endswith("compute"):
        return 0.01
    return 0.1 * (1.5 if (stage, dp) == (1, 0) else 1)


def table():
    trace, _ = synthetic_trace(Plan(LAYOUT, 4), seconds, 3)
    columns = {"dp_rank": trace.dp_N, "stage": trace.stage_N, "step": trace.step_N, "seq_id": trace.seq_N}
    columns |= {"start_ts": trace.start_seconds_N, "duration": trace.duration_seconds_N, "mc": trace.chunk_N}
    return pa.table({**columns, "optype": [OPTYPES[code] for code in trace.optype_N]})


@pytest.fixture
def files(tmp_path):
    trace, meta = tmp_path / "trace.parquet", tmp_path / "meta.yaml"
    pq.write_table(table(), trace)
    meta.write_text(META)
    return trace, meta


def replaced(name, values):
    whole = table()
    return whole.set_column(whole.column_names.index(name), name, values)


def refusal(capsys, *arguments):
    """The one sentence on standard error of a command that could not look."""
    assert main([str(argument) for argument in arguments]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("instep whatif: ")
    assert lines[0].endswith(".")
    return lines[0]


def test_text_names_the_slow_worker_first(files, capsys):
    trace, meta = files
    assert main([str(trace), "--meta", str(meta)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("small: 3 steps, 2 stages x 2 DP ranks.")
    assert text.split("Slowdown by worker")[1].splitlines()[1].endswith("stage 1, DP rank 0")


def test_json_on_standard_output_has_every_promised_name(files, capsys):
    trace, meta = files
    assert main([str(trace), "--meta", str(meta), "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"slowdown", "launch_slowdown", "m_w", "m_s"} <= document.keys()
    assert sorted(document["slowdown_by_stage"]) == sorted(document["slowdown_by_dp_rank"]) == ["0", "1"]
    assert "forward-pp-comm" in document["slowdown_by_optype"]
    assert np.shape(document["slowdown_by_worker"]) == (2, 2)


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_both_engines_print_the_same(files, capsys, engine):
    trace, meta = files
    main([str(trace), "--meta", str(meta), "--json", "-"])
    plain = capsys.readouterr().out
    assert main([str(trace), "--meta", str(meta), "--json", "-", "--engine", engine]) == 0
    assert capsys.readouterr().out == plain


def test_heatmap_is_a_picture(files, tmp_path):
    trace, meta = files
    picture = tmp_path / "workers.png"
    assert main([str(trace), "--meta", str(meta), "--heatmap", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_hostile_name_reaches_neither_the_terminal_nor_the_picture(files, tmp_path, capsys):
    files[1].write_text('pp_size: 2\ndp_size: 2\ntrial_name: "a\\e[2J$\\\\frac{$"\n')
    assert main([str(files[0]), "--meta", str(files[1]), "--heatmap", str(tmp_path / "workers.png")]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_timeline_shows_a_step_as_recorded_and_ideal(files, tmp_path):
    trace, meta = files
    out = tmp_path / "step.json"
    assert main([str(trace), "--meta", str(meta), "--timeline", str(out), "--step", "1"]) == 0
    events = json.loads(out.read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {f"stage {s}, {who}" for s in (0, 1) for who in ("ideal", "DP rank 0", "DP rank 1")}
    spans = [event for event in events if event["ph"] == "X"]
    assert sum(event["cat"] == "recorded" for event in spans) == 2 * sum(event["cat"] == "ideal" for event in spans)
    slow = {event["pid"]: event["dur"] for event in spans if event["name"] == "forward-compute"}
    assert sorted(slow.values()) == pytest.approx([100e3, 100e3, 100e3, 112.5e3, 112.5e3, 150e3])
    last = {cat: max(e["ts"] + e["dur"] for e in spans if e["cat"] == cat) for cat in ("recorded", "ideal")}
    assert last["ideal"] < last["recorded"]


def test_spans_of_one_thread_of_the_timeline_do_not_overlap(files, tmp_path):
    trace, meta = files
    out = tmp_path / "step.json"
    main([str(trace), "--meta", str(meta), "--timeline", str(out)])
    threads = {}
    for event in json.loads(out.read_text())["traceEvents"]:
        if event["ph"] == "X":
            threads.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    for spans in threads.values():
        spans.sort()
        assert all(end <= start + 1e-3 for (_, end), (start, _) in pairwise(spans))


def test_operations_of_one_stream_that_overlap_have_rows_of_their_own(files, tmp_path):
    trace, meta = files
    whole = table()
    is_gather = np.array([name == "params-all-gather" for name in whole["optype"].to_pylist()])
    longer = np.where(is_gather, 1.44, whole["duration"].to_numpy())
    pq.write_table(replaced("duration", pa.array(longer)), trace)
    out = tmp_path / "step.json"
    assert main([str(trace), "--meta", str(meta), "--timeline", str(out)]) == 0
    events = json.loads(out.read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert "parameters and gradients, beside 1" in names
    gathers = [event for event in events if event["name"] == "params-all-gather" and event["cat"] == "recorded"]
    assert [event["dur"] for event in gathers] == pytest.approx([1440e3] * len(gathers))


def test_a_step_that_is_not_there_is_refused(files, tmp_path, capsys):
    trace, meta = files
    assert "no complete step 9" in refusal(capsys, trace, "--meta", meta, "--timeline", tmp_path / "f", "--step", 9)


def test_an_incomplete_step_is_left_out_and_named(files, capsys):
    trace, meta = files
    whole = table()
    pq.write_table(whole.filter(pa.array(np.arange(len(whole)) != 5)), trace)
    assert main([str(trace), "--meta", str(meta), "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["steps"], document["dropped_steps"]) == (2, [0])


def test_kinds_of_other_recorders_are_left_out(files, capsys):
    trace, meta = files
    main([str(trace), "--meta", str(meta), "--json", "-"])
    plain = capsys.readouterr().out
    whole = table()
    other = whole.slice(0, 7).set_column(whole.column_names.index("optype"), "optype", pa.array(["data-loading"] * 7))
    pq.write_table(pa.concat_tables([other, whole]), trace)
    assert main([str(trace), "--meta", str(meta), "--json", "-"]) == 0
    assert capsys.readouterr().out == plain


def test_results_that_cannot_be_written_are_an_error(files, tmp_path, capsys):
    trace, meta = files
    for option in ("--json", "--timeline", "--heatmap"):
        assert "Cannot write" in refusal(capsys, trace, "--meta", meta, option, tmp_path / "no" / "such.png")
        (tmp_path / "folder").mkdir(exist_ok=True)
        assert "Is a directory" in refusal(capsys, trace, "--meta", meta, option, tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("folder")) == ["folder"]


def test_a_trace_needs_its_meta_file(files, tmp_path, capsys):
    assert "--meta" in refusal(capsys, files[0])
    assert "No such file" in refusal(capsys, files[0], "--meta", tmp_path / "none.yaml")
    assert "No such file" in refusal(capsys, tmp_path / "none.parquet", "--meta", files[1])


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ("pp_size: 2\n", "lacks dp_size"),
        ("pp_size: two\ndp_size: 2\n", "no whole number under pp_size"),
        ("pp_size: true\ndp_size: 2\n", "no whole number under pp_size"),
        ("pp_size: 0\ndp_size: 2\n", "pp_size is 0"),
        ("pp_size: 2\ndp_size: -1\n", "dp_size is -1"),
        ("pp_size: 1000\ndp_size: 2\n", "from 1 to 256"),
        ("pp_size: 256\ndp_size: 10000\n", "at most 16384"),
        ("pp_size: 2\ndp_size: 2\nvpp_size: 99999\n", "vpp_size is 99999"),
        ("- 1\n", "holds no mapping"),
        ("{pp_size: [", "is no YAML"),
        ("[" * 5000, "is no YAML"),
        ("!!python/object/apply:os.getcwd []", "is no YAML"),
        ("a" * 70_000, "larger than"),
        ("pp_size: 1\ndp_size: 2\n", "column stage holds 1"),
        ("pp_size: 2\ndp_size: 1\n", "column dp_rank holds 1"),
        ("pp_size: 2\ndp_size: 3\n", "No step of the trace is complete"),
        ("pp_size: 3\ndp_size: 2\n", "transfers"),
    ],
)
def test_a_wrong_meta_file_is_refused(files, capsys, meta, words):
    files[1].write_text(meta)
    if words == "transfers":  # the last stage of three would send, and nobody of the trace receives
        assert "operations" in refusal(capsys, files[0], "--meta", files[1])
    else:
        assert words in refusal(capsys, files[0], "--meta", files[1])


ROWS = len(table())


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("duration", pa.array([-1.0] + [0.1] * (ROWS - 1)), "column duration holds -1"),
        ("duration", pa.array([float("nan")] + [0.1] * (ROWS - 1)), "column duration holds nan"),
        ("duration", pa.array([float("inf")] + [0.1] * (ROWS - 1)), "column duration holds inf"),
        ("duration", pa.array([0.0] * ROWS), "take no time"),
        ("duration", pa.array([None] + [0.1] * (ROWS - 1)), "1 rows without duration"),
        ("duration", pa.array(["long"] * ROWS), "seconds are needed"),
        ("start_ts", pa.array([float("nan")] * ROWS), "column start_ts holds nan"),
        ("start_ts", pa.array([1e300] * ROWS), "column start_ts holds 1e+300"),
        ("step", pa.array([0.5] * ROWS), "whole numbers are needed"),
        ("step", pa.array([None] * ROWS, pa.int64()), "rows without step"),
        ("step", pa.array([2**64 - 1] * ROWS, pa.uint64()), "in step that are too large"),
        ("seq_id", pa.array([2**40] * ROWS), "column seq_id holds"),
        ("seq_id", pa.array([0] * ROWS), "complete"),
        ("dp_rank", pa.array([-1] * ROWS), "column dp_rank holds -1"),
        ("mc", pa.array([7] * ROWS), "column mc holds 7"),
        ("optype", pa.array([1] * ROWS), "in its column optype"),
        ("optype", pa.array(["nothing"] * ROWS), "no operation of a known kind"),
        ("optype", pa.array([f"kind {n}" for n in range(ROWS)]), "no operation of a known kind"),
        ("optype", pa.array([None] + ["gc"] * (ROWS - 1)), "rows without optype"),
        ("optype", pa.array([b"\xff\xfe"] * ROWS, pa.binary()), "optype"),
    ],
)
def test_values_that_no_trace_has_are_refused(files, capsys, name, values, words):
    trace, meta = files
    pq.write_table(replaced(name, values), trace)
    assert words in refusal(capsys, trace, "--meta", meta)


@pytest.mark.parametrize("name", ["dp_rank", "stage", "step", "optype", "start_ts", "duration", "seq_id"])
def test_a_missing_column_is_named(files, capsys, name):
    pq.write_table(table().drop_columns([name]), files[0])
    assert f"needs one column {name}" in refusal(capsys, files[0], "--meta", files[1])


def test_names_that_are_no_text_are_refused(files, capsys):
    damaged = pa.array([b"forward-\x80"] + [b"optimizer"] * (ROWS - 1), pa.binary()).view(pa.string())
    pq.write_table(replaced("optype", damaged), files[0])
    assert "no UTF-8 in its column optype" in refusal(capsys, files[0], "--meta", files[1])


def test_model_chunks_are_needed_only_with_more_than_one(files, capsys):
    pq.write_table(table().drop_columns(["mc"]), files[0])
    assert main([str(files[0]), "--meta", str(files[1]), "--json", "-"]) == 0
    capsys.readouterr()
    files[1].write_text(META + "vpp_size: 2\n")
    assert "needs one column mc" in refusal(capsys, files[0], "--meta", files[1])


def test_a_circle_of_dependencies_is_refused(files, capsys):
    """Reductions recorded the wrong way round: by time the second comes first, by number the first."""
    trace, _ = synthetic_trace(Plan(Layout(1, 2, 2), 4), seconds, 1)
    starts = trace.start_seconds_N.copy()
    code = OPTYPES.index("grads-reduce-scatter")
    for rank in (0, 1):
        rows = np.flatnonzero((trace.optype_N == code) & (trace.dp_N == rank))
        starts[rows] = starts[rows[::-1]]
    columns = {"dp_rank": trace.dp_N, "stage": trace.stage_N, "step": trace.step_N, "seq_id": trace.seq_N}
    columns |= {"start_ts": starts, "duration": trace.duration_seconds_N, "mc": trace.chunk_N}
    pq.write_table(pa.table({**columns, "optype": [OPTYPES[kind] for kind in trace.optype_N]}), files[0])
    files[1].write_text("pp_size: 1\ndp_size: 2\nvpp_size: 2\n")
    assert "form a circle through" in refusal(capsys, files[0], "--meta", files[1])


def test_truncated_files_are_refused(files, capsys):
    raw = files[0].read_bytes()
    for length in (0, 3, 100, len(raw) // 2, len(raw) - 1):
        files[0].write_bytes(raw[:length])
        assert "Parquet" in refusal(capsys, files[0], "--meta", files[1])


def test_without_the_extra_one_sentence_says_what_to_install(files):
    """Modules of the extra are hidden from a fresh interpreter, one at a time."""
    program = (
        "import sys; hidden = sys.argv.pop(1); sys.modules[hidden] = None\n"
        "from instep_diagnosis.whatif_cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for hidden, more in (("numpy", []), ("pyarrow", []), ("yaml", []), ("numba", ["--engine", "numba"])):
        command = [sys.executable, "-c", program, hidden, str(files[0]), "--meta", str(files[1]), *more]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert run.returncode == 3, run.stderr
        assert "pip install 'instep[whatif]'" in run.stderr
        assert len(run.stderr.splitlines()) == 1
