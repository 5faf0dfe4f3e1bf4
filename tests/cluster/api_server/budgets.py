"""Disruption budgets: their status is computed from the live pods at each change, and evictions ask them."""

from __future__ import annotations

import copy
import math
from datetime import datetime

from tests.cluster.api_server import errors
from tests.cluster.api_server.errors import Object
from tests.cluster.api_server.kinds import BY_STORAGE
from tests.cluster.api_server.resources import Deletion, Resources, timestamp
from tests.cluster.api_server.selectors import by_selector
from tests.cluster.api_server.store import Change, Store

BUDGETS = "policy/poddisruptionbudgets"
PODS = BY_STORAGE["/pods"]
CONTROLLERS = {
    kind: BY_STORAGE[f"apps/{kind.lower()}s"].storage for kind in ("ReplicaSet", "StatefulSet", "Deployment")
}


def budget_spec(labels: dict[str, str], min_available: int | str | None, max_unavailable: int | str | None) -> Object:
    """What a budget over the pods with these labels asks for."""
    limits = {"minAvailable": min_available, "maxUnavailable": max_unavailable}
    return {key: value for key, value in limits.items() if value is not None} | {"selector": {"matchLabels": labels}}


def is_ready(pod: Object) -> bool:
    """Whether its Ready condition is True."""
    conditions = pod.get("status", {}).get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def controller_of(pod: Object) -> Object | None:
    """The owner reference that manages it."""
    return next((owner for owner in pod["metadata"].get("ownerReferences") or [] if owner.get("controller")), None)


class Budgets:
    """Plays the disruption controller, without its delay: a budget's status is right after every write."""

    def __init__(self, store: Store, resources: Resources) -> None:
        self._store = store
        self._resources = resources
        self.is_computing = True
        """Off: the test writes the status itself, as with an API server that runs alone."""
        store.listen(self._on_change)

    def _on_change(self, change: Change) -> None:
        if self.is_computing and change.storage in ("/pods", BUDGETS, *CONTROLLERS.values()):
            for budget in self._store.all(BUDGETS, change.key[0]):
                self._compute(budget)

    def _compute(self, budget: Object) -> None:
        pods = self._pods_of(budget)
        live = {pod["metadata"]["name"] for pod in pods if not pod["metadata"].get("deletionTimestamp")}
        disrupted = {name: at for name, at in (budget["status"].get("disruptedPods") or {}).items() if name in live}
        healthy = sum(
            is_ready(pod) and pod["metadata"]["name"] in live and pod["metadata"]["name"] not in disrupted
            for pod in pods
        )
        expected = self._expected(budget, pods)
        desired = _desired(budget["spec"], expected)
        status = {"currentHealthy": healthy, "desiredHealthy": desired, "expectedPods": expected}
        status["disruptionsAllowed"] = max(0, healthy - desired) if expected else 0
        status["observedGeneration"] = budget["metadata"].get("generation", 1)
        if disrupted:
            status["disruptedPods"] = disrupted
        self._write(budget, status)

    def _write(self, budget: Object, status: Object) -> None:
        present = {key: value for key, value in budget["status"].items() if key != "conditions"}
        if status == present:
            return
        is_allowed = status["disruptionsAllowed"] > 0
        reason = "SufficientPods" if is_allowed else "InsufficientPods"
        condition = {"type": "DisruptionAllowed", "status": str(is_allowed), "reason": reason, "message": ""}
        condition |= {"lastTransitionTime": timestamp(), "observedGeneration": status["observedGeneration"]}
        after = copy.deepcopy(budget) | {"status": {**status, "conditions": [condition]}}
        self._store.put(BUDGETS, (budget["metadata"]["namespace"], budget["metadata"]["name"]), after)

    def _pods_of(self, budget: Object) -> list[Object]:
        matches = by_selector(budget["spec"].get("selector"))
        return [pod for pod in self._store.all("/pods", budget["metadata"]["namespace"]) if matches(pod)]

    def _expected(self, budget: Object, pods: list[Object]) -> int:
        """What the pods' controllers want; for pods that nobody manages, as many as there are."""
        wanted = budget["spec"].get("minAvailable")
        if isinstance(wanted, int):
            return len(pods)
        expected, seen = 0, set()
        for pod in pods:
            owner = controller_of(pod)
            found = self._controller(pod["metadata"]["namespace"], owner)
            if owner is None or found is None:
                expected += 1
            elif owner["uid"] not in seen:
                seen.add(owner["uid"])
                expected += found["spec"].get("replicas", 1)
        return expected

    def _controller(self, namespace: str, owner: Object | None) -> Object | None:
        if owner is None or owner["kind"] not in CONTROLLERS:
            return None
        return self._store.get(CONTROLLERS[owner["kind"]], (namespace, owner["name"]))

    def evict(self, namespace: str, name: str, asked: Deletion) -> None:
        """Delete a pod when its budget allows it; 429 when it does not."""
        with self._store.lock:
            pod = self._resources.get(PODS, namespace, name)
            if asked.uid is not None and asked.uid != pod["metadata"]["uid"]:
                self._resources.delete(PODS, namespace, name, asked)
            phase = pod.get("status", {}).get("phase")
            is_over = phase in ("Succeeded", "Failed", "Pending") or pod["metadata"].get("deletionTimestamp")
            if not is_over:
                self._ask(pod, asked)
            self._resources.delete(PODS, namespace, name, asked)

    def _ask(self, pod: Object, asked: Deletion) -> None:
        namespace = pod["metadata"]["namespace"]
        found = [b for b in self._store.all(BUDGETS, namespace) if by_selector(b["spec"].get("selector"))(pod)]
        if len(found) > 1:
            message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
            raise errors.ApiError(500, "InternalError", message)
        if not found or _may_pass_unready(pod, found[0]):
            return
        budget = copy.deepcopy(found[0])
        status, name = budget["status"], budget["metadata"]["name"]
        if status.get("observedGeneration", 0) < budget["metadata"].get("generation", 1):
            raise errors.refused_by_budget(f"The disruption budget {name} is still being processed by the server.")
        if status.get("disruptionsAllowed", 0) <= 0:
            needs, has = status.get("desiredHealthy", 0), status.get("currentHealthy", 0)
            raise errors.refused_by_budget(
                f"The disruption budget {name} needs {needs} healthy pods and has {has} currently"
            )
        if not asked.is_dry_run:
            status["disruptionsAllowed"] -= 1
            status.setdefault("disruptedPods", {})[pod["metadata"]["name"]] = timestamp()
            self._store.put(BUDGETS, (namespace, name), budget)


def _may_pass_unready(pod: Object, budget: Object) -> bool:
    """A pod that is not ready hurts nobody: always under AlwaysAllow, else only while enough others are healthy."""
    if is_ready(pod):
        return False
    if budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
        return True
    status = budget["status"]
    return status.get("currentHealthy", 0) >= status.get("desiredHealthy", 0) > 0


def _desired(spec: Object, expected: int) -> int:
    if spec.get("maxUnavailable") is not None:
        return max(0, expected - _scaled(spec["maxUnavailable"], expected))
    return _scaled(spec.get("minAvailable", 1), expected)


def _scaled(wanted: int | str, total: int) -> int:
    if isinstance(wanted, str):
        return math.ceil(int(wanted.rstrip("%")) * total / 100)
    return wanted


def moment(text: str) -> datetime:
    """A `Time` or a `MicroTime` as a moment."""
    return datetime.fromisoformat(text)
