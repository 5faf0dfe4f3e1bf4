"""A real, disposable API server behind the same methods as the stand-in, for the checks that run against either.

It needs an administrator's kubeconfig, no nodes named node-a, node-b, node-c, and a controller manager that runs the
disruption controller and none of the apps controllers (`--controllers=disruption`): those would replace the pods that
the checks place. These have no kubelet: they are set to Running by writing their status, and a thread confirms their
deletion.
"""

from __future__ import annotations

import contextlib
import copy
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from tests.cluster.api_server.budgets import budget_spec
from tests.cluster.api_server.kinds import BY_NAME, CLUSTER, Kind
from tests.cluster.api_server.plane import owner_of, running

WAIT_SECONDS_MAX = 40.0
POLL_SECONDS = 0.2
MERGE = "application/merge-patch+json"
Object = dict[str, Any]


class RealCluster:
    """Speaks to the cluster with the official client, and takes away what it made."""

    def __init__(self, kubeconfig: Path) -> None:
        self._path = kubeconfig
        self._api = config.new_client_from_config(str(kubeconfig))
        self._made: list[tuple[str, str, str]] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._confirm_deletions, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Remove everything that was added."""
        for kind, namespace, name in reversed(self._made):
            with contextlib.suppress(client.ApiException):
                self.remove(kind, name, namespace)
        for node in ("node-a", "node-b", "node-c"):
            for place in self.pods_on(node):
                with contextlib.suppress(client.ApiException):
                    self.remove("Pod", place.partition("/")[2], place.partition("/")[0])
        self._closing.set()
        self._thread.join()
        self._api.close()

    def kubeconfig(self, path: Path) -> Path:
        """A copy of the administrator's kubeconfig."""
        path.write_bytes(self._path.read_bytes())
        return path

    def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """One request; raises ApiException."""
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        asked = self._api.param_serialize(method, path, header_params=headers, body=body, auth_settings=["BearerToken"])
        answer = self._api.call_api(*asked)
        text = (answer.read() or b"{}").decode()
        if not 200 <= answer.status < 300:
            raise client.ApiException(status=answer.status, reason=answer.reason, body=text)
        return json.loads(text)

    def _url(self, kind: Kind, namespace: str, name: str = "") -> str:
        root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
        root += f"/namespaces/{namespace}" if kind.is_namespaced else ""
        return f"{root}/{kind.plural}" + (f"/{name}" if name else "")

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        """An object as the API shows it."""
        return self.call("GET", self._url(BY_NAME[kind], namespace, name))

    def exists(self, kind: str, name: str, namespace: str = "") -> bool:
        """Whether it is there."""
        try:
            self.get(kind, name, namespace)
        except client.ApiException as error:
            if error.status != 404:
                raise
            return False
        return True

    def create(self, value: Object) -> Object:
        """Create an object of any kind."""
        kind = BY_NAME[value["kind"]]
        namespace = value["metadata"].get("namespace", "default") if kind.is_namespaced is not CLUSTER else ""
        made = self.call("POST", self._url(kind, namespace), value)
        self._made.append((kind.kind, namespace, made["metadata"]["name"]))
        return made

    def remove(self, kind: str, name: str, namespace: str = "") -> None:
        """Delete at once, without grace."""
        self.call("DELETE", self._url(BY_NAME[kind], namespace, name), {"gracePeriodSeconds": 0})

    def add_node(self, name: str, *, labels: dict[str, str] | None = None) -> Object:
        """A node without a kubelet."""
        about = {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": about, "status": {"conditions": [ready]}}
        return self.create(node)

    def add_pod(
        self,
        namespace: str,
        name: str,
        *,
        node: str,
        owner: str | None = None,
        labels: dict[str, str] | None = None,
        grace_seconds: int = 30,
        mirror: bool = False,
        spec: Object | None = None,
    ) -> Object:
        """A pod that is said to run on a node."""
        labels = labels or ({"app": owner.partition("/")[2]} if owner else {})
        container = {"name": "main", "image": "example/main"}
        wanted = {"terminationGracePeriodSeconds": grace_seconds, "containers": [container], **(spec or {})}
        about: Object = {"name": name, "namespace": namespace, "labels": labels}
        if mirror:
            about["annotations"] = {"kubernetes.io/config.mirror": "mirror"}
        if owner:
            about["ownerReferences"] = [owner_of(self._owner(namespace, owner, labels, wanted))]
        pod = self.create({"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": {**wanted, "nodeName": node}})
        url = self._url(BY_NAME["Pod"], namespace, name)
        return self.call("PATCH", f"{url}/status", {"status": running(pod)}, MERGE)

    def _owner(self, namespace: str, owner: str, labels: dict[str, str], spec: Object) -> Object:
        kind, _, name = owner.partition("/")
        url = self._url(BY_NAME[kind], namespace, name)
        if not self.exists(kind, name, namespace):
            template = {"metadata": {"labels": labels}, "spec": copy.deepcopy(spec)}
            wanted = {"selector": {"matchLabels": labels}, "template": template}
            if kind == "DaemonSet":
                wanted["template"]["spec"]["nodeSelector"] = {"instep-check": "none"}
            else:
                wanted["replicas"] = 1
            about = {"name": name, "namespace": namespace}
            return self.create({"apiVersion": "apps/v1", "kind": kind, "metadata": about, "spec": wanted})
        found = self.call("GET", url)
        if "replicas" not in found["spec"]:
            return found
        return self.call("PATCH", url, {"spec": {"replicas": found["spec"]["replicas"] + 1}}, MERGE)

    def add_budget(
        self,
        namespace: str,
        name: str,
        *,
        labels: dict[str, str],
        min_available: int | str | None = None,
        max_unavailable: int | str | None = None,
    ) -> Object:
        """A disruption budget, once the cluster has looked at it."""
        spec = budget_spec(labels, min_available, max_unavailable)
        about = {"name": name, "namespace": namespace}
        self.create({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": about, "spec": spec})
        self.wait_until(
            lambda: "observedGeneration" in (self.get("PodDisruptionBudget", name, namespace).get("status") or {}),
            "the cluster's disruption controller looks at the budget",
        )
        return self.get("PodDisruptionBudget", name, namespace)

    def pods_on(self, node: str) -> list[str]:
        """`NAMESPACE/NAME` of the pods that are bound to the node."""
        items = self.call("GET", f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")["items"]
        return [f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" for pod in items]

    def wait_until(self, is_so: Callable[[], bool], what: str = "the condition") -> None:
        """Return once it is so."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not is_so():
            assert time.monotonic() < deadline, f"{what} did not come true within {WAIT_SECONDS_MAX} s"
            self._closing.wait(POLL_SECONDS)

    def _confirm_deletions(self) -> None:
        """Plays the kubelets of nodes that have none."""
        while not self._closing.wait(POLL_SECONDS):
            with contextlib.suppress(client.ApiException):
                for node in ("node-a", "node-b", "node-c"):
                    found = self.call("GET", f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")["items"]
                    for pod in found:
                        if pod["metadata"].get("deletionTimestamp"):
                            self.remove("Pod", pod["metadata"]["name"], pod["metadata"]["namespace"])

    def __getattr__(self, name: str) -> Any:
        pytest.skip(f"needs the stand-in: a real cluster has no {name}()")
