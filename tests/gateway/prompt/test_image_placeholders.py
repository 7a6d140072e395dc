"""mistral_common without pixels; `test_prompt_encoder.py` compares many prompts."""

from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk
from mistral_common.protocol.instruct.messages import UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from pixtral_core.model.vision_spec import Grid, VisionSpec, read_params
from pixtral_gateway.prompt import image_placeholders
from pixtral_gateway.prompt.image_placeholders import chunk_of, leave_out_pixels, numbers
from tests.support.upstream import assert_still_there

SIDE = 64


@pytest.fixture
def tokenizer(model_dir: Path) -> Any:
    """mistral_common's own."""
    return MistralTokenizer.from_file(model_dir / "tekken.json")


def encoded(tokenizer: Any, image: Any) -> Any:
    message = UserMessage(content=[image, TextChunk(text="What is it?")])
    return tokenizer.encode_chat_completion(ChatCompletionRequest(messages=[message]))


def picture() -> ImageChunk:
    return ImageChunk(image=PIL.Image.new("RGB", (SIDE, SIDE)))


def test_still_there() -> None:
    assert_still_there(image_placeholders)


def test_still_needed_while_mistral_common_makes_pixels_and_a_text(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once this fails, see which half of `image_placeholders` can go."""
    instruct, spelled = tokenizer.instruct_tokenizer, []
    decode = instruct.decode
    monkeypatch.setattr(instruct, "decode", lambda *a, **b: spelled.append(decode(*a, **b)))
    tokens = encoded(tokenizer, picture())
    assert [image.size for image in tokens.images] == [3 * SIDE * SIDE]
    assert len(spelled) == 1


def test_a_grid_is_encoded_to_the_tokens_of_its_image(model_dir: Path, tokenizer: Any) -> None:
    expected = encoded(tokenizer, picture()).tokens
    spec = VisionSpec.from_params(read_params(model_dir))
    leave_out_pixels(tokenizer.instruct_tokenizer, spec)
    side = SIDE // (spec.patch_size * spec.merge_size)
    tokens = encoded(tokenizer, chunk_of(Grid(side, side), 7))
    assert tokens.tokens == expected
    assert numbers(tokens) == [7]
