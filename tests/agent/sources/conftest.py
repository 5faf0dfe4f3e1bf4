"""GPU sources over the NVML stand-in: one process for all tests, begun anew for each."""

import os

import pytest
from nvml_library import nvml_library
from nvml_peer import Peer
from nvml_scenario import Scenario

__all__ = ["nvml_library"]


@pytest.fixture(scope="session")
def nvml_process(nvml_library, tmp_path_factory):
    """A process that reads the stand-in, and the scenario that it reads."""
    scenario = Scenario(tmp_path_factory.mktemp("scenario") / "scenario.txt")
    scenario.healthy()
    with Peer(nvml_library, scenario.path) as peer:
        yield peer, scenario


@pytest.fixture
def scenario(nvml_process):
    """What the GPUs of `peer` answer: eight healthy ones, until a test says otherwise."""
    _, scenario = nvml_process
    scenario.healthy()
    return scenario


@pytest.fixture
def peer(nvml_process, scenario):
    """A process with sources that have read nothing yet."""
    peer, _ = nvml_process
    peer.ask(do="reset")
    return peer


@pytest.fixture
def real_peer():
    """A process over the library of this machine's own driver."""
    if os.environ.get("INSTEP_TEST_REAL_NVML") != "1":
        pytest.skip("Reads this machine's own GPUs: set INSTEP_TEST_REAL_NVML=1 where there are any.")
    with Peer(None, None) as peer:
        yield peer
