"""One model in both forms: equal answers, and each takes the embeddings that the other has made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pixtral.internal.v1 import encoder_pb2, encoder_pb2_grpc
from pixtral_client import Completion
from tests.support.hf_reference import write_hf
from tests.support.redis_server import RedisServer
from tests.support.stack.new_picture import new_picture
from tests.support.stack.service import Service, serve


@pytest.fixture(scope="module")
def theirs(
    checkpoint: Path, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """The model of `service` as transformers writes it, without a tokenizer of Mistral's."""
    directory = write_hf(checkpoint, tmp_path_factory.mktemp("hugging-face") / "pixtral")
    assert not list(directory.glob("*tekken*"))
    with serve(directory, redis.url, tmp_path_factory.mktemp("logs")) as service:
        yield service


def fingerprint(service: Service) -> str:
    with grpc.insecure_channel(service.stack.addresses["encoder"].grpc) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        info = stub.GetEncoderInfo(encoder_pb2.GetEncoderInfoRequest(), timeout=10)
    return str(info.fingerprint)


def ask(service: Service, picture: bytes) -> Completion:
    content = ["Hello", picture, "What is this?"]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": content},
    ]
    return service.client.chat(messages, max_tokens=24, temperature=0, ignore_eos=True)


def test_answers_are_equal_and_the_cache_of_one_serves_the_other(
    service: Service, theirs: Service
) -> None:
    assert fingerprint(service) == fingerprint(theirs)
    for first, second in ((service, theirs), (theirs, service)):
        picture = new_picture()
        encoded = second.encoded()
        made, found = ask(first, picture), ask(second, picture)
        assert found.token_ids == made.token_ids
        assert not made.images[0].cached
        assert found.images[0].cached
        assert second.encoded() == encoded
