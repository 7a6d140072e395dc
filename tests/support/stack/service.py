"""The running service for tests: its processes, counters and engine."""

import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from prometheus_client.parser import text_string_to_metric_families

from pixtral.internal.v1 import decoder_pb2, decoder_pb2_grpc
from pixtral_cli import pixtral_stack
from pixtral_cli.stack.process_stack import Progress, Stack
from pixtral_client import Client

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Service:
    """Encoder, decoder and gateway as processes, and a client of the gateway.

    `progress` is the stack's progress as it started.
    """

    stack: Stack
    client: Client
    progress: list[Progress] = field(default_factory=list)

    def value(self, tier: str, sample: str, **labels: str) -> float:
        """A Prometheus sample of one tier, summed over the labels that are not given."""
        return sample_value(self.stack.addresses[tier].metrics, sample, **labels)

    def encoded(self) -> int:
        """Images that the encoder's tower has processed since its start."""
        return int(self.value("encoder", "pixtral_encoder_images_encoded_total"))

    def generated(self) -> int:
        """Tokens that the engine has generated since its start."""
        return int(self.value("decoder", "vllm:generation_tokens_total"))

    def running(self) -> int:
        """Requests in the engine, running or waiting."""
        with grpc.insecure_channel(self.stack.addresses["decoder"].grpc) as channel:
            stub = decoder_pb2_grpc.DecoderServiceStub(channel)
            info = stub.GetDecoderInfo(decoder_pb2.GetDecoderInfoRequest(), timeout=10)
        return info.running + info.waiting

    def permits(self) -> int:
        """Admission permits in use in the gateway."""
        return int(self.value("gateway", "pixtral_gateway_permits_in_use"))

    def is_idle(self) -> bool:
        return self.permits() == 0 and self.running() == 0


@contextmanager
def serve(
    model_dir: Path,
    redis_url: str,
    log_dir: Path,
    *,
    max_image_bytes: int = 1_000_000,
    decoder_args: Sequence[str] = (),
) -> Iterator[Service]:
    """Runs all tiers in float32, so that tests can compare answers bit by bit."""
    progress: list[Progress] = []
    stack = pixtral_stack(
        model_dir,
        dtype="f32",
        http_listen="127.0.0.1:0",
        redis_url=redis_url,
        log_dir=log_dir,
        decoder_args=decoder_args,
        gateway_args=["--max-image-bytes", str(max_image_bytes), "--max-images", "6"],
        progress=progress.append,
        start_timeout=240,
    )
    with stack, Client(stack.target, timeout=120, max_retries=0) as client:
        yield Service(stack, client, progress)


def sample_value(address: str, sample: str, **labels: str) -> float:
    """A Prometheus sample at host:port, summed over the labels that are not given."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        text = response.read().decode()
    return sum(
        found.value
        for family in text_string_to_metric_families(text)
        for found in family.samples
        if found.name == sample and labels.items() <= found.labels.items()
    )


def wait_until(
    condition: Callable[[], bool],
    what: str,
    seconds: float = PATIENCE_SECONDS,
    pause: float = 0.02,
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)
