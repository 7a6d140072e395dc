import math
from collections.abc import Sequence
from typing import Any

import pytest

from pixtral.v1 import chat_pb2
from pixtral_core import limits
from pixtral_core.errors import InvalidRequest, NotFound
from pixtral_core.generation.sampling import Sampling, from_proto
from pixtral_gateway.api.grpc.from_proto import read_conversation
from pixtral_gateway.checks.conversation import ImageSource, Role
from pixtral_gateway.checks.validation import (
    adapter_of,
    check_characters,
    check_gathered,
    check_sampling,
    fitted,
)
from tests.support.gateway_pictures import (
    assistant,
    image,
    image_named,
    image_url,
    picture,
    system,
    text,
    user,
)

HI = text("hi")
PICTURE = image(picture(8, 8))
NAMES = ("pixtral", "mistralai/Pixtral-12B-2409")


def field_of(refused: pytest.ExceptionInfo[InvalidRequest]) -> str:
    ((field, _),) = refused.value.violations
    return field


def test_roles_text_and_images_come_in_order() -> None:
    conversation = read_conversation(
        [system(HI), user(PICTURE, HI), assistant(HI), user(HI, image_url("data:,"), PICTURE)],
        max_images=3,
    )

    assert [turn.role for turn in conversation.turns] == [
        Role.SYSTEM,
        Role.USER,
        Role.ASSISTANT,
        Role.USER,
    ]
    assert conversation.turns[0].parts == ("hi",)
    assert [source.path for source in conversation.images] == [
        "messages[1].content[0].image.data",
        "messages[3].content[1].image.url",
        "messages[3].content[2].image.data",
    ]
    assert conversation.images[1].url == "data:,"


def test_name_of_an_image_is_its_digest() -> None:
    (source,) = read_conversation([user(image_named(b"\xab" * 32))], max_images=1).images

    assert source == ImageSource("messages[0].content[0].image.sha256", sha256=b"\xab" * 32)


