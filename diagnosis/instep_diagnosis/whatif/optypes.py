"""The kinds of operation that a trace is made of, by the names that published traces use."""

from __future__ import annotations

FORWARD, BACKWARD = "forward-compute", "backward-compute"
FORWARD_SEND, FORWARD_RECV = "forward-send", "forward-recv"
BACKWARD_SEND, BACKWARD_RECV = "backward-send", "backward-recv"
ALL_GATHER, REDUCE_SCATTER = "params-all-gather", "grads-reduce-scatter"
LAYERNORM, EMBEDDING = "layernorm-grads-all-reduce", "embedding-grads-all-reduce"
SEPARATE = "separate-grads-all-reduce"
GC, CLIP, OPTIMIZER = "gc", "optimizer-clip-main-grad", "optimizer"

OPTYPES = tuple(
    sorted(
        (
            *(FORWARD, BACKWARD, FORWARD_SEND, FORWARD_RECV, BACKWARD_SEND, BACKWARD_RECV),
            *(ALL_GATHER, REDUCE_SCATTER, LAYERNORM, EMBEDDING, SEPARATE, GC, CLIP, OPTIMIZER),
        )
    )
)
"""Every kind, sorted by name: a kind's code is its place here, so that ties by code are ties by name."""
CODES = {name: code for code, name in enumerate(OPTYPES)}

TRANSFERS = (FORWARD_SEND, FORWARD_RECV, BACKWARD_SEND, BACKWARD_RECV)
COLLECTIVES = (ALL_GATHER, REDUCE_SCATTER, LAYERNORM, EMBEDDING, SEPARATE, CLIP)
WAITING = frozenset((*TRANSFERS, ALL_GATHER, REDUCE_SCATTER, EMBEDDING, SEPARATE, CLIP))
"""Kinds whose recorded time holds a wait for partners. The layernorm reduction has none that the trace shows."""
DP_WIDE = frozenset((ALL_GATHER, REDUCE_SCATTER, SEPARATE, CLIP))
"""Kinds that all data-parallel ranks enter together."""
MEDIAN_TYPES = frozenset((*TRANSFERS, *COLLECTIVES))
"""Kinds whose ideal is the median; the mean for the others."""

REPORTED_AS = {name: name for name in OPTYPES} | {
    FORWARD_SEND: "forward-pp-comm",
    FORWARD_RECV: "forward-pp-comm",
    BACKWARD_SEND: "backward-pp-comm",
    BACKWARD_RECV: "backward-pp-comm",
}
"""The name under which a kind's slowdown is reported: both ends of a transfer are one."""
