"""`instep run`: start a script as torchrun does, and keep its ranks in step."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
from collections.abc import Sequence

from instep_trainer.errors import CannotRun, TrainerError
from instep_trainer.run.options import read_options


def main(arguments: Sequence[str]) -> int:
    """Run one supervisor. Exit status: that of the run, 2 used wrongly, 3 could not start, 130 interrupted."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="instep run: %(message)s")
    try:
        options = read_options(arguments)
        if options.form != "exec" and importlib.util.find_spec("torch") is None:
            raise CannotRun(
                "PyTorch is missing: install it into this environment, such as pip install 'instep[trainer]'."
            )
        from instep_trainer.run.supervisor import Supervisor

        return asyncio.run(Supervisor(options).run())
    except TrainerError as error:
        print(f"instep run: {error}", file=sys.stderr)
        return error.exit_code
