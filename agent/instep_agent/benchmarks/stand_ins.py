"""The hardware that a simulated node stands on: the tests' own NVML library, scenario and sysfs tree.

A library that answers for a driver is no part of what is installed: it comes from the repository, or from `--nvml`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

from instep_agent.errors import ConfigurationInvalid

NAME = "libnvidia-ml.so.1"
GPUS = HCAS = 8
REPOSITORY = Path(__file__).parents[3]
_TESTS = REPOSITORY / "tests/agent"


def nvml_library(folder: Path, given: Path | None) -> Path:
    """Give the folder of the stand-in library, built into `folder` when none is given.

    Raise `ConfigurationInvalid` where it can neither be found nor built.
    """
    if given is not None:
        if not (given / NAME).exists():
            raise ConfigurationInvalid(f"There is no {NAME} in {given}: --nvml names the folder that holds it.")
        return given
    sources = sorted(map(str, (_tests_folder() / "nvml").glob("*.c")))
    compiler, header = shutil.which("gcc") or shutil.which("cc"), _header_folder()
    if compiler is None or header is None:
        raise ConfigurationInvalid(
            "The NVML stand-in needs gcc and the package nvidia-nvml-dev: install both, or give --nvml DIR."
        )
    options = ["-std=gnu11", "-O1", "-fPIC", "-shared", "-pthread", f"-Wl,-soname,{NAME}", "-isystem", str(header)]
    run = subprocess.run([compiler, *options, "-o", str(folder / NAME), *sources], capture_output=True, text=True)
    if run.returncode:
        raise ConfigurationInvalid(f"The NVML stand-in cannot be built: {run.stderr.strip().splitlines()[0]}.")
    return folder


def scenario(path: Path) -> Any:
    """Give a scenario of healthy GPUs, written to `path`."""
    found = _module("nvml/nvml_scenario.py").Scenario(path)
    found.healthy(GPUS)
    return found


def scenario_pci(gpu: int) -> str:
    """Give the address of a GPU of the scenario."""
    return str(_module("nvml/nvml_scenario.py").pci(gpu))


def sysfs_tree(root: Path) -> None:
    """Lay the adapters of a node beneath `root`."""
    tree = _module("sources/sysfs_trees.py").Tree(root)
    for number in range(HCAS):
        tree.hca(f"mlx5_{number}", f"0000:{0x18 + 0x11 * number:02x}:00.0")


def _tests_folder() -> Path:
    if not (_TESTS / "nvml").is_dir():
        raise ConfigurationInvalid(
            "The simulated node comes from the repository's tests, which are not here: run this from a checkout."
        )
    return _TESTS


def _module(name: str) -> ModuleType:
    path = _tests_folder() / name
    spec = importlib.util.spec_from_file_location(f"instep_stand_in_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _header_folder() -> Path | None:
    try:
        files = importlib.metadata.files("nvidia-nvml-dev") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(each.locate())).parent for each in files if each.name == "nvml.h"), None)
