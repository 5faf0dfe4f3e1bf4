"""Builds the stand-in for the NVIDIA driver's library, once for a test session, and says why when it cannot."""

import importlib.metadata
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.services import cannot

SOURCES = Path(__file__).parent
FLAGS = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread"]
NAME = "libnvidia-ml.so.1"


def header_folder() -> Path | None:
    """Where the wheel nvidia-nvml-dev put nvml.h; None without it."""
    try:
        files = importlib.metadata.files("nvidia-nvml-dev") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(each.locate())).parent for each in files if each.name == "nvml.h"]
    return found[0] if found else None


def build(folder: Path) -> Path:
    """Compile the library into `folder` and give the folder: it goes into LD_LIBRARY_PATH."""
    compiler, header = shutil.which("gcc") or shutil.which("cc"), header_folder()
    if compiler is None:
        cannot("The NVML stand-in needs a C compiler: install gcc.")
    if header is None:
        cannot("The NVML stand-in needs nvml.h: install the package nvidia-nvml-dev.")
    sources = sorted(str(path) for path in SOURCES.glob("*.c"))
    command = [compiler, *FLAGS, f"-Wl,-soname,{NAME}", "-isystem", str(header), "-o", str(folder / NAME), *sources]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory) -> Path:
    """The folder that holds the built libnvidia-ml.so.1."""
    return build(tmp_path_factory.mktemp("nvml"))
