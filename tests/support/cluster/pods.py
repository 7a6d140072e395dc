"""Checks that the pods of a namespace could start with the objects of a session."""

from collections.abc import Iterator

from tests.support.cluster.state import Fault, State, secret_entries
from tests.support.cluster.tls import CALLS, shake_hands
from tools.deploy.objects import Object, containers_of, name_of, of_kind, pod_of, workloads

# Images of other projects, which a session does not build.
PUBLIC = ("docker.io/library/",)


def check_pods(state: State, namespace: str) -> None:
    """Raises Fault with the first thing that a pod lacks."""
    objects = state.objects(namespace)
    if not of_kind(objects, "Deployment"):
        raise Fault(f"nothing runs in {namespace}")
    for fault in faults_of(state, namespace, objects):
        raise Fault(fault)
    certificates = {
        name_of(secret).removesuffix("-tls"): secret_entries(secret)
        for secret in of_kind(objects, "Secret")
        if name_of(secret).endswith("-tls")
    }
    for client, server in CALLS if certificates else ():
        shake_hands(certificates[server], certificates[client], server, is_mutual=True)


def faults_of(state: State, namespace: str, objects: list[Object]) -> Iterator[str]:
    for workload in workloads(objects):
        where, pod = f"{workload['kind'].lower()}/{name_of(workload)}", pod_of(workload)
        for image in (container["image"] for container in containers_of(workload)):
            is_public = image.startswith(PUBLIC)
            if not is_public and not state.has_image(image, "pushed", "loaded"):
                yield f"{where}: nobody pushed the image {image}"
        mounted: dict[str, set[str]] = {}
        for volume in pod.get("volumes", ()):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and state.find(namespace, "PersistentVolumeClaim", claim) is None:
                yield f"{where}: there is no PersistentVolumeClaim {claim}"
            settings = volume.get("configMap", {}).get("name")
            if settings and state.find(namespace, "ConfigMap", settings) is None:
                yield f"{where}: there is no ConfigMap {settings}"
            secret = volume.get("secret", {}).get("secretName")
            if secret:
                found = state.find(namespace, "Secret", secret)
                if found is None:
                    yield f"{where}: there is no Secret {secret}"
                mounted[volume["name"]] = set(secret_entries(found or {}))
        for container in containers_of(workload):
            yield from _variables(state, namespace, where, container)
            yield from _mounted_files(where, container, mounted)
    if not any(name_of(job).startswith("weights") for job in of_kind(objects, "Job")):
        yield "no Job fills the volume with the weights"


def _variables(state: State, namespace: str, where: str, container: Object) -> Iterator[str]:
    for variable in container.get("env", ()):
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        if reference is None or reference.get("optional"):
            continue
        secret = state.find(namespace, "Secret", reference["name"])
        if secret is None or reference["key"] not in secret_entries(secret):
            yield f"{where}: no Secret {reference['name']} with the key {reference['key']}"
    for source in container.get("envFrom", ()):
        name = source["configMapRef"]["name"]
        if state.find(namespace, "ConfigMap", name) is None:
            yield f"{where}: there is no ConfigMap {name}"


def _mounted_files(where: str, container: Object, mounted: dict[str, set[str]]) -> Iterator[str]:
    texts = [str(variable.get("value", "")) for variable in container.get("env", ())]
    texts += [str(text) for text in container.get("args", ())]
    for mount in container.get("volumeMounts", ()):
        if mount["name"] not in mounted:
            continue
        below = f"{mount['mountPath']}/"
        for text in texts:
            entry = text.rpartition(below)[2]
            if below in text and entry not in mounted[mount["name"]]:
                yield f"{where}: {text} is not among the entries of its Secret"
