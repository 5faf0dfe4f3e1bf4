"""The connection to the API server, and what its refusals mean for a step.

Facts about real servers: a budget's 429 carries no Retry-After; a 404 about a node is final; a 409 wants the object to
be read again. See docs/guide/kubernetes.md.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import urllib3
from instep_collector.errors import StartError
from kubernetes import client
from kubernetes import config as kube_config

from instep_remediation.executors.kubernetes.settings import KubernetesConfig
from instep_remediation.node_executor import Outcome, Progress

TIMEOUT_SECONDS = (3.0, 5.0)
"""To connect, and to be answered."""
BUSY_SECONDS = 5.0
"""The API server is asked again after this when it is away or busy."""
CONFLICT_SECONDS = 0.5
MESSAGE_LETTERS_MAX = 300

log = logging.getLogger(__name__)


class StepEnds(Exception):
    """A step cannot go on now; carries the answer."""

    def __init__(self, outcome: Outcome, detail: str, retry_after_seconds: float = BUSY_SECONDS) -> None:
        super().__init__(detail)
        self.progress = Progress(outcome, detail, retry_after_seconds)


class NodeGone(StepEnds):
    """The node is not in the cluster: final, and all there is to do where something was to be taken back."""


def connect(settings: KubernetesConfig) -> client.ApiClient:
    """Return a client; raises StartError with one sentence when there is no usable configuration."""
    configuration = client.Configuration()
    try:
        _load(settings, configuration)
    except (kube_config.ConfigException, OSError, ValueError, TypeError) as error:
        raise StartError(
            f'The executor "kubernetes" cannot read its configuration ({error}): set kubernetes.kubeconfig, or run '
            "the server in a pod with a service account."
        ) from error
    configuration.retries = False  # steps are asked for again by the plan, which says so
    return client.ApiClient(configuration)


def _load(settings: KubernetesConfig, configuration: client.Configuration) -> None:
    loading: Any = kube_config
    if settings.kubeconfig is None and not settings.context:
        try:
            loading.load_incluster_config(client_configuration=configuration)
            return
        except kube_config.ConfigException:
            log.info("There is no service account here: the user's own kubeconfig is used.")
    path = str(settings.kubeconfig) if settings.kubeconfig else None
    loading.load_kube_config(config_file=path, context=settings.context or None, client_configuration=configuration)


@contextmanager
def answers(doing: str, *, node: str) -> Iterator[None]:
    """Translate what the API server says into the answer of a step. `doing` names the call in sentences."""
    try:
        yield
    except client.ApiException as error:
        raise _ends(error, doing, node) from error
    except urllib3.exceptions.HTTPError as error:
        raise StepEnds(Outcome.WAITING, f"The API server cannot be reached to {doing} ({_short(error)}).") from error


def _ends(error: client.ApiException, doing: str, node: str) -> StepEnds:
    said = message_of(error)
    match error.status:
        case 401:
            return StepEnds(Outcome.FAILED, f"The API server does not know our credentials: renew them ({said}).")
        case 403:
            return StepEnds(
                Outcome.FAILED, f"We may not {doing}: grant it as deploy/kubernetes/base/rbac.yaml does ({said})."
            )
        case 404:
            return NodeGone(Outcome.FAILED, f"Node {node} is not in the cluster any more: there is nothing to {doing}.")
        case 409:
            return StepEnds(Outcome.WAITING, f"{node} was changed by somebody else meanwhile.", CONFLICT_SECONDS)
        case 429 | 500 | 502 | 503 | 504:
            return StepEnds(Outcome.WAITING, f"The API server is busy ({error.status}: {said}).", _retry_after(error))
        case status:
            return StepEnds(Outcome.FAILED, f"The API server refused to {doing} ({status}: {said}).")


def status_of(error: client.ApiException) -> dict[str, object]:
    """Return the `Status` object in an error's body; empty when there is none."""
    try:
        body = json.loads(error.body or "{}")
    except (ValueError, TypeError):
        return {}
    return body if isinstance(body, dict) else {}


def message_of(error: client.ApiException) -> str:
    """Return what the API server said."""
    return str(status_of(error).get("message") or error.reason or "no reason given")[:MESSAGE_LETTERS_MAX]


def _retry_after(error: client.ApiException) -> float:
    details = status_of(error).get("details")
    seconds = details.get("retryAfterSeconds") if isinstance(details, dict) else None
    return float(seconds) if isinstance(seconds, int | float) else BUSY_SECONDS


def _short(error: Exception) -> str:
    return str(error)[:MESSAGE_LETTERS_MAX]
