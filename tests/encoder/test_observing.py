"""Spans of calls that are encoded together: each in its caller's own trace."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from pixtral.internal.v1 import encoder_pb2
from pixtral_core.cache.embedding_key import to_proto
from tests.encoder.pictures import png
from tests.encoder.served import DEADLINE, Client, serving
from tests.support.log_lines import logged
from tests.support.redis_server import RedisServer
from tests.support.stack.span_collector import collector

ENCODE = "pixtral.internal.v1.EncoderService/Encode"
WORK = ("lookup", "open", "preprocess", "queue", "batch", "pack", "store")


async def encode(client: Client, image: bytes, number: int) -> None:
    """As the caller number `number`, in a trace of its own."""
    await client.stub.Encode(
        encoder_pb2.EncodeRequest(key=to_proto(client.key(image)), image=image),
        timeout=DEADLINE,
        metadata=(
            ("x-request-id", f"id-{number}"),
            ("traceparent", f"00-{number:032x}-{1:016x}-01"),
        ),
    )


async def test_calls_that_share_a_batch_or_an_image_keep_their_traces_apart(
    checkpoint_dir: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [png(64 + 16 * n, 64) for n in range(4)]
    callers = dict(enumerate([*images, images[0], images[0]], 1))
    with collector() as received, logged() as lines:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        async with serving(checkpoint_dir, redis.url) as client:
            await asyncio.gather(*(encode(client, image, n) for n, image in callers.items()))
        # Closed, it has sent all.
        spans = received.spans
    calls = {span.trace_id: span for span in spans if span.name == ENCODE}
    assert set(calls) == {f"{number:032x}" for number in callers}
    for number, span in enumerate(calls.values()):
        assert span.attributes["pixtral.source"] in ("encoded", "local"), number
    work = Counter(span.name for span in spans if span.name in WORK)
    assert set(work.values()) == {len(images)}
    for span in spans:
        if span.name in WORK:
            assert span.parent_id == calls[span.trace_id].span_id
    # Each image's work is in one caller's trace, whole, and no other's.
    by_trace = {
        trace_id: sorted(s.name for s in spans if s.trace_id == trace_id and s.name in WORK)
        for trace_id in calls
    }
    assert sorted(map(tuple, by_trace.values())) == [(), ()] + [tuple(sorted(WORK))] * len(images)
    assert {line["request_id"] for line in lines.calls} == {f"id-{n}" for n in callers}
    for line in lines.calls:
        assert int(line["trace_id"], 16) == int(line["request_id"].removeprefix("id-"))
        is_own = bool(by_trace[line["trace_id"]])
        assert ("queue_seconds" in line) is is_own
