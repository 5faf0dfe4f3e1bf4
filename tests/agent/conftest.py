"""Lets these tests import their own modules: the suite runs in importlib mode, which puts no folder on the path."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "rank_record"), str(HERE / "rank_record/vectors"), str(HERE / "nvml"), str(HERE)]
