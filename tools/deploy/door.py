"""Rules for callers: names, protocols, load balancers, and several installations."""

from collections.abc import Iterator

from tools.deploy.objects import (
    Object,
    Objects,
    environment,
    name_of,
    of_kind,
    selected,
    tiers,
)

# NodeLocal DNSCache, and Cloud DNS of GKE. Both run on the node, not in a pod.
RESOLVERS = ("169.254.20.10/32", "169.254.169.254/32")
INSTANCE = "app.kubernetes.io/instance"
NAME = "app.kubernetes.io/name"
INTERNAL = (
    "service.beta.kubernetes.io/aws-load-balancer-scheme",
    "service.beta.kubernetes.io/azure-load-balancer-internal",
    "networking.gke.io/load-balancer-type",
)
# How long a load balancer's health checks need to fail: three checks, ten seconds apart.
BALANCER_SECONDS = 30


def names_resolve(objects: Objects) -> Iterator[str]:
    """Pods may query every usual resolver of a cluster."""
    for policy in of_kind(objects, "NetworkPolicy"):
        for rule in policy["spec"].get("egress") or ():
            if 53 not in [port["port"] for port in rule.get("ports", ())]:
                continue
            open_to = {peer.get("ipBlock", {}).get("cidr") for peer in rule["to"]}
            for resolver in RESOLVERS:
                if resolver not in open_to:
                    yield f"NetworkPolicy {name_of(policy)}: no pod may ask the resolver {resolver}"


def ports_say_their_protocol(objects: Objects) -> Iterator[str]:
    encrypted = {
        name_of(deployment)
        for deployment, container in tiers(objects)
        if environment(objects, container).get("PIXTRAL_TLS_CERTIFICATE")
    }
    for service in of_kind(objects, "Service"):
        serving = selected(objects, {"matchLabels": service["spec"]["selector"]})
        for port in service["spec"]["ports"]:
            where, protocol = f"Service {name_of(service)}", port.get("appProtocol")
            if protocol is None:
                yield f"{where}: port {port['name']} has no appProtocol"
            elif any(name_of(each) in encrypted for each in serving) != (protocol == "https") and (
                port["name"] != "redis"
            ):
                yield f"{where}: port {port['name']} is not {protocol}"


def balancers_are_internal(objects: Objects) -> Iterator[str]:
    for service in of_kind(objects, "Service"):
        if service["spec"].get("type") != "LoadBalancer":
            continue
        annotations = service["metadata"].get("annotations", {})
        for name in INTERNAL:
            if name not in annotations:
                yield f"Service {name_of(service)} is open to the internet: it has no {name}"
        for deployment in selected(objects, {"matchLabels": service["spec"]["selector"]}):
            waits = _pre_stop_seconds(deployment)
            if waits < BALANCER_SECONDS:
                yield (
                    f"Deployment {name_of(deployment)} stops {waits} s after it becomes not ready, "
                    f"before the health checks of the load balancer {name_of(service)} notice"
                )


def _pre_stop_seconds(deployment: Object) -> int:
    (container, *_) = deployment["spec"]["template"]["spec"]["containers"]
    hook = container.get("lifecycle", {}).get("preStop", {})
    return int(hook.get("sleep", {}).get("seconds", 0))


def selectors_name_the_instance(objects: Objects) -> Iterator[str]:
    """Pods of another installation have the same names."""
    for obj in objects:
        spec = obj.get("spec", {})
        selectors = [
            spec.get("selector"),
            spec.get("podSelector"),
        ]
        for selector in selectors:
            labels = (selector or {}).get("matchLabels", selector or {})
            if NAME in labels and INSTANCE not in labels:
                yield f"{obj['kind']} {name_of(obj)} selects the pods of every installation"


def names_are_fixed(objects: Objects) -> Iterator[str]:
    """Callers find Services by fixed names, so a namespace has one installation."""
    names = {name_of(service) for service in of_kind(objects, "Service")}
    for name in ("gateway", "encoder", "decoder"):
        if name not in names:
            yield f"there is no Service {name}: a prefix or suffix of names is not supported"
