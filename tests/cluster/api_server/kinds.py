"""The kinds that the stand-in knows: one line each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource of one group and version."""

    group: str
    version: str
    plural: str
    kind: str
    is_namespaced: bool = True
    short_names: tuple[str, ...] = ()
    has_status: bool = False
    subresources: tuple[str, ...] = ()
    stored_as: str = ""
    """`GROUP/PLURAL` of the storage that two API groups share; empty: its own."""
    answers_with_deleted: bool = False
    """Deleting answers with the object instead of a `Status`."""
    is_reviewed: bool = False
    """Nothing is kept: what is created is answered and forgotten."""

    @property
    def api_version(self) -> str:
        """`v1`, `policy/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def storage(self) -> str:
        """The name of its storage."""
        return self.stored_as or f"{self.group}/{self.plural}"


CLUSTER = False
RBAC = "rbac.authorization.k8s.io"

KINDS = (
    Kind("", "v1", "namespaces", "Namespace", CLUSTER, ("ns",), has_status=True),
    Kind("", "v1", "nodes", "Node", CLUSTER, ("no",), has_status=True),
    Kind(
        "",
        "v1",
        "pods",
        "Pod",
        short_names=("po",),
        has_status=True,
        subresources=("eviction",),
        answers_with_deleted=True,
    ),
    Kind("", "v1", "events", "Event", short_names=("ev",), stored_as="/events"),
    Kind("events.k8s.io", "v1", "events", "Event", short_names=("ev",), stored_as="/events"),
    Kind("", "v1", "services", "Service", short_names=("svc",), has_status=True, answers_with_deleted=True),
    Kind("", "v1", "endpoints", "Endpoints", short_names=("ep",)),
    Kind(
        "",
        "v1",
        "serviceaccounts",
        "ServiceAccount",
        short_names=("sa",),
        subresources=("token",),
        answers_with_deleted=True,
    ),
    Kind("", "v1", "configmaps", "ConfigMap", short_names=("cm",)),
    Kind("", "v1", "secrets", "Secret"),
    Kind(
        "",
        "v1",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        short_names=("pvc",),
        has_status=True,
        answers_with_deleted=True,
    ),
    Kind("", "v1", "persistentvolumes", "PersistentVolume", CLUSTER, ("pv",), has_status=True),
    Kind(
        "", "v1", "resourcequotas", "ResourceQuota", short_names=("quota",), has_status=True, answers_with_deleted=True
    ),
    Kind("", "v1", "limitranges", "LimitRange", short_names=("limits",)),
    Kind("", "v1", "replicationcontrollers", "ReplicationController", short_names=("rc",), has_status=True),
    Kind("apps", "v1", "daemonsets", "DaemonSet", short_names=("ds",), has_status=True),
    Kind("apps", "v1", "deployments", "Deployment", short_names=("deploy",), has_status=True, subresources=("scale",)),
    Kind("apps", "v1", "replicasets", "ReplicaSet", short_names=("rs",), has_status=True, subresources=("scale",)),
    Kind("apps", "v1", "statefulsets", "StatefulSet", short_names=("sts",), has_status=True, subresources=("scale",)),
    Kind("apps", "v1", "controllerrevisions", "ControllerRevision"),
    Kind("batch", "v1", "jobs", "Job", has_status=True),
    Kind("batch", "v1", "cronjobs", "CronJob", short_names=("cj",), has_status=True),
    Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", short_names=("pdb",), has_status=True),
    Kind("coordination.k8s.io", "v1", "leases", "Lease"),
    Kind(RBAC, "v1", "clusterroles", "ClusterRole", CLUSTER),
    Kind(RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", CLUSTER),
    Kind(RBAC, "v1", "roles", "Role"),
    Kind(RBAC, "v1", "rolebindings", "RoleBinding"),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", short_names=("netpol",)),
    Kind("networking.k8s.io", "v1", "ingresses", "Ingress", short_names=("ing",), has_status=True),
    Kind("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", CLUSTER, ("pc",)),
    Kind("storage.k8s.io", "v1", "storageclasses", "StorageClass", CLUSTER, ("sc",)),
    Kind(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        CLUSTER,
        ("crd",),
        has_status=True,
    ),
    Kind("monitoring.coreos.com", "v1", "servicemonitors", "ServiceMonitor", short_names=("smon",)),
    Kind("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor", short_names=("pmon",)),
    Kind("monitoring.coreos.com", "v1", "prometheusrules", "PrometheusRule", short_names=("promrule",)),
    Kind(
        "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", CLUSTER, is_reviewed=True
    ),
    Kind("authorization.k8s.io", "v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview", CLUSTER, is_reviewed=True),
    Kind("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", CLUSTER, is_reviewed=True),
)

BY_PATH = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}
BY_STORAGE = {kind.storage: kind for kind in reversed(KINDS)}
"""The kind in whose form a storage keeps its objects: the first one listed."""
BY_NAME = {kind.kind: kind for kind in reversed(KINDS)}
"""By its kind; where two groups have one of that name, the first one listed."""


def group_versions() -> list[tuple[str, str]]:
    """Every (group, version), the core group first."""
    return list(dict.fromkeys((kind.group, kind.version) for kind in KINDS))
