"""The stand-in as a test holds it: on a free port over TLS, filled with nodes and pods."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme
import uvicorn
import yaml

from tests.cluster.api_server.access import EVERYBODY, MASTERS, Access, Call, User
from tests.cluster.api_server.application import Application
from tests.cluster.api_server.budgets import BUDGETS, Budgets, budget_spec
from tests.cluster.api_server.errors import Object
from tests.cluster.api_server.faults import Fault, Faults
from tests.cluster.api_server.handlers import Handlers
from tests.cluster.api_server.kinds import BY_NAME, BY_PATH, BY_STORAGE, Kind
from tests.cluster.api_server.plane import NODES_OF, Plane, owner_of, running
from tests.cluster.api_server.resources import Deletion, Options, Resources, timestamp
from tests.cluster.api_server.store import Store
from tests.cluster.api_server.watches import Hub

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
TEST = Options(manager="test")
WAIT_SECONDS_MAX = 20.0
GPUS = 8
CLOSING_ROUNDS = 5
"""Turns of the loop in which cut connections, TLS included, come to their end."""


class ApiServer:
    """A cluster's API on 127.0.0.1. Use it as a context: `with ApiServer() as server: …`.

    `has_controllers`: evicted pods of ReplicaSets, Deployments and StatefulSets are made again elsewhere, and pending
    pods start.
    `termination_seconds`: how long a kubelet takes to confirm that a pod has ended.
    `has_rbac`: tokens of service accounts may do only what the applied roles grant.
    `is_oldest`: the event rules of Kubernetes 1.20.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        has_controllers: bool = True,
        termination_seconds: float = 0.0,
        has_rbac: bool = False,
        is_oldest: bool = False,
    ) -> None:
        self.store = Store()
        self.resources = Resources(self.store, is_oldest=is_oldest)
        self.budgets = Budgets(self.store, self.resources)
        self.access = Access(self.store, is_enforced=has_rbac)
        self.faults = Faults()
        self.hub = Hub(self.store)
        self.plane = Plane(
            self.store, self.resources, termination_seconds=termination_seconds, has_controllers=has_controllers
        )
        self.token = self.access.give_token(User("admin", (MASTERS, EVERYBODY)))
        self._authority = trustme.CA()
        # asyncio sets TCP_NODELAY only where the protocol is named; without it each answer takes 45 ms instead of 3.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self._changed = threading.Condition(self.store.lock)
        self.store.listen(lambda _: self._changed.notify_all())
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._serve, name="api-server", daemon=True)
        for name in NAMESPACES:
            self.add_namespace(name)

    def __enter__(self) -> ApiServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve from now on."""
        handlers = Handlers(self.store, self.resources, self.budgets, self.access)
        application = Application(handlers, self.access, self.faults, self.hub)
        config = uvicorn.Config(
            application,
            log_level="error",
            lifespan="off",
            ws="none",
            loop="asyncio",
            access_log=False,
            timeout_keep_alive=60,
        )
        config.load()
        config.ssl = self._tls()
        self._server = uvicorn.Server(config)
        self._socket.listen(128)  # whoever connects now is served as soon as the loop runs
        self._thread.start()
        self.plane.start()

    def _tls(self) -> Any:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
        return context

    def _serve(self) -> None:
        assert self._server is not None
        server = self._server

        async def serve() -> None:
            self.hub.run_in(asyncio.get_running_loop())
            await server.serve(sockets=[self._socket])
            await _close_connections()

        asyncio.run(serve())

    def stop(self) -> None:
        """End every connection. Raises what went wrong in the control plane."""
        self.hub.is_closing = True
        self.hub.wake()
        if self._server is not None:
            self._server.should_exit = True
            self._server.force_exit = True
            self._thread.join()
        self._socket.close()
        if self._server is not None:
            self.plane.stop()

    # Ways in

    @property
    def ca_pem(self) -> bytes:
        """The certificate of the authority that signed the server's."""
        return self._authority.cert_pem.bytes()

    def kubeconfig(self, path: Path, *, token: str | None = None, namespace: str = "default") -> Path:
        """Write a kubeconfig file; gives back its path."""
        cluster = {"server": self.url, "certificate-authority-data": base64.b64encode(self.ca_pem).decode()}
        written = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stand-in",
            "clusters": [{"name": "stand-in", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": self.token if token is None else token}}],
            "contexts": [
                {"name": "stand-in", "context": {"cluster": "stand-in", "user": "user", "namespace": namespace}}
            ],
        }
        path.write_text(yaml.safe_dump(written), encoding="utf-8")
        return path

    def service_account_folder(self, path: Path, *, token: str, namespace: str) -> Path:
        """Write what a pod finds in /var/run/secrets/kubernetes.io/serviceaccount."""
        path.mkdir(parents=True, exist_ok=True)
        (path / "token").write_text(token)
        (path / "ca.crt").write_bytes(self.ca_pem)
        (path / "namespace").write_text(namespace)
        return path

    def service_account_token(self, namespace: str, name: str) -> str:
        """A token of a service account, whether the object is there or not."""
        return self.access.give_token(User.service_account(namespace, name))

    def calls(self, token: str | None = None) -> list[Call]:
        """The requests that came with a token, in order; with None, all."""
        return [call for found, call in self.access.calls if token in (None, found)]

    def forget_calls(self) -> None:
        """Start the list of calls anew."""
        self.access.calls.clear()

    # Objects

    def kind(self, name: str) -> Kind:
        """A kind by its `Kind` or its plural."""
        if name in BY_NAME:
            return BY_NAME[name]
        return next(kind for (_, _, plural), kind in BY_PATH.items() if plural == name)

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        """An object as the API shows it. Raises ApiError when it is not there."""
        return self.resources.get(self.kind(kind), namespace, name)

    def exists(self, kind: str, name: str, namespace: str = "") -> bool:
        """Whether it is there."""
        return self.store.get(self.kind(kind).storage, (namespace, name)) is not None

    def all(self, kind: str, namespace: str = "") -> list[Object]:
        """Copies of all objects of a kind."""
        return copy.deepcopy(self.store.all(self.kind(kind).storage, namespace))

    def create(self, value: Object) -> Object:
        """Create an object of any kind, as an administrator would."""
        kind = next(k for k in BY_PATH.values() if (k.api_version, k.kind) == (value["apiVersion"], value["kind"]))
        namespace = (value["metadata"].get("namespace") or "default") if kind.is_namespaced else ""
        return self.resources.create(kind, namespace, value, TEST)

    def add_namespace(self, name: str) -> Object:
        """A namespace."""
        return self.resources.create(BY_STORAGE["/namespaces"], "", {"metadata": {"name": name}}, TEST)

    def add_node(
        self, name: str, *, labels: dict[str, str] | None = None, gpus: int = GPUS, is_ready: bool = True
    ) -> Object:
        """A node with its kubelet."""
        capacity = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
        info = {
            "kubeletVersion": "v1.37.1",
            "osImage": "Linux",
            "kernelVersion": "6.1",
            "containerRuntimeVersion": "none",
        }
        info |= dict.fromkeys(("machineID", "systemUUID", "bootID", "kubeProxyVersion"), "")
        info |= {"operatingSystem": "linux", "architecture": "amd64"}
        status = {
            "conditions": [_ready(is_ready)],
            "capacity": capacity,
            "allocatable": dict(capacity),
            "nodeInfo": info,
        }
        status["addresses"] = [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": name}]
        about = {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}}
        return self.resources.create(BY_STORAGE["/nodes"], "", {"metadata": about, "status": status}, TEST)

    def set_node_ready(self, name: str, is_ready: bool) -> None:
        """What the node controller would say of the node."""
        with self.store.lock:
            node = self.get("Node", name)
            others = [found for found in node["status"]["conditions"] if found["type"] != "Ready"]
            node["status"]["conditions"] = [*others, _ready(is_ready)]
            self.store.put("/nodes", ("", name), node)

    def silence(self, node: str) -> None:
        """The node's kubelet does nothing from now on: its pods stay in Terminating."""
        self.plane.silent_nodes.add(node)

    def revive(self, node: str) -> None:
        """The node's kubelet works again."""
        self.plane.silent_nodes.discard(node)
        self.plane.wake()

    def add_pod(
        self,
        namespace: str,
        name: str,
        *,
        node: str,
        owner: str | None = None,
        labels: dict[str, str] | None = None,
        grace_seconds: int = 30,
        gpus: int = 0,
        phase: str = "Running",
        is_ready: bool = True,
        mirror: bool = False,
        annotations: dict[str, str] | None = None,
        spec: Object | None = None,
        finalizers: list[str] | None = None,
    ) -> Object:
        """A pod that runs on a node. `owner` is `KIND/NAME`; one that is not there is made, wanting as many pods."""
        labels = labels or ({"app": owner.partition("/")[2]} if owner else {})
        container: Object = {"name": "main", "image": "example/main"}
        if gpus:
            container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
        wanted = {"terminationGracePeriodSeconds": grace_seconds, "containers": [container], **(spec or {})}
        about: Object = {"name": name, "labels": labels, "annotations": dict(annotations or {})}
        if mirror:
            about["annotations"]["kubernetes.io/config.mirror"] = "mirror"
        if finalizers:
            about["finalizers"] = finalizers
        with self.store.lock:
            if owner:
                about["ownerReferences"] = [owner_of(self._owner(namespace, owner, labels, wanted, node))]
            value = {"metadata": about, "spec": {**wanted, "nodeName": node}}
            pod = self.resources.create(BY_STORAGE["/pods"], namespace, value, TEST)
            pod["status"] = running(pod) if phase == "Running" else {"phase": phase}
            if not is_ready:
                for condition in pod["status"].get("conditions", []):
                    condition["status"] = "False" if condition["type"] in ("Ready", "ContainersReady") else "True"
            return self.store.put("/pods", (namespace, name), pod)

    def _owner(self, namespace: str, owner: str, labels: dict[str, str], spec: Object, node: str) -> Object:
        kind_name, _, name = owner.partition("/")
        kind = BY_NAME[kind_name]
        found = self.store.get(kind.storage, (namespace, name))
        if found is None:
            template = {"metadata": {"labels": labels}, "spec": copy.deepcopy(spec)}
            about: Object = {"name": name}
            if kind_name == "DaemonSet":
                about["annotations"] = {NODES_OF: node}
            wanted = {"selector": {"matchLabels": labels}, "template": template, "replicas": 1}
            if kind_name in ("DaemonSet", "Job"):
                del wanted["replicas"]
            return self.resources.create(kind, namespace, {"metadata": about, "spec": wanted}, TEST)
        if kind_name == "DaemonSet" and (only := (found["metadata"].get("annotations") or {}).get(NODES_OF)):
            found["metadata"]["annotations"][NODES_OF] = f"{only},{node}"
        elif "replicas" in found["spec"]:
            found["spec"]["replicas"] += 1
        return self.store.put(kind.storage, (namespace, name), found)

    def add_budget(
        self,
        namespace: str,
        name: str,
        *,
        labels: dict[str, str],
        min_available: int | str | None = None,
        max_unavailable: int | str | None = None,
    ) -> Object:
        """A disruption budget over the pods with these labels."""
        spec = budget_spec(labels, min_available, max_unavailable)
        self.resources.create(BY_STORAGE[BUDGETS], namespace, {"metadata": {"name": name}, "spec": spec}, TEST)
        return self.get("PodDisruptionBudget", name, namespace)

    def pods_on(self, node: str) -> list[str]:
        """`NAMESPACE/NAME` of the pods that are bound to the node."""
        found = [pod for pod in self.store.all("/pods") if pod["spec"].get("nodeName") == node]
        return [f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" for pod in found]

    def evict(self, namespace: str, name: str) -> None:
        """Evict a pod as the API does. Raises ApiError 429 when its budget refuses."""
        self.budgets.evict(namespace, name, Deletion())

    def remove(self, kind: str, name: str, namespace: str = "") -> None:
        """Delete at once, without grace."""
        with contextlib.suppress(KeyError):
            self.resources.delete(self.kind(kind), namespace, name, Deletion(grace_seconds=0))

    # Disturbances

    def inject(self, **fault: Any) -> Fault:
        """Order a fault: the fields of `Fault`."""
        return self.faults.order(Fault(**fault))

    def compact(self) -> int:
        """Forget the history: watches and lists from before get 410."""
        return self.store.compact()

    def send_bookmarks(self) -> None:
        """Each watch that allows bookmarks gets one now."""
        self.hub.bookmarks += 1
        self.hub.wake()

    def drop_watches(self) -> None:
        """Each watch ends now."""
        self.hub.drops += 1
        self.hub.wake()

    def wait_until(self, is_so: Callable[[], bool], what: str = "the condition") -> None:
        """Return once it is so, looking after each change; fails when it takes too long."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        with self._changed:
            while not is_so():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"{what} did not come true within {WAIT_SECONDS_MAX} s")
                self._changed.wait(min(left, 0.5))


async def _close_connections() -> None:
    """uvicorn leaves open what it did not wait for, and a loop that ends before them warns of each."""
    loop = asyncio.get_running_loop()
    for transport in list(getattr(loop, "_transports", {}).values()):
        transport.abort()
    for _ in range(CLOSING_ROUNDS):
        await asyncio.sleep(0)


def _ready(is_ready: bool) -> Object:
    reason = "KubeletReady" if is_ready else "NodeStatusUnknown"
    condition = {"type": "Ready", "status": "True" if is_ready else "Unknown", "reason": reason, "message": ""}
    return condition | {"lastHeartbeatTime": timestamp(), "lastTransitionTime": timestamp()}
