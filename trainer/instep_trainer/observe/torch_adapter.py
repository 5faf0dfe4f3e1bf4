"""Every private name of torch that Instep uses, in one place; each is probed, and what is missing is said, not guessed.

All collectives, from whatever path, pass torch's operator dispatcher: `dist.all_reduce`, the C++ reducer of DDP, FSDP2,
functional collectives, DTensor and point-to-point call the operators `c10d::…`. No backend registers anything under the
dispatch
key `BackendSelect`, which lies below autograd and every Python mode and above the devices, so a kernel of ours there
sees each call
once and hands it on. Handing on through `OpOverload._op_dk` releases the GIL, which a call through
`torch.library.get_kernel` does not: gloo's own threads need it, and the job deadlocks (seen with torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

OBSERVED_KEY = "BackendSelect"
Kernel = Callable[..., Any]


def collective_operators() -> dict[str, Any]:
    """Return name → operator for every operator of `c10d` that has a kernel for some device."""
    names = [full.partition("::")[2] for full in torch._C._dispatch_get_all_op_names() if full.startswith("c10d::")]
    found = {}
    for name in sorted(names):
        has_kernel = any(
            torch._C._dispatch_has_kernel_for_dispatch_key(f"c10d::{name}", key)
            for key in ("CPU", "CUDA", "PrivateUse1")
        )
        if has_kernel and hasattr(torch.ops.c10d, name):
            found[name] = getattr(torch.ops.c10d, name).default
    return found


def is_free(name: str) -> bool:
    """Whether nobody else has put a kernel where ours goes."""
    return not torch._C._dispatch_has_kernel_for_dispatch_key(f"c10d::{name}", OBSERVED_KEY)


def put_kernel(library: torch.library.Library, name: str, kernel: Kernel) -> None:
    """Have `kernel(keyset, *arguments)` called for every call of the operator."""
    library.impl(name, kernel, OBSERVED_KEY, with_keyset=True)  # type: ignore[no-untyped-call]


def device_key(keyset: Any) -> Any:
    """Return the dispatch key of the device that the call goes to."""
    return keyset.remove(torch._C.DispatchKey.BackendSelect).highestPriorityTypeId()


def hand_on(operator: Any, key: Any, arguments: Sequence[Any]) -> Any:
    """Call the device's own kernel, with the GIL released."""
    return operator._op_dk(key, *arguments)


def unbox_group(boxed: Any) -> Any:
    """Return the process group of an operator's argument."""
    return distributed_c10d.ProcessGroup.unbox(boxed)


def unbox_work(result: Any) -> Any:
    """Return the work object of an operator's result, or None where it gives none (coalesced, monitored barrier)."""
    boxed = result[-1] if isinstance(result, (tuple, list)) and result else result
    if not isinstance(boxed, torch.ScriptObject):
        return None
    return distributed_c10d.Work.unbox(boxed)


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured: asking a work object then would spoil the capture."""
    is_there = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    return is_there and torch.cuda.is_current_stream_capturing()


def group_members(group: Any) -> tuple[int, ...]:
    """Return the group's global ranks in group order."""
    return tuple(distributed_c10d.get_process_group_ranks(group))


def group_description(group: Any) -> str:
    """Return the description that the script or torch gave the group."""
    return str(group.group_desc or "")


def group_ordinal(group: Any) -> int:
    """Return how many groups of the same members and description were created before this one, here and thus on every
    member."""
    members, description = group_members(group), group_description(group)
    ordinal = 0
    for other in distributed_c10d._world.pg_names:
        if isinstance(other, int):
            continue  # a group that this rank is not in
        if other is group or other == group:
            break
        ordinal += group_members(other) == members and group_description(other) == description
    return ordinal


def pair_ordinal(group: Any, ranks: Sequence[int]) -> int:
    """Return how many groups of the same description that hold these ranks were created before this one: the two ends
    of a transfer count alike, and transfers of another group have numbers of their own."""
    description, ordinal = group_description(group), 0
    for other in distributed_c10d._world.pg_names:
        if isinstance(other, int):
            continue  # a group that this rank is not in
        if other is group or other == group:
            break
        ordinal += group_description(other) == description and set(ranks) <= set(group_members(other))
    return ordinal


def is_initialised() -> bool:
    """Whether the default process group exists."""
    return bool(dist.is_available() and dist.is_initialized())


def flight_recorder_json() -> str:
    """Return the flight recorder's entries as torch writes them; empty where this build has none."""
    dump = getattr(torch._C._distributed_c10d, "_dump_fr_trace_json", None)
    return "" if dump is None else str(dump(includeCollectives=True, onlyActive=False))


def start_worker_server(socket_path: str) -> Any:
    """Start torch's own evidence server on a Unix socket: it answers even while Python cannot. None where this build
    has none."""
    server = getattr(torch._C._distributed_c10d, "_WorkerServer", None)
    return None if server is None else server(socket_path, -1)
