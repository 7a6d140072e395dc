"""Rules for security: pods, secrets, encryption and network policies."""

import re
from collections.abc import Iterator

from tools.deploy.objects import (
    TIERS,
    Object,
    Objects,
    containers_of,
    environment,
    labels_of,
    limits_of,
    matches,
    name_of,
    of_kind,
    pod_of,
    tiers,
    workloads,
)

PORTS = {
    "gateway": (50051, 8000),
    "encoder": (50052,),
    "decoder": (50053,),
    "redis": (6379,),
}
# Which pods may connect to which. "outside" is a pod without labels of ours.
CALLS = {
    ("outside", "gateway"),
    *((caller, "gateway") for caller in ("encoder", "decoder", "redis", "weights")),
    ("gateway", "encoder"),
    ("decoder", "encoder"),
    ("gateway", "decoder"),
    *((tier, "redis") for tier in TIERS),
}
UNITS = {"mb": 10**6, "gb": 10**9, "Mi": 2**20, "Gi": 2**30}


def pods_are_confined(objects: Objects) -> Iterator[str]:
    accounts = {name_of(account): account for account in of_kind(objects, "ServiceAccount")}
    for workload in workloads(objects):
        where, pod = f"{workload['kind']} {name_of(workload)}", pod_of(workload)
        context = pod.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{where} may run as root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{where} has no seccomp profile"
        account = accounts.get(pod.get("serviceAccountName", ""), {})
        for holder in (pod, account):
            if holder.get("automountServiceAccountToken") is not False:
                yield f"{where} has a token of the cluster"
        for container in containers_of(workload):
            own = container.get("securityContext", {})
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{where}: {container['name']} can write to its root"
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{where}: {container['name']} may gain privileges"
            if own.get("capabilities", {}).get("drop") != ["ALL"]:
                yield f"{where}: {container['name']} keeps capabilities"
            resources = container.get("resources", {})
            for side in ("requests", "limits"):
                if not {"cpu", "memory"} <= set(resources.get(side, ())):
                    yield f"{where}: {container['name']} has no {side} of CPU and memory"


def secrets_are_references(objects: Objects) -> Iterator[str]:
    for secret in of_kind(objects, "Secret"):
        yield f"Secret {name_of(secret)} is part of the manifests"
    for workload in workloads(objects):
        for container in containers_of(workload):
            for variable in container.get("env", ()):
                is_secret = re.search("PASSWORD|AUTH|TOKEN|KEY$", variable["name"])
                if is_secret and not variable.get("value", "/").startswith("/"):
                    yield f"{name_of(workload)}: {variable['name']} has a literal value"


def traffic_is_encrypted(objects: Objects) -> Iterator[str]:
    for deployment, container in tiers(objects):
        told, name = environment(objects, container), name_of(deployment)
        if "PIXTRAL_ALLOW_INSECURE" in told:
            yield f"Deployment {name} allows unencrypted traffic"
        if not told.get("PIXTRAL_TLS_CERTIFICATE"):
            yield f"Deployment {name} has no certificate"
        if name != "gateway" and not told.get("PIXTRAL_TLS_CLIENT_CA"):
            yield f"Deployment {name} accepts every caller"


def callers_are_known(objects: Objects) -> Iterator[str]:
    for deployment, container in tiers(objects):
        if name_of(deployment) != "gateway":
            continue
        told = environment(objects, container)
        if "PIXTRAL_ALLOW_ANONYMOUS" in told or not told.get("PIXTRAL_API_KEYS"):
            yield "Deployment gateway answers every caller"


def network_is_closed(objects: Objects) -> Iterator[str]:
    policies = of_kind(objects, "NetworkPolicy")
    if not any(p["spec"]["podSelector"] == {} and _is_closed(p["spec"]) for p in policies):
        yield "no NetworkPolicy denies all traffic by default"
    pods = {
        labels_of(workload).get("app.kubernetes.io/name", name_of(workload)): labels_of(workload)
        for workload in workloads(objects)
    }
    for callee, port in ((callee, port) for callee, ports in PORTS.items() for port in ports):
        if callee not in pods:
            continue
        for caller, labels in {"outside": {}, **pods}.items():
            if caller == callee:
                continue
            let_in = _may(policies, "ingress", pods[callee], labels, port)
            is_wanted = (caller, callee) in CALLS
            if let_in != is_wanted:
                takes = "accepts" if let_in else "refuses"
                yield f"NetworkPolicy: {callee} {takes} connections from {caller}"
            goes_out = callee == "gateway" or _may(policies, "egress", labels, pods[callee], port)
            if is_wanted and not goes_out:
                yield f"NetworkPolicy: {caller} cannot connect to {callee}"


def _is_closed(spec: Object) -> bool:
    return set(spec["policyTypes"]) == {"Ingress", "Egress"} and not (
        spec.get("ingress") or spec.get("egress")
    )


def _may(
    policies: Objects, direction: str, own: dict[str, str], other: dict[str, str], port: int
) -> bool:
    side = {"ingress": "from", "egress": "to"}[direction]
    for policy in policies:
        if not matches(policy["spec"]["podSelector"], own):
            continue
        for rule in policy["spec"].get(direction) or ():
            ports = [p["port"] for p in rule.get("ports", ())]
            peers = rule.get(side, [])
            is_other = not peers or any(
                "namespaceSelector" not in p
                and "podSelector" in p
                and matches(p["podSelector"], other)
                for p in peers
            )
            if is_other and (not ports or port in ports):
                return True
    return False


def redis_is_a_bounded_cache(objects: Objects) -> Iterator[str]:
    for deployment in of_kind(objects, "Deployment"):
        if name_of(deployment) != "redis":
            continue
        (container,) = pod_of(deployment)["containers"]
        args = container["args"]
        told = dict(zip(args[1::2], args[2::2], strict=True))
        if not re.fullmatch(r"\$\(\w+\)", told.get("--requirepass", "")):
            yield "redis has no password from a Secret"
        if not told.get("--maxmemory-policy", "").startswith("allkeys-"):
            yield "redis refuses writes when it is full"
        limit = _bytes(limits_of(container).get("memory", "0Mi"))
        if not 0 < _bytes(told.get("--maxmemory", "0mb")) <= 0.8 * limit:
            yield "redis has no maxmemory within its container's limit"


def _bytes(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]
