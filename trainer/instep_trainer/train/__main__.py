"""`python -m instep_trainer.train`: what `instep run -m instep_trainer.train -- …` starts in every rank."""

from __future__ import annotations

import sys

from instep_trainer.train.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
