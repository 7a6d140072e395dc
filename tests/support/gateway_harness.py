"""The gateway's request path for tests."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
from prometheus_client import REGISTRY

from pixtral.v1 import chat_pb2, chat_pb2_grpc
from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.cache.guarded_redis import GuardedRedis
from pixtral_core.cache.wire_format import DType
from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.generation.sampling import from_proto
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_core.server.channel import open_channel
from pixtral_core.server.process import running
from pixtral_gateway.api.grpc.from_proto import read_conversation
from pixtral_gateway.images.image_reader import ImageReader
from pixtral_gateway.images.named_images import NamedImages
from pixtral_gateway.images.request_images import RequestImages
from pixtral_gateway.images.uploads import Uploads
from pixtral_gateway.pipeline import Pipeline
from pixtral_gateway.process import GatewayTier
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from pixtral_gateway.request import Begun, Delta, Finished, Request
from pixtral_gateway.settings import GatewaySettings
from pixtral_gateway.tenancy.admission import Admission
from pixtral_gateway.tenancy.tenants import Tenant, Tenants
from pixtral_gateway.upstream.discovery import Group
from pixtral_gateway.upstream.registry import Tiers
from pixtral_gateway.upstream.replica import DecoderReplica, EncoderReplica
from tests.support.fake_tiers import (
    FINGERPRINT,
    WIDTH,
    FakeDecoder,
    FakeEncoder,
)

MAX_CONCURRENT = 4
SCOPE = "public"


@dataclass(frozen=True)
class Answer:
    deltas: list[Delta]
    finished: Finished

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)


@dataclass
class Client:
    stub: "chat_pb2_grpc.ChatServiceAsyncStub"
    settings: GatewaySettings
    url: str
    channel: grpc.aio.Channel
    target: str

    async def raw(self, method: str, message: bytes) -> bytes:
        """The first response to a message of arbitrary bytes."""
        path = f"/pixtral.v1.ChatService/{method}"
        if method.startswith("Stream"):
            stream: Any = self.channel.unary_stream(path)
            return cast("bytes", await stream(message).read())
        unary: Any = self.channel.unary_unary(path)
        return cast("bytes", await unary(message))


class Harness:
    def __init__(
        self,
        pipeline: Pipeline,
        tiers: Tiers,
        admission: Admission,
        store: EmbeddingStore,
        names: NamedImages,
        uploads: Uploads,
    ) -> None:
        self.pipeline = pipeline
        self.tiers = tiers
        self.admission = admission
        self.names = names
        self.uploads = uploads
        self._store = store

    @classmethod
    async def started(
        cls,
        spec: VisionSpec,
        prompts: PromptEncoder,
        redis_url: str,
        encoders: Sequence[FakeEncoder],
        decoders: Sequence[FakeDecoder],
        *,
        stall_seconds: float = 30,
        most_retries: int = 100,
    ) -> "Harness":
        tiers = Tiers(
            encoders=Group((e.address for e in encoders), encoder_at),
            decoders=Group((d.address for d in decoders), decoder_at),
            width=WIDTH,
            stall_seconds=stall_seconds,
        )
        admission = Admission(MAX_CONCURRENT, Tenants(None))
        redis = GuardedRedis.from_url(redis_url)
        store = EmbeddingStore(redis, width=WIDTH, dtype=DType.F32)
        names = NamedImages(redis, GuardedRedis.from_url(redis_url))
        reader = ImageReader(spec, max_bytes=1 << 20, max_pixels=1 << 24)
        pipeline = Pipeline(
            images=RequestImages(reader, names),
            prompts=prompts,
            store=store,
            tiers=tiers,
            admission=admission,
            most_retries=lambda: most_retries,
        )
        await tiers.start()
        replicas = [*tiers.encoders, *tiers.decoders]
        await eventually(lambda: all(replica.contract for replica in replicas))
        room = SharedLimit(256 << 20)
        uploads = Uploads(reader=reader, names=names, admission=admission, room=room)
        return cls(pipeline, tiers, admission, store, names, uploads)

    async def stop(self) -> None:
        await self.tiers.stop()
        await self.names.close()
        await self._store.close()

    async def answer(
        self, *messages: chat_pb2.Message, seconds: float = 30, tenant: Tenant | None = None
    ) -> Answer:
        deltas, finished = [], []
        asked = ask(*messages, seconds=seconds, tenant=tenant)
        async with aclosing(self.pipeline.stream(asked)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    finished.append(event)
                elif not isinstance(event, Begun):
                    deltas.append(event)
        (end,) = finished
        return Answer(deltas, end)


def encoder_at(address: str, _: str | None = None) -> EncoderReplica:
    return EncoderReplica(address, open_channel(address, None))


def decoder_at(address: str, _: str | None = None) -> DecoderReplica:
    return DecoderReplica(address, open_channel(address, None))


def ask(
    *messages: chat_pb2.Message,
    seconds: float = 30,
    sampling: chat_pb2.SamplingParams | None = None,
    tenant: Tenant | None = None,
) -> Request:
    now = time.monotonic()
    return Request(
        id=f"{now}",
        tenant=tenant or Tenant(SCOPE),
        conversation=read_conversation(messages, max_images=16),
        sampling=from_proto(sampling or chat_pb2.SamplingParams()),
        arrival=now,
        deadline=Deadline(now + seconds),
    )


def key_of(sha256: bytes) -> EmbeddingKey:
    return EmbeddingKey(sha256, FINGERPRINT, SCOPE)


def ever_longer() -> Iterator[float]:
    """Ever longer deadlines in seconds, to try until a request gets as far as the test needs."""
    yield from (0.3, 1.0, 5.0, 30.0)


async def eventually(condition: Callable[[], object], seconds: float = 60) -> None:
    """Returns once the condition holds. Raises TimeoutError if it does not within `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def permits() -> float:
    return REGISTRY.get_sample_value("pixtral_gateway_permits_in_use") or 0.0


def closed(model_dir: Path, **more: Any) -> GatewaySettings:
    """Settings of a gateway without reachable tiers."""
    return GatewaySettings(
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        model_dir=model_dir,
        decoders=["127.0.0.1:1"],
        **more,
    )


def watching(encoders: list[FakeEncoder], decoders: list[FakeDecoder]) -> Tiers:
    return Tiers(
        encoders=Group((e.address for e in encoders), encoder_at),
        decoders=Group((d.address for d in decoders), decoder_at),
        width=WIDTH,
        stall_seconds=30,
    )


@asynccontextmanager
async def gateway(settings: GatewaySettings) -> AsyncIterator[str]:
    """Runs a gateway; yields its host:port for HTTP."""
    async with running(GatewayTier(settings), settings) as addresses:
        assert addresses.http is not None
        yield addresses.http
