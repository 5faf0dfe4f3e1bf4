"""What a kernel log line says, whatever stands before it, and what it means."""

import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_diagnosis.cli import main
from instep_diagnosis.kernel_faults import assess
from instep_diagnosis.kernel_line import KernelLine, LineKind, read_kernel_line, read_kernel_lines

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


LOST = """\
[ 1843.308145] NVRM: The NVIDIA GPU 0000:B3:00.0
{between}               NVRM: (PCI ID: 10de:26b5) installed in this system has
               NVRM: fallen off the bus and is not responding to commands.
[ 1843.439662] NVRM: The NVIDIA probe routine failed for 1 device(s)."""


@pytest.mark.parametrize("between", ["", "usb 1-1: new device\n", "mlx5_core 0000:ab:00.0 mlx5_5: Port: 1 Link DOWN\n"])
def test_a_gpu_lost_over_several_lines_has_its_address(between):
    found = [line for line in read_kernel_lines(LOST.format(between=between).splitlines()) if line.text == "gpu-lost"]
    assert [(line.kind, line.pci) for line in found] == [(LineKind.OTHER, "0000:b3:00.0")]


def test_a_loss_broken_anywhere_between_words_is_found():
    text = "(PCI ID: 10de:26b5) installed in this system has fallen off the bus and is not responding"
    words = text.split()
    for at in range(1, len(words)):
        lines = ["NVRM: The NVIDIA GPU 0000:b3:00.0", *(f"NVRM: {' '.join(part)}" for part in (words[:at], words[at:]))]
        assert "gpu-lost" in [line.text for line in read_kernel_lines(lines)], at


def test_an_address_is_not_kept_for_a_later_loss():
    lines = ["NVRM: The NVIDIA GPU 0000:b3:00.0", *["usb 1-1: new device"] * 40, "NVRM: fallen off the bus."]
    assert list(read_kernel_lines(lines))[-1].pci is None


@given(st.lists(st.sampled_from([*LOST.format(between="").splitlines(), XID.format(code=79, text="x"), "usb", ""])))
def test_a_log_gives_one_answer_for_each_line(lines):
    assert len(list(read_kernel_lines(lines))) == len(lines)


@pytest.mark.parametrize(
    ("line", "code", "pci"),
    [
        ("NVRM: Xid (0000:03:00): 31, Ch 00000010", 31, "0000:03:00"),
        ("NVRM: Xid (PCI:0000:41:00 GPU-I:05): 13, pid=7, name=python, Graphics Exception", 13, "0000:41:00"),
        ("NVRM: Xid (PCI:00000000:41:00.0): 79, x", 79, "00000000:41:00.0"),
    ],
)
def test_addresses_of_old_drivers_and_of_instances_are_read(line, code, pci):
    assert (read_kernel_line(line).code, read_kernel_line(line).pci) == (code, pci)


def test_a_date_that_looks_like_an_address_is_none():
    line = read_kernel_line("[01/Mar/2025:10:22:33 +0000] NVRM: fallen off the bus and is not responding to commands.")
    assert (line.text, line.pci) == ("gpu-lost", None)


def test_the_unit_of_an_exception_is_read():
    assert read_kernel_line(XID.format(code=13, text="Warp Exception on (GPC 9, TPC 5, SM 0)")).unit == "GPC 9, TPC 5"


@pytest.mark.parametrize(
    ("text", "severity", "action"),
    [
        ("from 0x0 (None) to 0x1 (PF FLR)", "fatal", "reset-gpu"),
        ("from 0x0 (None) to 0x2 (OS Reboot)", "fatal", "reboot-node"),
        ("from 0x0 (None) to 0x3 (Drain P2P)", "fatal", "reset-gpu"),
        ("from 0x0 (None) to 0x4 (Drain and Reset)", "fatal", "reset-gpu"),
        ("from None to Node Reboot Required", "fatal", "reboot-node"),
        ("from 0x0 to 0x7", "fatal", "reboot-node"),
        ("from 0x0 (None) to 0x9 (Something New)", "fatal", "reset-gpu"),
        ("from 0x2 (Node Reboot Required) to 0x0 (None)", None, "none"),
        ("", None, "none"),
    ],
)
def test_every_recovery_action_is_understood(text, severity, action):
    fault = assess(read_kernel_line(XID.format(code=154, text=f"GPU recovery action changed {text}")))
    assert (fault.severity, fault.action) == (severity, action)


