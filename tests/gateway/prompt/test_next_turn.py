"""A turn of a conversation and the one before it: the tokens that they share."""

from itertools import takewhile
from pathlib import Path

import pytest

from pixtral.v1 import chat_pb2
from pixtral_core.model.vision_spec import VisionSpec, read_params
from pixtral_gateway.api.grpc.from_proto import read_conversation
from pixtral_gateway.prompt.prompt_encoder import Prompt, PromptEncoder
from tests.support.gateway_pictures import assistant, image, picture, system, text, user

SYSTEM = system(text("You look closely and answer in one sentence."))
SIZE = (640, 480)
FIRST = user(image(picture(*SIZE)), text("What is this?"))
SECOND = (assistant(text("A cat.")), user(text("Of what colour?")))
THIRD = (assistant(text("A grey one.")), user(text("And its eyes?")))


@pytest.fixture(params=["model_dir", "merging_model_dir"], ids=["v3", "v7"])
def version(request: pytest.FixtureRequest) -> tuple[str, PromptEncoder, VisionSpec]:
    directory: Path = request.getfixturevalue(request.param)
    spec = VisionSpec.from_params(read_params(directory))
    return request.param, PromptEncoder.load(directory, spec), spec


def shared(before: Prompt, after: Prompt) -> int:
    pairs = zip(before.token_ids, after.token_ids, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def turns(
    encoder: PromptEncoder, spec: VisionSpec, *messages: chat_pb2.Message
) -> tuple[Prompt, Prompt, Prompt]:
    one, two, three = (
        encoder.encode_now(
            read_conversation([*messages, *more], max_images=1),
            [spec.grid(*SIZE)],
        )
        for more in ((), SECOND, (*SECOND, *THIRD))
    )
    return one, two, three


def test_without_a_system_message_each_turn_begins_with_all_of_the_last(
    version: tuple[str, PromptEncoder, VisionSpec],
) -> None:
    _, encoder, spec = version
    one, two, three = turns(encoder, spec, FIRST)
    assert shared(one, two) == len(one.token_ids)
    assert shared(two, three) == len(two.token_ids)


def test_a_system_message_moves_to_the_last_question_before_version_7(
    version: tuple[str, PromptEncoder, VisionSpec],
) -> None:
    name, encoder, spec = version
    one, two, three = turns(encoder, spec, SYSTEM, FIRST)
    (placed,) = two.images
    if name == "merging_model_dir":
        assert shared(one, two) == len(one.token_ids)
        assert shared(two, three) == len(two.token_ids)
        return
    # [BOS] and [INST], and then the system message in one and the image in the other.
    assert shared(one, two) == placed.offset == 2
    # The image is first now and stays so, and what follows it up to the last question.
    assert shared(two, three) > placed.offset + placed.length
    assert shared(two, three) < len(two.token_ids)
