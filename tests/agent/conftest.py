"""Lets these tests import their own modules: the suite runs in importlib mode, which puts no folder on the path."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
OWN = ("rank_record", "rank_record/vectors", "nvml", "sources", ".")
sys.path[:0] = [str(HERE / name) for name in OWN]
