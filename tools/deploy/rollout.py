"""Rules for rollouts: an overlay starts, upgrades, and fits its nodes."""

import re
from collections.abc import Iterator
from typing import Any

from tools.deploy.objects import (
    Object,
    Objects,
    containers_of,
    environment,
    gpus_of,
    limits_of,
    name_of,
    of_kind,
    pod_of,
    tiers,
    workloads,
)

# The time to download 25 GB at 5 MB/s.
DOWNLOAD_SECONDS = 5000
# A GPU node of four cores and 32 GB leaves this much for pods.
NODE_CORES, NODE_GIB = 3.5, 28
# Kubernetes deletes a finished Job after this time at the latest, so that a release can replace it.
MOST_SECONDS_OF_A_JOB = 60
# The variables that say where the compilers of a GPU tier keep their kernels.
COMPILE_CACHES = {
    "encoder": ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
    "decoder": ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
}
HASHED = re.compile(r".*-[0-9a-z]{10}")


def nothing_is_pulled(objects: Objects) -> Iterator[str]:
    """Images that were loaded into the nodes are in no registry."""
    for workload in workloads(objects):
        for container in containers_of(workload):
            if container.get("imagePullPolicy") not in ("IfNotPresent", "Never"):
                where = f"{workload['kind']} {name_of(workload)}"
                yield f"{where}: {container['name']} pulls its image, which no registry has"


def jobs_let_releases_through(objects: Objects) -> Iterator[str]:
    """A release cannot change an existing Job."""
    images = {
        container["image"] for d in of_kind(objects, "Deployment") for container in containers_of(d)
    }
    for job in of_kind(objects, "Job"):
        left = job["spec"].get("ttlSecondsAfterFinished")
        is_of_release = any(container["image"] in images for container in containers_of(job))
        if is_of_release and (left is None or left > MOST_SECONDS_OF_A_JOB):
            yield f"Job {name_of(job)} has an image of the release, which an upgrade cannot change"


def rollouts_have_time(objects: Objects) -> Iterator[str]:
    for deployment, container in tiers(objects):
        probe = container.get("startupProbe", {})
        start = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
        deadline = deployment["spec"].get("progressDeadlineSeconds", 600)
        if deadline < DOWNLOAD_SECONDS + start:
            yield (
                f"Deployment {name_of(deployment)} counts as failed after {deadline} s, but needs "
                f"up to {DOWNLOAD_SECONDS + start} s to load its weights and start"
            )


def surges_need_no_gpu(objects: Objects) -> Iterator[str]:
    for deployment, container in tiers(objects):
        rolling = deployment["spec"].get("strategy", {}).get("rollingUpdate", {})
        if gpus_of(container) and rolling.get("maxSurge", 1) != 0:
            yield f"Deployment {name_of(deployment)} needs another GPU for each upgrade"


def settings_start_new_pods(objects: Objects) -> Iterator[str]:
    for workload in workloads(objects):
        for name in _config_maps(workload):
            if not HASHED.fullmatch(name):
                where = f"{workload['kind']} {name_of(workload)}"
                yield f"{where}: a change of the ConfigMap {name} starts no new pods"


def _config_maps(workload: Object) -> Iterator[str]:
    for container in containers_of(workload):
        for source in container.get("envFrom", ()):
            yield source["configMapRef"]["name"]
    for volume in pod_of(workload).get("volumes", ()):
        if "configMap" in volume:
            yield volume["configMap"]["name"]


def nodes_hold_the_pods(objects: Objects) -> Iterator[str]:
    for deployment, container in tiers(objects):
        if not limits_of(container).get("nvidia.com/gpu"):
            continue
        wanted = container["resources"]["requests"]
        cores, memory = _cores(wanted["cpu"]), _gib(wanted["memory"])
        if cores > NODE_CORES or memory > NODE_GIB:
            yield (
                f"Deployment {name_of(deployment)} asks for {cores:g} cores and {memory:g} GiB, "
                f"more than a GPU node of four cores has"
            )


def gpus_have_memory(objects: Objects) -> Iterator[str]:
    """The rule of the component `nodes`."""
    for deployment, container in tiers(objects):
        if limits_of(container).get("nvidia.com/gpu") and not any(_wanted_labels(deployment)):
            yield f"Deployment {name_of(deployment)} takes any GPU, however small"


