"""The gateway as a process: what it loads, and what it holds open."""

import asyncio
from dataclasses import replace

import grpc

from embeddings.codec import DType
from embeddings.guarded_redis import GuardedRedis
from embeddings.store import EmbeddingStore
from embeddings.vision import BadCheckpoint, VisionSpec, read_params
from gateway.admission import Admission
from gateway.capacity import keep_sized
from gateway.completion import Completions
from gateway.discovery import Group
from gateway.fetch import Fetcher, Hosts
from gateway.http.app import OpenAiApi
from gateway.http.server import HttpServer
from gateway.images import ImageReader
from gateway.named_images import TRANSFERS, NamedImages
from gateway.prompt import PromptEncoder
from gateway.replicas import DecoderReplica, EncoderReplica
from gateway.request_images import RequestImages
from gateway.service import ChatService
from gateway.settings import GatewaySettings
from gateway.tenants import Tenants
from gateway.tiers import Tiers
from gateway.uploads import Uploads
from pixtral.v1 import chat_pb2, chat_pb2_grpc
from serving.channel import ClientTls, open_channel
from serving.errors import StartupError
from serving.interceptor import EarlyCheck, Gate
from serving.tracing import Tracer


class GatewayTier:
    """Ready once its tokenizer is loaded and a decoder has answered."""

    name = "gateway"
    services: tuple[str, ...] = (chat_pb2.DESCRIPTOR.services_by_name["ChatService"].full_name,)
    quiet: tuple[str, ...] = ()

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._tenants = Tenants(settings.api_keys, workers=settings.workers)
        self._service = ChatService(settings, self._tenants)
        self._openai = OpenAiApi(settings, self._tenants)
        self._tiers: Tiers | None = None
        self._store: EmbeddingStore | None = None
        self._names: NamedImages | None = None
        self._fetcher: Fetcher | None = None
        self._sizing: asyncio.Task[None] | None = None

    def register(self, server: grpc.aio.Server) -> None:
        chat_pb2_grpc.add_ChatServiceServicer_to_server(self._service, server)

    def early_checks(self) -> dict[str, EarlyCheck]:
        # Nobody without a key has a message of megabytes received.
        (service,) = self.services
        methods = chat_pb2.DESCRIPTOR.services_by_name["ChatService"].methods_by_name
        checks: dict[str, EarlyCheck] = dict.fromkeys(
            (f"{service}/{name}" for name in methods), self._service.check_key
        )
        for name in ("Complete", "StreamComplete"):
            checks[f"{service}/{name}"] = self._service.check_room
        return checks

    def http_server(self, gate: Gate, tracer: Tracer) -> HttpServer | None:
        listen = self._settings.http_listen
        if listen is None:
            return None
        return HttpServer(self._openai.app(gate, tracer), listen, self._settings)

    async def start(self) -> None:
        """Raises StartupError where the checkpoint or a setting cannot be served."""
        settings = self._settings
        try:
            spec, prompts = await asyncio.to_thread(_load, settings)
        except BadCheckpoint as error:
            raise StartupError(str(error)) from error
        redis = GuardedRedis.from_url(settings.redis_url)
        # Only asked which keys are there: the dtype is the tiers' own affair.
        store = EmbeddingStore(redis, width=spec.width, dtype=DType.BF16)
        self._store = store
        transfers = GuardedRedis.from_url(settings.redis_url, max_connections=TRANSFERS)
        names = self._names = NamedImages(redis, transfers)
        tls = settings.peer_tls
        self._tiers = Tiers(
            encoders=Group(
                settings.encoders,
                lambda address, name: EncoderReplica(address, _open(address, name, tls)),
                linger_seconds=settings.request_timeout_seconds,
            ),
            decoders=Group(
                settings.decoders,
                lambda address, name: DecoderReplica(address, _open(address, name, tls)),
                linger_seconds=settings.request_timeout_seconds,
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
        )
        admission = Admission(
            settings.max_concurrent_requests or 1,
            self._tenants,
            max_image_bytes=settings.max_concurrent_image_bytes,
        )
        self._service.completions = self._openai.completions = Completions(
            images=RequestImages(reader, names),
            prompts=prompts,
            store=store,
            tiers=self._tiers,
            admission=admission,
            most_retries=lambda: admission.limit,
        )
        self._service.uploads = Uploads(reader=reader, names=names, admission=admission)
        self._tenants.start()
        await self._tiers.start()
        if settings.max_concurrent_requests is None:
            self._sizing = asyncio.create_task(
                keep_sized(admission, self._tiers.decoders, settings.workers)
            )

    async def failed(self) -> None:
        """Returns only for a fault of our own: what goes wrong behind a gateway can mend itself."""
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
        Hosts(settings.image_url_hosts),
        max_bytes=settings.max_image_bytes,
        timeout_seconds=settings.image_url_timeout_seconds,
    )


def _open(address: str, name: str | None, tls: ClientTls | None) -> grpc.aio.Channel:
    # A certificate is made out to the name, not to the address that it has today.
    if tls is not None and tls.server_name is None:
        tls = replace(tls, server_name=name)
    return open_channel(address, tls)


def _load(settings: GatewaySettings) -> tuple[VisionSpec, PromptEncoder]:
    spec = VisionSpec.from_params(read_params(settings.model_dir))
    return spec, PromptEncoder.load(settings.model_dir, spec)
