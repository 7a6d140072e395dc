"""Every container of an overlay or of compose.yaml, in one form."""

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tools.deploy.objects import Object, Objects, limits_of, name_of, of_kind, pod_of, workloads

MIB = 2**20
UNITS = {"Ki": 2**10, "Mi": MIB, "Gi": 2**30, "k": 10**3, "m": MIB, "mb": MIB, "gb": 2**30}
# Docker's own options of a tmpfs; compose.yaml adds to them.
TMPFS = ("nosuid", "nodev", "noexec", "mode=1777")
SIZE_OF_SHM = 64 * MIB

Kind = Literal["secret", "config", "empty", "memory", "claim"]


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume of this kind and name at `target`. `options` are those of mount, `size` in bytes."""

    target: str
    kind: Kind
    name: str
    read_only: bool = False
    options: tuple[str, ...] = ()
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """A container is ready when gRPC health at this port, or this command in it, says so."""

    port: int | None = None
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Container:
    """`entry` and `arguments` are None for the image's own. `memory` is in bytes."""

    name: str
    image: str
    entry: tuple[str, ...] | None = None
    arguments: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    user: tuple[int, int] | None = None
    groups: tuple[int, ...] = ()
    read_only: bool = False
    keeps_capabilities: bool = False
    new_privileges: bool = True
    mounts: tuple[Mount, ...] = ()
    memory: int | None = None
    cores: float | None = None
    shared_memory: int = SIZE_OF_SHM
    is_confined: bool = True
    has_init: bool = False
    gpus: int = 0
    ready: Probe | None = None


@dataclass(frozen=True, slots=True)
class Pod:
    """The containers of one address. Those of `first` end before `main` starts; a Job's main ends,
    too."""

    name: str
    first: tuple[Container, ...]
    main: Container
    is_job: bool = False


def pods_of(objects: Objects) -> list[Pod]:
    """One pod of each Deployment and Job. Raises KeyError for a ConfigMap or Secret that is not
    among the objects."""
    return [_pod(workload, objects) for workload in workloads(objects)]


def _pod(workload: Object, objects: Objects) -> Pod:
    pod, name = pod_of(workload), name_of(workload)
    (main,) = pod["containers"]
    return Pod(
        name=name,
        first=tuple(
            _container(f"{name}-{each['name']}", each, pod, objects)
            for each in pod.get("initContainers", ())
        ),
        main=_container(name, main, pod, objects),
        is_job=workload["kind"] == "Job",
    )


def _container(name: str, said: Object, pod: Object, objects: Objects) -> Container:
    confined, own = pod.get("securityContext", {}), said.get("securityContext", {})
    environment = variables(said, objects)
    limits = limits_of(said)
    user = confined.get("runAsUser")
    group = confined.get("fsGroup")
    claims = said.get("resources", {}).get("claims") or ()
    return Container(
        name=name,
        image=said["image"],
        entry=_words(said.get("command"), environment),
        arguments=_words(said.get("args"), environment),
        environment=environment,
        user=None if user is None else (user, confined.get("runAsGroup", 0)),
        groups=() if group is None else (group,),
        read_only=own.get("readOnlyRootFilesystem", False),
        keeps_capabilities=own.get("capabilities", {}).get("drop") != ["ALL"],
        new_privileges=own.get("allowPrivilegeEscalation", True),
        mounts=tuple(_mounts(said, pod)),
        memory=size(limits["memory"]) if "memory" in limits else None,
        cores=cores(limits["cpu"]) if "cpu" in limits else None,
        is_confined=confined.get("seccompProfile", {}).get("type") == "RuntimeDefault",
        gpus=int(limits.get("nvidia.com/gpu", 0)) + len(claims),
        ready=_probe(said.get("readinessProbe"), environment),
    )


def variables(container: Object, objects: Objects) -> dict[str, str]:
    """The environment that Kubernetes gives a container, with Secrets and `$(NAME)` resolved."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= entries(objects, "ConfigMap", source["configMapRef"]["name"])
    for variable in container.get("env", ()):
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        if reference is None:
            found[variable["name"]] = expand(variable.get("value", ""), found)
            continue
        try:
            secret = entries(objects, "Secret", reference["name"])
            found[variable["name"]] = secret[reference["key"]]
        except KeyError:
            if not reference.get("optional"):
                raise
    return found


def entries(objects: Objects, kind: str, name: str) -> dict[str, str]:
    """The entries of a ConfigMap or Secret, as text. Raises KeyError if there is none."""
    for each in of_kind(objects, kind):
        if name_of(each) == name:
            data: Mapping[str, str] = each.get("data") or {}
            if kind == "Secret":
                return {key: base64.b64decode(value).decode() for key, value in data.items()}
            return dict(data)
    raise KeyError(f"there is no {kind} {name}")


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Replaces `$(NAME)` as Kubernetes does: `$$` is a dollar, and an unknown name stays."""

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return environment.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([\w.-]+)\)", value, text)


