"""Rules beyond schemas: the objects of an overlay fit together."""

import re
from collections.abc import Iterator, Sequence

from tools.deploy.objects import (
    TIERS,
    Object,
    Objects,
    containers_of,
    environment,
    gpus_of,
    labels_of,
    limits_of,
    matches,
    name_of,
    of_kind,
    pod_of,
    ports_of,
    selected,
    tiers,
    workloads,
)

# How long a process may take to stop after its drain: core/pixtral_core/server/process.py.
SECONDS_AFTER_DRAIN = 38
# The time to load 24 GB at 20 MB/s.
LOADING_SECONDS = 1200
# An encoder needs up to a fifth of a 24 GB card, for its weights and a batch of images.
MOST_SHARED_FRACTION = 0.85


def selectors_select(objects: Objects) -> Iterator[str]:
    for deployment in of_kind(objects, "Deployment"):
        if not matches(deployment["spec"]["selector"], labels_of(deployment)):
            yield f"Deployment {name_of(deployment)} does not select its own pods"
        for constraint in pod_of(deployment).get("topologySpreadConstraints", ()):
            if not matches(constraint["labelSelector"], labels_of(deployment)):
                yield f"Deployment {name_of(deployment)} spreads pods that are not its own"
    for service in of_kind(objects, "Service"):
        serving = selected(objects, {"matchLabels": service["spec"]["selector"]})
        if len(serving) != 1:
            yield f"Service {name_of(service)} selects {len(serving)} Deployments"
        for port in service["spec"]["ports"]:
            if any(port.get("targetPort") not in ports_of(deployment) for deployment in serving):
                yield f"Service {name_of(service)}: its pods have no port {port.get('targetPort')}"
    for monitor in of_kind(objects, "PodMonitor"):
        wanted = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        watched = [
            d
            for d in of_kind(objects, "Deployment")
            if matches(monitor["spec"]["selector"], labels_of(d))
        ]
        if not any(wanted <= set(ports_of(deployment)) for deployment in watched):
            yield f"PodMonitor {name_of(monitor)} finds no pod with port {', '.join(wanted)}"


def tiers_are_found_by_name(objects: Objects) -> Iterator[str]:
    headless = {
        name_of(s) for s in of_kind(objects, "Service") if s["spec"].get("clusterIP") == "None"
    }
    for tier in TIERS:
        if tier not in headless:
            yield f"Service {tier} is not headless: its name has one address for all pods"
    served = {
        (name_of(s), p["port"]) for s in of_kind(objects, "Service") for p in s["spec"]["ports"]
    }
    for deployment, container in tiers(objects):
        told = environment(objects, container)
        for variable in ("PIXTRAL_ENCODERS", "PIXTRAL_DECODERS"):
            for target in filter(None, told.get(variable, "").split(",")):
                host, _, port = target.removeprefix("dns:///").rpartition(":")
                if not target.startswith("dns:///") or (host, int(port)) not in served:
                    where = f"Deployment {name_of(deployment)}: {variable}"
                    yield f"{where} {target} is not a Service's name"
        for variable, port_name in (
            ("PIXTRAL_LISTEN", "grpc"),
            ("PIXTRAL_METRICS_LISTEN", "metrics"),
            ("PIXTRAL_HEALTH_LISTEN", "health"),
            *((("PIXTRAL_HTTP_LISTEN", "http"),) if name_of(deployment) == "gateway" else ()),
        ):
            if told.get(variable) != f"0.0.0.0:{ports_of(deployment).get(port_name)}":
                yield f"Deployment {name_of(deployment)}: {variable} is not port {port_name}"


def budgets_protect(objects: Objects) -> Iterator[str]:
    for budget in of_kind(objects, "PodDisruptionBudget"):
        spec = budget["spec"]
        protected = [
            d for d in of_kind(objects, "Deployment") if matches(spec["selector"], labels_of(d))
        ]
        if len(protected) != 1:
            yield f"PodDisruptionBudget {name_of(budget)} selects {len(protected)} Deployments"
            continue
        least = _least_replicas(objects, protected[0])
        left = spec.get("minAvailable", least - spec.get("maxUnavailable", 0))
        if left < 1:
            yield f"PodDisruptionBudget {name_of(budget)} lets all {least} pods be evicted"
        if left >= least:
            yield f"PodDisruptionBudget {name_of(budget)} lets no pod of {least} be evicted, ever"


def _least_replicas(objects: Objects, deployment: Object) -> int:
    for scaled in of_kind(objects, "ScaledObject"):
        if scaled["spec"]["scaleTargetRef"]["name"] == name_of(deployment):
            return int(scaled["spec"]["minReplicaCount"])
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        if scaler["spec"]["scaleTargetRef"]["name"] == name_of(deployment):
            return int(scaler["spec"]["minReplicas"])
    return int(deployment["spec"].get("replicas", 1))


def scalers_scale(objects: Objects) -> Iterator[str]:
    deployments = {name_of(d): d for d in of_kind(objects, "Deployment")}
    for scaled in of_kind(objects, "ScaledObject"):
        spec, name = scaled["spec"], name_of(scaled)
        target = deployments.get(spec["scaleTargetRef"]["name"])
        if target is None:
            yield f"ScaledObject {name} scales a Deployment that does not exist"
        elif "replicas" in target["spec"]:
            yield f"ScaledObject {name}: the Deployment sets replicas too, which undoes it"
        least, most = spec["minReplicaCount"], spec["maxReplicaCount"]
        if not 1 <= least < most:
            yield f"ScaledObject {name}: {least} to {most} replicas"
        scaling = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {})
        down = scaling.get("behavior", {}).get("scaleDown", {})
        if down.get("stabilizationWindowSeconds", 300) < 300:
            yield f"ScaledObject {name} scales down after less than five minutes"


