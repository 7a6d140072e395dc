"""A node without Kubernetes: pods with addresses of their own, and their containers under runc."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tools.deploy.objects import Objects
from tools.images_check.containers import Container, Mount, entries
from tools.images_check.images import Builder
from tools.images_check.specification import Json, Surroundings, specification

BRIDGE = "images0"
SUBNET = "10.254.77"
SECONDS_BETWEEN = 1.0


class Failed(Exception):
    """Something that the check finds wrong, in words for its user."""


@dataclass(slots=True)
class Running:
    """A container that was started."""

    name: str
    address: str
    process: "subprocess.Popen[bytes]"
    log: Path
    runc: Sequence[str]

    def signal(self, name: str) -> None:
        """Raises Failed if the container has ended."""
        command = [*self.runc, "kill", self.name, name]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            raise Failed(f"{self.name} has ended before its time:\n{self.last_lines()}")

    def ends(self, within: float) -> int:
        """The exit status. Raises Failed if it does not end in time."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} has not ended after {within:.0f} s") from None

    def runs(self, command: Sequence[str]) -> bool:
        """Whether a command inside of the container succeeds."""
        done = subprocess.run(
            [*self.runc, "exec", self.name, *command], capture_output=True, check=False
        )
        return done.returncode == 0

    def last_lines(self) -> str:
        return "".join(self.log.read_text("utf-8", "replace").splitlines(keepends=True)[-15:])


@dataclass(slots=True)
class Node:
    """Runs pods. `folder` has their volumes, logs and bundles."""

    folder: Path
    build: Builder
    images: Mapping[str, str]
    seccomp: Json | None
    init: Path | None
    stack: ExitStack
    objects: Objects = ()
    _addresses: dict[str, str] = field(default_factory=dict)

    def add_names(self, names: Sequence[str]) -> None:
        """Gives each name an address, which all containers can look up."""
        for name in names:
            address = f"{SUBNET}.{len(self._addresses) + 2}"
            self._addresses[name] = address
            _network(name, address)
        lines = ["127.0.0.1 localhost", *(f"{a} {n}" for n, a in self._addresses.items())]
        self._hosts.write_text("\n".join(lines) + "\n")

    @property
    def _hosts(self) -> Path:
        return self.folder / "hosts"

    def start(self, container: Container, pod: str) -> Running:
        """Starts one container in a pod's network."""
        image = self.stack.enter_context(self.build.mounted(self._image(container)))
        bundle = self.folder / "bundles" / container.name
        bundle.mkdir(parents=True)
        given = Surroundings(
            network=Path("/run/netns", pod),
            hosts=self._hosts,
            cgroup=f"/images-check-{container.name}",
            seccomp=self.seccomp,
            init=self.init,
            folders={(m.kind, m.name): self._volume(m, pod, container) for m in container.mounts},
        )
        written = json.dumps(specification(container, image, given), indent=1)
        (bundle / "config.json").write_text(written)
        runc = ["runc", "--root", str(self.folder / "runc")]
        log = self.folder / "logs" / f"{container.name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*runc, "run", "--bundle", str(bundle), container.name],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        running = Running(container.name, self._addresses[pod], process, log, runc)
        self.stack.callback(_stop, running)
        return running

    def run(self, container: Container, pod: str, within: float) -> None:
        """Runs a container to its end. Raises Failed unless that is 0."""
        running = self.start(container, pod)
        if status := running.ends(within):
            raise Failed(f"{container.name} ends with {status}:\n{running.last_lines()}")

    def _image(self, container: Container) -> str:
        name = container.image.rpartition("/")[2].partition(":")[0]
        tier = name.removeprefix("pixtral-").removesuffix("-cpu")
        return self.images[tier]

    def _volume(self, mount: Mount, pod: str, container: Container) -> Path:
        """The folder of a volume, with what the objects say is in it."""
        if mount.kind == "claim":
            folder = self.folder / "claims" / mount.name.strip("/").replace("/", "-")
        else:
            folder = self.folder / "volumes" / pod / mount.name.strip("/").replace("/", "-")
        if mount.kind in ("secret", "config"):
            kind = "Secret" if mount.kind == "secret" else "ConfigMap"
            group, mode = (container.groups or (0,))[0], 0o440 if kind == "Secret" else 0o644
            publish(folder, entries(self.objects, kind, mount.name), group, mode)
        elif not folder.exists():
            folder.mkdir(parents=True)
            # As the kubelet makes it: the pod's group owns what is made there.
            os.chown(folder, 0, (container.groups or (0,))[0])
            folder.chmod(0o2777)
        return folder

    def secret(self, pod: str, name: str) -> Path:
        """The folder of a Secret that a pod mounts."""
        return self.folder / "volumes" / pod / name


def publish(folder: Path, files: Mapping[str, str], group: int, mode: int) -> None:
    """Writes files as the kubelet does: all of them change at once, when one link is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    number = sum(1 for each in folder.iterdir() if each.name.startswith("..2"))
    version = folder / f"..2{number:03}"
    version.mkdir(mode=0o755)
    for name, text in files.items():
        path = version / name
        path.write_text(text)
        path.chmod(mode)
        os.chown(path, 0, group)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data", name))
    link = folder / "..new"
    link.symlink_to(version.name)
    link.replace(folder / "..data")


@contextmanager
def node(
    folder: Path, build: Builder, images: Mapping[str, str], seccomp: Json | None, init: Path | None
) -> Iterator[Node]:
    """A node whose containers end, and whose roots are unmounted, with the block."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        stack.enter_context(_bridge())
        made = Node(folder, build, images, seccomp, init, stack)
        made.add_names(())
        # This process looks names up as the containers do.
        subprocess.run(["mount", "--bind", str(folder / "hosts"), "/etc/hosts"], check=True)
        stack.callback(subprocess.run, ["umount", "/etc/hosts"], check=True)
        yield made


@contextmanager
def _bridge() -> Iterator[None]:
    _ip("link", "set", "lo", "up")
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("address", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    try:
        yield
    finally:
        for path in Path("/run/netns").iterdir():
            _ip("netns", "delete", path.name)
        _ip("link", "delete", BRIDGE)


def _network(name: str, address: str) -> None:
    """A namespace with an address on the bridge. Only loopback and the other pods are there."""
    number = address.rpartition(".")[2]
    outside, inside = f"images-{number}", "eth0"
    _ip("netns", "add", name)
    _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
    _ip("link", "set", outside, "master", BRIDGE, "up")
    _ip("-n", name, "address", "add", f"{address}/24", "dev", inside)
    for device in (inside, "lo"):
        _ip("-n", name, "link", "set", device, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _stop(running: Running) -> None:
    if running.process.poll() is None:
        with suppress(Failed):
            running.signal("KILL")
        running.process.wait()


def wait_until(holds: Callable[[], bool], within: float) -> bool:
    """Whether a condition holds in time."""
    end = time.monotonic() + within
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(SECONDS_BETWEEN)
    return True


def is_serving(address: str, port: int) -> bool:
    """Whether gRPC's health check at a port answers SERVING, as a kubelet asks it."""
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=3)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
