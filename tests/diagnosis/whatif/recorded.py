"""The recorded production traces with their published results, where they are at hand."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "whatif"
NAMES = ("AR", "ST")

recorded = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the recorded traces with published results")


def paths(name):
    return FOLDER / f"trace-{name}.parquet", FOLDER / f"meta-{name}.yaml"


def published(kind, name):
    return json.loads((FOLDER / f"{kind}-{name}.json").read_text())
