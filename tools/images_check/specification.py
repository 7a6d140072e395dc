"""The OCI runtime's config.json of a container, as Kubernetes and Docker would write it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.images_check.containers import Container, Mount

Json = dict[str, Any]

# Docker's and containerd's, for a container that drops none.
CAPABILITIES = (
    *("CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL"),
    *("CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID"),
    *("CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"),
)
MASKED = (
    *("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list"),
    *("/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT = "/sbin/docker-init"
ARCHITECTURES = {"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}
CPU_PERIOD = 100_000


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: its root as a folder, and its configuration as the builder shows it."""

    root: Path
    configuration: Mapping[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        lines: list[str] = self.configuration.get("Env") or []
        return dict(line.split("=", 1) for line in lines)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A node gives these to a container: its network, names, cgroup, filter of system calls, an
    init program, and the folder of each volume that it mounts."""

    network: Path
    hosts: Path
    cgroup: str
    seccomp: Mapping[str, Any] | None
    init: Path | None
    folders: Mapping[tuple[str, str], Path]


def specification(container: Container, image: Image, given: Surroundings) -> Json:
    """config.json. Raises ValueError if the user is no number, or no program is named."""
    user, group = container.user or _user(image)
    environment = {**image.environment, **container.environment}
    capabilities = list(CAPABILITIES) if container.keeps_capabilities else []
    mounts = [*_usual(container, given), *(_mount(each, given) for each in container.mounts)]
    linux: Json = {
        "namespaces": [
            *({"type": kind} for kind in ("pid", "ipc", "uts", "mount")),
            {"type": "network", "path": str(given.network)},
        ],
        "maskedPaths": list(MASKED),
        "readonlyPaths": list(READ_ONLY),
        "cgroupsPath": given.cgroup,
        "resources": _resources(container),
    }
    if container.is_confined and given.seccomp is not None:
        linux["seccomp"] = given.seccomp
    return {
        "ociVersion": "1.0.2",
        "hostname": container.name,
        "root": {"path": str(image.root), "readonly": container.read_only},
        "process": {
            "terminal": False,
            "user": {"uid": user, "gid": group, "additionalGids": list(container.groups)},
            "args": [*([INIT, "--"] if container.has_init else []), *command(container, image)],
            "env": [f"{name}={value}" for name, value in environment.items()] or [PATH],
            "cwd": image.configuration.get("WorkingDir") or "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": not container.new_privileges,
        },
        "mounts": mounts,
        "linux": linux,
    }


def command(container: Container, image: Image) -> list[str]:
    """As Kubernetes joins them: who names a program gets none of the image's arguments."""
    entry, arguments = container.entry, container.arguments
    if arguments is None:
        arguments = () if entry is not None else image.configuration.get("Cmd") or ()
    if entry is None:
        entry = image.configuration.get("Entrypoint") or ()
    if not (words := [*entry, *arguments]):
        raise ValueError(f"{container.name} names no program, and neither does its image")
    return words


def _user(image: Image) -> tuple[int, int]:
    user, _, group = (image.configuration.get("User") or "0").partition(":")
    if not user.isdigit() or not (group or "0").isdigit():
        raise ValueError(f"the image's user {user}:{group} is no number: Kubernetes refuses it")
    return int(user), int(group or "0")


def _resources(container: Container) -> Json:
    resources: Json = {}
    if container.memory is not None:
        resources["memory"] = {"limit": container.memory}
    if container.cores is not None:
        resources["cpu"] = {"quota": int(container.cores * CPU_PERIOD), "period": CPU_PERIOD}
    return resources


def _usual(container: Container, given: Surroundings) -> list[Json]:
    """The mounts that every container has, but where it mounts something of its own."""
    quiet = ("nosuid", "noexec", "nodev")
    shared = f"size={container.shared_memory}"
    found = [
        _filesystem("/proc", "proc", quiet),
        _filesystem("/dev", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
        _filesystem("/dev/pts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666")),
        _filesystem("/dev/shm", "tmpfs", (*quiet, "mode=1777", shared)),  # noqa: S108
        _filesystem("/dev/mqueue", "mqueue", quiet),
        _filesystem("/sys", "sysfs", (*quiet, "ro")),
        _bind("/etc/hosts", given.hosts, read_only=True),
    ]
    if container.has_init:
        if given.init is None:
            raise ValueError(f"{container.name} wants an init program, and there is none")
        found.append(_bind(INIT, given.init, read_only=True))
    own = {mount.target for mount in container.mounts}
    return [mount for mount in found if mount["destination"] not in own]


def _mount(mount: Mount, given: Surroundings) -> Json:
    if mount.kind == "memory":
        size = () if mount.size is None else (f"size={mount.size}",)
        return _filesystem(mount.target, "tmpfs", (*mount.options, *size))
    folder = given.folders[mount.kind, mount.name]
    return _bind(mount.target, folder, read_only=mount.read_only)


def _filesystem(target: str, kind: str, options: Sequence[str]) -> Json:
    return {"destination": target, "type": kind, "source": kind, "options": list(options)}


def _bind(target: str, source: Path, *, read_only: bool) -> Json:
    options = ["rbind", "rprivate", "ro" if read_only else "rw"]
    return {"destination": target, "type": "bind", "source": str(source), "options": options}


def seccomp(profile: Mapping[str, Any], architecture: str, capabilities: Sequence[str]) -> Json:
    """The part of Docker's profile that holds for these capabilities, as a runtime takes it."""

    def holds(rule: Mapping[str, Any]) -> bool:
        wanted, unwanted = rule.get("includes") or {}, rule.get("excludes") or {}
        return (
            set(wanted.get("caps") or ()) <= set(capabilities)
            and (not wanted.get("arches") or architecture in wanted["arches"])
            and not set(unwanted.get("caps") or ()) & set(capabilities)
            and architecture not in (unwanted.get("arches") or ())
        )

    architectures = next(
        [each["architecture"], *(each.get("subArchitectures") or ())]
        for each in profile["archMap"]
        if each["architecture"] == ARCHITECTURES[architecture]
    )
    kept = ("names", "action", "args", "errnoRet")
    return {
        "defaultAction": profile["defaultAction"],
        **({"defaultErrnoRet": profile["defaultErrnoRet"]} if "defaultErrnoRet" in profile else {}),
        "architectures": architectures,
        "syscalls": [
            {key: rule[key] for key in kept if rule.get(key) not in (None, [])}
            for rule in profile["syscalls"]
            if holds(rule)
        ],
    }
