"""Runs the tier that PIXTRAL_TEST_TIER names, with its failpoint, and perhaps with a bug.

PIXTRAL_TEST_MUTATION names the bug. All else is the tier itself. The bugs are such as this harness
is there to find; that it does is what `test_mutations` shows.
"""

import os
import runpy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from tests.faults import failpoints

TIER, MUTATION = "PIXTRAL_TEST_TIER", "PIXTRAL_TEST_MUTATION"
CLOCK = "FAKETIME_TIMESTAMP_FILE"

MUTATIONS: dict[str, tuple[str, Callable[[], None]]] = {}


def of(tier: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def plant(mutation: Callable[[], None]) -> Callable[[], None]:
        MUTATIONS[mutation.__name__] = tier, mutation
        return mutation

    return plant


@of("encoder")
def embeddings_swapped() -> None:
    """An image gets the embedding of the one before it, where that was as large."""
    from pixtral_encoder.encoder import Encoder

    to_wire, last = Encoder._to_wire, dict[Any, Any]()

    def swapped(self: Encoder, key: Any, grid: Any, embedding: Any) -> bytes:
        before = last.get(grid, embedding)
        last[grid] = embedding.clone()
        return to_wire(self, key, grid, before)

    Encoder._to_wire = swapped  # type: ignore[method-assign]


@of("decoder")
def checksum_skipped() -> None:
    """The expected checksum is made of the bytes that were read."""
    from pixtral_core.cache.wire_format import CHECKSUM, HEADER, PAYLOAD_OFFSET, Decoding, Embedding

    end = Decoding.end

    def unchecked(self: Decoding, value: memoryview) -> Embedding:
        if len(value) >= PAYLOAD_OFFSET:
            CHECKSUM.pack_into(value, HEADER.size, self._checksum or 0)
        return end(self, value)

    Decoding.end = unchecked  # type: ignore[method-assign]


@of("gateway")
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


@of("gateway")
def tenant_dropped() -> None:
    """An embedding's key says nothing of whose it is."""
    from pixtral_core.cache.embedding_key import EmbeddingKey
    from pixtral_gateway import pipeline

    named: Any = pipeline

    def shared(image_sha256: bytes, fingerprint: str, _: str, low_detail: bool) -> EmbeddingKey:
        return EmbeddingKey(image_sha256, fingerprint, "all", low_detail)

    named.EmbeddingKey = shared


@of("gateway")
def salt_shared() -> None:
    """The engine's prefix cache is one for all tenants."""
    from pixtral_gateway.upstream import decoders

    named: Any = decoders
    make = named._generate_request

    def shared(generation: Any) -> Any:
        made = make(generation)
        made.cache_salt = "all"
        return made

    named._generate_request = shared


@of("gateway")
def something_kept() -> None:
    """Every request keeps a mebibyte and a descriptor."""
    from pixtral_gateway.tenancy.admission import Admission, Permit

    permit, kept = Admission.permit, list[Any]()

    @contextmanager
    def keeps(self: Admission, *given: Any) -> Iterator[Permit]:
        kept.append((bytearray(b"x" * (1 << 20)), os.open(os.devnull, os.O_RDONLY)))
        with permit(self, *given) as held:
            yield held

    Admission.permit = keeps  # type: ignore[assignment,method-assign]


@of("gateway")
def questions_logged() -> None:
    """The question is printed."""
    from pixtral_gateway.pipeline import Pipeline

    stream = Pipeline.stream

    def prints(self: Pipeline, request: Any) -> Any:
        print([turn.parts for turn in request.conversation.turns], flush=True)  # noqa: T201
        return stream(self, request)

    Pipeline.stream = prints  # type: ignore[method-assign]


@of("gateway")
def redis_waited_for() -> None:
    """After each failure of Redis, 15 seconds are slept."""
    import asyncio

    from pixtral_core.cache.guarded_redis import GuardedRedis

    attempt = GuardedRedis.attempt

    async def waits(self: GuardedRedis, *given: Any, **more: Any) -> Any:
        before = self._paused_until
        found = await attempt(self, *given, **more)
        if self._paused_until != before:
            await asyncio.sleep(15)
        return found

    GuardedRedis.attempt = waits  # type: ignore[method-assign]


def give_structures_longer() -> None:
    """Gives each structure ten times as long.

    Under libfaketime a thread that waits for Python's lock takes processor time, which the limits
    on structures count.
    """
    from pixtral_core import limits

    for name in ("STRUCTURE_READ_SECONDS", "STRUCTURE_TRIAL_SECONDS"):
        limit = getattr(limits, name)
        setattr(limits, name, replace(limit, high=10 * limit.high))


if __name__ == "__main__":
    tier, mutation = os.environ.pop(TIER), os.environ.pop(MUTATION, "")
    if tier == "decoder" and CLOCK in os.environ:
        give_structures_longer()
    if mutation:
        MUTATIONS[mutation][1]()
    failpoints.plant(tier)
    runpy.run_module(f"pixtral_{tier}.__main__", run_name="__main__")
