"""Options of `instep train`: one frozen dataclass per concern, every field documented and checked, the command line
made from them."""

from __future__ import annotations

import argparse
import sysconfig
import zlib
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from instep_trainer.errors import UsageError

DATA = Path(sysconfig.get_paths()["stdlib"])


def option(default: Any, text: str, *, least: float | None = None, most: float | None = None) -> Any:
    """Give a dataclass field with its help text and its allowed range."""
    return field(default=default, metadata={"help": text, "least": least, "most": most})


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of the GPT."""

    layers: int = option(2, "transformer blocks", least=1, most=1000)
    width: int = option(96, "width of the residual stream; a multiple of --heads", least=1, most=65536)
    heads: int = option(4, "attention heads", least=1, most=1024)
    sequence_length: int = option(64, "bytes per training sequence", least=1, most=1 << 20)
    dropout: float = option(0.1, "share of activations dropped in training", least=0.0, most=0.9)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What is trained, on what, for how long, and what is kept."""

    data: Path = option(DATA, "folder of text files; by default Python's own sources")  # noqa: RUF009  a field
    out: Path = option(Path("instep-out"), "folder for losses.jsonl and checkpoints/")  # noqa: RUF009
    steps: int = option(200, "optimizer updates in all, over every attempt", least=1, most=1 << 40)
    batch_size: int = option(8, "sequences per rank and step", least=1, most=1 << 20)
    learning_rate: float = option(1e-3, "AdamW's learning rate", least=0.0, most=10.0)
    seed: int = option(1, "seed of weights, data order and dropout", least=0, most=(1 << 31) - 1)
    checkpoint_every_disk: int = option(50, "steps between checkpoints on disk; 0 writes none", least=0, most=1 << 40)
    keep_last: int = option(2, "checkpoints on disk that are kept", least=1, most=1000)
    checkpoint_memory: Path | None = option(  # noqa: RUF009
        None, "folder in shared memory for a checkpoint at every step; set by `instep run`"
    )
    log_every: int = option(10, "steps between progress lines", least=1, most=1 << 40)
    evaluate_every: int = option(0, "steps between evaluations; 0 makes none", least=0, most=1 << 40)
    evaluate_batches: int = option(4, "batches per evaluation and rank", least=1, most=1 << 20)
    data_bytes_max: int = option(
        8 << 20, "bytes of text read from --data, files in order of their names", least=1024, most=1 << 33
    )
    device: str = option("auto", "cpu, cuda, or auto: cuda where there is one for this rank")
    model: ModelConfig = field(default_factory=ModelConfig)

    @property
    def losses_path(self) -> Path:
        """File that rank 0 appends one line per step to."""
        return self.out / "losses.jsonl"

    @property
    def checkpoints_path(self) -> Path:
        """Folder of the checkpoints on disk."""
        return self.out / "checkpoints"

    def fingerprint(self, world_size: int, data_digest: int) -> str:
        """Give eight hex digits of everything that decides the losses."""
        deciding = (asdict(self.model), self.batch_size, self.learning_rate, self.seed, world_size, data_digest)
        return f"{zlib.crc32(repr(deciding).encode()):08x}"


def parse_arguments(arguments: list[str]) -> TrainConfig:
    """Give the checked configuration of a command line; exits 2 as argparse does, or raises UsageError on a value out
    of range."""
    values = vars(_parser().parse_args(arguments))
    model = ModelConfig(**{option.name: values.pop(option.name) for option in fields(ModelConfig)})
    config = TrainConfig(**values, model=model)
    _check_ranges(config)
    _check_ranges(model)
    if model.width % model.heads:
        raise UsageError(f"--width is {model.width} and --heads is {model.heads}: the heads must divide the width.")
    if config.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device is {config.device!r}: it must be auto, cpu or cuda.")
    return config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="instep train",
        description="Train a small GPT with DDP on the bytes of a folder of text files, resuming exactly.",
    )
    for owner in (TrainConfig, ModelConfig):
        for known in fields(owner):
            if known.name == "model" or known.default is MISSING:
                continue
            default = known.default
            kind = Path if default is None or isinstance(default, Path) else type(default)
            text = f"{known.metadata['help']} (default: {_shown(known.name, default)})"
            parser.add_argument(
                f"--{known.name.replace('_', '-')}",
                type=kind,
                default=default,
                metavar=kind.__name__.upper(),
                help=text.replace("%", "%%"),
            )
    return parser


def _shown(name: str, default: Any) -> str:
    return "the standard library's folder" if name == "data" else "none" if default is None else str(default)


def _check_ranges(config: TrainConfig | ModelConfig) -> None:
    for known in fields(config):
        least, most = known.metadata.get("least"), known.metadata.get("most")
        value = getattr(config, known.name)
        if least is not None and most is not None and not least <= value <= most:
            raise UsageError(f"--{known.name.replace('_', '-')} is {value}: it must lie between {least} and {most}.")
