"""The resources of a stack's processes, and whether they are idle."""

import asyncio
import contextlib
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis
from prometheus_client.parser import text_string_to_metric_families

from bench.own_redis import redis as own_redis
from pixtral_cli import pixtral_stack
from pixtral_cli.stack.process_stack import Stack
from pixtral_cli.stack.redis_server import RedisServer

MIB = 1 << 20
TIERS = ("gateway", "encoder", "decoder")
# Words that identify each process by its command line.
PROCESSES = {
    "gateway": "-m pixtral_gateway",
    "encoder": "-m pixtral_encoder",
    "decoder": "-m pixtral_decoder",
    "engine": "EngineCore",
    "redis": "redis-server",
}
# Metrics of each tier that are 0 while no request runs.
IN_USE = {
    "gateway": ("pixtral_gateway_permits_in_use",),
    "encoder": ("pixtral_encoder_queued_patches",),
    "decoder": (
        "pixtral_decoder_requests_admitted",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
    ),
}
# Only our own services count. Handshakes do not, because the tiers make them without requests.
OUR_SERVICE = "pixtral."
HANDSHAKES = ("GetEncoderInfo", "GetDecoderInfo")


@dataclass(frozen=True, slots=True)
class Watched:
    """A running stack, and its own Redis."""

    stack: Stack
    server: RedisServer

    def sample(self) -> dict[str, float]:
        """A sample in MiB or as counts. Blocks for a moment."""
        found: dict[str, float] = {}
        for name, processes in self._processes().items():
            for each in processes:
                with contextlib.suppress(psutil.Error):
                    _add(found, f"{name} memory MiB", each.memory_info().rss / MIB)
                    _add(found, f"{name} files", each.num_fds())
                    _add(found, f"{name} threads", each.num_threads())
        for tier in TIERS:
            page = self._page(tier)
            found[f"{tier} tasks"] = page["pixtral_asyncio_tasks"]
        with contextlib.closing(self._client()) as client:
            info = client.info()
        found["redis connections"] = float(info["connected_clients"])
        found["redis values MiB"] = float(info["used_memory"]) / MIB
        return found

    def in_use(self) -> dict[str, float]:
        """The resources that requests occupy, as the tiers' metrics show them; empty if idle."""
        found: dict[str, float] = {}
        for tier, names in IN_USE.items():
            page = self._page(tier)
            found |= {name: page.get(name, 0.0) for name in names}
            found[f"{tier} calls"] = page["calls in flight"]
        return {name: value for name, value in found.items() if value}

    async def idle_after(self, patience: float) -> tuple[float, dict[str, float]]:
        """The seconds until nothing is in use, and what still is after `patience` seconds."""
        began = time.monotonic()
        while True:
            held = await asyncio.to_thread(self.in_use)
            seconds = time.monotonic() - began
            if not held or seconds > patience:
                return seconds, held
            await asyncio.sleep(0.2)

    def _page(self, tier: str) -> dict[str, float]:
        """The tier's metrics, summed over labels."""
        address = self.stack.addresses[tier].metrics
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
            text = response.read().decode()
        page: dict[str, float] = {"calls in flight": 0.0}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                _add(page, sample.name, sample.value)
                if not sample.labels.get("grpc_service", "").startswith(OUR_SERVICE):
                    continue
                if sample.labels["grpc_method"] in HANDSHAKES:
                    continue
                if sample.name == "grpc_server_started_total":
                    page["calls in flight"] += sample.value
                elif sample.name == "grpc_server_handled_total":
                    page["calls in flight"] -= sample.value
        return page

    def _processes(self) -> dict[str, list[psutil.Process]]:
        found: dict[str, list[psutil.Process]] = {name: [] for name in PROCESSES}
        for each in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                line = " ".join(each.cmdline())
                # The engine is a child of the decoder with a name of its own.
                for name in ("engine", *PROCESSES):
                    if PROCESSES[name] in line:
                        found[name].append(each)
                        break
        return found

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(self.server.url, socket_timeout=5)


@contextmanager
def watched(
    model_dir: Path,
    *,
    permits: int,
    redis_max_memory: str = "4gb",
    decoder_args: Sequence[str] = (),
    encoder_args: Sequence[str] = (),
    log_dir: Path,
) -> Iterator[Watched]:
    quiet = ("--log-level", "warning")
    with (
        own_redis(redis_max_memory) as server,
        pixtral_stack(
            model_dir,
            redis_url=server.url,
            gateway_args=("--max-concurrent-requests", str(permits), *quiet),
            encoder_args=(*encoder_args, *quiet),
            decoder_args=(*decoder_args, *quiet),
            log_dir=log_dir,
        ) as stack,
    ):
        yield Watched(stack, server)


def _add(found: dict[str, float], name: str, value: float) -> None:
    found[name] = found.get(name, 0.0) + value
