"""How long a decoder takes to read an embedding from Redis, as a whole and by parts.

    python -m bench.embedding_source [--tokens 4096]

It starts a Redis on loopback with embeddings of Pixtral-12B's width in bf16. The decoder reads each
embedding once, and its own memory has room for a few only. Prints medians in milliseconds: `whole`;
`received`, which reads without a check; and the two checks alone, `checksum` and `finite`.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import torch
import uvloop

from bench.encoder import PIXTRAL_12B
from bench.own_redis import redis
from pixtral_core.cache import wire_format
from pixtral_core.cache.bulk_reader import ValueReader
from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.cache.receiving import in_pieces
from pixtral_core.cache.wire_format import Decoding, DType, Embedding
from pixtral_core.model.vision_spec import Grid
from pixtral_decoder.embeddings.finite import is_finite
from pixtral_decoder.embeddings.memory_files import MemoryFiles
from pixtral_decoder.embeddings.source import Arriving, EmbeddingSource, PeerEncoders
from pixtral_decoder.request import ImagePlace

ASKED = 32
WIDTH = PIXTRAL_12B.width


class InAFile(Arriving):
    """Receives a value and checks nothing."""

    def piece(self, piece: memoryview) -> None:
        pass

    def end(self, value: memoryview) -> object:
        return value, self._file


async def median_ms(call: Callable[[int], Awaitable[object]]) -> float:
    seen = []
    for number in range(ASKED):
        # An engine spends more time than this on the previous embedding.
        await asyncio.sleep(0.05)
        began = time.perf_counter()
        got = await call(number)
        seen.append(time.perf_counter() - began)
        del got
    return statistics.median(seen) * 1e3


async def measure(url: str, tokens: int) -> dict[str, float]:
    # The decoder's process does the same.
    torch.set_num_threads(1)
    store = EmbeddingStore.from_url(url, width=WIDTH, dtype=DType.BF16)
    peers = PeerEncoders(width=WIDTH, dtype=DType.BF16, seconds=1.0, tls=None, allow_insecure=False)
    source = EmbeddingSource(store=store, peers=peers, dtype=DType.BF16, cache_bytes=64 << 20)
    reader, files = ValueReader.from_url(url, max_connections=1), MemoryFiles()
    keys = [EmbeddingKey(at.to_bytes(32, "big"), "f" * 32, "bench") for at in range(ASKED)]
    data = torch.randn(tokens, WIDTH).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    embedding = Embedding(1, tokens, WIDTH, DType.BF16, data)
    values = [wire_format.encode(key, embedding) for key in keys]
    for key, value in zip(keys, values, strict=True):
        if not await store.put(key, value):
            raise SystemExit("Redis refused a value")

    async def whole(at: int) -> object:
        return await source.get(ImagePlace(keys[at], 0, Grid(1, tokens)))

    async def received(at: int) -> object:
        try:
            return await reader.get(keys[at].redis_key, 1.0, InAFile(files, DType.BF16))
        finally:
            files.refill_soon(len(values[at]) + 2)

    async def checksum(at: int) -> object:
        decoding, value = Decoding(keys[at], width=WIDTH, dtype=DType.BF16), memoryview(values[at])
        for piece in in_pieces(value):
            decoding.piece(piece)
        return decoding.end(value)

    async def finite(at: int) -> object:
        return all(is_finite(piece, DType.BF16) for piece in in_pieces(memoryview(values[at])))

    try:
        calls = {"whole": whole, "received": received, "checksum": checksum, "finite": finite}
        return {name: await median_ms(call) for name, call in calls.items()}
    finally:
        await source.close()
        reader.close()
        files.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.embedding_source", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the embedding")
    given = parser.parse_args()
    with redis() as server:
        seen = uvloop.run(measure(server.url, given.tokens))
    print(", ".join(f"{name} {ms:.2f}" for name, ms in seen.items()))


if __name__ == "__main__":
    main()
