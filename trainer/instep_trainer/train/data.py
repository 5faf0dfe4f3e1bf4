"""The bytes of a folder of text files, and batches that are a pure function of seed, step and rank.

So the data position is the step: nothing else has to be kept for the loader to go on where it was.
"""

from __future__ import annotations

import os
import random
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from instep_trainer.errors import UsageError

SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages"})
PROBE_BYTES = 4096
"""A file with a zero byte among its first ones is not text, as git has it."""
HELD_OUT_RATIO = 0.05
"""Share of the text, at its end, that evaluation reads and training does not."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Text as bytes, split for training and evaluation."""

    text: bytes
    training_bytes: int
    digest: int
    """CRC-32 of the text, to notice that the folder changed between attempts."""

    def offsets(self, seed: int, step: int, rank: int, *, count: int, length: int) -> list[int]:
        """Give where the sequences of one training batch begin.

        >>> corpus = Corpus(bytes(1000), 950, 0)
        >>> corpus.offsets(1, 7, 0, count=2, length=8) == corpus.offsets(1, 7, 0, count=2, length=8)
        True
        """
        draw = random.Random(f"{seed}/{step}/{rank}")
        return [draw.randrange(self.training_bytes - length) for _ in range(count)]

    def held_out_offsets(self, batch: int, rank: int, *, count: int, length: int) -> list[int]:
        """Give where the sequences of one evaluation batch begin; the same at every evaluation."""
        draw = random.Random(f"held-out/{batch}/{rank}")
        return [draw.randrange(self.training_bytes, len(self.text) - length) for _ in range(count)]


def read_corpus(folder: Path, *, bytes_max: int, length: int) -> Corpus:
    """Read text files in the order of their names until `bytes_max`; raise UsageError with one sentence when there is
    too little.

    Hidden files and folders, links, `SKIPPED_FOLDERS` and files that are not text are left out.
    """
    if not folder.is_dir():
        raise UsageError(f"The data folder {folder} is not there: give a folder of text files with --data.")
    pieces: list[bytes] = []
    room = bytes_max
    for path in _files(folder):
        if room <= 0:
            break
        piece = _read_text(path, room)
        pieces.append(piece)
        room -= len(piece)
    text = b"".join(pieces)
    if not text:
        raise UsageError(f"The data folder {folder} holds no text: give a folder of text files with --data.")
    held_out = max(int(len(text) * HELD_OUT_RATIO), 2 * length)
    if len(text) < 4 * length:
        raise UsageError(
            f"The data folder {folder} holds {len(text)} bytes of text, too little for sequences of "
            f"{length}: give at least {4 * length} bytes, or a smaller --sequence-length."
        )
    return Corpus(text, len(text) - held_out, zlib.crc32(text))


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(root, name)


def _read_text(path: Path, room_bytes: int) -> bytes:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return b""
        with path.open("rb") as file:
            probe = file.read(min(PROBE_BYTES, room_bytes))
            return b"" if b"\0" in probe else probe + file.read(room_bytes - len(probe))
    except OSError as error:
        raise UsageError(
            f"Cannot read {path} ({error.strerror}): make the data folder readable, or give another with --data."
        ) from error
