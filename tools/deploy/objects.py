"""Reads the objects of an overlay."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Object = dict[str, Any]
Objects = Sequence[Object]
# Takes all objects of one overlay; yields a line for each fault.
Rule = Callable[[Objects], Iterator[str]]

TIERS = ("gateway", "encoder", "decoder")


def of_kind(objects: Objects, kind: str) -> list[Object]:
    return [obj for obj in objects if obj["kind"] == kind]


def name_of(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def pod_of(obj: Object) -> Object:
    """The spec of the pods of a Deployment or Job."""
    spec: Object = obj["spec"]["template"]["spec"]
    return spec


def labels_of(obj: Object) -> dict[str, str]:
    return obj["spec"]["template"]["metadata"].get("labels") or {}


def containers_of(obj: Object) -> list[Object]:
    pod = pod_of(obj)
    return [*pod.get("initContainers", ()), *pod["containers"]]


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a Kubernetes selector, by labels or expressions, selects a pod with these labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(
        labels.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", ())
    )


def environment(objects: Objects, container: Object) -> dict[str, str]:
    """The environment of a container; a Secret's value appears as "(secret)"."""
    found: dict[str, str] = {}
    maps = {name_of(obj): obj.get("data", {}) for obj in of_kind(objects, "ConfigMap")}
    for source in container.get("envFrom", ()):
        found |= maps.get(source["configMapRef"]["name"], {})
    for variable in container.get("env", ()):
        found[variable["name"]] = variable.get("value", "(secret)")
    return found


def workloads(objects: Objects) -> list[Object]:
    return [*of_kind(objects, "Deployment"), *of_kind(objects, "Job")]


def tiers(objects: Objects) -> list[tuple[Object, Object]]:
    """Each tier's Deployment with its container."""
    return [
        (d, pod_of(d)["containers"][0])
        for d in of_kind(objects, "Deployment")
        if name_of(d) in TIERS
    ]


def selected(objects: Objects, selector: Object) -> list[Object]:
    """The Deployments whose pods a selector selects."""
    return [d for d in of_kind(objects, "Deployment") if matches(selector, labels_of(d))]


def ports_of(deployment: Object) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in pod_of(deployment)["containers"]
        for port in container.get("ports", ())
    }


def gpus_of(container: Object) -> int:
    """The GPUs of a container: its own, and those of shared claims."""
    claims = container.get("resources", {}).get("claims") or ()
    return int(limits_of(container).get("nvidia.com/gpu", 0)) + len(claims)


def limits_of(container: Object) -> Object:
    return container.get("resources", {}).get("limits") or {}
