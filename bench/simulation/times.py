"""Service times, as measured, with the source of each number."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent.parent / "service_times"


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """The service times of one model on one machine, for each kind of work alone.

    Attributes:
        gateway_seconds: the whole path of a request, without encoder and engine.
        gateway_image_seconds: what an image adds to that.
        preprocess_seconds: decoding and resizing an image of 4096 patches.
        tower_seconds: the fixed cost of a run of the vision tower.
        tower_patch_seconds: what a patch adds to that run.
        tower_cores: cores that a run keeps busy, if the tower runs on the shared cores.
        embedding_seconds: fetching an embedding of 4096 patches and passing it to the engine.
        step_seconds: the fixed cost of a step of the engine.
        prefill_seconds: what a prompt token adds to that step.
        decode_seconds: what a running sequence adds to that step.
        kv_tokens: tokens that fit into the engine's KV cache.
        step_tokens: the most prompt tokens of one step.
        shared_cores: cores that all processes share; 0 if each replica has its own machine.
        stock_image_seconds: a new image of 4096 patches in stock vLLM's engine; 0 if not measured.
        stock_host_seconds: an image of 4096 patches, new or not, before the engine of stock vLLM,
            which processes one at a time; 0 if not measured.
    """

    gateway_seconds: float
    gateway_image_seconds: float
    preprocess_seconds: float
    tower_seconds: float
    tower_patch_seconds: float
    tower_cores: float
    embedding_seconds: float
    step_seconds: float
    prefill_seconds: float
    decode_seconds: float
    kv_tokens: int
    step_tokens: int
    shared_cores: float
    stock_image_seconds: float
    stock_host_seconds: float

    def tower(self, patches: int) -> float:
        return self.tower_seconds + patches * self.tower_patch_seconds

    def preprocess(self, patches: int) -> float:
        return self.preprocess_seconds * patches / 4096

    def embedding(self, patches: int) -> float:
        return self.embedding_seconds * patches / 4096

    def stock_host(self, patches: int) -> float:
        return self.stock_host_seconds * patches / 4096

    def step(self, prompt_tokens: int, decoding: int) -> float:
        """Seconds of a step with `prompt_tokens` and a token for each of `decoding` sequences."""
        return (
            self.step_seconds
            + prompt_tokens * self.prefill_seconds
            + decoding * self.decode_seconds
        )


def load(name: str) -> ServiceTimes:
    return read(DIRECTORY / f"{name}.json")


def sources(name: str) -> dict[str, str]:
    """For each field of a file, its value and source as text."""
    found = json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    return {field: f"{entry['value']:g}, {entry['from']}" for field, entry in found.items()}


def read(path: Path) -> ServiceTimes:
    """Reads a file that has, for each field, its `value` and its source (`from`)."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return ServiceTimes(
        **{field.name: found[field.name]["value"] for field in fields(ServiceTimes)}
    )


def write(path: Path, times: ServiceTimes, sources: dict[str, str]) -> None:
    described = {
        field.name: {"value": getattr(times, field.name), "from": sources[field.name]}
        for field in fields(ServiceTimes)
    }
    path.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
