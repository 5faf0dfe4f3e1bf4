"""What `kubectl kustomize` makes of a folder of deploy/kubernetes, as objects."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.conftest import KUBECTL_SECONDS_MAX, kubectl_path

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
FOLDERS = ("base", "overlays/site", "overlays/approve", "overlays/postgresql", "overlays/full", "examples/job")
Manifest = dict[str, Any]


@cache
def rendered(folder: str) -> str:
    """The YAML of a folder, by the real kustomize."""
    done = subprocess.run(
        [kubectl_path(), "kustomize", str(KUBERNETES / folder)],
        capture_output=True,
        text=True,
        timeout=KUBECTL_SECONDS_MAX,
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower(), done.stderr
    return done.stdout


def manifests(folder: str) -> list[Manifest]:
    """The objects of a folder, each time new ones."""
    return [each for each in yaml.safe_load_all(rendered(folder)) if each]


def one(folder: str, kind: str, name: str) -> Manifest:
    """The object of that kind and name; the hash that kustomize puts behind a ConfigMap's name is left out."""
    found = [each for each in manifests(folder) if each["kind"] == kind and _plain(each) == name]
    assert len(found) == 1, f"{folder}: {len(found)} of {kind} {name}"
    return found[0]


def pod(folder: str, kind: str, name: str) -> Manifest:
    """The pod's specification of a DaemonSet, Deployment or Job."""
    spec = one(folder, kind, name)["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def container(folder: str, kind: str, name: str, of: str) -> Manifest:
    """One container of a pod, also one that runs first."""
    spec = pod(folder, kind, name)
    return next(each for each in [*spec.get("initContainers", []), *spec["containers"]] if each["name"] == of)


def _plain(manifest: Manifest) -> str:
    name: str = manifest["metadata"]["name"]
    return name.rpartition("-")[0] if manifest["kind"] == "ConfigMap" else name
