"""A tier with a bug that is planted in it, the one that PIXTRAL_TEST_MUTATION names.

All else is the tier itself. The bugs are such as this harness is there to find; that it does is
what `test_mutations` shows.
"""

import os
import runpy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

MUTATIONS: dict[str, tuple[str, Callable[[], None]]] = {}


def of(tier: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def plant(mutation: Callable[[], None]) -> Callable[[], None]:
        MUTATIONS[mutation.__name__] = tier, mutation
        return mutation

    return plant


@of("pixtral_encoder")
def embeddings_swapped() -> None:
    """An image gets the embedding of the one before it, where that was as large."""
    from pixtral_encoder.encoder import Encoder

    to_wire, last = Encoder._to_wire, dict[Any, Any]()

    def swapped(self: Encoder, key: Any, grid: Any, embedding: Any) -> bytes:
        before = last.get(grid, embedding)
        last[grid] = embedding.clone()
        return to_wire(self, key, grid, before)

    Encoder._to_wire = swapped  # type: ignore[method-assign]


@of("pixtral_decoder")
def checksum_skipped() -> None:
    """What the checksum should be is made of what was read."""
    from pixtral_core.cache.wire_format import CHECKSUM, HEADER, PAYLOAD_OFFSET, Decoding, Embedding

    end = Decoding.end

    def unchecked(self: Decoding, value: memoryview) -> Embedding:
        if len(value) >= PAYLOAD_OFFSET:
            CHECKSUM.pack_into(value, HEADER.size, self._checksum or 0)
        return end(self, value)

    Decoding.end = unchecked  # type: ignore[method-assign]


@of("pixtral_gateway")
def permit_kept() -> None:
    """A request that does not end well gives its permit back to nobody."""
    from pixtral_gateway.tenancy.admission import Admission, Permit

    permit, kept = Admission.permit, list[AbstractContextManager[Permit]]()

    @contextmanager
    def keeps(self: Admission, *given: Any) -> Iterator[Permit]:
        held = permit(self, *given)
        # Or the collector would end it.
        kept.append(held)
        yield held.__enter__()
        held.__exit__(None, None, None)

    Admission.permit = keeps  # type: ignore[assignment,method-assign]


@of("pixtral_gateway")
def tenant_dropped() -> None:
    """An embedding's key says nothing of whose it is."""
    from pixtral_core.cache.embedding_key import EmbeddingKey
    from pixtral_gateway import pipeline

    named: Any = pipeline

    def shared(image_sha256: bytes, fingerprint: str, scope: str) -> EmbeddingKey:
        return EmbeddingKey(image_sha256, fingerprint, "all")

    named.EmbeddingKey = shared


if __name__ == "__main__":
    tier, mutation = MUTATIONS[os.environ.pop("PIXTRAL_TEST_MUTATION")]
    mutation()
    runpy.run_module(f"{tier}.__main__", run_name="__main__")
