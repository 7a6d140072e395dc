"""Bugs that are planted in a tier, and what finds them."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import grpc
import pytest
import pytest_asyncio

from pixtral.internal.v1 import encoder_pb2, encoder_pb2_grpc
from pixtral_client import AsyncClient
from pixtral_core.cache.embedding_key import EmbeddingKey, to_proto
from tests.faults.checker import check
from tests.faults.clients import Clients
from tests.faults.history import Ask, History
from tests.faults.questions import Asker, Question, fresh
from tests.faults.recovery import IDLE_SECONDS, until_idle
from tests.faults.redis_faults import flip_signs
from tests.faults.resources import WARM_SECONDS, check_logs, check_samples, look, secrets_of
from tests.faults.stack import PASSWORD, Stack, key_of, tier_of
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.asyncio(loop_scope="module")
# A permit that is kept is kept for ever: so long is enough to see it.
KEPT_SECONDS = 5.0
MISSED_SECONDS = 120.0
# More than the descriptors that a gateway may gain.
GROWING_REQUESTS = 80
# The findings are shown where a test fails.
logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)


@dataclass(slots=True)
class Bench:
    """One of each tier. The decoder's checksum is skipped from the start: to start one with a bug
    and one without takes minutes."""

    stack: Stack
    questions: Sequence[Question]
    shown: set[tuple[str, str]] = field(default_factory=set)

    def some(self, kind: str) -> list[Question]:
        return [question for question in self.questions if question.name.startswith(kind)]

    async def plant(self, name: str, mutation: str | None) -> None:
        """Starts a process anew, with the bug or without any."""
        self.stack.mutations.pop(name, None)
        if mutation is not None:
            self.stack.mutations[name] = mutation
        part = self.stack.parts[name]
        part.kill()
        if tier_of(name) != "gateway":
            # A gateway looks every few seconds: what it saw last is of the process before, and by
            # that the next one, which still loads, would be ready.
            async with asyncio.timeout(MISSED_SECONDS):
                while not await asyncio.to_thread(self.stack.is_missed, name):
                    await asyncio.sleep(0.1)
        await part.restart()
        await self.stack.until_ready()

    async def grown(self) -> set[str]:
        """The faults of a gateway that counts tokens for a while."""
        part = self.stack.parts["gateway-0"]
        before = await asyncio.to_thread(look, part)
        async with AsyncClient(
            self.stack.address("gateway-0"), tls=self.stack.tls, api_key=key_of("ann")
        ) as client:
            for _ in range(GROWING_REQUESTS):
                await client.count_tokens([{"role": "user", "content": "Good morning!"}])
        after = await asyncio.to_thread(look, part)
        assert before is not None
        assert after is not None
        cold = replace(before, at=before.at - WARM_SECONDS)
        violations = check_samples([cold, before, after])
        for violation in violations:
            logger.info("%s", violation)
        return {violation.kind for violation in violations}

    async def found(self, *asks: Ask, idle_seconds: float = IDLE_SECONDS) -> set[str]:
        """The kinds of promises that are broken by what comes of these, in their order.

        All is to be at rest after `idle_seconds`, or sooner.
        """
        history = History()
        async with Clients(self.stack, history) as clients:
            for ask in asks:
                await clients.ask(ask)
        violations = check(history, self.questions, self.shown)
        secrets = secrets_of(self.questions, self.stack.tenants)
        violations += await asyncio.to_thread(
            check_logs, self.stack.directory, secrets, len(history.records)
        )
        for violation in violations:
            logger.info("%s", violation)
        kinds = {violation.kind for violation in violations}
        return kinds | ({"not idle"} if await until_idle(self.stack, idle_seconds) else set())


def shows(
    question: Question, tag: str, tenant: str = "ann", cancel_after: int | None = None
) -> Ask:
    """Its picture is new to all."""
    pictures = tuple(fresh(picture, tag) for picture in question.pictures)
    return Ask(question, pictures, tenant, 0, "grpc", cancel_after is not None, 60, cancel_after)


def all_sorts(bench: Bench) -> list[Ask]:
    """A load that is enough to find any of the bugs, except the checksum."""
    singles, (long,) = bench.some("single"), bench.some("long")
    tag = str(time.monotonic_ns())
    asks = [shows(question, tag) for question in singles]
    asks += [shows(singles[0], tag, "bob"), shows(long, tag, cancel_after=1)]
    (letter,) = bench.some("letter")
    return [*asks, shows(letter, tag)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    directory = tmp_path_factory.mktemp("mutations")
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer(requirepass=PASSWORD))
        service = Stack(directory, redis)
        service.mutations["decoder-0"] = "checksum_skipped"
        await stack.enter_async_context(service.running((1, 1, 1)))
        yield Bench(service, Asker().questions(0, {"single": 4, "long": 1, "letter": 1}))


async def test_without_a_bug_nothing_is_found(bench: Bench) -> None:
    assert await bench.found(*all_sorts(bench)) == set()
    assert await bench.grown() == set()


async def test_a_checksum_that_is_skipped_is_found(bench: Bench) -> None:
    question = bench.questions[0]
    ask = shows(question, "flipped")
    await encode(bench.stack, ask)
    with bench.stack.redis.client() as redis:
        (key,) = redis.scan_iter(f"pixtral:emb:*{digest(ask)}*")
        value = bytearray(redis.getrange(key, 0, -1))
        flip_signs(value)
        redis.set(key, bytes(value))
    assert "wrong" in await bench.found(ask)


async def test_embeddings_that_are_swapped_are_found(bench: Bench) -> None:
    await bench.plant("encoder-0", "embeddings_swapped")
    try:
        assert await bench.found(*all_sorts(bench)) == {"wrong"}
    finally:
        await bench.plant("encoder-0", None)


async def test_a_permit_that_is_kept_is_found(bench: Bench) -> None:
    await bench.plant("gateway-0", "permit_kept")
    found = await bench.found(*all_sorts(bench), idle_seconds=KEPT_SECONDS)
    assert found == {"not idle"}


async def test_a_tenant_that_is_not_in_the_key_is_found(bench: Bench) -> None:
    await bench.plant("gateway-0", "tenant_dropped")
    assert await bench.found(*all_sorts(bench)) == {"crossed"}


async def test_a_prefix_cache_that_tenants_share_is_found(bench: Bench) -> None:
    await bench.plant("gateway-0", "salt_shared")
    (letter,) = bench.some("letter")
    asks = (shows(letter, "", tenant) for tenant in ("ann", "bob"))
    assert await bench.found(*asks) == {"crossed"}


async def test_a_question_in_a_log_is_found(bench: Bench) -> None:
    await bench.plant("gateway-0", "questions_logged")
    try:
        assert await bench.found(*all_sorts(bench)) == {"logged"}
    finally:
        # For the tests behind this one.
        for path in bench.stack.directory.glob("*.log"):
            await asyncio.to_thread(path.write_bytes, b"")


async def test_what_is_kept_of_every_request_is_found(bench: Bench) -> None:
    await bench.plant("gateway-0", "something_kept")
    assert await bench.grown() == {"grows"}


async def test_a_redis_that_is_waited_for_is_found(bench: Bench) -> None:
    await bench.plant("gateway-0", "redis_waited_for")
    bench.stack.redis.stop()
    try:
        assert await bench.found(shows(bench.some("single")[0], "away")) == {"slow"}
    finally:
        bench.stack.redis.start()


def digest(ask: Ask) -> str:
    return hashlib.sha256(ask.pictures[0]).hexdigest()


async def encode(stack: Stack, ask: Ask) -> None:
    """Has the picture's embedding stored, and read by nobody yet."""
    tls = stack.peer_tls
    address = stack.address("encoder-0")
    async with grpc.aio.secure_channel(address, tls.credentials()) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        info = await stub.GetEncoderInfo(encoder_pb2.GetEncoderInfoRequest(), timeout=60)
        key = EmbeddingKey(bytes.fromhex(digest(ask)), info.fingerprint, ask.tenant)
        request = encoder_pb2.EncodeRequest(key=to_proto(key), image=ask.pictures[0])
        assert (await stub.Encode(request, timeout=60)).stored
