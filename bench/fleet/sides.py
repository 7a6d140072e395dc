"""The sides of a comparison, and the servers that each needs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.compare import STOCK, WORKERS
from bench.one_card import CONTEXT, SHARE
from bench.servers import Address, Server, ours, stock
from bench.simulation.plan import Topology
from bench.stock_vllm import prepare

ROUND_ROBIN, STICKY, SPLIT, COLOCATED = "round-robin", "sticky", "split", "co-located"
TITLES = {
    ROUND_ROBIN: "stock vLLM, round robin",
    STICKY: "stock vLLM, sticky by image",
    SPLIT: "pixtral-serve, split",
    COLOCATED: "pixtral-serve, co-located",
}
STOCK_SIDES = (ROUND_ROBIN, STICKY)
# Three engines with as much each, and two encoders, fit on a GPU of 140 GB.
KV_CACHE_BYTES = 12 * 10**9
# As much for each server as stock vLLM has by default for what its processor makes of images.
REDIS_GIGABYTES = 4


@dataclass(frozen=True, slots=True)
class Fleet:
    """As many stock servers as `count`, or as many GPUs of encoders and decoders.

    Attributes:
        gpus: the names of the GPUs, for CUDA_VISIBLE_DEVICES.
        is_small: on the CPU, without GPUs.
        is_random: vLLM fills the language model with random weights.
    """

    count: int
    gpus: Sequence[str]
    model_dir: Path
    is_small: bool
    is_random: bool
    kv_cache_bytes: int | None
    topologies: Mapping[str, Topology]
    log_dir: Path

    @property
    def workers(self) -> int:
        """Processes of the gateway."""
        return 1 if self.is_small else max(WORKERS, self.count)

    def servers(self, sides: Collection[str]) -> dict[str, Server]:
        """The servers to start, by names that `addresses` understands."""
        found = {}
        if not set(STOCK_SIDES).isdisjoint(sides):
            for number in range(self.count):
                name = stock_name(number)
                run = partial(
                    stock,
                    self.model_dir,
                    prepare() if self.is_small else None,
                    self.log_dir / f"{name}.log",
                    [*STOCK, *self._stock_arguments()],
                )
                found[name] = Server(run, self._on(number))
        for side in sides:
            if side not in STOCK_SIDES:
                found[side] = Server(partial(ours, **self._stack(side)))
        return found

    def addresses(self, side: str, started: Mapping[str, Address]) -> list[Address]:
        if side in STOCK_SIDES:
            return [started[stock_name(number)] for number in range(self.count)]
        return [started[side]]

    @property
    def decoder_args(self) -> list[str]:
        if self.is_small:
            return []
        given = ["--kv-cache-bytes", str(self.kv_cache_bytes)]
        given += ["--gpu-memory-fraction", str(SHARE)]
        return [*given, "--engine-args", "load_format=dummy"] if self.is_random else given

    def _on(self, number: int) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": self.gpus[number]} if self.gpus else {}

    def _stock_arguments(self) -> list[str]:
        if self.is_small:
            return ["--gpu-memory-utilization", "0.1"]
        given = ["--kv-cache-memory-bytes", str(self.kv_cache_bytes), *CONTEXT]
        given += ["--gpu-memory-utilization", str(SHARE)]
        # The last one counts: `bench.stock_vllm` names Mistral's format before.
        return [*given, "--load-format", "dummy"] if self.is_random else given

    def _stack(self, side: str) -> dict[str, Any]:
        topology = self.topologies[side]
        encoder_gpus, decoder_gpus = placed(topology, self.gpus)
        return {
            "model_dir": self.model_dir,
            "log_dir": self.log_dir / side,
            "redis_max_memory": f"{REDIS_GIGABYTES * self.count}gb",
            "workers": self.workers,
            "decoder_args": self.decoder_args,
            "encoders": topology.encoders,
            "decoders": topology.decoders,
            "encoder_gpus": encoder_gpus,
            "decoder_gpus": decoder_gpus,
        }


def placed(topology: Topology, gpus: Sequence[str]) -> tuple[list[str], list[str]]:
    """The GPU of each encoder and of each decoder."""
    after = 0 if topology.colocated else topology.encoders
    return list(gpus[: topology.encoders]), list(gpus[after : after + topology.decoders])


def stock_name(number: int) -> str:
    return f"stock-{number + 1}"
