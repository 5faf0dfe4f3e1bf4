"""Lets these tests import `tests.remediation.bench…`: the suite runs in importlib mode, which puts no folder on the
path.
"""

import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
