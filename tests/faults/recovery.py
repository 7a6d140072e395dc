"""When a part does again what it is there for, and when all is at rest: as the metrics say."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from urllib.error import URLError

from tests.faults.history import FINISHED, History
from tests.faults.stack import Part, Stack, tier_of

# Start-up of a decoder on a machine that has much else to do, and an ejection of 30 s.
RECOVERY_SECONDS = 240.0
IDLE_SECONDS = 20.0
LOOK_SECONDS = 0.2

HANDLED = "grpc_server_handled_total"
_METHODS = {"encoder": "Encode", "decoder": "Generate"}
# The operation of each tier with Redis in almost every request with a picture.
_OPERATIONS = {"gateway": "exist", "encoder": "put", "decoder": "get"}

Counts = Mapping[str, float]


async def until_recovered(
    stack: Stack, history: History, parts: Sequence[str], before: Counts
) -> float | None:
    """When all of the parts had done work beyond `before` and every process was in use; None if
    they had not in time."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    since = time.monotonic()
    while time.monotonic() < deadline:
        now = await work_done(stack, history, parts, since)
        if all(now[name] > before.get(name, 0) for name in now) and await asyncio.to_thread(
            stack.is_ready
        ):
            return time.monotonic()
        await asyncio.sleep(LOOK_SECONDS)
    return None


async def work_done(
    stack: Stack, history: History, parts: Sequence[str], since: float
) -> dict[str, float]:
    """The answers of each process, or its successes with Redis; 0 if it does not answer."""
    found: dict[str, float] = {}
    for name in parts:
        if name.endswith("-redis"):
            tier = tier_of(name)
            for part in stack.of(tier):
                found[f"{part.name}-redis"] = await asyncio.to_thread(
                    _successes, part, _OPERATIONS[tier]
                )
        elif tier_of(name) == "gateway":
            found[name] = sum(
                record.outcome == FINISHED
                and record.gateway == int(name.rpartition("-")[2])
                and record.began >= since
                for record in history.records
            )
        else:
            found[name] = await asyncio.to_thread(_answered, stack.parts[name])
    return found


def _answered(part: Part) -> float:
    method = _METHODS[tier_of(part.name)]
    return _value(part, HANDLED, grpc_method=method, grpc_code="OK")


def _successes(part: Part, operation: str) -> float:
    failed = "pixtral_embedding_store_failures_total"
    return _value(part, "pixtral_embedding_store_seconds_count", operation=operation) - _value(
        part, failed, operation=operation
    )


def _value(part: Part, sample: str, **labels: str) -> float:
    try:
        return part.value(sample, **labels)
    except (URLError, OSError):
        return 0.0


async def until_idle(stack: Stack, seconds: float = IDLE_SECONDS) -> list[str]:
    """The resources that are still held, long enough after the last request; empty is at rest."""
    deadline = time.monotonic() + seconds
    while True:
        held = [
            what for part in stack.parts.values() for what in await asyncio.to_thread(held_by, part)
        ]
        if not held or time.monotonic() > deadline:
            return held
        await asyncio.sleep(LOOK_SECONDS)


_AT_REST = {
    "gateway": ("pixtral_gateway_permits_in_use",),
    "encoder": ("pixtral_encoder_queued_patches",),
    "decoder": (
        "pixtral_decoder_requests_admitted",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
    ),
}
# Asked for all the time, by the other tiers.
_HANDSHAKES = ("GetEncoderInfo", "GetDecoderInfo")


def held_by(part: Part) -> list[str]:
    """Permits, places, queues, and calls that began and have not ended."""
    found = [
        f"{part.name}: {sample} is {part.value(sample):g}"
        for sample in _AT_REST[tier_of(part.name)]
        if part.value(sample)
    ]
    calls = 0.0
    for name, sign in (("grpc_server_started_total", 1), (HANDLED, -1)):
        handshakes = sum(part.value(name, grpc_method=method) for method in _HANDSHAKES)
        calls += sign * (part.value(name) - handshakes)
    if calls:
        found.append(f"{part.name}: {calls:g} calls have not ended")
    return found