def _wanted_labels(deployment: Object) -> Iterator[Any]:
    pod = pod_of(deployment)
    yield from pod.get("nodeSelector", {})
    wanted = pod.get("affinity", {}).get("nodeAffinity", {})
    required = wanted.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    for term in required.get("nodeSelectorTerms", ()):
        yield from term.get("matchExpressions", ())


def roots_can_be_written(objects: Objects) -> Iterator[str]:
    """The rule of the component `writable-root`."""
    for deployment, container in tiers(objects):
        is_gpu = bool(limits_of(container).get("nvidia.com/gpu"))
        if is_gpu and container["securityContext"].get("readOnlyRootFilesystem") is not False:
            yield f"Deployment {name_of(deployment)} has a read-only root"


def host_memory_fits(objects: Objects) -> Iterator[str]:
    """The rule of `kv-host`: shared memory for keys and values counts as the container's memory."""
    for deployment, container in tiers(objects):
        kept = int(environment(objects, container).get("PIXTRAL_KV_HOST_BYTES", 0)) / 2**30
        if name_of(deployment) != "decoder":
            continue
        if not kept:
            yield "Deployment decoder has no host memory for keys and values"
        shared = [
            _gib(volume["emptyDir"]["sizeLimit"])
            for volume in pod_of(deployment)["volumes"]
            if volume.get("emptyDir", {}).get("medium") == "Memory"
        ]
        if kept > sum(shared):
            yield f"Deployment {name_of(deployment)} has too little shared memory for {kept:g} GiB"
        asked = _gib(container["resources"]["requests"]["memory"])
        if kept > asked:
            yield f"Deployment {name_of(deployment)} uses {kept:g} GiB, but requests {asked:g}"


def compiled_kernels_are_kept(objects: Objects) -> Iterator[str]:
    """For the component `compile-cache`: each cache of a GPU tier is in a claimed volume."""
    for deployment, container in tiers(objects):
        tier = name_of(deployment)
        claimed = {
            volume["name"]
            for volume in pod_of(deployment)["volumes"]
            if "persistentVolumeClaim" in volume
        }
        kept = tuple(
            f"{mount['mountPath']}/"
            for mount in container.get("volumeMounts", ())
            if mount["name"] in claimed and not mount.get("readOnly")
        )
        given = environment(objects, container)
        for name in COMPILE_CACHES.get(tier, ()):
            if not given.get(name, "").startswith(kept or ("nowhere",)):
                yield f"Deployment {tier} loses {name} with its pod"


def weights_are_chosen(objects: Objects) -> Iterator[str]:
    """The Job that downloads weights takes model and revision from its ConfigMap."""
    for job in of_kind(objects, "Job"):
        words = [word for each in containers_of(job) for word in each.get("command", ())]
        if "pull" not in words:
            continue
        chosen = {
            name for each in of_kind(objects, "ConfigMap") for name in each.get("data", {}) if name
        }
        for name in ("MODEL", "REVISION"):
            if name not in chosen or f"$({name})" not in words:
                yield f"Job {name_of(job)} does not let users choose {name}"
        if job["spec"].get("ttlSecondsAfterFinished") is None:
            yield f"Job {name_of(job)} remains after its end, so it cannot be applied again"


def certificates_can_change(objects: Objects) -> Iterator[str]:
    """Kubernetes updates a Secret in a running pod only if the whole volume is mounted."""
    for workload in workloads(objects):
        secrets = {v["name"] for v in pod_of(workload).get("volumes", ()) if "secret" in v}
        for container in containers_of(workload):
            for mount in container.get("volumeMounts", ()):
                if mount["name"] in secrets and "subPath" in mount:
                    where = f"{workload['kind']} {name_of(workload)}"
                    yield f"{where}: {mount['mountPath']} does not change when its Secret does"


def probes_prove_an_answer(objects: Objects) -> Iterator[str]:
    """`redis-cli ping` exits with 0 on a wrong password, unless -e is given."""
    for deployment in of_kind(objects, "Deployment"):
        for container in containers_of(deployment):
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                command = container.get(kind, {}).get("exec", {}).get("command", ())
                if "redis-cli" in command and "-e" not in command:
                    yield f"Deployment {name_of(deployment)}: {kind} does not prove an answer"


def _cores(text: str) -> float:
    text = str(text)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _gib(text: str) -> float:
    units = {"Mi": 1 / 1024, "Gi": 1.0}
    return float(text[:-2]) * units[text[-2:]]
