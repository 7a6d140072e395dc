"""Service times: what a piece of work takes, as measured, with where each number is from."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent.parent / "service_times"


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """The service times of one model on one machine. Seconds are those of the work alone on an idle
    machine.

    Attributes:
        gateway_seconds: a request's whole way, except encoder and engine.
        gateway_image_seconds: the addition of an image to that.
        preprocess_seconds: to decode and resize a picture of 4096 patches.
        tower_seconds: a run of the vision tower, however small.
        tower_patch_seconds: the addition of a patch to that run.
        tower_cores: cores that a run keeps busy, if the tower runs on the shared cores.
        embedding_seconds: to fetch an embedding of 4096 patches and put it into the engine.
        step_seconds: a step of the engine, however small.
        prefill_seconds: the addition of a prompt token to that step.
        decode_seconds: the addition of a running sequence to that step.
        kv_tokens: tokens for which the engine's KV cache has room.
        step_tokens: prompt tokens that one step takes.
        shared_cores: cores that all processes share; 0: each replica has a machine of its own.
        stock_image_seconds: the cost of a new picture of 4096 patches in stock vLLM's engine; 0 if
            nobody measured it.
        stock_host_seconds: a picture of 4096 patches, new or not, before the engine of a stock vLLM
            server, which reads one at a time; 0 where that was not measured.
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
        """A step that computes prompt tokens and one more token of each decoding sequence."""
        return (
            self.step_seconds
            + prompt_tokens * self.prefill_seconds
            + decoding * self.decode_seconds
        )


def load(name: str) -> ServiceTimes:
    return read(DIRECTORY / f"{name}.json")


def sources(name: str) -> dict[str, str]:
    """The value of each field of a file, and where it is from."""
    found = json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    return {field: f"{entry['value']:g}, {entry['from']}" for field, entry in found.items()}


def read(path: Path) -> ServiceTimes:
    """Reads a file that holds, for each field, its `value` and where it is `from`."""
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
