"""The service as each overlay and compose.yaml start it, and what of them does not run here."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from tools.images_check.containers import Container, Pod
from tools.images_check.node import Failed, Node, Running, is_serving, wait_until

# A container with a GPU gets these in place of its own settings.
WITHOUT_GPU: Mapping[str, Mapping[str, str]] = {
    "encoder": {"PIXTRAL_DEVICE": "cpu"},
    "decoder": {
        "PIXTRAL_CONTEXT_LENGTH": "8192",
        "PIXTRAL_KV_CACHE_BYTES": "1073741824",
        "PIXTRAL_MAX_RUNNING": "8",
    },
}
# Those of a CPU would ask vLLM for most of the machine's memory.
ONLY_ON_GPUS = ("PIXTRAL_GPU_MEMORY_FRACTION",)
# The kubelet's patience with a startup probe is longer; here the machine is the same for all.
SECONDS_TO_BE_READY = 600.0
SECONDS_TO_BEGIN = 120.0
SECONDS_TO_END = 400.0
REDIS = "redis"


@dataclass(frozen=True, slots=True)
class Stack:
    """The pods of one overlay; `replaced` says in words which settings are not those of it."""

    name: str
    pods: tuple[Pod, ...]
    replaced: tuple[str, ...]


def on_this_machine(name: str, pods: Iterable[Pod]) -> Stack:
    """The pods, with the settings of CPUs where a container wants a GPU."""
    made: list[Pod] = []
    replaced: list[str] = []
    for pod in pods:
        if pod.main.gpus:
            other = WITHOUT_GPU[pod.name]
            main = replace(pod.main, environment=_on_cpus(pod.main, other))
            lines = [f"{key}={value}" for key, value in other.items()]
            lines += [f"no {key}" for key in ONLY_ON_GPUS if key in pod.main.environment]
            replaced.append(f"{pod.name} has no GPU, and {' '.join(lines)}")
            made.append(replace(pod, main=main))
        else:
            made.append(pod)
    return Stack(name, tuple(made), tuple(replaced))


def _on_cpus(container: Container, other: Mapping[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in container.environment.items() if k not in ONLY_ON_GPUS}
    return {**kept, **other}


def write_weights(folder: Path) -> None:
    """A small random checkpoint where the Job `weights` would put the model's."""
    write_random_checkpoint(folder, RandomSpec())
    (folder / ".complete").touch()


@contextmanager
def started(stack: Stack, node: Node) -> Iterator[dict[str, Running]]:
    """The main containers of a stack, by their pods' names, when all of them are ready. Raises
    Failed."""
    node.add_names([pod.name for pod in stack.pods])
    # The Job that writes the weights comes first: all others wait for it.
    for pod in stack.pods:
        if pod.is_job:
            node.run(pod.main, pod.name, SECONDS_TO_BE_READY)
            print(f"    {pod.name}: ended with 0", flush=True)
    running: dict[str, Running] = {}
    for pod in stack.pods:
        if not pod.is_job:
            for each in pod.first:
                node.run(each, pod.name, SECONDS_TO_BEGIN)
            running[pod.name] = node.start(pod.main, pod.name)
    for pod in stack.pods:
        if not pod.is_job:
            _wait_for(pod, running)
            first = "".join(f", after {each.name}" for each in pod.first)
            print(f"    {pod.name}: ready{first}", flush=True)
    yield running


def _wait_for(pod: Pod, running: Mapping[str, Running]) -> None:
    probe, own = pod.main.ready, running[pod.name]
    if probe is None:
        raise Failed(f"{pod.name} has no readiness probe")

    def is_ready_or_over() -> bool:
        _fail_where_one_ended(running.values())
        if probe.port is None:
            return own.runs(probe.command)
        return is_serving(own.address, probe.port)

    if not wait_until(is_ready_or_over, SECONDS_TO_BE_READY):
        raise Failed(f"{pod.name} is not ready in time:\n{own.last_lines()}")


def _fail_where_one_ended(running: Iterable[Running]) -> None:
    for each in running:
        if (status := each.process.poll()) is not None:
            raise Failed(f"{each.name} ended with {status}:\n{each.last_lines()}")


def stop(running: Mapping[str, Running], names: Sequence[str]) -> None:
    """SIGTERM, as the kubelet sends it after preStop. Raises Failed unless all end with 0."""
    for name in names:
        running[name].signal("TERM")
    for name in names:
        if status := running[name].ends(SECONDS_TO_END):
            raise Failed(f"{name} ends with {status} on SIGTERM:\n{running[name].last_lines()}")