@pytest.mark.parametrize(
    ("code", "text", "severity", "action"),
    [
        (145, "RLW_REMAP Nonfatal XC1 i0 Link 02 (0x00000004 0x00000001 0x0)", "warning", "restart-app"),
        (145, "RLW_REMAP Fatal XC1 i0 Link 02 (0x00000004 0x00000040 0x0)", "fatal", "reset-gpu"),
        (146, "TLW_TX/TLW_TX_PIPE1 Nonfatal XC0 i0 Link 00 (0x0000000d 0x00000001 0x0)", "warning", "none"),
        (149, "NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x026001c6 0x0 0x0)", "warning", "none"),
        (149, "NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x021425c6 0x0 0x0)", "fatal", "reset-gpu"),
        (150, "SOMETHING_NEW Fatal XC0 i0 Link 00 (0x0 0x0)", "fatal", "reset-gpu"),
        (150, "SOMETHING_NEW Nonfatal XC0 i0 Link 00 (0x0 0x0)", "warning", "none"),
    ],
)
def test_an_nvlink_event_is_decoded(code, text, severity, action):
    fault = assess(read_kernel_line(XID.format(code=code, text=text)))
    assert (fault.severity, fault.action) == (severity, action)


@pytest.mark.parametrize(("reason", "blamed"), [(37, "peer"), (42, "cable"), (15, "software"), (1, "inside")])
def test_a_link_that_went_down_says_whose_fault_it_was(reason, blamed):
    word = (reason << 20) | 0x11
    text = f"NETIR_LINK_EVT Fatal XC0 i0 Link 1 ({word:#010x} 0x0)"
    fault = assess(read_kernel_line(XID.format(code=149, text=text)))
    assert blamed in fault.text and fault.severity == "fatal"


@pytest.mark.parametrize(
    ("line", "severity"),
    [
        ("nvidia-nvswitch1: SXid (PCI:0000:0a:00.0): 22013, Non-fatal, Link 57 Minion Link DLREQ interrupt", None),
        ("nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 egress PRIV error", "warning"),
        ("nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 23008, Non-fatal, Link 32 x", "fatal"),
        ("nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 11013, Fatal, Link 32 x", "fatal"),
        ("nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 11013, Non-fatal, Link 32 x", "warning"),
        ("nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 99999, Fatal, x", "fatal"),
        ("nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 99999, Non-fatal, x", "warning"),
        ("nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 11012, x", None),
    ],
)
def test_a_switch_line_has_the_severity_of_its_word_and_its_row(line, severity):
    assert assess(read_kernel_line(line)).severity == severity