def _words(words: list[str] | None, environment: Mapping[str, str]) -> tuple[str, ...] | None:
    return None if words is None else tuple(expand(word, environment) for word in words)


def _probe(said: Object | None, environment: Mapping[str, str]) -> Probe | None:
    if said is None:
        return None
    if "grpc" in said:
        return Probe(port=said["grpc"]["port"])
    return Probe(command=_words(said["exec"]["command"], environment) or ())


def _mounts(container: Object, pod: Object) -> Iterator[Mount]:
    volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
    for mount in container.get("volumeMounts", ()):
        volume = volumes[mount["name"]]
        target, read_only = mount["mountPath"], mount.get("readOnly", False)
        if "secret" in volume:
            yield Mount(target, "secret", volume["secret"]["secretName"], read_only=True)
        elif "configMap" in volume:
            yield Mount(target, "config", volume["configMap"]["name"], read_only=True)
        elif "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]
            read_only = read_only or claim.get("readOnly", False)
            yield Mount(target, "claim", claim["claimName"], read_only=read_only)
        elif volume.get("emptyDir", {}).get("medium") == "Memory":
            limit = size(volume["emptyDir"]["sizeLimit"])
            options = ("nosuid", "nodev", "mode=1777")
            yield Mount(target, "memory", mount["name"], read_only, options, limit)
        elif "emptyDir" in volume:
            yield Mount(target, "empty", mount["name"], read_only)
        else:
            raise ValueError(f"{mount['name']} is a volume of an unknown kind: {volume}")


def size(text: str | int) -> int:
    """Bytes, as Kubernetes (Mi, Gi) and compose (gb) write them."""
    found = re.fullmatch(r"(\d+)([A-Za-z]*)", str(text))
    if found is None:
        raise ValueError(f"{text!r} is no size")
    return int(found[1]) * (UNITS[found[2]] if found[2] else 1)


def cores(text: str | float) -> float:
    text = str(text)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def services_of(compose: Mapping[str, Any], variables: Mapping[str, str]) -> list[Pod]:
    """The services of compose.yaml, whose `${NAME}` are `variables`. Raises KeyError for another
    one."""
    return [
        Pod(name, (), _service(name, _filled(said, variables)))
        for name, said in compose["services"].items()
    ]


def _service(name: str, said: Mapping[str, Any]) -> Container:
    user, _, group = said.get("user", "").partition(":")
    environment = {key: str(value) for key, value in said.get("environment", {}).items()}
    devices = said.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", ())
    command = said.get("command")
    options = said.get("security_opt", ())
    return Container(
        name=name,
        image=said["image"],
        arguments=None if command is None else tuple(str(word) for word in command),
        environment=environment,
        user=(int(user), int(group)) if user else None,
        read_only=said.get("read_only", False),
        keeps_capabilities=said.get("cap_drop") != ["ALL"],
        new_privileges="no-new-privileges:true" not in options,
        mounts=(*_temporary(said), *_bound(said)),
        shared_memory=size(said["shm_size"]) if "shm_size" in said else SIZE_OF_SHM,
        has_init=said.get("init", False),
        gpus=sum(device.get("count", 0) for device in devices),
        ready=_of_service(environment, command),
    )


def _temporary(said: Mapping[str, Any]) -> Iterator[Mount]:
    """Docker's defaults stay but where an option says otherwise, as `exec` does of `noexec`."""
    for text in said.get("tmpfs", ()):
        target, _, more = text.partition(":")
        given = [option for option in more.split(",") if option]
        names = {option.partition("=")[0].removeprefix("no") for option in given}
        kept = [each for each in TMPFS if each.partition("=")[0].removeprefix("no") not in names]
        yield Mount(target, "memory", target, options=(*kept, *given))


def _bound(said: Mapping[str, Any]) -> Iterator[Mount]:
    for text in said.get("volumes", ()):
        source, target, *mode = text.split(":")
        yield Mount(target, "claim", source, read_only="ro" in mode)


def _of_service(environment: Mapping[str, str], command: list[str] | None) -> Probe:
    """compose.yaml has no probes: here a tier is ready by its gRPC health, Redis by an answer."""
    if "PIXTRAL_LISTEN" in environment:
        return Probe(port=int(environment["PIXTRAL_LISTEN"].rpartition(":")[2]))
    words = command or []
    password = words[words.index("--requirepass") + 1]
    return Probe(command=("redis-cli", "-e", "-a", password, "ping"))


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, variables) for each in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda found: variables[found[1]], value)
    return value
