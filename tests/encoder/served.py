"""The encoder process over gRPC, and a client of it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pixtral.internal.v1 import encoder_pb2, encoder_pb2_grpc
from pixtral_core.cache.embedding_key import EmbeddingKey, to_proto
from pixtral_core.model.fingerprint import fingerprint
from pixtral_core.server.channel import open_channel
from pixtral_core.server.process import running
from pixtral_encoder.process import EncoderTier
from pixtral_encoder.settings import EncoderSettings

DEADLINE = 60.0


class Client:
    def __init__(self, stub: "encoder_pb2_grpc.EncoderServiceAsyncStub", made_by: str) -> None:
        self.stub = stub
        self.made_by = made_by

    def key(self, image: bytes) -> EmbeddingKey:
        return EmbeddingKey(hashlib.sha256(image).digest(), self.made_by, "tenant")

    async def encode(
        self, image: bytes, key: EmbeddingKey | None = None, timeout: float = DEADLINE
    ) -> Any:
        request = encoder_pb2.EncodeRequest(key=to_proto(key or self.key(image)), image=image)
        return await self.stub.Encode(request, timeout=timeout)

    async def fetch(self, image: bytes) -> list[bytes]:
        request = encoder_pb2.FetchRequest(key=to_proto(self.key(image)))
        return [piece.data async for piece in self.stub.Fetch(request, timeout=DEADLINE)]


@asynccontextmanager
async def serving(model_dir: Path, redis_url: str, **settings: Any) -> AsyncIterator[Client]:
    made = EncoderSettings(
        listen="127.0.0.1:0", model_dir=model_dir, redis_url=redis_url, device="cpu", **settings
    )
    async with (
        running(EncoderTier(made), made) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        made_by = await asyncio.to_thread(fingerprint, model_dir, made.dtype, fp8=made.vision_fp8)
        yield Client(encoder_pb2_grpc.EncoderServiceStub(channel), made_by)
