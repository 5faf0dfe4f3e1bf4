"""The foreign script with one line more: the same loop and the same pauses, under an Instep session that marks them."""

from __future__ import annotations

import runpy
from pathlib import Path

import instep_trainer

if __name__ == "__main__":
    with instep_trainer.session() as session:
        runpy.run_path(str(Path(__file__).with_name("foreign.py")))["main"](session)
