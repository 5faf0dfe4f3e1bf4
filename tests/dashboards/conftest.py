"""Lets these tests import `tests.…`: the suite runs in importlib mode, which puts no folder on the path."""

import shutil
import sys
from pathlib import Path

import pytest

from tests import services

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def _need(program: str) -> str:
    services.needed("prometheus", program)
    return str(shutil.which(program))


@pytest.fixture(scope="session")
def promtool() -> str:
    return _need("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    return _need("prometheus")
