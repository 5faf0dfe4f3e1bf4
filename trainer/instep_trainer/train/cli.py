"""`instep train …`: one rank when called by itself, each rank of a job under `instep run` or `torchrun`."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import sys

from instep_trainer.checkpoint.disk import check_writable
from instep_trainer.errors import CannotRun, TrainerError
from instep_trainer.place import Place, place_from
from instep_trainer.train.config import TrainConfig, parse_arguments

ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
"""What the only rank of a world of one is told; port 0 lets the kernel choose."""


def main(arguments: list[str]) -> int:
    """Train, and give the exit status: 0 done, 2 used wrongly, 3 something is missing here; other failures raise."""
    arguments = arguments[1:] if arguments[:1] == ["--"] else arguments
    if "RANK" not in os.environ:
        os.environ.update(ALONE)
    is_first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        place = place_from(os.environ)
        talk = f"instep train, rank {place.rank}: %(message)s"
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=talk)
        config = parse_arguments(arguments)
        _train(config, _with_memory(place, config))
    except TrainerError as error:
        if is_first_here:  # every rank of the node finds the same; one of them says it
            print(f"instep train: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _train(config: TrainConfig, place: Place) -> None:
    check_writable(config.out)
    if importlib.util.find_spec("torch") is None:
        raise CannotRun(
            "PyTorch is not installed in this environment: pip install 'instep[trainer]', or the build "
            "that your GPUs need."
        )
    from instep_trainer.train.loop import train

    train(config, place)


def _with_memory(place: Place, config: TrainConfig) -> Place:
    if config.checkpoint_memory is None:
        return place
    return dataclasses.replace(place, memory_folder=config.checkpoint_memory)
