"""Sees every collective and point-to-point call of this process, whichever path it takes, and records it.

Point-to-point between two ranks is recorded as a group of the two, so that a send and its receive carry the same
number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from instep_agent.rank_record.layout import Op
from instep_agent.rank_record.writer import RankRecordWriter

from instep_trainer.observe import torch_adapter as adapter
from instep_trainer.observe.recorder import RankRecorder

OPS = {
    "allreduce_": Op.all_reduce,
    "allreduce_coalesced_": Op.all_reduce_coalesced,
    "broadcast_": Op.broadcast,
    "allgather_": Op.all_gather,
    "_allgather_base_": Op.all_gather_into_tensor,
    "allgather_coalesced_": Op.all_gather_coalesced,
    "allgather_into_tensor_coalesced_": Op.all_gather_coalesced,
    "reduce_scatter_": Op.reduce_scatter,
    "_reduce_scatter_base_": Op.reduce_scatter_tensor,
    "reduce_scatter_tensor_coalesced_": Op.reduce_scatter_coalesced,
    "reduce_": Op.reduce,
    "gather_": Op.gather,
    "scatter_": Op.scatter,
    "alltoall_": Op.all_to_all,
    "alltoall_base_": Op.all_to_all_single,
    "barrier": Op.barrier,
    "monitored_barrier_": Op.monitored_barrier,
    "send": Op.send,
    "recv_": Op.recv,
    "recv_any_source_": Op.recv_any_source,
}
POINT_TO_POINT = (Op.send, Op.recv, Op.recv_any_source)
NOT_COLLECTIVE = ("check_for_nan",)


class CollectiveObserver:
    """Puts a recording kernel in front of each operator; `close` takes them away again."""

    def __init__(self, writer: RankRecordWriter, recorder: RankRecorder) -> None:
        self._writer, self._recorder = writer, recorder
        self._groups: dict[int, tuple[Any, int | None, list[int]]] = {}
        self._pairs: dict[tuple[int, int, str], tuple[int | None, list[int]]] = {}
        self._library: torch.library.Library | None = None
        self._wait: Callable[..., Any] | None = None
        self.unobserved: list[str] = []

    def open(self) -> None:
        """Begin to see. What cannot be seen is listed in `unobserved` and in the record."""
        self._library = torch.library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
        for name, operator in adapter.collective_operators().items():
            if name in NOT_COLLECTIVE:
                continue
            if name in OPS and adapter.is_free(name):
                adapter.put_kernel(self._library, name, self._kernel(operator, OPS[name]))
            else:
                self.unobserved.append(name)
        if self.unobserved:
            self._writer.update_identity(unobserved=tuple(self.unobserved))
        self._watch_waits()

    def close(self) -> None:
        """Take the kernels away."""
        if self._library is not None:
            self._library._destroy()  # type: ignore[no-untyped-call]
            self._library = None
        if self._wait is not None:
            setattr(torch._C._distributed_c10d.Work, "wait", self._wait)  # noqa: B010  a method of a C++ class
            self._wait = None

    def forget_groups(self) -> None:
        """Process groups are destroyed: their numbers may be used again, and nothing of theirs may be held."""
        self._recorder.forget_works()
        self._groups.clear()
        self._pairs.clear()

    def _kernel(self, operator: Any, op: Op) -> Callable[..., Any]:
        place = _group_place(operator)
        recorder, hand_on, device_key = self._recorder, adapter.hand_on, adapter.device_key
        unbox_work, is_capturing = adapter.unbox_work, adapter.is_capturing
        slot_of = self._pair_slot if op in POINT_TO_POINT else self._slot
        is_blocking = op is Op.monitored_barrier

        def observe(keyset: Any, *arguments: Any) -> Any:
            if is_capturing():  # recorded into a CUDA graph, not called
                return hand_on(operator, device_key(keyset), arguments)
            group, counter = slot_of(op, arguments, place)
            counter[0] += 1
            token = recorder.entered(group, counter[0], op, _payload_bytes(arguments[0]))
            result = hand_on(operator, device_key(keyset), arguments)
            if is_blocking:
                recorder.completed(token)
            else:
                recorder.handed_on(token, unbox_work(result))
            return result

        return observe

    def _slot(self, _op: Op, arguments: tuple[Any, ...], place: int) -> tuple[int | None, list[int]]:
        group = adapter.unbox_group(arguments[place])
        known = self._groups.get(id(group))
        if known is None or known[0] is not group:
            slot = self._writer.declare_group(
                adapter.group_members(group), adapter.group_description(group), adapter.group_ordinal(group)
            )
            known = self._groups[id(group)] = (group, slot, [0])
        return known[1], known[2]

    def _pair_slot(self, op: Op, arguments: tuple[Any, ...], place: int) -> tuple[int | None, list[int]]:
        group = adapter.unbox_group(arguments[place])
        members, here = adapter.group_members(group), group.rank()
        peer = -1 if op is Op.recv_any_source else int(arguments[place + 1])
        pair = (here, peer) if op is Op.send else (peer, here)
        key = (*pair, group.group_name)
        if key not in self._pairs:
            ranks = tuple(members[rank] for rank in pair if rank >= 0)
            description = f"p2p {adapter.group_description(group)}".strip()
            slot = self._writer.declare_group(ranks, description, adapter.pair_ordinal(group, ranks))
            self._pairs[key] = (slot, [0])
        return self._pairs[key]

    def _watch_waits(self) -> None:
        """Time blocked on a work object, as Python sees it; the C++ reducer's own wait shows at the end of the backward
        pass."""
        original = self._wait = torch._C._distributed_c10d.Work.wait
        recorder = self._recorder

        def wait(work: Any, *arguments: Any, **options: Any) -> Any:
            if adapter.is_capturing():
                return original(work, *arguments, **options)
            began_ns, began_starved_ns = time.monotonic_ns(), recorder.starved_ns()
            try:
                return original(work, *arguments, **options)
            finally:
                recorder.waited(began_ns, began_starved_ns)

        setattr(torch._C._distributed_c10d.Work, "wait", wait)  # noqa: B010  a method of a C++ class


def _group_place(operator: Any) -> int:
    names = [argument.name for argument in operator._schema.arguments]
    return names.index("process_group")


def _payload_bytes(tensors: Any) -> int:
    """Bytes of the first argument: a tensor, a list of tensors, or a list of such lists."""
    if isinstance(tensors, torch.Tensor):
        return tensors.nbytes
    return sum(_payload_bytes(tensor) for tensor in tensors)
