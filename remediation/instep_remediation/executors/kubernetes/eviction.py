"""Empties a node through the Eviction API, honouring disruption budgets; which pods go is what `kubectl drain` decides.

Everything is read from the cluster at each asking, so a server that died goes on from what is there.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from kubernetes import client

from instep_remediation.executors.kubernetes.connection import (
    BUSY_SECONDS,
    TIMEOUT_SECONDS,
    StepEnds,
    answers,
    message_of,
    status_of,
)
from instep_remediation.executors.kubernetes.settings import KubernetesConfig
from instep_remediation.node_executor import Outcome, Progress, Step

ASKING_SECONDS_MAX = 8.0
"""One asking evicts for no longer than this; the next goes on."""
PODS_PER_PAGE = 500
ENDING_SECONDS = 1.0
"""Pods that are ending are looked at again after this."""
BUDGET_SECONDS_MIN, BUDGET_SECONDS_MAX = 1.0, 30.0
"""A budget's refusal says nothing of when to come again: pauses double from the first to the second."""
NAMED_MAX = 5
MIRROR = "kubernetes.io/config.mirror"
FINISHED = ("Succeeded", "Failed")


@dataclass(slots=True)
class _Round:
    """What one asking met."""

    ending: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """`POD (reason)` of those that a budget holds."""
    later: list[str] = field(default_factory=list)
    """Not asked for any more in this round."""


class Evictions:
    """Evicts the pods of nodes."""

    def __init__(
        self,
        api: client.ApiClient,
        settings: KubernetesConfig,
        *,
        clock_seconds: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._core = client.CoreV1Api(api)
        self._settings = settings
        self._clock_seconds = clock_seconds
        self._jitter = jitter
        self._refusals: dict[str, int] = {}
        """Step → refusals in a row, for the pause after the next one."""

    def evict(self, step: Step) -> Progress:
        """Evict what is there and may go; done when nothing is left that has to."""
        leaving = [pod for pod in self._pods(step.node) if has_to_go(pod)]
        if kept := [text for pod in leaving if (text := self._objection(pod))]:
            return Progress(
                Outcome.FAILED, f"{_named(kept)}: nothing was evicted. See kubernetes.drain_* in the configuration."
            )
        round_ = self._round(step, leaving)
        if not leaving:
            self._refusals.pop(step.mark, None)
            return Progress(Outcome.DONE, f"{step.node} is empty but for its DaemonSets and static pods.")
        return Progress(Outcome.WAITING, _told(round_), self._pause(step, round_))

    def _pods(self, node: str) -> Iterable[Any]:
        after = None
        while True:
            with answers("list the node's pods", node=node):
                page = self._core.list_pod_for_all_namespaces(
                    field_selector=f"spec.nodeName={node}",
                    limit=PODS_PER_PAGE,
                    _continue=after,
                    _request_timeout=TIMEOUT_SECONDS,
                )
            yield from page.items
            after = page.metadata._continue if page.metadata else None
            if not after:
                return

    def _objection(self, pod: Any) -> str:
        """Return why a pod may not be evicted; what has finished or is ending raises none."""
        if pod.status.phase in FINISHED or pod.metadata.deletion_timestamp:
            return ""
        if controller(pod) is None and not self._settings.drain_unmanaged_pods:
            return f"{name_of(pod)} has no controller that would make it again"
        if not self._settings.drain_empty_dir and any(volume.empty_dir for volume in pod.spec.volumes or []):
            return f"{name_of(pod)} keeps data in an emptyDir"
        return ""

    def _round(self, step: Step, leaving: list[Any]) -> _Round:
        round_, until = _Round(), self._clock_seconds() + ASKING_SECONDS_MAX
        for pod in leaving:
            if pod.metadata.deletion_timestamp:
                round_.ending.append(name_of(pod))
            elif self._clock_seconds() >= until:
                round_.later.append(name_of(pod))
            elif reason := self._evict_one(step.node, pod):
                round_.refused.append(f"{name_of(pod)} ({reason})")
            else:
                round_.ending.append(name_of(pod))
        return round_

    def _evict_one(self, node: str, pod: Any) -> str:
        """Ask for one eviction; return why a budget refuses it, else nothing. A pod that is gone is no error."""
        only_this = client.V1Preconditions(uid=pod.metadata.uid)
        options = client.V1DeleteOptions(
            preconditions=only_this, grace_period_seconds=self._settings.eviction_grace_seconds
        )
        about = client.V1ObjectMeta(name=pod.metadata.name, namespace=pod.metadata.namespace)
        body = client.V1Eviction(metadata=about, delete_options=options)
        with answers(f"evict {name_of(pod)}", node=node):
            try:
                self._core.create_namespaced_pod_eviction(
                    pod.metadata.name, pod.metadata.namespace, body, _request_timeout=TIMEOUT_SECONDS
                )
            except client.ApiException as error:
                return _refusal(error, pod)
        return ""

    def _pause(self, step: Step, round_: _Round) -> float:
        if not round_.refused:
            self._refusals.pop(step.mark, None)
            return ENDING_SECONDS
        count = self._refusals.get(step.mark, 0)
        self._refusals[step.mark] = count + 1
        pause = min(BUDGET_SECONDS_MIN * 2.0 ** min(count, 10), BUDGET_SECONDS_MAX)
        return pause * (0.5 + 0.5 * self._jitter())


def has_to_go(pod: Any) -> bool:
    """Whether a drained node has this pod no more: static pods stay, those of DaemonSets unless they have finished."""
    if MIRROR in (pod.metadata.annotations or {}):
        return False
    owner = controller(pod)
    return owner is None or owner.kind != "DaemonSet" or pod.status.phase in FINISHED


def controller(pod: Any) -> Any:
    """Return the owner that would make a pod again, or None."""
    return next((owner for owner in pod.metadata.owner_references or [] if owner.controller), None)


def name_of(pod: Any) -> str:
    """Return `NAMESPACE/NAME`."""
    return f"{pod.metadata.namespace}/{pod.metadata.name}"


def _refusal(error: client.ApiException, pod: Any) -> str:
    """Return a budget's reason; raise what is none."""
    said = message_of(error)
    if error.status == 404 or (error.status == 409 and "uid" in said.lower()):
        return ""  # gone, or another pod of that name by now
    if error.status == 429 and _is_of_budget(error):
        return said
    if error.status == 500 and "more than one PodDisruptionBudget" in said:
        raise StepEnds(
            Outcome.FAILED, f"{name_of(pod)} is under several disruption budgets, which Kubernetes cannot evict: {said}"
        ) from error
    if error.status == 403 and "being terminated" in said:
        raise StepEnds(Outcome.WAITING, f"The namespace of {name_of(pod)} is ending ({said}).", BUSY_SECONDS) from error
    if error.status == 409:
        return said
    raise error


def _is_of_budget(error: client.ApiException) -> bool:
    details = status_of(error).get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    reasons = [cause.get("reason") for cause in causes or [] if isinstance(cause, dict)]
    return "DisruptionBudget" in reasons or "disruption budget" in message_of(error)


def _told(round_: _Round) -> str:
    parts = []
    if round_.refused:
        parts.append(f"a disruption budget holds {_named(round_.refused)}")
    if round_.ending:
        parts.append(f"ending: {_named(round_.ending)}")
    if round_.later:
        parts.append(f"{len(round_.later)} not asked for yet")
    sentence = "; ".join(parts)
    return f"{sentence[:1].upper()}{sentence[1:]}."


def _named(names: list[str]) -> str:
    """Return a few names and the number of the others.

    >>> _named(["a/1", "a/2"])
    'a/1, a/2'
    """
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
