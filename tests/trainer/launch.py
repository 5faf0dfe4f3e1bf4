"""Starts `instep run` for a test, and reads what it left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instep_agent.rank_record import RankRecord, read_record

SCRIPTS = Path(__file__).parent


@contextmanager
def record_root() -> Iterator[Path]:
    """A root in shared memory, gone afterwards."""
    root = Path(tempfile.mkdtemp(prefix="instep-test-", dir="/dev/shm"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def environment(**changes: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("INSTEP_", "TORCH"))} | changes


def command(root: Path, script: Path | str, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
    return [
        sys.executable,
        "-c",
        "import sys; from instep_trainer.run.cli import main; sys.exit(main(sys.argv[1:]))",
        "--record-root",
        str(root),
        "--node-name",
        "node-a",
        "--rdzv-id",
        "run-1",
        "--keep-records",
        *options,
        str(script),
        *arguments,
    ]


def run(
    root: Path,
    script: Path | str,
    *arguments: str,
    options: tuple[str, ...] = (),
    timeout_seconds: float = 120.0,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(root, script, *arguments, options=options),
        env=environment(**variables),
        text=True,
        capture_output=True,
        timeout=timeout_seconds,
        check=False,
    )


def answers(folder: Path) -> dict[int, dict]:
    return {int(file.stem): json.loads(file.read_text()) for file in folder.glob("*.json")}


def records(root: Path, attempt: int = 0) -> dict[int, RankRecord]:
    folder = root / "node-a" / "run-1" / str(attempt)
    return {int(file.name): read_record(file) for file in folder.iterdir() if file.name.isdigit()}
