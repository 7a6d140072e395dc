"""Rules for monitoring: an overlay is watched, by its own metrics only."""

import re
from collections.abc import Iterator
from typing import Any

from tools import safe_yaml
from tools.deploy.objects import Object, Objects, name_of, of_kind
from tools.expressions import RULES, Expression

MONITORS = ("PodMonitor", "PrometheusRule")


def queries_name_their_namespace(objects: Objects) -> Iterator[str]:
    for scaled in of_kind(objects, "ScaledObject"):
        wanted = f'namespace="{scaled["metadata"].get("namespace")}"'
        for trigger in scaled["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            for metric in sorted(Expression("query", query).metrics()):
                for selector in re.findall(rf"{metric}(\{{[^}}]*\}})?", query):
                    if wanted not in selector:
                        yield f"ScaledObject {name_of(scaled)}: {metric} counts all namespaces"


def monitors_are_selected(objects: Objects) -> Iterator[str]:
    """kube-prometheus-stack reads only objects with the label of its release."""
    for kind in MONITORS:
        for obj in of_kind(objects, kind):
            if "release" not in obj["metadata"].get("labels", {}):
                yield f"{kind} {name_of(obj)} has no label `release`, so no Prometheus reads it"


def rules_and_dashboards_are_there(objects: Objects) -> Iterator[str]:
    if not of_kind(objects, "PodMonitor"):
        return
    groups = safe_yaml.load(RULES.read_text("utf-8"))["groups"]
    if not any(rule["spec"] == {"groups": groups} for rule in of_kind(objects, "PrometheusRule")):
        yield "no PrometheusRule has the rules of deploy/prometheus/rules.yaml"
    shown = {
        name
        for each in of_kind(objects, "ConfigMap")
        if each["metadata"].get("labels", {}).get("grafana_dashboard")
        for name in each["data"]
    }
    missing = {path.name for path in (RULES.parents[1] / "grafana").glob("*.json")} - shown
    for name in sorted(missing):
        yield f"no ConfigMap has the dashboard {name}"


def alerts_keep_the_namespace(groups: list[Any]) -> Iterator[str]:
    """Alerts of two installations stay apart, because every sum keeps the namespace."""
    for group in groups:
        for rule in group["rules"]:
            for kind, labels in _aggregations(rule["expr"]):
                if "namespace" not in labels:
                    yield f"{rule.get('alert', rule.get('record'))}: {kind} adds up all namespaces"


def _aggregations(expression: str) -> Iterator[tuple[str, str]]:
    for found in re.finditer(
        r"\b(sum|avg|count|max|min)\b\s*(?:(by|without)\s*\(([^)]*)\))?\s*\(", expression
    ):
        yield found[1], found[3] or ""


def groups_of(rule: Object) -> list[Any]:
    groups: list[Any] = rule["spec"]["groups"]
    return groups