def drains_end(objects: Objects) -> Iterator[str]:
    for deployment, container in tiers(objects):
        told, name = environment(objects, container), name_of(deployment)
        pre_stop = (
            container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        )
        drain = float(told.get("PIXTRAL_DRAIN_SECONDS", 30))
        longest = float(told.get("PIXTRAL_REQUEST_TIMEOUT_SECONDS", 600))
        grace = pod_of(deployment).get("terminationGracePeriodSeconds", 30)
        if pre_stop < 10:
            yield f"Deployment {name}: preStop ends before callers look its name up again"
        if drain < longest:
            yield f"Deployment {name}: a drain of {drain:g} s interrupts a request of {longest:g} s"
        if grace < pre_stop + drain + SECONDS_AFTER_DRAIN:
            yield f"Deployment {name} is killed {grace} s after SIGTERM, before its drain ends"


def probes_probe(objects: Objects) -> Iterator[str]:
    for deployment, container in tiers(objects):
        name, port = name_of(deployment), ports_of(deployment).get("health")
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if container.get(kind, {}).get("grpc", {}).get("port") != port:
                yield f"Deployment {name}: {kind} is not gRPC health on port {port}"
        startup = container.get("startupProbe", {})
        seconds = startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3)
        if seconds < LOADING_SECONDS:
            yield f"Deployment {name} has {seconds} s to load, less than {LOADING_SECONDS}"


def references_exist(objects: Objects) -> Iterator[str]:
    claims = {name_of(claim) for claim in of_kind(objects, "PersistentVolumeClaim")}
    maps = {name_of(each) for each in of_kind(objects, "ConfigMap")}
    for workload in workloads(objects):
        where = f"{workload['kind']} {name_of(workload)}"
        volumes = {volume["name"]: volume for volume in pod_of(workload).get("volumes", ())}
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in claims:
                yield f"{where}: there is no PersistentVolumeClaim {claim}"
        for container in containers_of(workload):
            for mount in container.get("volumeMounts", ()):
                if mount["name"] not in volumes:
                    yield f"{where}: there is no volume {mount['name']}"
            for source in container.get("envFrom", ()):
                if source["configMapRef"]["name"] not in maps:
                    yield f"{where}: there is no ConfigMap {source['configMapRef']['name']}"
            yield from _misplaced_references(where, container)


def _misplaced_references(where: str, container: Object) -> Iterator[str]:
    known: set[str] = set()
    for variable in container.get("env", ()):
        for used in re.findall(r"\$\((\w+)\)", variable.get("value", "")):
            if used not in known:
                yield f"{where}: {variable['name']} uses {used}, which is not defined before it"
        known.add(variable["name"])


def devices_are_given(objects: Objects) -> Iterator[str]:
    for deployment, container in tiers(objects):
        told, name = environment(objects, container), name_of(deployment)
        gpus = gpus_of(container)
        wanted = int(told.get("PIXTRAL_TENSOR_PARALLEL", 1))
        if (gpus and gpus != wanted) or (told.get("PIXTRAL_DEVICE") == "cuda" and not gpus):
            yield f"Deployment {name} has {gpus} GPUs, but needs {wanted}"
        shared = {
            volume["name"]
            for volume in pod_of(deployment).get("volumes", ())
            if volume.get("emptyDir", {}).get("medium") == "Memory"
        }
        mounts = {m["mountPath"]: m["name"] for m in container.get("volumeMounts", ())}
        if name == "decoder" and mounts.get("/dev/shm") not in shared:  # noqa: S108
            yield f"Deployment {name} has only the runtime's 64 MiB of shared memory"


def gpus_are_given(objects: Objects) -> Iterator[str]:
    for deployment, container in tiers(objects):
        if name_of(deployment) == "gateway":
            continue
        if not gpus_of(container):
            yield f"Deployment {name_of(deployment)} has no GPU"


def one_card_is_shared(objects: Objects) -> Iterator[str]:
    """The rule of the component `colocated`."""
    claims = {name_of(claim) for claim in of_kind(objects, "ResourceClaim")}
    for deployment, container in tiers(objects):
        name, pod = name_of(deployment), pod_of(deployment)
        if name == "gateway":
            continue
        used = [each["name"] for each in container.get("resources", {}).get("claims") or ()]
        named = {
            each["name"]: each.get("resourceClaimName") for each in pod.get("resourceClaims", ())
        }
        if len(claims) != 1 or {named.get(each) for each in used} != claims:
            yield f"Deployment {name} does not use the only ResourceClaim"
        if limits_of(container).get("nvidia.com/gpu"):
            yield f"Deployment {name} has another GPU beside the shared one"
        if deployment["spec"].get("replicas", 1) != 1:
            yield f"Deployment {name} has several replicas on one card"
        fraction = float(environment(objects, container).get("PIXTRAL_GPU_MEMORY_FRACTION", 0.9))
        if name == "decoder" and fraction > MOST_SHARED_FRACTION:
            yield f"Deployment {name} leaves the encoder no memory"


def tiers_scale(objects: Objects, *, kinds: Sequence[str]) -> Iterator[str]:
    for kind in kinds:
        missing = set(TIERS) - {name_of(obj) for obj in of_kind(objects, kind)}
        if missing:
            yield f"{', '.join(sorted(missing))}: no {kind}"
