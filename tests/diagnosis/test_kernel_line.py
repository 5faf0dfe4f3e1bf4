"""What a kernel log line says, whatever stands before it, and what it means."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_diagnosis.catalogues import ACTIONS, sxid_catalogue, xid_catalogue
from instep_diagnosis.kernel_faults import assess
from instep_diagnosis.kernel_line import KernelLine, LineKind, read_kernel_line

PREFIXES = [
    "",
    "[  812.004512] ",
    "[Sat Mar  1 10:22:33 2025] ",
    "2025-03-01T10:22:33,120000+00:00 ",
    "4,1207,812004512,-;",
    "kern  :err   : 2025-03-01T10:22:33,120000+00:00 ",
    "Mar  1 10:22:33 node-a kernel: ",
]
XID = "NVRM: Xid (PCI:0000:3B:00): {code}, pid=4242, name=python, {text}"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_is_allowed(prefix):
    line = read_kernel_line(prefix + XID.format(code=79, text="GPU has fallen off the bus."))
    expected = (LineKind.XID, 79, "0000:3b:00", 4242, "python")
    assert (line.kind, line.code, line.pci, line.pid, line.name) == expected


def test_what_is_not_said_is_none():
    line = read_kernel_line("NVRM: Xid (PCI:0000:3b:00): 13, pid='<unknown>', name=<unknown>, Graphics Exception")
    assert (line.code, line.pid, line.name, line.link, line.subcode) == (13, None, None, None, None)


def test_an_nvlink_event_has_link_and_subcode():
    text = "RLW_REMAP Nonfatal XC0 i1 Link 07 (0x02600006 0x00000001 0x0 0x0)"
    line = read_kernel_line(f"NVRM: Xid (PCI:0000:3b:00): 145, {text}")
    assert (line.link, line.subcode, line.is_injected) == (7, 38, True)


def test_a_switch_line_is_an_sxid():
    line = read_kernel_line("nvidia-nvswitch2: SXid (PCI:0000:0a:00.0): 20034, Fatal, Link 30 LTSSM Fault Up")
    assert (line.kind, line.code, line.pci, line.link) == (LineKind.SXID, 20034, "0000:0a:00.0", 30)
    assert assess(line).severity == "fatal"


def test_a_lost_gpu_without_a_number_is_a_fault_line():
    line = read_kernel_line("NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.")
    assert (line.kind, line.code, line.pci) == (LineKind.OTHER, None, "0000:3b:00.0")
    assert assess(line).severity == "fatal"


@pytest.mark.parametrize(
    "text",
    ["", "NVRM: Xid (invalid): 79", "NVRM: loading NVIDIA UNIX Open Kernel Module 570.1", "usb 1-1: Xid 79", "Xid 79"],
)
def test_look_alikes_say_nothing(text):
    assert read_kernel_line(text) == KernelLine(LineKind.NONE)
    assert assess(read_kernel_line(text)) is None


@given(st.text(max_size=300))
def test_no_text_breaks_the_matcher(text):
    assess(read_kernel_line(text))
    assess(read_kernel_line(XID.format(code=145, text=text)))


def severity(code, text="something"):
    return assess(read_kernel_line(XID.format(code=code, text=text))).severity


@pytest.mark.parametrize("code", [48, 62, 64, 79, 95, 119, 120, 140, 143, 158])
def test_faults_of_the_gpu_are_fatal(code):
    assert severity(code) == "fatal"


@pytest.mark.parametrize("code", [13, 31, 43, 45, 63, 94, 121, 137, 9999])
def test_application_errors_and_unknown_codes_are_not(code):
    assert severity(code) != "fatal"


def test_the_recovery_action_decides():
    assert severity(154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)") == "fatal"
    assert severity(154, "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)") is None
    reboot = read_kernel_line(XID.format(code=154, text="recovery action changed from 0x0 (None) to 0x2 (Node Reboot)"))
    assert assess(reboot).action == "reboot-node"


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (74, "NVLink: fatal error detected on link 6(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)", "fatal"),
        (74, "NVLink: fatal error detected on link 6(0x1, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)", "warning"),
        (74, "NVLink: non-fatal error on link 6(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)", "warning"),
        (149, "NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x02500011 0x0)", "fatal"),
        (149, "NETIR_BER_EVENT Nonfatal XC0 i0 Link 01 (0x00082226 0x1)", "warning"),
    ],
)
def test_the_line_tells_fatal_from_nonfatal(code, text, expected):
    assert severity(code, text) == expected


def test_every_row_is_complete_and_names_its_source():
    for catalogue in (xid_catalogue(), sxid_catalogue()):
        assert catalogue.version
        for row in catalogue.rows.values():
            assert row.severity in ("fatal", "warning", None)
            assert row.workload in ("fails", "survives", "unknown")
            assert row.action in ACTIONS
            assert row.text and row.source


def shared_lines():
    root = Path(os.environ.get("INSTEP_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")
    return root / "kernel-log" / "lines.jsonl"


def test_recorded_lines_are_read_as_labelled():
    path = shared_lines()
    if not path.exists():
        pytest.skip("Needs the recorded kernel lines: set INSTEP_SHARED_DATA to the folder that holds kernel-log/.")
    for text in path.read_text(encoding="utf-8").splitlines():
        label = json.loads(text)
        line = read_kernel_line(label["line"])
        for name in ("kind", "code", "pci", "link", "subcode"):
            if label[name] is not None:
                assert getattr(line, name) == label[name], label["line"]
