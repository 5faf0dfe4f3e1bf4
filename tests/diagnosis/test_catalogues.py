"""The catalogues keep their own rules, agree with their sources or say why not, and can be looked up."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_diagnosis import catalogue_page
from instep_diagnosis.catalogue_command import BOOKS, catalogue
from instep_diagnosis.catalogues import ACTIONS, CLASSES, CLEARED_BY_ACTION, CLEARS, sxid_catalogue, xid_catalogue
from instep_diagnosis.catalogues.patterns import kernel_patterns, nccl_patterns
from instep_diagnosis.catalogues.rules import nvlink_rules, recovery_actions, register_bits, repeat_rules
from instep_diagnosis.clock_reasons import clock_catalogue, clock_reasons
from instep_diagnosis.kernel_line import LineKind, read_kernel_line
from instep_diagnosis.log_lines import read_log_line
from instep_diagnosis.rdma_counters import Change, counter_catalogue, read_counter

ROOT = Path(__file__).parents[2]
SHEET_ACTIONS = {
    "IGNORE": "none",
    "RESTART_APP": "restart-app",
    "RESET_GPU": "reset-gpu",
    "RESTART_BM": "reboot-node",
    "RESTART_VM": "reboot-node",
    "CONTACT_SUPPORT": "contact-support",
    "UPDATE_SWFW": "contact-support",
    "CHECK_MECHANICALS": "contact-support",
}


def shared(*names):
    path = Path(os.environ.get("INSTEP_SHARED_DATA") or ROOT.parent / "shared" / "data").joinpath(*names)
    if not path.exists():
        pytest.skip(f"Needs the recorded {names[0]}: set INSTEP_SHARED_DATA to the folder that holds it.")
    return path


def test_every_xid_of_the_sheet_has_a_row():
    assert set(xid_catalogue().rows) == set(range(1, 173))
    assert all(row.name for row in xid_catalogue().rows.values())


@pytest.mark.parametrize("book", [xid_catalogue(), sxid_catalogue()], ids=["xid", "sxid"])
def test_every_coded_row_is_complete(book):
    assert re.fullmatch(r"\d{4}-\d{2}\.\d+", book.version)
    for row in book.rows.values():
        assert row.severity in ("fatal", "warning", None)
        assert row.workload in ("fails", "survives", "unknown")
        assert row.action in ACTIONS and row.class_ in CLASSES
        assert row.text and row.source
        assert (row.severity == "fatal") <= bool(row.clears), f"{row.code}: a fatal fault must stand"
        assert not row.clears or "person" in row.clears


def test_what_ends_a_fault_is_known():
    codes = {f"xid-{code}" for code in xid_catalogue().rows} | {f"sxid-{code}" for code in sxid_catalogue().rows}
    for book in (xid_catalogue(), sxid_catalogue()):
        for row in book.rows.values():
            assert set(row.clears) <= {*CLEARS, *codes}
    assert set(CLEARED_BY_ACTION) == set(ACTIONS)


def test_actions_follow_the_sheet_or_say_why_not():
    sheet = json.loads(shared("kernel-log", "xid-catalogue-2025-10.json").read_text())
    for code, entry in sheet.items():
        row, expected = xid_catalogue().rows[int(code)], SHEET_ACTIONS.get(entry["immediate"])
        assert expected in (row.action, None) or row.differs, code


def test_a_reset_that_is_not_fatal_says_why():
    for row in xid_catalogue().rows.values():
        if row.action in ("reset-gpu", "reboot-node") and row.severity != "fatal":
            assert row.differs, row.code


@pytest.mark.parametrize("book", [kernel_patterns(), nccl_patterns()], ids=["kernel", "nccl"])
def test_each_example_belongs_to_its_own_row_and_to_no_other(book):
    for row in book.rows.values():
        assert row.examples and row.text and row.source
        for example in row.examples:
            assert [other.name for other in book.rows.values() if other.pattern.search(example)] == [row.name], example


@pytest.mark.parametrize("name", kernel_patterns().rows)
def test_an_example_of_the_kernel_is_read_behind_any_prefix(name):
    for example in kernel_patterns().rows[name].examples:
        for prefix in ("", "[  812.004512] ", "2025-03-01T10:22:33,120000+00:00 ", "4,1207,812004512,-;"):
            line = read_kernel_line(prefix + example)
            assert (line.kind, line.text) == (LineKind.OTHER, name)


def test_rules_are_complete():
    assert set(recovery_actions()) == set(range(8))
    assert {code for rule in repeat_rules() for code in rule.codes} == {13, 31, 63, 74, 92, 94}
    assert {rule.xid for rule in nvlink_rules()} == set(range(144, 151))
    assert {row.register for row in register_bits()} == {1, 3, 4, 5}
    for rule in (*recovery_actions().values(), *repeat_rules(), *nvlink_rules(), *register_bits()):
        assert rule.text and rule.source


def test_every_counter_of_a_real_node_has_a_row():
    folder = shared("infiniband")
    names = {path.name for path in folder.rglob("*") if path.parent.name in ("counters", "hw_counters")}
    assert names and names <= set(counter_catalogue().rows)


@pytest.mark.parametrize(
    ("name", "maximum"),
    [
        ("link_downed", 255),
        ("symbol_error", 65535),
        ("local_link_integrity_errors", 15),
        ("port_xmit_wait", None),
        ("out_of_sequence", None),
    ],
)
def test_a_counter_has_its_maximum(name, maximum):
    assert counter_catalogue().rows[name].saturates_at == maximum


@pytest.mark.parametrize(
    ("name", "before", "now", "change", "rise"),
    [
        ("link_downed", 3, 3, Change.SAME, 0),
        ("link_downed", 3, 5, Change.RISE, 2),
        ("link_downed", None, 7, Change.SAME, 0),
        ("link_downed", 9, 2, Change.CLEARED, 2),
        ("link_downed", 250, 255, Change.SATURATED, 5),
        ("link_downed", 255, 255, Change.SATURATED, 0),
        ("port_xmit_wait", 2**32 - 10, 5, Change.RISE, 15),
        ("port_xmit_wait", 1000, 5, Change.CLEARED, 5),
        ("port_xmit_wait", 2**32 + 1, 0, Change.CLEARED, 0),
        ("port_xmit_data", 2**63, 8, Change.CLEARED, 8),
    ],
)
def test_two_readings_tell_a_rise_from_a_new_start_and_from_blindness(name, before, now, change, rise):
    reading = read_counter(counter_catalogue().rows[name], before, now)
    assert (reading.change, reading.rise) == (change, rise)


@given(st.sampled_from(sorted(counter_catalogue().rows)), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_rise_is_never_negative(name, before, now):
    assert read_counter(counter_catalogue().rows[name], before, now).rise >= 0


@given(st.integers(0, 2**16))
def test_the_bits_of_a_mask_are_all_told(mask):
    assert sum(reason.bit for reason in clock_reasons(mask)) == mask


def test_clock_reasons_have_their_kinds():
    kinds = {bit: row.kind for bit, row in clock_catalogue().rows.items()}
    assert kinds == {
        0x1: "benign",
        0x2: "benign",
        0x4: "power",
        0x8: "brake",
        0x10: "benign",
        0x20: "thermal",
        0x40: "thermal",
        0x80: "brake",
        0x100: "benign",
    }


def test_a_line_of_torch_gives_the_collective_and_marks_the_victim():
    work = "WorkNCCL(SeqNum=17, OpType=ALLREDUCE, NumelIn=4, NumelOut=4, Timeout(ms)=600000)"
    text = f"Watchdog caught collective operation timeout: {work} ran for 600012 milliseconds before timing out."
    line = read_log_line(f"[rank3]:[E1101 10:22:33] [PG 0 Rank 3] {text}")
    assert (line.row.name, line.fields["seq"], line.fields["op"]) == ("collective-timeout", "17", "ALLREDUCE")
    assert line.row.is_victim


@pytest.mark.parametrize("text", ["", "NCCL INFO Channel 00 : 0 1 2 3", "epoch 3 loss 1.25", "\0" * 9000])
def test_a_healthy_line_of_a_rank_says_nothing(text):
    assert read_log_line(text) is None


@given(st.text(max_size=300))
def test_no_text_breaks_the_matcher_of_log_lines(text):
    read_log_line(text)
    read_log_line("NET/IB: Got completion from peer " + text)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["xid", "94"], {"code": 94, "severity": "warning", "action": "restart-app"}),
        (["sxid", "12028"], {"code": 12028, "severity": "warning"}),
        (["rdma", "symbol_error"], {"kind": "error", "saturates_at": 65535}),
        (["rdma", "port_xmit_wait"], {"kind": "congestion", "saturates_at": None}),
        (["clock", "0x40"], {"name": "hardware-thermal", "kind": "thermal"}),
        (["nccl", "peer-socket-closed"], {"victim": True}),
        (["nccl", "WARN Socket recv failed while polling for x"], {"name": "peer-socket-closed"}),
        (["kernel", "oom-kill"], {"owner": "job"}),
        (["recovery", "2"], {"action": "reboot-node"}),
        (["reading", "ecc-uncorrected"], {"means": "xid 48", "part_of": [48, 64, 94, 95, 140]}),
        (["reading", "gpu-missing"], {"means": "kernel gpu-lost", "part_of": [79]}),
    ],
)
def test_an_entry_is_shown_with_its_source_and_version(arguments, expected, capsys):
    assert catalogue(["show", *arguments, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {name: shown[name] for name in expected} == expected
    assert shown["source"] and shown["version"]
    assert catalogue(["show", *arguments]) == 0
    assert shown["text"] in capsys.readouterr().out


def test_a_mask_shows_each_of_its_bits(capsys):
    assert catalogue(["show", "clock", "0x44", "--json"]) == 0
    assert [one["bit"] for one in json.loads(capsys.readouterr().out)] == ["0x4", "0x40"]


@pytest.mark.parametrize("kind", BOOKS)
def test_every_kind_is_listed_and_printed(kind, capsys):
    assert catalogue(["list", kind]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(BOOKS[kind]().entries)
    assert catalogue(["list", kind, "--json"]) == 0
    assert all(row["version"] and row["source"] for row in json.loads(capsys.readouterr().out))


def test_an_unknown_key_ends_with_one_and_a_hint(capsys):
    assert catalogue(["show", "rdma", "symbol_eror"]) == 1
    assert "did you mean symbol_error?" in capsys.readouterr().err
    assert catalogue(["show", "xid", "9999"]) == 1
    assert "instep catalogue list xid" in capsys.readouterr().err


ROW = """
version = "2030-01.1"
[sources]
ours = "this test"
[[row]]
codes = [{codes}]
severity = "{severity}"
workload = "fails"
action = "{action}"
class = "hardware"
text = "a newer row"
{source}
"""


def show_with(folder, **changed):
    values = {"codes": "79", "severity": "fatal", "action": "reset-gpu", "source": 'source = ["ours"]'} | changed
    (folder / "xid.toml").write_text(ROW.format(**values))
    program = "from instep_diagnosis.cli import catalogue; raise SystemExit(catalogue(['show', 'xid', '79', '--json']))"
    environment = os.environ | {"INSTEP_CATALOGUES": str(folder)}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)


def test_a_file_in_the_folder_replaces_the_one_that_came_with_the_release(tmp_path):
    (tmp_path / "clock.toml").write_text((ROOT / "diagnosis/instep_diagnosis/catalogues/clock.toml").read_text())
    text = (ROOT / "diagnosis/instep_diagnosis/catalogues/xid.toml").read_text()
    (tmp_path / "xid.toml").write_text(text.replace('version = "', 'version = "2030-'))
    program = "from instep_diagnosis.cli import catalogue; raise SystemExit(catalogue(['show', 'xid', '79', '--json']))"
    environment = os.environ | {"INSTEP_CATALOGUES": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["version"].startswith("2030-")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"severity": "terrible"}, "has severity 'terrible'"),
        ({"action": "reset"}, "has action 'reset'"),
        ({"codes": "79, 79"}, "holds a code twice"),
        ({"source": 'source = ["nobody"]'}, "names no source"),
        ({"source": ""}, "lacks source"),
        ({"codes": "79 80"}, "Cannot read catalogue xid.toml"),
    ],
)
def test_a_file_that_breaks_its_rules_is_refused_with_one_sentence(changed, said, tmp_path):
    run = show_with(tmp_path, **changed)
    assert run.returncode == 3
    assert said in run.stderr and len(run.stderr.splitlines()) == 1


def test_the_page_is_the_data():
    page = (ROOT / "docs/reference/catalogues.md").read_text(encoding="utf-8")
    assert page == catalogue_page.page(), "run make docs"
