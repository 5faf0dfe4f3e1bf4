"""The alerts as the Prometheus Operator takes them; `python -m tests.deploy.prometheus_rules` writes them anew."""

from __future__ import annotations

from tests.deploy.manifests import KUBERNETES, ROOT

RULES = ROOT / "dashboards/generated/rules/instep.yaml"
MANIFEST = KUBERNETES / "components/monitoring/rules.yaml"
HEAD = """\
# Made from dashboards/generated/rules/instep.yaml by `python -m tests.deploy.prometheus_rules`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: instep
  namespace: instep
spec:
"""


def manifest() -> str:
    """The generated rules under the head that makes a resource of them."""
    lines = RULES.read_text(encoding="utf-8").splitlines()
    return HEAD + "".join(f"  {line}".rstrip() + "\n" for line in lines if not line.startswith("#"))


if __name__ == "__main__":
    MANIFEST.write_text(manifest(), encoding="utf-8")
