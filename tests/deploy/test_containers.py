"""The container files: linted, copying what they need, and their installations done in clean virtual environments."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT, pod

CONTAINERS = sorted((ROOT / "deploy/containers").glob("*.Dockerfile"))
INSTALL_SECONDS_MAX = 500
UNREACHABLE = re.compile(
    "NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|Connection refused"
)
"""What pip says between its tries when no index answers."""
every_file = pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.stem)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Each instruction with its words; continued lines are joined."""
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines]


def of_stage(path: Path, number: int) -> list[tuple[str, str]]:
    """The instructions after the FROM with that number."""
    found: list[list[tuple[str, str]]] = []
    for each in instructions(path):
        found = [*found, [each]] if each[0] == "FROM" else [*found[:-1], [*found[-1], each]]
    return found[number]


def install(path: Path, folder: Path, *, is_dry: bool = False) -> subprocess.CompletedProcess[str]:
    """Do what the first stage does, with `folder` for its working folder and for /opt/instep; the last answer."""
    context, venv = folder / "src", folder / "venv"
    context.mkdir()
    done = subprocess.CompletedProcess[str]([], 0, "", "")
    for name, words in of_stage(path, 0):
        if name == "COPY":
            *sources, target = words.split()
            for source in sources:
                copy(source, context / target)
        elif name == "RUN":
            command = words.replace("/opt/instep", str(venv)).replace("python -m venv", f"{sys.executable} -m venv")
            command = command.replace("pip install", "pip install --dry-run") if is_dry else command
            done = run(command, context)
    return done


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command's answer; a package index that cannot be reached is a skip, and on the build server a failure."""
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS_MAX,
    )
    if done.returncode and UNREACHABLE.search(done.stderr):
        sentence = "needs a package index that pip can reach: set one in pip's configuration."
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    assert done.returncode == 0, done.stderr
    return done


def copy(source: str, target: Path) -> None:
    """As COPY does: a folder's contents, or a file into a folder."""
    if (ROOT / source).is_dir():
        shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(ROOT / source, target)


def packages(venv: Path) -> set[str]:
    listed = subprocess.run(
        [venv / "bin/python", "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    return {line.partition("==")[0].lower() for line in listed.stdout.splitlines()}


def test_there_is_one_for_each_image_of_the_manifests():
    used = {
        each["image"].partition(":")[0]
        for folder, kind, name in (
            ("base", "DaemonSet", "instep-agent"),
            ("base", "Deployment", "instep-server"),
            ("examples/job", "Job", "example"),
        )
        for each in pod(folder, kind, name)["containers"]
    }
    assert used == {f"instep-{path.stem}" for path in CONTAINERS}


@every_file
def test_hadolint_finds_nothing_and_is_told_to_ignore_nothing(path: Path):
    program = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([program, "--no-color", str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint ignore" not in path.read_text()


def test_hadolint_would_find_something(tmp_path: Path):
    wrong = tmp_path / "wrong.Dockerfile"
    wrong.write_text("FROM python:latest\nRUN pip install numpy\n")
    program = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([program, "--no-color", str(wrong)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "DL3007" in done.stdout) == (1, True)


@every_file
def test_every_stage_starts_from_the_same_pinned_image(path: Path):
    assert {words.split()[0] for name, words in instructions(path) if name == "FROM"} == {"python:3.11-slim-bookworm"}


@every_file
def test_versions_are_those_that_the_tests_ran_with(path: Path):
    installs = [words for name, words in instructions(path) if name == "RUN" and "pip install" in words]
    assert len(installs) == 1
    assert "--constraint constraints.txt" in installs[0]


@pytest.mark.parametrize("name", ["server", "trainer"])
def test_nobody_is_root_but_who_reads_records_of_others(name: str):
    last = of_stage(ROOT / f"deploy/containers/{name}.Dockerfile", 1)
    assert [words for instruction, words in last if instruction == "USER"] == ["10001:10001"]


@pytest.mark.real
@pytest.mark.timeout(INSTALL_SECONDS_MAX + 100)
def test_the_agents_installation_is_light_and_works(tmp_path: Path):
    install(ROOT / "deploy/containers/agent.Dockerfile", tmp_path)
    found = packages(tmp_path / "venv")
    assert found - {"pip", "setuptools", "wheel"} == {
        "instep",
        "msgspec",
        "nvidia-ml-py",
        "prometheus_client",
        "py-spy",
    }
    done = subprocess.run(
        [tmp_path / "venv/bin/instep", "agent", "--help"], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, "Watch this node" in done.stdout) == (0, True)
    assert (tmp_path / "venv/bin/py-spy").exists()


@pytest.mark.real
@pytest.mark.timeout(INSTALL_SECONDS_MAX + 100)
def test_the_servers_installation_has_what_its_settings_can_ask_for(tmp_path: Path):
    install(ROOT / "deploy/containers/server.Dockerfile", tmp_path)
    assert not {"torch", "matplotlib", "grafana-client"} & packages(tmp_path / "venv")
    script = "import psycopg, instep_remediation.executors.kubernetes.executor, instep_remediation.server.cli as server"
    command = [tmp_path / "venv/bin/python", "-c", f"{script}; server.main(['--help'])"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, "usage: instep server" in done.stdout) == (0, True), done.stderr


@pytest.mark.real
@pytest.mark.timeout(INSTALL_SECONDS_MAX + 100)
def test_the_trainers_installation_can_be_had(tmp_path: Path):
    """Resolved and built in a clean environment, but not unpacked: PyTorch with CUDA is gigabytes."""
    done = install(ROOT / "deploy/containers/trainer.Dockerfile", tmp_path, is_dry=True)
    would = done.stdout.rpartition("Would install")[2]
    assert re.search(r"\binstep-", would)
    assert re.search(r"\btorch-2\.", would)
