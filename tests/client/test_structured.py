"""Answers as values of a pydantic model."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from pydantic import BaseModel, Field

from pixtral_client import AnswerNotParsed, AsyncClient, Client
from tests.support.fake_gateway import FakeGateway, serving

HELLO = [{"role": "user", "content": "Hello"}]


class Animal(BaseModel):
    name: str
    legs: int = Field(ge=0)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    fake = FakeGateway()
    words = ['{"name"', ": ", '"cat"', ', "legs": ', "4}"]
    monkeypatch.setattr("tests.support.fake_gateway.WORDS", words)
    with serving(fake) as address:
        fake.address = address
        yield fake


def test_the_answer_is_held_to_the_schema_and_read(gateway: FakeGateway) -> None:
    with Client(gateway.address, timeout=60) as client:
        answer = client.chat(HELLO, response_model=Animal, max_tokens=20)
        plain = client.chat(HELLO)
    assert answer.parsed == Animal(name="cat", legs=4)
    assert (answer.text, answer.usage) == (plain.text, plain.usage)
    sampling = gateway.requests[0].chat.sampling
    assert json.loads(sampling.structured_output.json_schema) == Animal.model_json_schema()
    assert sampling.max_tokens == 20


async def test_the_asyncio_client_does_the_same(gateway: FakeGateway) -> None:
    async with AsyncClient(gateway.address, timeout=60) as client:
        answer = await client.chat(HELLO, response_model=Animal)
        assert answer.parsed.legs == 4
        outcomes = [outcome async for outcome in client.map([HELLO], response_model=Animal)]
    assert [outcome.unwrap().parsed for outcome in outcomes] == [Animal(name="cat", legs=4)]


def test_other_types_are_read_too(gateway: FakeGateway) -> None:
    with Client(gateway.address, timeout=60) as client:
        assert client.chat(HELLO, response_model=dict[str, str | int]).parsed["legs"] == 4


def test_an_answer_that_does_not_fit_says_why_and_is_kept(gateway: FakeGateway) -> None:
    class Bird(BaseModel):
        legs: int = Field(le=2)

    with Client(gateway.address, timeout=60) as client:
        with pytest.raises(AnswerNotParsed, match="legs") as caught:
            client.chat(HELLO, response_model=Bird)
        assert '"cat"' in caught.value.completion.text
        gateway.is_cut = True
        with pytest.raises(AnswerNotParsed, match="ends after 5 tokens: give a larger max_tokens"):
            client.chat(HELLO, response_model=Animal)


def test_one_form_is_given(gateway: FakeGateway) -> None:
    with (
        Client(gateway.address, timeout=60) as client,
        pytest.raises(TypeError, match="give one of them"),
    ):
        client.chat(HELLO, response_model=Animal, structured_output={"regex": "a"})
    assert gateway.requests == []


def test_without_pydantic_all_else_works_and_it_is_asked_for() -> None:
    code = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from pixtral_client import Client\n"
        "client = Client('127.0.0.1:1')\n"
        "try:\n    client.chat([], response_model=dict)\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "response_model needs pydantic: pip install pydantic\n"
