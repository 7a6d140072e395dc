"""Runs the stacks on the built images. `tools.images_check` starts it in namespaces of its own."""

import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.deploy.images import compose
from tools.deploy.manifests import ROOT
from tools.deploy.manifests import build as objects_of
from tools.deploy.objects import Object
from tools.images_check import secrets, service
from tools.images_check.containers import Container, pods_of, services_of
from tools.images_check.images import Builder
from tools.images_check.node import Failed, Node, node
from tools.images_check.specification import Json, seccomp
from tools.images_check.stacks import Stack, on_this_machine, started, stop, write_weights

CACHE = ROOT / ".cache" / "images"
SECCOMP = Path("/usr/share/containers/seccomp.json")
INIT = Path("/usr/bin/tini-static")
TIERS = ("gateway", "encoder", "decoder")
PASSWORD = "images-check"  # noqa: S105 - of a Redis that nobody else reaches
MODEL_DIR = "compose-models"
NOT_RUN = (
    "the Job `weights` of deploy/k8s/weights: it downloads from Hugging Face",
    "GPU, CUDA and vLLM's own image: encoder and decoder run on CPUs",
    "NetworkPolicies, Services, load balancer, KEDA, Prometheus' objects: they need a cluster",
    "kubelet's restarts, preStop and disk limits; DNS, for which /etc/hosts stands in",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """The builder and the images, by the names of the tiers."""

    build: Builder
    images: Mapping[str, str]

    @contextmanager
    def node(self, name: str) -> Iterator[Node]:
        with node(CACHE / "run" / name, self.build, self.images, _seccomp(), INIT) as made:
            yield made


def check_dev(machine: Machine) -> None:
    """The overlay of a laptop, whole and unchanged: its Job, its containers, an answer, the end."""
    objects = objects_of("dev")
    stack = on_this_machine("dev", pods_of(objects))
    with machine.node("dev") as made:
        made.objects = objects
        _answers(stack, made, service.Door("gateway:50051"))


def check_gpu(machine: Machine) -> None:
    """`gpu`, whose pods `production` has, too: TLS, keys, certificates that change, the drain."""
    objects = objects_of("gpu")
    with machine.node("gpu") as made:
        door, more = _secrets(machine, made)
        made.objects = [*objects, *more]
        stack = on_this_machine("gpu", pods_of(made.objects))
        same = pods_of([*objects_of("production"), *more])
        if same != pods_of(made.objects):
            raise Failed("the pods of production are not those of gpu, and have not been run")
        _say(stack)
        write_weights(made.folder / "claims" / "models" / "pixtral")
        with started(stack, made) as running:
            print(f"    an answer over TLS, with a key: {service.answer(door)!r}", flush=True)
            service.strangers_are_refused(door)
            print("    strangers are refused", flush=True)
            service.certificates_change(door, made, running)
            print("    new certificates are served, and no stream was cut", flush=True)
            service.drains(door, running, TIERS)
            stop(running, ["redis"])
            print("    SIGTERM: the stream ended whole, then all with 0", flush=True)


def check_external_redis(machine: Machine) -> None:
    """`production` with a Redis of one's own: that of `gpu` is it."""
    with machine.node("external-redis") as made:
        door, more = _secrets(machine, made)
        url = secrets.secret(
            "redis", {"url": f"rediss://:{PASSWORD}@redis:6379/0?ssl_ca_certs=/tls/ca.crt"}
        )
        password = secrets.secret("redis", {"password": PASSWORD})
        others = [each for each in more if each["metadata"]["name"] != "redis"]
        made.objects = [*objects_of("external-redis"), *others, url]
        own = pods_of([*objects_of("gpu"), *others, password])
        redis = next(pod for pod in own if pod.name == "redis")
        stack = on_this_machine("external-redis", [redis, *pods_of(made.objects)])
        write_weights(made.folder / "claims" / "models" / "pixtral")
        _answers(stack, made, door)


def check_compose(machine: Machine) -> None:
    """deploy/docker/compose.yaml, with Docker's own defaults."""
    variables = {"MODEL_DIR": MODEL_DIR, "REDIS_PASSWORD": PASSWORD}
    stack = on_this_machine("compose", services_of(compose(), variables))
    with machine.node("compose") as made:
        write_weights(made.folder / "claims" / MODEL_DIR)
        _answers(stack, made, service.Door("gateway:50051"))


CHECKS: Mapping[str, Callable[[Machine], None]] = {
    "dev": check_dev,
    "gpu": check_gpu,
    "external-redis": check_external_redis,
    "compose": check_compose,
}


def _answers(stack: Stack, made: Node, door: service.Door) -> None:
    _say(stack)
    with started(stack, made) as running:
        print(f"    an answer: {service.answer(door)!r}", flush=True)
        stop(running, [*TIERS, "redis"])
        print("    SIGTERM: all ended with 0", flush=True)


def _say(stack: Stack) -> None:
    for line in stack.replaced:
        print(f"    {line}", flush=True)


def _secrets(machine: Machine, made: Node) -> tuple[service.Door, list[Object]]:
    """The Secrets of docs/deploy.md, with a key that the gateway's image makes, and the door that
    they open."""
    made.add_names(["key"])
    program = Container("key", "pixtral-gateway", ("pixtral-serve",), ("key",))
    made.run(program, "key", 60)
    printed = (made.folder / "logs" / "key.log").read_text()
    directory = made.folder / "secrets"
    found = secrets.make(directory, printed)
    (key,) = re.findall(r"PIXTRAL_API_KEY=(\S+)", printed)
    return service.Door("gateway:50051", directory, key), found


def _seccomp() -> Json | None:
    if not SECCOMP.is_file():
        return None
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    return seccomp(json.loads(SECCOMP.read_text()), architecture, ())


def main(images: Mapping[str, str], names: Sequence[str]) -> int:
    # Only this mount namespace sees what is mounted below /run from here on.
    subprocess.run(["mount", "-t", "tmpfs", "images-check", "/run"], check=True)
    Path("/run/netns").mkdir()
    faults = 0
    with tempfile.TemporaryDirectory(prefix="images-check-") as running:
        machine = Machine(Builder(CACHE / "storage", Path(running)), images)
        for name in names:
            started_at = time.monotonic()
            print(f"{name}:", flush=True)
            try:
                CHECKS[name](machine)
            except Failed as fault:
                faults += 1
                print(f"    FAILED: {fault}", flush=True)
            print(f"    {time.monotonic() - started_at:.0f} s", flush=True)
    if not SECCOMP.is_file():
        print(f"not imitated: seccomp, for want of {SECCOMP}")
    for line in NOT_RUN:
        print(f"not run: {line}")
    print(f"{len(names)} checks, {faults} failed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), sys.argv[2:]))
