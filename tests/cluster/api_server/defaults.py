"""The values that the server fills in where the sender left them out: those that clients of a node's pods look at."""

from __future__ import annotations

from tests.cluster.api_server.errors import Object

GRACE_SECONDS = 30


def fill(value: Object) -> None:
    """Put the defaults into an object of any kind."""
    filler = FILLERS.get(value["kind"])
    if filler:
        filler(value)


def _pod(value: Object) -> None:
    spec = value.setdefault("spec", {})
    fill_pod_spec(spec)
    value.setdefault("status", {"phase": "Pending", "qosClass": "BestEffort"})


def fill_pod_spec(spec: Object) -> None:
    """The defaults of a pod, or of a template for pods."""
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", GRACE_SECONDS)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("securityContext", {})
    spec.setdefault("enableServiceLinks", True)
    for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]:
        container.setdefault("imagePullPolicy", "IfNotPresent")
        container.setdefault("resources", {})
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        for port in container.get("ports") or []:
            port.setdefault("protocol", "TCP")


def _controller(value: Object) -> None:
    spec = value.setdefault("spec", {})
    if value["kind"] != "DaemonSet":
        spec.setdefault("replicas", 1)
    template = spec.get("template")
    if isinstance(template, dict):
        template.setdefault("metadata", {})
        fill_pod_spec(template.setdefault("spec", {}))
    value.setdefault("status", {})


def _namespace(value: Object) -> None:
    value.setdefault("metadata", {}).setdefault("labels", {})
    if value["metadata"].get("name"):
        value["metadata"]["labels"]["kubernetes.io/metadata.name"] = value["metadata"]["name"]
    value.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    value.setdefault("status", {"phase": "Active"})


def _node(value: Object) -> None:
    value.setdefault("spec", {})
    value.setdefault("status", {})


def _service(value: Object) -> None:
    spec = value.setdefault("spec", {})
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    for port in spec.get("ports") or []:
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port"))


def _budget(value: Object) -> None:
    value.setdefault("status", {})


def _event(value: Object) -> None:
    """The server always shows these, empty where nothing was sent."""
    for name in ("eventTime", "firstTimestamp", "lastTimestamp"):
        value.setdefault(name, None)
    value.setdefault("source", {})
    value.setdefault("reportingComponent", "")
    value.setdefault("reportingInstance", "")


FILLERS = {
    "Event": _event,
    "Pod": _pod,
    "Namespace": _namespace,
    "Node": _node,
    "Service": _service,
    "PodDisruptionBudget": _budget,
    **dict.fromkeys(("DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"), _controller),
}