@pytest.mark.parametrize("name", ["", "ab" * 31, "ab" * 33, "AB" * 32, "xy" * 32, "ab" * 32 + "\n"])
def test_what_is_no_digest_names_its_field(name: str) -> None:
    part = chat_pb2.ContentPart(image=chat_pb2.Image(sha256=name))
    with pytest.raises(InvalidRequest) as refused:
        read_conversation([user(part)], max_images=1)

    assert field_of(refused) == "messages[0].content[0].image.sha256"


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ([user(HI, chat_pb2.ContentPart())], "messages[0].content[1]"),
        ([user(chat_pb2.ContentPart(image=chat_pb2.Image()))], "messages[0].content[0].image"),
        ([chat_pb2.Message(content=[HI])], "messages[0].role"),
        ([user(HI), chat_pb2.Message(role=17, content=[HI])], "messages[1].role"),  # type: ignore[arg-type]
        ([system(PICTURE), user(HI)], "messages[0].content[0].image"),
        ([user(HI), assistant(HI, PICTURE), user(HI)], "messages[1].content[1].image"),
        ([user(PICTURE, PICTURE), assistant(HI), user(PICTURE, PICTURE)], "messages"),
    ],
)
def test_bad_conversations_name_their_field(
    messages: Sequence[chat_pb2.Message], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_conversation(messages, max_images=3)

    assert field_of(refused) == field


def test_too_many_images_are_told_as_such() -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_conversation([user(PICTURE, PICTURE)], max_images=1)

    assert refused.value.reason == "TOO_MANY_IMAGES"


@pytest.mark.parametrize("asked", ["", "pixtral", "mistralai/Pixtral-12B-2409"])
def test_own_name_and_none_are_the_model_itself(asked: str) -> None:
    assert adapter_of(asked, NAMES, ("poet",)) == ""


def test_an_adapter_is_asked_for_by_its_name() -> None:
    assert adapter_of("poet", NAMES, ("poet", "clerk")) == "poet"


def test_other_model_is_not_found_and_not_echoed() -> None:
    with pytest.raises(NotFound) as refused:
        adapter_of("gpt-99", NAMES, ("poet",))

    assert refused.value.reason == "MODEL_NOT_FOUND"
    assert "use pixtral, mistralai/Pixtral-12B-2409, poet" in refused.value.message
    assert "gpt-99" not in refused.value.message


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (chat_pb2.SamplingParams(max_tokens=0), "sampling.max_tokens"),
        (chat_pb2.SamplingParams(max_tokens=3, min_tokens=4), "sampling.min_tokens"),
        (chat_pb2.SamplingParams(temperature=-1), "sampling.temperature"),
        (chat_pb2.SamplingParams(temperature=math.nan), "sampling.temperature"),
        (chat_pb2.SamplingParams(temperature=math.inf), "sampling.temperature"),
        (chat_pb2.SamplingParams(temperature=2.1), "sampling.temperature"),
        (chat_pb2.SamplingParams(top_p=0), "sampling.top_p"),
        (chat_pb2.SamplingParams(top_p=1.01), "sampling.top_p"),
        (chat_pb2.SamplingParams(top_p=math.nan), "sampling.top_p"),
        (chat_pb2.SamplingParams(min_p=-0.1), "sampling.min_p"),
        (chat_pb2.SamplingParams(repetition_penalty=0), "sampling.repetition_penalty"),
        (chat_pb2.SamplingParams(repetition_penalty=math.inf), "sampling.repetition_penalty"),
        (chat_pb2.SamplingParams(presence_penalty=-2.1), "sampling.presence_penalty"),
        (chat_pb2.SamplingParams(frequency_penalty=math.nan), "sampling.frequency_penalty"),
        (chat_pb2.SamplingParams(stop=["a", ""]), "sampling.stop[1]"),
        (chat_pb2.SamplingParams(stop=["a" * 2000]), "sampling.stop[0]"),
        (chat_pb2.SamplingParams(stop=["a"] * 65), "sampling.stop"),
        (chat_pb2.SamplingParams(stop_token_ids=[5, 100]), "sampling.stop_token_ids[1]"),
        (chat_pb2.SamplingParams(stop_token_ids=[5] * 65), "sampling.stop_token_ids"),
        (chat_pb2.SamplingParams(logprobs=21), "sampling.logprobs"),
        (chat_pb2.SamplingParams(n=0), "sampling.n"),
        (chat_pb2.SamplingParams(n=65), "sampling.n"),
        (chat_pb2.SamplingParams(logit_bias={100: 1}), "sampling.logit_bias[100]"),
        (chat_pb2.SamplingParams(logit_bias={7: 101}), "sampling.logit_bias[7]"),
        (chat_pb2.SamplingParams(logit_bias={7: math.nan}), "sampling.logit_bias[7]"),
        (chat_pb2.SamplingParams(logit_bias=dict.fromkeys(range(1025), 0)), "sampling.logit_bias"),
        (chat_pb2.SamplingParams(bad_words=["a", ""]), "sampling.bad_words[1]"),
        (chat_pb2.SamplingParams(bad_words=[" \n"]), "sampling.bad_words[0]"),
        (chat_pb2.SamplingParams(bad_words=["a" * 129]), "sampling.bad_words[0]"),
        (chat_pb2.SamplingParams(bad_words=["a"] * 65), "sampling.bad_words"),
        (chat_pb2.SamplingParams(allowed_token_ids=[100]), "sampling.allowed_token_ids[0]"),
        (chat_pb2.SamplingParams(allowed_token_ids=[7] * 1025), "sampling.allowed_token_ids"),
    ],
)
def test_sampling_out_of_range_names_its_field(
    sampling: chat_pb2.SamplingParams, field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_sampling(from_proto(sampling), vocabulary_size=100)

    assert field_of(refused) == field


def structured(constraint: Any, **others: Any) -> chat_pb2.SamplingParams:
    return chat_pb2.SamplingParams(structured_output=constraint, **others)


SCHEMA = '{"type": "object"}'
DEEP = '{"a": ' * 32 + "{}" + "}" * 32


@pytest.mark.parametrize(
    ("structure", "field"),
    [
        ({}, ""),
        ({"json_schema": ""}, ".json_schema"),
        ({"json_schema": '{"type": '}, ".json_schema"),
        ({"json_schema": "[]"}, ".json_schema"),
        ({"json_schema": "[" * 30_000}, ".json_schema"),
        ({"json_schema": DEEP}, ".json_schema"),
        ({"json_schema": '{"a": "' + "a" * 40_000 + '"}'}, ".json_schema"),
        ({"regex": ""}, ".regex"),
        ({"regex": "a\0b"}, ".regex"),
        ({"regex": "a" * 5000}, ".regex"),
        ({"choice": {"values": []}}, ".choice.values"),
        ({"choice": {"values": ["a", ""]}}, ".choice.values[1]"),
        ({"choice": {"values": ["a"] * 257}}, ".choice.values"),
        ({"choice": {"values": ["a" * 513]}}, ".choice.values[0]"),
        ({"grammar": ""}, ".grammar"),
        ({"grammar": "a" * 20_000}, ".grammar"),
        ({"json_object": False}, ".json_object"),
        ({"regex": "a", "disable_any_whitespace": True}, ".disable_any_whitespace"),
    ],
)
def test_structured_output_that_cannot_be_names_its_field(
    structure: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_sampling(from_proto(structured(structure)), vocabulary_size=100)

    assert field_of(refused) == f"sampling.structured_output{field}"


@pytest.mark.parametrize(
    "other",
    [{"min_tokens": 1}, {"ignore_eos": True}, {"bad_words": ["a"]}, {"allowed_token_ids": [7]}],
)
def test_what_could_forbid_all_of_a_structure_is_refused(other: dict[str, Any]) -> None:
    sampling = structured({"json_schema": SCHEMA}, **other)

    with pytest.raises(InvalidRequest) as refused:
        check_sampling(from_proto(sampling), vocabulary_size=100)

    assert field_of(refused) == f"sampling.{next(iter(other))}"


@pytest.mark.parametrize(
    "sampling",
    [
        chat_pb2.SamplingParams(),
        structured({"json_schema": SCHEMA}, min_tokens=0),
        structured({"json_schema": DEEP.replace('{"a": ', "", 1)[:-1]}),
        structured({"choice": {"values": ["yes", "no"]}}),
        structured({"json_object": True}),
        chat_pb2.SamplingParams(temperature=0, top_p=1, top_k=0, min_p=0, seed=-1, max_tokens=1),
        chat_pb2.SamplingParams(
            temperature=2, presence_penalty=-2, frequency_penalty=2, stop=["x"], stop_token_ids=[99]
        ),
        chat_pb2.SamplingParams(
            logprobs=20, logit_bias={0: -100, 99: 100}, bad_words=["a b"], allowed_token_ids=[0, 99]
        ),
    ],
)
def test_sampling_within_range_passes(sampling: chat_pb2.SamplingParams) -> None:
    check_sampling(from_proto(sampling), vocabulary_size=100)


@pytest.mark.parametrize("tokens", [100, 101])
def test_prompt_that_leaves_no_room_is_too_long(tokens: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        fitted(Sampling(), tokens, context_length=100)

    assert field_of(refused) == "messages"
    assert refused.value.reason == "PROMPT_TOO_LONG"


def test_more_prompt_logprobs_than_are_told_are_refused() -> None:
    sampling = Sampling(prompt_logprobs=3)
    most = limits.PROMPT_LOGPROBS_IN_ALL.most // 4
    assert fitted(sampling, most, context_length=1 << 20) == sampling
    with pytest.raises(InvalidRequest) as refused:
        fitted(sampling, most + 1, context_length=1 << 20)

    assert field_of(refused) == "sampling.prompt_logprobs"


def test_more_logprobs_than_are_told_are_refused_where_an_answer_is_sent_whole() -> None:
    most = limits.LOGPROBS_IN_ALL.most
    for sampling in (
        Sampling(max_tokens=most // 4, logprobs=3),
        Sampling(max_tokens=most // 64, n=64, logprobs=0),
        # How long it becomes is not known yet.
        Sampling(n=64, logprobs=20),
        Sampling(max_tokens=most, n=64),
    ):
        check_gathered(sampling)
    for sampling in (
        Sampling(max_tokens=most // 4 + 1, logprobs=3),
        Sampling(max_tokens=most // 64 + 1, n=64, logprobs=0),
    ):
        with pytest.raises(InvalidRequest, match="stream it") as refused:
            check_gathered(sampling)
        assert field_of(refused) == "sampling.logprobs"


@pytest.mark.parametrize(("asked", "given"), [(None, None), (9, 9), (10, 10), (11, 10)])
def test_no_more_tokens_are_made_than_the_context_has_left(
    asked: int | None, given: int | None
) -> None:
    assert fitted(Sampling(max_tokens=asked), 90, context_length=100) == Sampling(max_tokens=given)


def test_least_tokens_that_do_not_fit_are_refused() -> None:
    fitted(Sampling(min_tokens=10), 90, context_length=100)
    with pytest.raises(InvalidRequest) as refused:
        fitted(Sampling(min_tokens=11), 90, context_length=100)

    assert field_of(refused) == "sampling.min_tokens"


def test_text_too_long_for_any_tokenizing_is_refused_before_it() -> None:
    conversation = read_conversation([user(PICTURE, text("a" * 60), text("b" * 40))], max_images=1)
    characters = conversation.characters

    check_characters(characters, "messages", longest_token=10, context_length=10)
    with pytest.raises(InvalidRequest) as refused:
        check_characters(characters, "messages", longest_token=9, context_length=11)

    assert field_of(refused) == "messages"
    assert refused.value.reason == "PROMPT_TOO_LONG"
