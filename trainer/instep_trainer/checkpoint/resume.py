"""All ranks agree on one kept state and load it: offers are gathered, `agree` decides, a holder hands it to who lacks
it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from instep_trainer.checkpoint import disk
from instep_trainer.checkpoint.agree import Agreement, agree
from instep_trainer.checkpoint.errors import DamagedSnapshot
from instep_trainer.checkpoint.header import HEADER_BYTES, check_digest, parse_header
from instep_trainer.checkpoint.slots import SLOTS, Entry, Slots, borrowed_states

log = logging.getLogger(__name__)

OFFERS = len(SLOTS) + 1
"""States one rank offers: both slots, and the newest checkpoint on disk."""
NOTHING = Entry(-1, -1)


@dataclass(frozen=True, slots=True)
class Resumed:
    """What the ranks agreed on."""

    agreement: Agreement
    raw: bytearray | None
    """The snapshot, digest checked; None at the start of training."""
    attempt: int
    """What states are kept under from here on: this attempt's number, unless the numbering of attempts began again."""


def resume(slots: Slots | None, folder: Path | None, *, attempt: int, device: torch.device) -> Resumed:
    """Have all ranks of the default process group agree on a state; afterwards the slots of each of them hold it.

    Every rank calls it (alone when there is no group), before its first kept step and after `slots.reserve`.
    `folder` is where disk checkpoints are, if any.
    """
    states = {} if slots is None else _whole_states(slots)
    saved = None if folder is None else disk.newest(folder)
    saved_entry = NOTHING if saved is None else entry_of(saved)
    memory, disks = _gather(sorted(states, reverse=True), saved_entry, device)
    agreement = agree(memory, {rank: None if entry == NOTHING else entry for rank, entry in disks.items()})
    known = max(entry.attempt for entry in [*disks.values(), *(entry for held in memory.values() for entry in held)])
    attempt = attempt if attempt > known else known + 1
    if agreement.source == "start":
        return Resumed(agreement, None, attempt)
    raw = _hand_out(agreement, saved if agreement.source == "disk" else states.get(agreement.entry), device)
    if slots is not None:
        _adopt(slots, agreement.entry, raw)
    return Resumed(agreement, raw, attempt)


def entry_of(raw: bytearray) -> Entry:
    """Give the step and attempt of a snapshot."""
    header = parse_header(raw, len(raw))
    return Entry(header.step, header.attempt)


def _whole_states(slots: Slots) -> dict[Entry, bytearray]:
    """Read this rank's slots; forget those whose digest fails. A rank that was renumbered takes its neighbours' states
    instead."""
    states: dict[Entry, bytearray] = {}
    for entry in slots.entries:
        try:
            states[entry] = slots.read(entry)
        except DamagedSnapshot as error:
            log.warning("%s It is passed over for an older one.", error)
            slots.forget(entry)
    return states or borrowed_states(slots.folder)


def _gather(
    held: Iterable[Entry], saved: Entry, device: torch.device
) -> tuple[dict[int, list[Entry]], dict[int, Entry]]:
    """Give what each rank holds in memory and what it can read on disk. Numbers only: nothing is unpickled."""
    entries = [*held][: len(SLOTS)]
    entries += [NOTHING] * (len(SLOTS) - len(entries))
    mine = torch.tensor([*entries, saved], dtype=torch.int64, device=device)
    offers = [mine]
    if dist.is_initialized():
        offers = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(offers, mine)
    rows = [[Entry(step, attempt) for step, attempt in offer.tolist()] for offer in offers]
    memory = {rank: [entry for entry in row[: len(SLOTS)] if entry != NOTHING] for rank, row in enumerate(rows)}
    return memory, {rank: row[len(SLOTS)] for rank, row in enumerate(rows)}


def _hand_out(agreement: Agreement, raw: bytearray | None, device: torch.device) -> bytearray:
    """Give every rank the snapshot; all take part, since a broadcast needs the whole group."""
    if not agreement.receivers:
        assert raw is not None
        return raw
    rank, source = dist.get_rank(), agreement.holders[0]
    size = torch.tensor([len(raw) if rank == source and raw is not None else 0], dtype=torch.int64, device=device)
    dist.broadcast(size, source)
    count = int(size.item())
    if rank == source and raw is not None:
        data = torch.frombuffer(raw, dtype=torch.uint8).to(device)
    else:
        data = torch.empty(count, dtype=torch.uint8, device=device)
    dist.broadcast(data, source)
    if rank not in agreement.receivers and raw is not None:
        return raw
    received = bytearray(data.cpu().numpy().tobytes())
    check_digest(received, parse_header(received, len(received)))
    return received


def _adopt(slots: Slots, entry: Entry, raw: bytearray) -> None:
    """Keep the agreed state here too, under its own step and attempt, and then forget what it leaves behind."""
    if entry not in slots.entries:
        header = parse_header(raw, len(raw))
        view = memoryview(raw)
        manifest = bytes(view[HEADER_BYTES : HEADER_BYTES + header.manifest_bytes])
        slots.write(entry, manifest, header.payload_bytes, [(0, view[header.payload_offset : header.end])])
    slots.settle(entry)
