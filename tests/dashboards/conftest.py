"""Lets these tests import `tests.…`: the suite runs in importlib mode, which puts no folder on the path."""

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def _need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        sentence = f"{program} is not installed: it comes with the Debian package prometheus."
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    return path


@pytest.fixture(scope="session")
def promtool() -> str:
    return _need("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    return _need("prometheus")