def diagnosed(content, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    status = main(["kernel-log", "-", "--json"])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_command_gives_one_object_for_each_raw_or_json_line(monkeypatch, capsys):
    raw = XID.format(code=79, text="GPU has fallen off the bus.")
    lines = ["usb 1-1: new device", raw, json.dumps({"line": raw}), "", json.dumps({"line": LOST.format(between="")})]
    status, found = diagnosed("\n".join(lines).encode(), monkeypatch, capsys)
    assert (status, [one["kind"] for one in found]) == (1, ["none", "xid", "xid", "none", "other"])
    assert found[1] == found[2]
    wanted = {"code": 79, "pci": "0000:3b:00", "severity": "fatal", "workload": "fails", "action": "reboot-node"}
    assert {name: found[1][name] for name in wanted} == wanted
    assert (found[1]["pid"], found[1]["name"], found[4]["pci"]) == (4242, "python", "0000:b3:00.0")


def test_a_healthy_log_ends_with_zero(monkeypatch, capsys):
    assert diagnosed(b"usb 1-1: new device\n", monkeypatch, capsys)[0] == 0


def test_a_log_without_json_tells_what_stands_at_its_end(tmp_path, capsys):
    log = tmp_path / "dmesg"
    lines = [(1, 95, "x"), (2, 79, "x"), (9, 154, "GPU recovery action changed from 0x1 (GPU Reset) to 0x0 (None)")]
    log.write_text("\n".join(f"[  {at}.5] {XID.format(code=code, text=text)}" for at, code, text in lines))
    assert main(["kernel-log", str(log)]) == 1
    last = capsys.readouterr().out.splitlines()[3:]
    assert len(last) == 1 and last[0].startswith("stands at the end: xid-79 on 0000:3b:00")


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff\xfe\x00\x01" * 100,
        b"\0" * 10_000,
        b"NVRM: Xid (PCI:" + b"0" * 1_000_000,
        b'{"line": ' + b"[" * 50_000,
        b'{"line": 7}',
        b'{"line": "\\ud800"}',
        b"NVRM: Xid (PCI:0000:3b:00): 79, name=\xff\xff\xff, " + b"link 9" * 5000 + b", pid=" + b"9" * 5000,
    ],
)
def test_junk_is_one_answer_and_no_crash(junk, monkeypatch, capsys):
    _, found = diagnosed(junk + b"\n" + XID.format(code=79, text="x").encode(), monkeypatch, capsys)
    assert len(found) == 2
    assert found[1]["code"] == 79


@given(st.binary(max_size=400))
def test_no_bytes_break_the_matcher(junk):
    for line in read_kernel_lines(junk.decode("utf-8", "replace").split("\n")):
        assess(line)


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
        if label["severity"] is not None:  # the label's word is the line's own: Fatal or Nonfatal
            assert assess(line).severity == label["severity"], label["line"]


@st.composite
def dressings(draw):
    """A prefix of some logger, and another PCI address."""
    moment = draw(st.datetimes()).replace(microsecond=draw(st.integers(0, 999_999)))
    second = draw(st.integers(0, 10**6))
    prefix = draw(
        st.sampled_from(
            [
                "",
                f"[{second:5d}.{moment.microsecond:06d}] ",
                f"[{moment:%a %b %d %H:%M:%S %Y}] ",
                f"{moment:%Y-%m-%dT%H:%M:%S},{moment.microsecond:06d}+00:00 ",
                f"4,{second},{second}000000,-;",
                f"kern  :err   : {moment:%Y-%m-%dT%H:%M:%S},000000+00:00 ",
                f"{moment:%b %d %H:%M:%S} gpu-7 kernel: ",
                f"{moment:%Y-%m-%dT%H:%M:%S}.123456789Z stderr F ",
                f"<4>1 {moment:%Y-%m-%dT%H:%M:%S}Z gpu-7 kernel - - - ",
            ]
        )
    )
    domain, bus = draw(st.integers(0, 0xFFFF)), draw(st.integers(0, 0xFF))
    address = f"{domain:04x}:{bus:02x}:{draw(st.integers(0, 0x1F)):02x}"
    return prefix, address.upper() if draw(st.booleans()) else address


@given(st.data(), dressings())
def test_recorded_lines_are_read_in_any_dress(data, dressing):
    path = shared_lines()
    if not path.exists():
        pytest.skip("Needs the recorded kernel lines: set INSTEP_SHARED_DATA to the folder that holds kernel-log/.")
    label = json.loads(data.draw(st.sampled_from(path.read_text(encoding="utf-8").splitlines())))
    prefix, address = dressing
    bare = label["line"][label["line"].find("NVRM:") :] if "NVRM:" in label["line"] else label["line"]
    dressed = prefix + re.sub(r"(?<=PCI:)[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}", address, bare)
    line = read_kernel_line(dressed)
    assert (line.kind, line.code) == (label["kind"], label["code"]), dressed
    if label["pci"] is not None:
        assert line.pci == address.lower() + label["pci"][len("0000:00:00") :], dressed
