"""A simulated node that stays for all tests of a module: drills come and go on it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "sources"))

from drilled_node import DrilledNode
from nvml_library import nvml_library

__all__ = ["nvml_library"]


@pytest.fixture(scope="module")
def node(nvml_library, tmp_path_factory):
    node = DrilledNode(nvml_library, tmp_path_factory.mktemp("node"))
    node.start()
    yield node
    node.close()
