"""Generates the PrometheusRule of the component `monitoring` from deploy/prometheus/rules.yaml."""

from tools import safe_yaml
from tools.deploy.manifests import K8S
from tools.expressions import RULES

TARGET = K8S / "components" / "monitoring" / "prometheus-rule.yaml"
HEAD = """\
# Generated from deploy/prometheus/rules.yaml by `python -m tools.deploy.prometheus_rule`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: pixtral
  labels:
    app.kubernetes.io/part-of: pixtral-serve
    release: kube-prometheus-stack
spec:
"""


def text() -> str:
    """The PrometheusRule, with the groups of deploy/prometheus/rules.yaml unchanged."""
    rules = RULES.read_text("utf-8")
    groups = rules[rules.index("groups:") :]
    return HEAD + "".join(f"  {line}\n" if line else "\n" for line in groups.splitlines())


if __name__ == "__main__":
    safe_yaml.load(text())
    TARGET.write_text(text(), "utf-8")
