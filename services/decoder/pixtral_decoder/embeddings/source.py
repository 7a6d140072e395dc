"""Gets an image's embedding from this process's memory, from Redis, or from the encoder."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, TypeVar

import grpc
import torch

from pixtral.internal.v1 import encoder_pb2, encoder_pb2_grpc
from pixtral_core.cache import wire_format
from pixtral_core.cache.embedding_key import EmbeddingKey, to_proto
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.cache.lru import ByteLru
from pixtral_core.cache.metrics import REQUESTS
from pixtral_core.cache.receiving import Arrival, Receiving, in_pieces, new_memory
from pixtral_core.cache.wire_format import DamagedValue, DType, Embedding
from pixtral_core.concurrency.single_flight import SingleFlight
from pixtral_core.model.vision_spec import Grid
from pixtral_core.server.certificates import WatchedFiles
from pixtral_core.server.channel import ClientTls, open_channel
from pixtral_core.settings import is_loopback
from pixtral_core.telemetry.request_log import count, current_span, outgoing
from pixtral_decoder.embeddings.finite import is_finite
from pixtral_decoder.embeddings.image_embedding import ImageEmbedding, let_go
from pixtral_decoder.embeddings.memory_files import SECONDS, MemoryFile, MemoryFiles
from pixtral_decoder.request import ImagePlace

logger = logging.getLogger(__name__)

TORCH_DTYPES = {DType.BF16: torch.bfloat16, DType.F32: torch.float32}
MAX_CHANNELS = 64

T = TypeVar("T")
Found = Literal["local", "redis", "peer"]


class EmbeddingMissing(Exception):
    """Neither Redis nor the encoder could give the embedding."""


class PeerEncoders:
    """Reads embeddings from the encoders that made them.

    The addresses are those of the requests. Without `tls`, addresses of other machines need
    `allow_insecure`. At most MAX_CHANNELS channels are open, and the least recently used channel
    closes first. When the files of `tls` change, new channels replace the open ones.
    """

    def __init__(
        self,
        *,
        width: int,
        dtype: DType,
        seconds: float,
        tls: ClientTls | None,
        allow_insecure: bool,
    ) -> None:
        self._width = width
        self._dtype = dtype
        self._seconds = seconds
        self._tls = tls
        self._allow_insecure = allow_insecure
        self._channels: OrderedDict[str, grpc.aio.Channel] = OrderedDict()
        self._files = WatchedFiles(() if tls is None else tls.paths)
        self._closing: list[asyncio.Task[None]] = []

    async def fetch(
        self, key: EmbeddingKey, address: str, grid: Grid, arrival: Arrival[T]
    ) -> T | None:
        """The result of `arrival` for the embedding.

        None if the encoder lacks the embedding, does not answer, or sends more or less than an
        image of that grid, and if the address needs TLS and there is none.
        """
        if self._tls is None and not (self._allow_insecure or is_loopback(address)):
            logger.warning(
                "not fetching an embedding from an encoder off this machine: set peer_tls_ca"
            )
            return None
        most = wire_format.PAYLOAD_OFFSET + grid.tokens * self._width * self._dtype.itemsize
        pieces: list[bytes] = []
        received = 0
        stub = encoder_pb2_grpc.EncoderServiceStub(await self._channel(address))
        span = current_span().child("fetch", is_call=True, peer=address)
        call = stub.Fetch(
            encoder_pb2.FetchRequest(key=to_proto(key)),
            timeout=self._seconds,
            metadata=outgoing(span),
        )
        try:
            with span:
                async for piece in call:
                    pieces.append(piece.data)
                    received += len(pieces[-1])
                    if received > most:
                        return None
                receiving = Receiving(key, arrival, width=self._width, dtype=self._dtype)
                return await asyncio.to_thread(_received, pieces, receiving)
        except grpc.aio.AioRpcError as error:
            # An encoder may have dropped the embedding from its cache, which is no fault.
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                logger.warning("an encoder sent no embedding: %s", error.code().name)
            return None
        except DamagedValue:
            logger.warning("an encoder sent a damaged embedding")
            return None
        finally:
            call.cancel()

    async def close(self) -> None:
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _channel(self, address: str) -> grpc.aio.Channel:
        if self._files.changed():
            # Each old channel closes after the time limit of a call, so that its calls can end.
            old, self._channels = self._channels, OrderedDict()
            for each in old.values():
                self._closing.append(asyncio.create_task(each.close(self._seconds)))
            self._closing = [task for task in self._closing if not task.done()]
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = open_channel(address, self._tls)
        self._channels.move_to_end(address)
        if len(self._channels) > MAX_CHANNELS:
            _, oldest = self._channels.popitem(last=False)
            await oldest.close()
        return channel


class EmbeddingSource:
    """Looks for an embedding in memory, then in Redis, then at the encoder.

    Simultaneous requests for an embedding share one look-up.
    """

    def __init__(
        self, *, store: EmbeddingStore, peers: PeerEncoders, dtype: DType, cache_bytes: int
    ) -> None:
        self._store = store
        self._dtype = dtype
        self._peers = peers
        self._memory = MemoryFiles()
        self._cache: ByteLru[EmbeddingKey, ImageEmbedding] = ByteLru(cache_bytes)
        self._flights: SingleFlight[
            tuple[EmbeddingKey, Grid, str], tuple[ImageEmbedding, Found]
        ] = SingleFlight()
        self._is_closed = False

    async def get(self, image: ImagePlace) -> ImageEmbedding:
        """The image's embedding. Each look-up has its own deadline.

        Raises EmbeddingMissing.
        """
        held = self._cache.get(image.key)
        if held is not None:
            record("local")
            return held
        flight = (image.key, image.grid, image.encoder)
        with current_span().child("embedding") as span:
            embedding, found = await self._flights.run(flight, lambda: self._look(image))
            span.set(source=found)
        record(found)
        return embedding

    async def close(self) -> None:
        self._is_closed = True
        await self._peers.close()
        await self._store.close()
        self._memory.close()

    async def _look(self, image: ImagePlace) -> tuple[ImageEmbedding, Found]:
        found: Found = "redis"
        embedding = await self._store.get(image.key, Arriving(self._memory, self._dtype))
        if embedding is None and image.encoder:
            # The look-up in Redis may have timed out, and its thread may still write to its
            # Arriving. So the encoder's answer needs another one.
            arrival, found = Arriving(self._memory, self._dtype), "peer"
            embedding = await self._peers.fetch(image.key, image.encoder, image.grid, arrival)
        if embedding is None:
            raise EmbeddingMissing
        if embedding.file is not None:
            self._memory.refill_soon(len(embedding.file.memory))
        gone = self._cache.put(image.key, embedding, embedding.tensor.nbytes)
        if gone:
            asyncio.get_running_loop().call_later(SECONDS, self._let_go, gone)
        return embedding, found

    def _let_go(self, gone: list[ImageEmbedding]) -> None:
        if not self._is_closed:
            asyncio.get_running_loop().run_in_executor(None, let_go, gone)


def record(found: Found) -> None:
    """Counts an embedding by its source, in the metrics and in the log line of the current call."""
    REQUESTS.labels(found).inc()
    count(f"embeddings_{found}")


def _received(pieces: Sequence[bytes], receiving: Receiving[T]) -> T | None:
    """Checks the pieces and puts them together. Blocking."""
    size, at = sum(map(len, pieces)), 0
    memory = receiving.memory(max(size, 1))
    for piece in pieces:
        memory[at : at + len(piece)] = piece
        at += len(piece)
    value = memory[:size]
    for whole in in_pieces(value):
        receiving.piece(whole)
    return receiving.end(value)


class Arriving(Arrival[ImageEmbedding]):
    """Receives an embedding, in a file if it is large.

    The result is None if a value is not finite.
    """

    def __init__(self, files: MemoryFiles, dtype: DType) -> None:
        self._files = files
        self._dtype = dtype
        self._file: MemoryFile | None = None
        self._is_finite = True

    def memory(self, size: int) -> memoryview:
        self._is_finite = True
        self._file = self._files.take(size)
        return new_memory(size) if self._file is None else self._file.memory[:size].numpy().data

    def values(self, values: memoryview) -> None:
        self._is_finite = self._is_finite and is_finite(values, self._dtype)

    def made(self, embedding: Embedding) -> ImageEmbedding | None:
        if not self._is_finite:
            logger.error("an embedding has values that are not finite")
            return None
        values = torch.frombuffer(embedding.data, dtype=TORCH_DTYPES[self._dtype])
        grid = Grid(embedding.rows, embedding.cols)
        return ImageEmbedding(grid, values.view(grid.tokens, embedding.width), self._file)
