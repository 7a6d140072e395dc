"""The small trained checkpoint tells a right answer from a wrong one, and a mix-up from neither."""

import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from pixtral.internal.v1 import encoder_pb2, encoder_pb2_grpc
from pixtral_cli.demo import read_questions, run_demo
from pixtral_client import Client
from pixtral_core.cache import wire_format
from pixtral_core.cache.embedding_key import EmbeddingKey, to_proto
from pixtral_core.cache.wire_format import DType, Embedding
from tests.support.redis_server import RedisServer
from tests.support.stack.fleet import Tier
from tests.support.stack.service import Service, serve, wait_until
from training import scenes
from training.answer import MAX_TOKENS, OfflineModel
from training.held_out import HELD_OUT_SEED, Item, held_out, png

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "pixtral-mini"
GRID = (8, 11)
PNG_HEADER = 33  # the signature and IHDR
AT_ONCE = 64
numbers = itertools.count()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def service(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    logs = tmp_path_factory.mktemp("logs")
    with serve(MODEL, redis.url, logs, max_image_bytes=8_000_000) as service:
        yield service


@dataclass(frozen=True, slots=True)
class Exam:
    """Questions, and the answers of the plain model in this process."""

    items: list[Item]
    answers: list[str]

    def assert_answered(self, client: Client, at_once: int = AT_ONCE) -> None:
        """Over the service, all at once, every answer is the plain model's."""
        assert ask_all(client, self.items, at_once) == self.answers

    def anew(self) -> "Exam":
        """The same pictures as files that were never sent before."""
        items = [
            replace(item, pictures=tuple(renamed(picture) for picture in item.pictures))
            for item in self.items
        ]
        return Exam(items, self.answers)


@pytest.fixture(scope="module")
def offline() -> OfflineModel:
    return OfflineModel.from_checkpoint(MODEL)


@pytest.fixture(scope="module")
def exam(offline: OfflineModel) -> Exam:
    return take(offline, held_out(96))


@pytest.fixture(scope="module")
def alike(offline: OfflineModel) -> Exam:
    """One picture a question, all of the same grid: of other grids no mix-up gets past the
    decoder's checks."""
    rng = np.random.default_rng((HELD_OUT_SEED, 2))
    draw = (
        lambda: scenes.shapes_scene(rng, *GRID),
        lambda: scenes.print_scene(rng, *GRID, scenes.HELD_OUT),
        lambda: scenes.chart_scene(rng, *GRID, scenes.HELD_OUT),
    )
    items = []
    for number in range(48):
        scene = draw[number % 3]()
        question = scene.questions[int(rng.integers(len(scene.questions)))]
        items.append(Item((png(scene.pictures[0].image),), question))
    return take(offline, items)


def take(model: OfflineModel, items: list[Item]) -> Exam:
    return Exam(
        items,
        [model.ask(item.pictures, item.question.text, item.question.answer) for item in items],
    )


def ask_all(client: Client, items: Sequence[Item], at_once: int = AT_ONCE) -> list[str]:
    def ask(item: Item) -> str:
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [*item.pictures, item.question.text]}
        ]
        return client.chat(messages, max_tokens=MAX_TOKENS, temperature=0).text

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, items))


def renamed(picture: bytes) -> bytes:
    """The same PNG with a comment that no other has."""
    body = b"tEXtComment\x00" + str(next(numbers)).encode()
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return picture[:PNG_HEADER] + chunk + picture[PNG_HEADER:]


def share_right(items: Sequence[Item], answers: Sequence[str]) -> float:
    pairs = zip(items, answers, strict=True)
    return sum(item.question.answer == answer for item, answer in pairs) / len(items)


def test_the_plain_model_reads_what_it_was_never_trained_on(exam: Exam, alike: Exam) -> None:
    assert share_right(exam.items, exam.answers) > 0.95
    assert share_right(alike.items, alike.answers) > 0.95


