"""instructor: structured answers by tools and by JSON, with retries."""

from typing import Any

import instructor
import openai
import pytest
from pydantic import BaseModel, field_validator

from tests.clients.asking import DATA_URL, MODEL, QUESTION, V1, Seen

SHOWN: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": DATA_URL}},
            {"type": "text", "text": QUESTION},
        ],
    }
]


def made(mode: instructor.Mode) -> Any:
    return instructor.from_openai(openai.OpenAI(base_url=V1, api_key="any"), mode=mode)


@pytest.mark.parametrize(
    "mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA], ids=lambda mode: mode.name
)
def test_an_answer_of_a_type(mode: instructor.Mode) -> None:
    answer = made(mode).chat.completions.create(
        model=MODEL, messages=SHOWN, response_model=Seen, max_retries=0, max_tokens=200
    )
    assert isinstance(answer, Seen)


def test_its_own_images() -> None:
    content = [QUESTION, instructor.Image.from_base64(DATA_URL)]
    answer = made(instructor.Mode.TOOLS).chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": content}], response_model=Seen
    )
    assert isinstance(answer, Seen)


def test_a_retry_after_an_answer_that_does_not_do() -> None:
    tries = []

    class Once(BaseModel):
        flag: bool

        @field_validator("flag")
        @classmethod
        def fails_at_first(cls, value: bool) -> bool:
            tries.append(value)
            if len(tries) == 1:
                raise ValueError("say it again")
            return value

    answer = made(instructor.Mode.TOOLS).chat.completions.create(
        model=MODEL, messages=SHOWN, response_model=Once, max_retries=2
    )
    assert isinstance(answer, Once)
    assert len(tries) == 2


def test_a_stream_of_parts() -> None:
    parts = list(
        made(instructor.Mode.TOOLS).chat.completions.create_partial(
            model=MODEL, messages=SHOWN, response_model=Seen
        )
    )
    assert parts[-1].kind is not None
