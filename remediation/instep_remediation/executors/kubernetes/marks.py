"""What Instep leaves on a node: cordon, taint, condition, event. Only what carries our mark is taken away again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from kubernetes import client

from instep_remediation.executors.kubernetes.connection import TIMEOUT_SECONDS, answers, message_of
from instep_remediation.executors.kubernetes.settings import KubernetesConfig
from instep_remediation.node_executor import Outcome, Progress, Step

CORDONED_BY = "instep.dev/cordoned-by"
"""Annotation that tells our cordon from somebody else's."""
COMPONENT = "instep"
EVENT_NAMESPACE = "default"
"""Where every release of Kubernetes takes a classic event about a node."""
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
DONE = Outcome.DONE


class NodeMarks:
    """Each method carries one step out: it leaves the same when it is asked again."""

    def __init__(self, api: client.ApiClient, settings: KubernetesConfig) -> None:
        self._core = client.CoreV1Api(api)
        self._settings = settings

    def cordon(self, step: Step) -> Progress:
        """Make the node unschedulable, and say by an annotation that it was us."""
        node = self._read(step.node)
        if node.spec.unschedulable:
            by_us = CORDONED_BY in (node.metadata.annotations or {})
            return Progress(DONE, f"{step.node} is cordoned." if by_us else f"{step.node} was cordoned already.")
        marks = {"annotations": {CORDONED_BY: step.mark}}
        self._patch(node, {"metadata": marks, "spec": {"unschedulable": True}}, "cordon the node")
        return Progress(DONE, f"{step.node} is cordoned.")

    def uncordon(self, step: Step) -> Progress:
        """Make the node schedulable when it was us who cordoned it."""
        node = self._read(step.node)
        if CORDONED_BY not in (node.metadata.annotations or {}):
            is_others = bool(node.spec.unschedulable)
            return Progress(
                DONE,
                f"{step.node} stays cordoned, since it was not Instep that cordoned it: kubectl uncordon {step.node}."
                if is_others
                else f"{step.node} is schedulable.",
            )
        marks = {"annotations": {CORDONED_BY: None}}
        self._patch(node, {"metadata": marks, "spec": {"unschedulable": None}}, "uncordon the node")
        return Progress(DONE, f"{step.node} is schedulable.")

    def taint(self, step: Step) -> Progress:
        """Put our taint beside those of others."""
        node, value = self._read(step.node), str(step.arguments["plan"])
        others = self._others(node)
        ours = {"key": self._settings.taint_key, "value": value, "effect": self._settings.taint_effect}
        if len(others) < len(node.spec.taints or []):
            return Progress(DONE, f"{step.node} is tainted {self._settings.taint_key}.")
        self._patch(node, {"spec": {"taints": [*others, ours]}}, "taint the node")
        return Progress(DONE, f"{step.node} is tainted {ours['key']}={value}:{ours['effect']}.")

    def untaint(self, step: Step) -> Progress:
        """Take our taint away."""
        node = self._read(step.node)
        others = self._others(node)
        if len(others) < len(node.spec.taints or []):
            self._patch(node, {"spec": {"taints": others or None}}, "untaint the node")
        return Progress(DONE, f"{step.node} has no taint of ours.")

    def condition(self, step: Step) -> Progress:
        """Set our node condition to `step.arguments["status"]`."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        wanted = {
            "type": self._settings.condition,
            "status": str(step.arguments["status"]),
            "reason": str(step.arguments["reason"]),
            "message": str(step.arguments["message"]),
        }
        node = self._read(step.node)
        known = next((each for each in node.status.conditions or [] if each.type == wanted["type"]), None)
        if known is not None and all(getattr(known, name) == value for name, value in wanted.items()):
            return Progress(DONE, f"{wanted['type']} is {wanted['status']}.")
        wanted |= {"lastHeartbeatTime": now, "lastTransitionTime": now}
        with answers("set the node's condition", node=step.node):
            self._core.patch_node_status(
                step.node,
                {"status": {"conditions": [wanted]}},
                field_manager=COMPONENT,
                _content_type=STRATEGIC,
                _request_timeout=TIMEOUT_SECONDS,
            )
        return Progress(DONE, f"{wanted['type']} is {wanted['status']}.")

    def event(self, step: Step) -> Progress:
        """Tell of it in an event of the node; its name carries the mark, so a second asking finds the first."""
        node, now = self._read(step.node), datetime.now(UTC)
        about = client.V1ObjectReference(api_version="v1", kind="Node", name=step.node, uid=node.metadata.uid)
        body = client.CoreV1Event(
            metadata=client.V1ObjectMeta(name=f"{step.node}.{step.mark}", namespace=EVENT_NAMESPACE),
            involved_object=about,
            reason=str(step.arguments["reason"]),
            message=str(step.arguments["message"]),
            type=str(step.arguments["type"]),
            source=client.V1EventSource(component=COMPONENT),
            first_timestamp=now,
            last_timestamp=now,
            count=1,
        )
        with answers("tell of it in an event", node=step.node):
            try:
                self._core.create_namespaced_event(EVENT_NAMESPACE, body, _request_timeout=TIMEOUT_SECONDS)
            except client.ApiException as error:
                if error.status != 409:
                    raise
                return Progress(DONE, f"The event was there already ({message_of(error)}).")
        return Progress(DONE, "The node's events tell of it.")

    def _read(self, name: str) -> Any:
        with answers("read the node", node=name):
            return self._core.read_node(name, _request_timeout=TIMEOUT_SECONDS)

    def _others(self, node: Any) -> list[dict[str, Any]]:
        """Return the taints of others, as they would be written."""
        taints = [taint for taint in node.spec.taints or [] if taint.key != self._settings.taint_key]
        return [self._core.api_client.sanitize_for_serialization(taint) for taint in taints]

    def _patch(self, node: Any, change: dict[str, Any], doing: str) -> None:
        """Change a node as it was read: a change of somebody else in between is a conflict, and loses nothing."""
        metadata = {**change.get("metadata", {}), "resourceVersion": node.metadata.resource_version}
        with answers(doing, node=node.metadata.name):
            self._core.patch_node(
                node.metadata.name,
                {**change, "metadata": metadata},
                field_manager=COMPONENT,
                _content_type=MERGE,
                _request_timeout=TIMEOUT_SECONDS,
            )
