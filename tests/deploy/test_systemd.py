"""The systemd unit: taken by systemd where it is here, each limit with its reason, the same rights as in a cluster."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from instep_agent.cli import _parser as agent_parser

from tests.deploy.manifests import ROOT, container

UNIT = ROOT / "deploy/systemd/instep-agent.service"


def settings() -> dict[str, list[str]]:
    """Every `KEY=VALUE` of the unit."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_systemd_takes_the_unit(tmp_path: Path):
    """By `systemd-analyze verify` where that is installed; a line that it does not know is a failure, too."""
    lines = [line for line in UNIT.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"\[\w+\]|[A-Z]\w+=.*", line) for line in lines)
    program = shutil.which("systemd-analyze")
    if program is None:
        return
    here = tmp_path / UNIT.name  # its program is elsewhere on this machine
    here.write_text(UNIT.read_text().replace("/opt/instep/bin/instep", "/bin/true"))
    done = subprocess.run([program, "verify", "--man=no", str(here)], capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_the_agent_takes_its_arguments():
    words = shlex.split(settings()["ExecStart"][0])
    assert words[:2] == ["/opt/instep/bin/instep", "agent"]
    assert agent_parser().parse_args(words[2:]).config == Path("/etc/instep/agent.toml")


def test_every_limit_has_its_reason_above_it():
    """A comment, or another limit of the same paragraph that begins with one."""
    paragraphs = [text.splitlines() for text in UNIT.read_text().split("\n\n")]
    assert len(paragraphs) == 5
    service = next(lines for lines in paragraphs if lines[0].startswith("# Records are"))
    assert service[1].startswith("CapabilityBoundingSet=")
    reasons = sum(line.startswith("#") for line in service)
    assert reasons >= 8


def test_it_has_the_capabilities_of_the_agent_in_a_cluster():
    in_cluster = container("base", "DaemonSet", "instep-agent", "agent")["securityContext"]["capabilities"]["add"]
    assert settings()["CapabilityBoundingSet"] == [" ".join(f"CAP_{name}" for name in in_cluster)]


def test_a_wrong_setting_is_not_tried_again_and_nothing_else_ends_it():
    assert settings()["Restart"] == ["always"]
    assert settings()["RestartPreventExitStatus"] == ["2"]
    assert settings()["StartLimitIntervalSec"] == ["0"]
