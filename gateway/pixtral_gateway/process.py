"""The gateway's process: loads the tokenizer and finds the tiers at start, closes all at the
end."""

import asyncio
from dataclasses import replace

import grpc

from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.cache.guarded_redis import GuardedRedis
from pixtral_core.cache.wire_format import DType
from pixtral_core.concurrency.shared_counts import ALONE, SharedCounts
from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.errors import StartupError
from pixtral_core.model.checkpoint import read_spec
from pixtral_core.model.vision_spec import BadCheckpoint, VisionSpec
from pixtral_core.server.certificates import WatchedFiles
from pixtral_core.server.channel import ClientTls, open_channel
from pixtral_core.server.grpc_interceptor import EarlyCheck, Gate
from pixtral_core.server.reception import Incoming
from pixtral_core.telemetry.tracing import Tracer
from pixtral_gateway.api.backend import Backend
from pixtral_gateway.api.grpc.chat_service import SERVICE, ChatService
from pixtral_gateway.api.http.server import HttpServer
from pixtral_gateway.api.openai.app import OpenAiApi
from pixtral_gateway.images.image_reader import ImageReader
from pixtral_gateway.images.named_images import TRANSFERS, NamedImages
from pixtral_gateway.images.request_images import RequestImages
from pixtral_gateway.images.uploads import Uploads
from pixtral_gateway.images.url_fetch import Fetcher, Hosts
from pixtral_gateway.metrics import MEMORY, MEMORY_LIMIT
from pixtral_gateway.pipeline import Pipeline
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from pixtral_gateway.settings import LEAST_INCOMING_BYTES, GatewaySettings
from pixtral_gateway.tenancy.admission import Admission
from pixtral_gateway.tenancy.capacity import follow_capacity
from pixtral_gateway.tenancy.tenants import Tenants
from pixtral_gateway.upstream.discovery import Group
from pixtral_gateway.upstream.registry import Tiers
from pixtral_gateway.upstream.replica import DecoderReplica, EncoderReplica


class GatewayTier:
    """The gateway is ready once its tokenizer is loaded and a decoder has answered."""

    name = "gateway"
    services: tuple[str, ...] = (SERVICE,)
    quiet: tuple[str, ...] = ()

    def __init__(self, settings: GatewaySettings, counts: SharedCounts = ALONE) -> None:
        """All workers share `counts`, if there are several."""
        self._settings = settings
        self._counts = counts
        self._tenants = Tenants(settings.api_keys, counts)
        # Each worker counts only the messages that it receives itself, so it gets a part of the
        # limit.
        most = max(settings.max_incoming_bytes // settings.workers, LEAST_INCOMING_BYTES)
        refusal = "the gateway receives as many bytes as it can at once: try again later"
        self._room = SharedLimit(most, refusal=refusal, show=MEMORY.labels("incoming").set)
        MEMORY_LIMIT.labels("incoming").set(most)
        self._service = ChatService(settings, self._tenants, Incoming(self._room))
        self._openai = OpenAiApi(settings, self._tenants, self._room)
        self._tiers: Tiers | None = None
        self._store: EmbeddingStore | None = None
        self._names: NamedImages | None = None
        self._fetcher: Fetcher | None = None
        self._sizing: asyncio.Task[None] | None = None

    def register(self, server: grpc.aio.Server) -> None:
        self._service.register(server)

    def early_checks(self) -> dict[str, EarlyCheck]:
        return self._service.early_checks()

    def http_server(self, gate: Gate, tracer: Tracer) -> HttpServer | None:
        listen = self._settings.http_listen
        if listen is None:
            return None
        return HttpServer(self._openai.app(gate, tracer), listen, self._settings)

    async def start(self) -> None:
        """Raises StartupError if the checkpoint or a setting cannot be served."""
        settings = self._settings
        try:
            spec, prompts = await asyncio.to_thread(_load, settings)
        except BadCheckpoint as error:
            raise StartupError(str(error)) from error
        redis = GuardedRedis.from_url(settings.redis_url)
        # The gateway only asks Redis which keys exist, so the dtype does not matter.
        store = EmbeddingStore(redis, width=spec.width, dtype=DType.BF16)
        self._store = store
        transfers = GuardedRedis.from_url(
            settings.redis_url, max_connections=TRANSFERS, state=redis.state
        )
        await redis.check()
        names = self._names = NamedImages(redis, transfers)
        tls = settings.peer_tls
        self._tiers = Tiers(
            encoders=Group(
                settings.encoders,
                lambda address, name: EncoderReplica(address, _open(address, name, tls)),
                linger_seconds=settings.request_timeout_seconds,
                files=None if tls is None else WatchedFiles(tls.paths),
            ),
            decoders=Group(
                settings.decoders,
                lambda address, name: DecoderReplica(address, _open(address, name, tls)),
                linger_seconds=settings.request_timeout_seconds,
                files=None if tls is None else WatchedFiles(tls.paths),
            ),
            width=spec.width,
            stall_seconds=settings.stall_seconds,
        )
        self._fetcher = _fetcher(settings)
        reader = ImageReader(
            spec,
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
            fetcher=self._fetcher,
            formats=settings.image_formats,
        )
        admission = Admission(
            settings.max_concurrent_requests or 1,
            self._tenants,
            max_image_bytes=settings.max_concurrent_image_bytes,
            counts=self._counts,
        )
        pipeline = Pipeline(
            images=RequestImages(reader, names),
            prompts=prompts,
            store=store,
            tiers=self._tiers,
            admission=admission,
            most_retries=lambda: admission.limit,
        )
        self._service.backend = self._openai.backend = Backend(
            pipeline=pipeline,
            tiers=self._tiers,
            admission=admission,
            uploads=Uploads(reader=reader, names=names, admission=admission, room=self._room),
            vocabulary_size=prompts.vocabulary_size,
            thinking=prompts.thinking,
        )
        self._tenants.start()
        await self._tiers.start()
        if settings.max_concurrent_requests is None:
            self._sizing = asyncio.create_task(follow_capacity(admission, self._tiers.decoders))

    async def failed(self) -> None:
        """Returns only after a fault of the gateway itself, because other tiers can recover from
        their faults."""
        if self._tiers is not None:
            await self._tiers.failed()

    async def stop(self) -> None:
        if self._sizing is not None:
            self._sizing.cancel()
        await self._tenants.stop()
        if self._tiers is not None:
            await self._tiers.stop()
        if self._names is not None:
            await self._names.close()
        if self._store is not None:
            await self._store.close()
        if self._fetcher is not None:
            await self._fetcher.close()


def _fetcher(settings: GatewaySettings) -> Fetcher | None:
    if not settings.image_url_hosts:
        return None
    return Fetcher(
        Hosts(settings.image_url_hosts, settings.image_url_http),
        max_bytes=settings.max_image_bytes,
        timeout_seconds=settings.image_url_timeout_seconds,
        formats=settings.image_formats,
    )


def _open(address: str, name: str | None, tls: ClientTls | None) -> grpc.aio.Channel:
    # A peer's certificate contains the peer's name, and not the name's current address.
    if tls is not None and tls.server_name is None:
        tls = replace(tls, server_name=name)
    return open_channel(address, tls)


def _load(settings: GatewaySettings) -> tuple[VisionSpec, PromptEncoder]:
    spec = read_spec(settings.model_dir)
    return spec, PromptEncoder.load(settings.model_dir, spec)
