"""A counter of an RDMA port: it jumps, or it stands at its highest number and tells nothing any more."""

from __future__ import annotations

from instep_agent.drills import Change, Mark, Said
from instep_agent.errors import ConfigurationInvalid
from instep_agent.inject.injection import Injection, Target, TreeChange, needs_device
from instep_agent.network.rdma_counter_table import BY_FILE

COUNTER_DEFAULT = "symbol_error"
FOLDER = "counters"


class CounterJump:
    """So many more at once."""

    name = "counter-jump"
    help = "a counter of an RDMA port jumps: --device, --port, --counter (default symbol_error), --count"

    def injection(self, target: Target) -> Injection:
        """Give the counter, counted up."""
        counter = _counter(target)
        return Injection(
            tree=(TreeChange(f"{port_folder(target)}/{FOLDER}/{counter}", add=target.count),),
            changes=(counter_change(target, counter, add=float(target.count)),),
        )


class CounterSaturated:
    """At its highest number, as an 8- or 16-bit counter that nobody cleared; cleared again at the end."""

    name = "counter-saturated"
    help = "a counter of an RDMA port stands at its highest number: --device, --port, --counter (default symbol_error)"

    def injection(self, target: Target) -> Injection:
        """Give the counter at its maximum. Raise `ConfigurationInvalid` for one that has none."""
        counter, labels = _counter(target), port_labels(target)
        known = BY_FILE.get((FOLDER, counter))
        if known is None or not known.maximum:
            raise ConfigurationInvalid(f"--counter is {counter}: give one that ends somewhere, such as symbol_error.")
        text = f"Counter {counter} of port {target.port} of {target.device} stands at its highest number."
        fields = labels | {"counter": counter, "maximum": str(known.maximum)}
        return Injection(
            tree=(TreeChange(f"{port_folder(target)}/{FOLDER}/{counter}", str(known.maximum)),),
            changes=(
                counter_change(target, counter, value=known.maximum * known.scale),
                Change(metric="instep_rdma_count_blind", labels=labels | {"counter": counter}, set=1.0),
                Change(metric="instep_rdma_counters_blind", labels=labels, set=1.0),
            ),
            marks=tuple(Mark(kind=kind, fields=labels) for kind in ("rdma_counter_blind", "rdma_counters_reset")),
            said=(Said(kind="rdma_counter_blind", text=text, fields=fields),),
        )


def port_labels(target: Target) -> dict[str, str]:
    """Give the labels of the port's samples, which its facts have as fields too."""
    return {"device": needs_device(target), "port": str(target.port)}


def port_folder(target: Target) -> str:
    """Give where the port is in a tree."""
    return f"sys/class/infiniband/{needs_device(target)}/ports/{target.port}"


def counter_change(target: Target, counter: str, *, add: float = 0.0, value: float | None = None) -> Change:
    """Give the change of a counter's samples, under the name that the agent has for it."""
    known = BY_FILE.get((FOLDER, counter))
    labels = port_labels(target)
    if known is None:
        return Change(metric="instep_rdma_count_total", labels=labels | {"counter": counter}, add=add, set=value)
    return Change(metric=known.metric.name, labels=labels, add=add * known.scale, set=value)


def _counter(target: Target) -> str:
    counter = target.counter or COUNTER_DEFAULT
    if "/" in counter or counter.startswith("."):
        raise ConfigurationInvalid(f"--counter is {counter}: give a name as the folder {FOLDER} of the port has it.")
    return counter
