"""The rest of a control plane, as small as tests need it: kubelets, scheduler, controllers, collector of orphans."""

from __future__ import annotations

import copy
import random
import threading
import time
import traceback

from tests.cluster.api_server.budgets import PODS, controller_of
from tests.cluster.api_server.errors import ApiError, Object
from tests.cluster.api_server.kinds import BY_STORAGE
from tests.cluster.api_server.resources import Deletion, Options, Resources, timestamp
from tests.cluster.api_server.selectors import by_selector
from tests.cluster.api_server.store import Change, Store

PLANE = Options(manager="control-plane")
KUBELET = Options(manager="kubelet", subresource="status")
NOW = Deletion(grace_seconds=0)
NODES_OF = "stand-in.test/nodes"
"""On a DaemonSet: the only nodes (with commas) that get its pods; without it every node does."""
DAEMON_TOLERATIONS = [
    {"key": f"node.kubernetes.io/{name}", "operator": "Exists", "effect": effect}
    for name, effect in (
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("unschedulable", "NoSchedule"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
    )
]
REPLICATED = ("apps/replicasets", "apps/statefulsets")
IDLE_SECONDS = 5.0


class Plane:
    """One thread that looks at the store after each change and when a pod's end is due."""

    def __init__(
        self, store: Store, resources: Resources, *, termination_seconds: float, has_controllers: bool
    ) -> None:
        self._store = store
        self._resources = resources
        self.termination_seconds = termination_seconds
        self.has_controllers = has_controllers
        self.silent_nodes: set[str] = set()
        """Nodes whose kubelet does nothing."""
        self.error: BaseException | None = None
        self._ends: dict[str, float] = {}
        self._wakes = threading.Event()
        self._is_open = True
        self._thread = threading.Thread(target=self._run, name="control-plane", daemon=True)
        store.listen(self._on_change)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and raise what went wrong in it."""
        self._is_open = False
        self._wakes.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _on_change(self, change: Change) -> None:
        self._wakes.set()

    def wake(self) -> None:
        """Look again."""
        self._wakes.set()

    def _run(self) -> None:
        while self._is_open:
            self._wakes.clear()
            try:
                wait_seconds = self._look()
            except BaseException as error:  # noqa: BLE001 - the thread's outermost loop: raised again by `stop`
                self.error = error
                traceback.print_exc()
                return
            self._wakes.wait(wait_seconds)

    def _look(self) -> float:
        """Do everything that is due; gives back how long nothing more will be."""
        with self._store.lock:
            self._collect_orphans()
            self._finish_namespaces()
            if self.has_controllers:
                self._deploy()
                for storage in REPLICATED:
                    for found in self._store.all(storage):
                        self._replicate(found)
                for found in self._store.all("apps/daemonsets"):
                    self._daemons(found)
                self._schedule()
            return self._kubelets()

    # Kubelets

    def _kubelets(self) -> float:
        now, due = time.monotonic(), IDLE_SECONDS
        alive = {node["metadata"]["name"] for node in self._store.all("/nodes")} - self.silent_nodes
        for pod in self._store.all("/pods"):
            if pod["spec"].get("nodeName") not in alive:
                continue
            uid = pod["metadata"]["uid"]
            if pod["metadata"].get("deletionTimestamp"):
                left = self._ends.setdefault(uid, now + self.termination_seconds) - now
                if left > 0:
                    due = min(due, left)
                elif pod["metadata"].get("deletionGracePeriodSeconds") or not pod["metadata"].get("finalizers"):
                    self._resources.delete(PODS, *_place(pod), NOW)
                    self._ends.pop(uid, None)
            elif (pod.get("status") or {}).get("phase") == "Pending" and self.has_controllers:
                self._start(pod)
        return due

    def _start(self, pod: Object) -> None:
        self._resources.patch(PODS, *_place(pod), {"status": running(pod)}, "application/merge-patch+json", KUBELET)

    # Scheduler

    def _schedule(self) -> None:
        for pod in self._store.all("/pods"):
            if pod["spec"].get("nodeName") or pod["metadata"].get("deletionTimestamp"):
                continue
            fitting = [node for node in self._store.all("/nodes") if self._fits(pod, node)]
            if fitting:
                bound = copy.deepcopy(pod)
                bound["spec"]["nodeName"] = min(fitting, key=self._load)["metadata"]["name"]
                self._store.put("/pods", _place(pod), bound)

    def _load(self, node: Object) -> tuple[int, str]:
        name = node["metadata"]["name"]
        return sum(pod["spec"].get("nodeName") == name for pod in self._store.all("/pods")), name

    def _fits(self, pod: Object, node: Object) -> bool:
        if (node.get("spec") or {}).get("unschedulable") or not tolerates(pod["spec"], node):
            return False
        labels = node["metadata"].get("labels") or {}
        if any(labels.get(key) != value for key, value in (pod["spec"].get("nodeSelector") or {}).items()):
            return False
        free = (node.get("status") or {}).get("allocatable") or {}
        name = node["metadata"]["name"]
        taken = [other["spec"] for other in self._store.all("/pods") if other["spec"].get("nodeName") == name]
        return all(
            wanted + sum(_devices(spec).get(device, 0) for spec in taken) <= int(free.get(device, 0))
            for device, wanted in _devices(pod["spec"]).items()
        )

    # Controllers

    def _deploy(self) -> None:
        for found in self._store.all("apps/deployments"):
            spec, uid = found["spec"], found["metadata"]["uid"]
            owned = [rs for rs in self._store.all("apps/replicasets") if _is_owned(rs, uid)]
            if not owned:
                name = f"{found['metadata']['name']}-{_word(9)}"
                labels = (spec["template"].get("metadata") or {}).get("labels") or {}
                about = {"name": name, "labels": labels, "ownerReferences": [owner_of(found)]}
                wanted = {key: copy.deepcopy(spec[key]) for key in ("replicas", "selector", "template")}
                value = {"metadata": about, "spec": wanted}
                self._resources.create(BY_STORAGE["apps/replicasets"], found["metadata"]["namespace"], value, PLANE)
            elif owned[0]["spec"]["replicas"] != spec["replicas"]:
                self._scale(owned[0], spec["replicas"])
            else:
                self._set_status(found, (owned[0].get("status") or {}) | {"updatedReplicas": spec["replicas"]})

    def _scale(self, found: Object, replicas: int) -> None:
        place = (found["metadata"]["namespace"], found["metadata"]["name"])
        patch = {"spec": {"replicas": replicas}}
        self._resources.patch(BY_STORAGE["apps/replicasets"], *place, patch, "application/merge-patch+json", PLANE)

    def _replicate(self, found: Object) -> None:
        if found["metadata"].get("deletionTimestamp"):
            return
        owned = self._owned_pods(found)
        live = [pod for pod in owned if _is_live(pod)]
        wanted = found["spec"].get("replicas", 1)
        is_ordered = found["kind"] == "StatefulSet"
        names = {pod["metadata"]["name"] for pod in owned}
        free = [f"{found['metadata']['name']}-{n}" for n in range(wanted)]
        free = [name for name in free if name not in names]  # an ordered name is taken until its pod is gone
        for index in range(wanted - len(live)):
            if not is_ordered or index < len(free):
                self._make_pod(found, name=free[index] if is_ordered else None)
        for pod in sorted(live, key=lambda pod: pod["metadata"]["name"])[wanted:]:
            self._resources.delete(PODS, *_place(pod))
        ready = sum((pod.get("status") or {}).get("phase") == "Running" for pod in live)
        self._set_status(found, {"replicas": len(live), "readyReplicas": ready, "availableReplicas": ready})

    def _daemons(self, found: Object) -> None:
        if found["metadata"].get("deletionTimestamp"):
            return
        only = (found["metadata"].get("annotations") or {}).get(NODES_OF)
        template = copy.deepcopy((found["spec"].get("template") or {}).get("spec") or {})
        template["tolerations"] = [*(template.get("tolerations") or []), *DAEMON_TOLERATIONS]
        nodes = []
        for node in self._store.all("/nodes"):
            labels, name = node["metadata"].get("labels") or {}, node["metadata"]["name"]
            is_selected = all(labels.get(key) == value for key, value in (template.get("nodeSelector") or {}).items())
            if is_selected and (only is None or name in only.split(",")) and tolerates(template, node):
                nodes.append(name)
        owned = self._owned_pods(found)
        for name in nodes:
            if not any(pod["spec"].get("nodeName") == name for pod in owned):
                self._make_pod(found, node=name)
        ready = sum(_is_live(pod) and pod["spec"].get("nodeName") in nodes for pod in owned)
        status = {"desiredNumberScheduled": len(nodes), "currentNumberScheduled": ready, "numberReady": ready}
        self._set_status(found, status | {"numberMisscheduled": 0})

    def _owned_pods(self, found: Object) -> list[Object]:
        uid = found["metadata"]["uid"]
        matches = by_selector(found["spec"].get("selector"))
        pods = self._store.all("/pods", found["metadata"]["namespace"])
        return [pod for pod in pods if _is_owned(pod, uid) and matches(pod)]

    def _make_pod(self, found: Object, *, name: str | None = None, node: str | None = None) -> None:
        template = copy.deepcopy(found["spec"]["template"])
        about = {key: value for key, value in template["metadata"].items() if key in ("labels", "annotations")}
        about |= {"name": name} if name else {"generateName": found["metadata"]["name"] + "-"}
        about["ownerReferences"] = [owner_of(found)]
        spec = template["spec"]
        if node:
            spec["nodeName"] = node
            spec["tolerations"] = [*(spec.get("tolerations") or []), *DAEMON_TOLERATIONS]
        try:
            self._resources.create(PODS, found["metadata"]["namespace"], {"metadata": about, "spec": spec}, PLANE)
        except ApiError as error:
            if error.code not in (403, 404, 409):  # the namespace is going, or a pod of that name is there
                raise

    def _set_status(self, found: Object, status: Object) -> None:
        status = {**status, "observedGeneration": found["metadata"].get("generation", 1)}
        if found.get("status") != status:
            kind = BY_STORAGE[f"apps/{found['kind'].lower()}s"]
            self._store.put(kind.storage, _place(found), {**found, "status": status})

    # Orphans

    def _collect_orphans(self) -> None:
        """What is owned by things that are all gone goes too; owners that wait for that are let go."""
        uids = {value["metadata"]["uid"] for name in self._store.storages() for value in self._store.all(name)}
        for storage in self._store.storages():
            kind = BY_STORAGE[storage]
            for value in self._store.all(storage):
                owners = value["metadata"].get("ownerReferences") or []
                if owners and not any(owner["uid"] in uids for owner in owners) and not _is_going(value):
                    self._resources.delete(kind, *_place(value))
                if _is_going(value) and {"foregroundDeletion", "orphan"} & set(
                    value["metadata"].get("finalizers") or []
                ):
                    self._let_go(storage, value)

    def _let_go(self, storage: str, owner: Object) -> None:
        uid, finalizers = owner["metadata"]["uid"], owner["metadata"]["finalizers"]
        owned = [
            (name, value) for name in self._store.storages() for value in self._store.all(name) if _is_owned(value, uid)
        ]
        for name, value in owned:
            if "orphan" in finalizers:
                after = copy.deepcopy(value)
                after["metadata"]["ownerReferences"] = [
                    one for one in value["metadata"]["ownerReferences"] if one["uid"] != uid
                ]
                self._store.put(name, _place(value), after)
            elif not _is_going(value):
                self._resources.delete(BY_STORAGE[name], *_place(value))
        if "orphan" in finalizers or not owned:
            rest = [name for name in finalizers if name not in ("foregroundDeletion", "orphan")]
            after = {"metadata": {"finalizers": rest or None}}
            self._resources.patch(BY_STORAGE[storage], *_place(owner), after, "application/merge-patch+json", PLANE)

    def _finish_namespaces(self) -> None:
        for namespace in self._store.all("/namespaces"):
            if not _is_going(namespace):
                continue
            name, left = namespace["metadata"]["name"], 0
            for storage in self._store.storages():
                for value in self._store.all(storage, name):
                    left += 1
                    if not _is_going(value):
                        self._resources.delete(BY_STORAGE[storage], *_place(value))
                        left -= self._store.get(storage, _place(value)) is None
            if not left:
                self._store.remove("/namespaces", ("", name))


def running(pod: Object) -> Object:
    """The status that a kubelet reports of a pod that runs and is ready."""
    conditions = [
        {"type": name, "status": "True", "lastTransitionTime": timestamp()}
        for name in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ]
    containers = [
        {
            "name": container["name"],
            "ready": True,
            "restartCount": 0,
            "image": container.get("image", ""),
            "imageID": "",
        }
        | {"state": {"running": {"startedAt": timestamp()}}}
        for container in pod["spec"]["containers"]
    ]
    status = {"phase": "Running", "conditions": conditions, "containerStatuses": containers, "startTime": timestamp()}
    return status | {"hostIP": "127.0.0.1", "podIP": "127.0.0.1"}


def owner_of(found: Object) -> Object:
    """The reference by which an object says that this one manages it."""
    about = {"apiVersion": found["apiVersion"], "kind": found["kind"], "name": found["metadata"]["name"]}
    return about | {"uid": found["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True}


def tolerates(spec: Object, node: Object) -> bool:
    """Whether a pod may come to (NoSchedule) and stay on (NoExecute) a node with its taints."""
    taints = (node.get("spec") or {}).get("taints") or []
    return all(
        taint["effect"] == "PreferNoSchedule" or any(_is_tolerated(taint, by) for by in spec.get("tolerations") or [])
        for taint in taints
    )


def _is_tolerated(taint: Object, by: Object) -> bool:
    if by.get("effect") not in (None, "", taint["effect"]) or by.get("key") not in (None, "", taint["key"]):
        return False
    return by.get("operator") == "Exists" or (bool(by.get("key")) and by.get("value", "") == taint.get("value", ""))


def _devices(spec: Object) -> dict[str, int]:
    """Requests of extended resources, such as GPUs."""
    wanted: dict[str, int] = {}
    for container in spec.get("containers") or []:
        resources = container.get("resources") or {}
        for name, amount in {**(resources.get("requests") or {}), **(resources.get("limits") or {})}.items():
            if "/" in name:
                wanted[name] = wanted.get(name, 0) + int(amount)
    return wanted


def _place(value: Object) -> tuple[str, str]:
    return value["metadata"].get("namespace", ""), value["metadata"]["name"]


def _is_going(value: Object) -> bool:
    return bool(value["metadata"].get("deletionTimestamp"))


def _is_live(pod: Object) -> bool:
    return not _is_going(pod) and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")


def _is_owned(value: Object, uid: str) -> bool:
    owner = controller_of(value)
    return owner is not None and owner["uid"] == uid


def _word(length: int) -> str:
    return "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=length))
