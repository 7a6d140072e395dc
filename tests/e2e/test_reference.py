"""Greedy answers of the whole service are those of the plain model, token for token."""

import io
import random
from typing import Any

import pytest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from PIL import ExifTags, Image

from tests.support.fixture_types import Tokenizer
from tests.support.reference import Reference
from tests.support.stack.new_picture import new_picture
from tests.support.stack.random_conversation import conversation
from tests.support.stack.service import Service

TOKENS = 64


@pytest.mark.parametrize("number", range(20))
def test_tokens_are_those_of_the_plain_model(
    service: Service, reference: Reference, tokenizer: Tokenizer, number: int
) -> None:
    messages = conversation(random.Random(number), images=number % 5)
    encoded = tokenizer.encode_chat_completion(ChatCompletionRequest.from_openai(messages))
    expected = reference.generate(encoded.tokens, encoded.images, TOKENS)

    answer = service.client.chat(messages, max_tokens=TOKENS, temperature=0, ignore_eos=True)

    assert list(answer.token_ids) == expected
    assert answer.usage.prompt_tokens == len(encoded.tokens)
    assert answer.usage.image_tokens == sum(image.tokens for image in answer.images)
    assert len(answer.images) == number % 5


def test_the_answer_depends_on_the_picture(service: Service) -> None:
    # Without this, a service that ignores pictures could pass all of the above.
    answers = {
        service.client.chat(
            [{"role": "user", "content": [new_picture(), "What is this?"]}],
            max_tokens=16,
            temperature=0,
        ).token_ids
        for _ in range(4)
    }
    assert len(answers) == 4


def test_swapped_pictures_swap_nothing_else(service: Service) -> None:
    one, two = new_picture(), new_picture()

    def ask(first: bytes, second: bytes) -> tuple[int, ...]:
        content = [first, "and", second, "differ how?"]
        messages = [{"role": "user", "content": content}]
        return service.client.chat(messages, max_tokens=16, temperature=0).token_ids

    forward, backward = ask(one, two), ask(two, one)
    assert forward != backward
    assert (ask(one, two), ask(two, one)) == (forward, backward)


def test_a_gif_is_its_first_frame(service: Service) -> None:
    frames = [Image.open(io.BytesIO(new_picture())) for _ in range(2)]
    still, moving = io.BytesIO(), io.BytesIO()
    frames[0].save(still, "GIF")
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    answers = {
        service.client.chat(
            [{"role": "user", "content": ["What is this?", gif.getvalue()]}],
            max_tokens=16,
            temperature=0,
        ).token_ids
        for gif in (still, moving)
    }
    assert len(answers) == 1


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_a_photograph_on_its_side_is_read_upright(service: Service, form: str) -> None:
    """Its grid is the upright image's for the gateway, and its pixels are for the encoder."""
    image = Image.open(io.BytesIO(new_picture(96, 48))).convert("RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright, lying = io.BytesIO(), io.BytesIO()
    image.save(upright, "PNG")
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    image.transpose(Image.Transpose.ROTATE_90).save(lying, form, exif=exif, **options)
    answers = [
        service.client.chat(
            [{"role": "user", "content": ["What is this?", file.getvalue()]}],
            max_tokens=16,
            temperature=0,
        )
        for file in (upright, lying)
    ]
    assert answers[0].token_ids == answers[1].token_ids
    assert [(each.width, each.height) for answer in answers for each in answer.images] == [
        (96, 48),
        (96, 48),
    ]