def test_answers_do_not_depend_on_what_is_cached_or_on_how_many_ask(
    exam: Exam, service: Service, redis: RedisServer
) -> None:
    exam.assert_answered(service.client)
    encoded = service.encoded()
    exam.assert_answered(service.client)
    exam.assert_answered(service.client, at_once=1)
    assert service.encoded() == encoded
    with redis.client() as client:
        client.flushall()
    exam.assert_answered(service.client)
    exam.anew().assert_answered(service.client)


def test_answers_outlive_an_encoder_that_is_killed_while_it_encodes(
    exam: Exam, service: Service, redis: RedisServer, tmp_path: Path
) -> None:
    model = (f"--model-dir={MODEL}", f"--redis-url={redis.url}", "--listen=127.0.0.1:0")
    addresses = service.stack.addresses
    with Tier("pixtral_encoder", tmp_path, *model, "--dtype=f32") as doomed:
        encoders = f"{addresses['encoder'].grpc},{doomed.until_ready().target}"
        tiers = (f"--encoders={encoders}", f"--decoders={addresses['decoder'].grpc}")
        with (
            Tier("pixtral_gateway", tmp_path, *model, *tiers) as gateway,
            Client(gateway.until_ready().target, timeout=120, max_retries=0) as client,
            ThreadPoolExecutor(1) as pool,
        ):
            killing = pool.submit(kill_at_work, doomed)
            exam.anew().assert_answered(client)
            killing.result()
            exam.anew().assert_answered(client)


def kill_at_work(encoder: Tier) -> None:
    encoded = "pixtral_encoder_images_encoded_total"
    wait_until(lambda: encoder.value(encoded) >= 5, "images encoded by the second encoder")
    encoder.process.kill()


def zeroed(embeddings: list[Embedding]) -> list[Embedding]:
    return [replace(each, data=bytes(each.nbytes)) for each in embeddings]


def swapped(embeddings: list[Embedding]) -> list[Embedding]:
    return [*embeddings[1:], embeddings[0]]


@pytest.mark.parametrize("mix_up", [zeroed, swapped])
def test_a_mix_up_of_embeddings_does_not_go_unnoticed(
    mix_up: Callable[[list[Embedding]], list[Embedding]],
    alike: Exam,
    offline: OfflineModel,
    service: Service,
    redis: RedisServer,
) -> None:
    alike.anew().assert_answered(service.client)

    mixed = alike.anew()
    with redis.client() as client:
        keys = [stored(service, item.pictures[0], client) for item in mixed.items]
        found = [
            wire_format.decode(key, client.get(key.redis_key), width=256, dtype=DType.F32)
            for key in keys
        ]
        for key, embedding in zip(keys, mix_up(found), strict=True):
            assert client.set(key.redis_key, wire_format.encode(key, embedding), xx=True)
    answers = ask_all(service.client, mixed.items)
    # Now and then the other picture has the same answer; without a picture the likeliest is right.
    assert share_right(mixed.items, answers) < 0.3
    if mix_up is swapped:
        others = [*mixed.items[1:], mixed.items[0]]
        pairs = zip(others, mixed.items, strict=True)
        seen = [offline.ask(other.pictures, item.question.text) for other, item in pairs]
        assert answers == seen
    with pytest.raises(AssertionError):
        mixed.assert_answered(service.client)


def stored(service: Service, picture: bytes, client: Any) -> EmbeddingKey:
    """Has the encoder put a picture's embedding into Redis, where no decoder has read it yet."""
    some = next(client.scan_iter("pixtral:emb:*")).decode()
    fingerprint, scope = some.split(":")[-2:]
    key = EmbeddingKey(hashlib.sha256(picture).digest(), fingerprint, scope)
    with grpc.insecure_channel(service.stack.addresses["encoder"].grpc) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        request = encoder_pb2.EncodeRequest(key=to_proto(key), image=picture)
        assert stub.Encode(request, timeout=30).stored
    return key


def test_the_demo_answers_rightly(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    asks = read_questions(ROOT / "docs" / "demo" / "questions.toml")
    assert run_demo(service.stack, asks) == 0
    assert f"{len(asks)} of {len(asks)} answers are right" in capsys.readouterr().out
