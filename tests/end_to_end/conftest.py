"""The stand-in for the GPU driver, built once."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "agent/nvml"))
sys.path.insert(0, str(Path(__file__).parents[1] / "agent/sources"))

from nvml_library import nvml_library

__all__ = ["nvml_library"]
