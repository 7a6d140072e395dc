"""A slice of `make fuzz`."""

import asyncio
from pathlib import Path

from pixtral_core.cache.wire_format import DType
from pixtral_core.model.fingerprint import fingerprint
from pixtral_core.server.channel import open_channel
from pixtral_core.server.process import running
from pixtral_encoder.process import EncoderTier
from pixtral_encoder.settings import EncoderSettings
from tests.fuzz.calls import Limit, encoder_methods, fuzz_grpc
from tests.support.redis_server import RedisServer


async def test_whatever_the_message_its_status_is_one_to_act_upon(
    checkpoint_dir: Path, redis: RedisServer
) -> None:
    settings = EncoderSettings(
        listen="127.0.0.1:0",
        model_dir=checkpoint_dir,
        redis_url=redis.url,
        device="cpu",
        dtype=DType.F32,
    )
    made_by = await asyncio.to_thread(fingerprint, checkpoint_dir, DType.F32)
    async with (
        running(EncoderTier(settings), settings) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        found = await fuzz_grpc(channel, encoder_methods(made_by), 3, Limit(count=600))
    assert not found.bad
    assert {"Encode OK", "Encode INVALID_ARGUMENT", "Fetch NOT_FOUND"} <= set(found.endings)
