"""Each limit of the table at its edge and beyond, in the gateway and in the decoder behind it.

The requests go through a gateway, on the wire, to a decoder's own service and checks; its engine
and the encoder are stand-ins.
"""

import json
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_client.requests import MAX_MESSAGE_BYTES
from pixtral_core import limits
from pixtral_core.errors import InvalidRequest, from_rpc_error
from pixtral_core.limits import TABLE, UINT32_MAX, Count, Limit, Range
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_decoder.checks import Limits, check_prompt
from pixtral_decoder.engine.engine import Delta, FinishReason
from pixtral_decoder.grpc_service import DecoderService
from pixtral_decoder.prompt_work import PromptWork
from pixtral_decoder.request import Prompt
from pixtral_decoder.waiting_queue import WaitingQueue
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from tests.support.fake_tiers import FakeDecoder, FakeEncoder
from tests.support.gateway_harness import Client
from tests.support.gateway_pictures import image, picture, text, user
from tests.support.named_tests import functions_of

IMAGE = image(picture(8, 8))
QUESTION = user(IMAGE, text("What is this?"))

# Limits of what no message of this test reaches, and the tests that do.
ELSEWHERE = {
    "PROMPTS": (
        "tests/gateway/api/openai/completions/test_completions.py",
        "test_a_refusal_names_its_field",
    ),
    "LOGPROBS_IN_ALL": (
        "tests/gateway/checks/test_validation.py",
        "test_more_logprobs_than_are_told_are_refused_where_an_answer_is_sent_whole",
    ),
    "IMAGE_URL_LENGTH": (
        "tests/gateway/images/test_url_fetch.py",
        "test_a_url_that_is_not_allowed_is_refused_before_anything_is_asked",
    ),
    "IMAGE_URL_REDIRECTS": (
        "tests/gateway/images/test_url_fetch.py",
        "test_a_redirect_to_elsewhere_or_without_end_is_not_followed",
    ),
    "IMAGE_BLOCKS": (
        "tests/core/image/test_header.py",
        "test_endless_headers_are_given_up",
    ),
    "IMAGE_SCANS": (
        "tests/encoder/image/test_pixel_parts.py",
        "test_a_file_that_is_all_parts_is_too_much_work",
    ),
    "IMAGE_SCANNED_PIXELS": (
        "tests/encoder/image/test_pixel_parts.py",
        "test_the_larger_a_picture_the_fewer_scans_may_go_over_it",
    ),
    "IMAGE_JUNK_BYTES": (
        "tests/encoder/image/test_pixel_parts.py",
        "test_a_file_that_is_all_parts_is_too_much_work",
    ),
    "PROMPT_LOGPROBS_IN_ALL": (
        "tests/gateway/checks/test_validation.py",
        "test_more_prompt_logprobs_than_are_told_are_refused",
    ),
    "STRUCTURE_READ_SECONDS": (
        "tests/decoder/grammar/test_grammar_check.py",
        "test_a_grammar_that_slows_every_step_of_the_engine",
    ),
    "STRUCTURE_STEP_SECONDS": (
        "tests/decoder/grammar/test_mask_budget.py",
        "test_what_is_ordinary_is_never_charged",
    ),
    "STRUCTURE_BUDGET_SECONDS": (
        "tests/decoder/grammar/test_mask_budget.py",
        "test_a_tenants_requests_spend_its_budget_together",
    ),
    "STRUCTURE_TRIAL_SECONDS": (
        "tests/decoder/grammar/test_grammar_check.py",
        "test_a_grammar_that_slows_every_step_of_the_engine",
    ),
    "STRUCTURE_WAIT_SECONDS": (
        "tests/decoder/grammar/test_grammar_check.py",
        "test_a_grammar_that_slows_every_step_of_the_engine",
    ),
    "MESSAGE_BYTES": (
        "tests/gateway/api/openai/test_refusals.py",
        "test_a_body_is_read_up_to_a_limit",
    ),
    "BODY_ESCAPES": (
        "tests/gateway/api/http/test_body.py",
        "test_json_that_takes_long_to_parse_is_refused_before",
    ),
    "BODY_VALUES": (
        "tests/gateway/api/openai/test_refusals.py",
        "test_a_body_that_is_not_what_it_must_be",
    ),
    "HEAD_BYTES": (
        "tests/gateway/api/http/test_serving.py",
        "test_a_head_is_read_up_to_a_limit",
    ),
}


def sampled(**fields: Any) -> chat_pb2.Chat:
    return chat_pb2.Chat(messages=[QUESTION], sampling=chat_pb2.SamplingParams(**fields))


def structured(**fields: Any) -> chat_pb2.Chat:
    return sampled(structured_output=chat_pb2.StructuredOutput(**fields))


def chosen(*values: str) -> chat_pb2.Chat:
    return structured(choice=chat_pb2.StringChoices(values=values))


def called(*calls: chat_pb2.ToolCall) -> chat_pb2.Chat:
    answers = [
        chat_pb2.Message(role=chat_pb2.ROLE_TOOL, tool_call_id=call.id, content=[text("a cat")])
        for call in calls
    ]
    asked = chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, tool_calls=calls, content=[text("I")])
    # Tokenizers before version 7 take no text beside calls, and no turn is empty.
    if calls:
        del asked.content[:]
    return chat_pb2.Chat(messages=[QUESTION, asked, *answers, user(text("And?"))])


def call(number: int = 0, **fields: str) -> chat_pb2.ToolCall:
    whole: dict[str, Any] = {"id": f"{number:09}", "name": "look", "arguments": "{}", **fields}
    return chat_pb2.ToolCall(**whole)


def tooled(*tools: chat_pb2.Tool, **choice: Any) -> chat_pb2.Chat:
    return chat_pb2.Chat(
        messages=[QUESTION], tools=tools, tool_choice=chat_pb2.ToolChoice(**choice)
    )


def tool(name: str = "look", description: str = "", **schema: Any) -> chat_pb2.Tool:
    parameters = json.dumps(schema) if schema else ""
    return chat_pb2.Tool(name=name, description=description, parameters=parameters)


def nested(depth: int) -> str:
    return '{"a":' * (depth - 1) + "{}" + "}" * (depth - 1)


# A request by the count of the limited thing.
COUNTED: dict[str, Callable[[int], chat_pb2.Chat]] = {
    "TOOL_CALLS": lambda count: called(*map(call, range(count))),
    "TOOL_CALL_ID": lambda count: called(call(id="a" * count)),
    "ARGUMENTS_DEPTH": lambda count: called(call(arguments="[" * count + "]" * count)),
    "TOOLS": lambda count: tooled(*(tool(f"look{i}") for i in range(count))),
    "TOOLS_CHARACTERS": lambda count: tooled(tool("look", "a" * (count - 4))),
    "TOOL_NAME": lambda count: tooled(tool("a" * count)),
    "SCHEMA_LIST": lambda count: tooled(tool(default=["a", *range(count - 1)])),
    "STOP": lambda count: sampled(stop=["a"] * count),
    "STOP_LENGTH": lambda count: sampled(stop=["a" * count]),
    "STOP_TOKEN_IDS": lambda count: sampled(stop_token_ids=[5] * count),
    "LOGIT_BIAS": lambda count: sampled(logit_bias=dict.fromkeys(range(count), 1.0)),
    "BAD_WORDS": lambda count: sampled(bad_words=["a"] * count),
    "BAD_WORD_LENGTH": lambda count: sampled(bad_words=["a" * count]),
    "ALLOWED_TOKEN_IDS": lambda count: sampled(allowed_token_ids=[5] * count),
    # No JSON object has one character.
    "SCHEMA_CHARACTERS": lambda count: structured(json_schema="{}".rjust(count) if count else ""),
    "SCHEMA_DEPTH": lambda count: structured(json_schema=nested(count)),
    "REGEX_CHARACTERS": lambda count: structured(regex="a" * count),
    "GRAMMAR_CHARACTERS": lambda count: structured(grammar="a" * count),
    "CHOICES": lambda count: chosen(*["a"] * count),
    "CHOICE_LENGTH": lambda count: chosen("a" * count),
}
# The values that the decoder bounds, too.
IN_BOTH = {
    "STOP",
    "STOP_LENGTH",
    "STOP_TOKEN_IDS",
    "LOGIT_BIAS",
    "LOGIT_BIAS_VALUE",
    "BAD_WORDS",
    "BAD_WORD_LENGTH",
    "ALLOWED_TOKEN_IDS",
    *(name for name, limit in TABLE.items() if limit in limits.SAMPLING.values()),
}


@dataclass(frozen=True)
class Case:
    """A request with a value at the edge of a limit, or one beyond it."""

    name: str
    request: chat_pb2.Chat
    is_within: bool

    @property
    def limit(self) -> Limit:
        return TABLE[self.name]


def edges(limit: Limit, *, is_integer: bool) -> list[tuple[float, bool]]:
    """Values, and whether they are within."""
    if isinstance(limit, Count):
        return [
            (limit.least, True),
            (limit.most, True),
            (limit.most + 1, False),
            *([(limit.least - 1, False)] if limit.least else []),
        ]
    assert isinstance(limit, Range)
    low, high = limit.low, min(limit.high, 1.7976931348623157e308)
    if is_integer:
        return [(low, True), (high, True), (low - 1, False), (high + 1, False)]
    above = (low, True) if limit.low_inclusive else (math.nextafter(low, math.inf), True)
    below = (math.nextafter(low, -math.inf), False) if limit.low_inclusive else (low, False)
    beyond = math.nextafter(high, math.inf)
    return [above, below, (high, True), (beyond, False), (math.nan, False)]


def is_of_integers(field: str) -> bool:
    described = chat_pb2.SamplingParams.DESCRIPTOR.fields_by_name[field]
    return described.cpp_type != described.CPPTYPE_DOUBLE


def cases() -> Iterator[Case]:
    for name, build in COUNTED.items():
        for count, is_within in edges(TABLE[name], is_integer=True):
            yield Case(name, build(int(count)), is_within)
    for bias, is_within in edges(limits.LOGIT_BIAS_VALUE, is_integer=False):
        yield Case("LOGIT_BIAS_VALUE", sampled(logit_bias={5: bias}), is_within)
    for name, limit in TABLE.items():
        if limit in limits.SAMPLING.values():
            field = limit.path.removeprefix("sampling.")
            is_integer = is_of_integers(field)
            for value, is_within in edges(limit, is_integer=is_integer):
                try:
                    yield Case(name, sampled(**{field: value}), is_within)
                except ValueError:
                    # No message can carry it.
                    assert is_integer
                    assert not is_within
    # A lower one is for tenants that may.
    high = limits.PRIORITY.high
    yield Case("PRIORITY", chat_pb2.Chat(messages=[QUESTION], priority=int(high)), True)


class CheckingDecoder:
    """In place of a decoder with an engine: takes what passes its checks."""

    def __init__(self, spec: VisionSpec, vocabulary_size: int) -> None:
        self._limits = Limits(spec, vocabulary_size, UINT32_MAX, 3, has_priorities=True)
        self.queue = WaitingQueue(4, 0.0)
        self.work = PromptWork()

    async def generate(self, prompt: Prompt) -> AsyncIterator[Delta]:
        check_prompt(prompt, self._limits)
        yield Delta("a cat", (1001,), FinishReason.STOP, 0, 0.0)


@pytest.fixture
def service(spec: VisionSpec, prompts: PromptEncoder) -> DecoderService:
    service: Any = DecoderService()
    service.decoder = CheckingDecoder(spec, prompts.vocabulary_size)
    return service  # type: ignore[no-any-return]


@pytest.fixture
async def decoders(service: DecoderService) -> AsyncIterator[list[FakeDecoder]]:
    decoder = FakeDecoder()
    # So that the context bounds nothing before the table does.
    decoder.context_length = UINT32_MAX
    context: Any = None
    decoder.behaviours = [lambda request: service.Generate(request, context)]
    await decoder.start()
    yield [decoder]
    await decoder.stop()


@pytest.fixture
def max_concurrent_requests() -> int:
    return int(limits.N.high)


async def refused_field(client: Client, request: chat_pb2.Chat) -> str | None:
    """The path of what the gateway refuses, with [] for any index; None if it answers."""
    try:
        await client.stub.Complete(chat_pb2.CompleteRequest(chat=request))
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
            raise
        ((path, _),) = from_rpc_error(error).violations
        return re.sub(r"\[\d+\]", "[]", path.removeprefix("chat."))
    return None


async def refused_by_decoder(
    service: DecoderService, request: decoder_pb2.GenerateRequest
) -> str | None:
    context: Any = None
    try:
        async for _ in service.Generate(request, context):
            pass
    except InvalidRequest as refused:
        ((path, _),) = refused.violations
        return re.sub(r"\[\d+\]", "[]", path)
    return None


def paths_of(limit: Limit) -> set[str]:
    # A value of a map is found by its key, or in the map as a whole.
    return {*limit.paths, *(path.removesuffix("[]") for path in limit.paths)}


def test_every_limit_is_tried_here_or_elsewhere() -> None:
    tried = {case.name for case in cases()} | {"STRUCTURE_CHARACTERS", "REQUEST_ID", "CACHE_SALT"}
    assert tried | {*ELSEWHERE} == {*TABLE}
    assert not tried & {*ELSEWHERE}
    for file, test in ELSEWHERE.values():
        assert test in functions_of(file)


async def test_each_edge_passes_both_tiers_and_one_beyond_neither(
    client: Client,
    service: DecoderService,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
) -> None:
    (decoder,) = decoders
    for case in cases():
        for server in encoders:
            server.calls.clear()
        decoder.calls.clear()
        field = await refused_field(client, case.request)
        if case.is_within:
            assert (case, field) == (case, None)
            continue
        assert field in paths_of(case.limit), case
        # Before any work is done for it.
        assert not decoder.calls
        assert not any(encoder.calls for encoder in encoders)
        if case.name in IN_BOTH:
            asked = decoder_pb2.GenerateRequest(
                request_id="a", prompt_token_ids=[1, 2], sampling=case.request.sampling
            )
            assert await refused_by_decoder(service, asked) in paths_of(case.limit), case


async def test_what_must_be_called_is_refused_where_its_structure_is_too_long(
    client: Client,
    service: DecoderService,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
) -> None:
    (decoder,) = decoders
    most = limits.STRUCTURE_CHARACTERS.most
    mode = chat_pb2.TOOL_CHOICE_MODE_REQUIRED

    def padded(length: int) -> chat_pb2.Chat:
        lengths = (32_000, 32_000, 32_000, 32_000, length)
        tools = (tool(f"look{i}", title="a" * each) for i, each in enumerate(lengths))
        return tooled(*tools, mode=mode)

    assert await refused_field(client, padded(0)) is None
    made = decoder.calls.pop().sampling.structured_output.json_schema
    fits = padded(most - len(made))
    assert await refused_field(client, fits) is None
    sampling = decoder.calls.pop().sampling
    assert len(sampling.structured_output.json_schema) == most
    for encoder in encoders:
        encoder.calls.clear()
    assert await refused_field(client, padded(most - len(made) + 1)) == "tools"
    assert not decoder.calls
    assert not any(encoder.calls for encoder in encoders)

    sampling.structured_output.json_schema += " "
    asked = decoder_pb2.GenerateRequest(request_id="a", prompt_token_ids=[1, 2], sampling=sampling)
    path = await refused_by_decoder(service, asked)
    assert path == "sampling.structured_output.json_schema"


@pytest.mark.parametrize(
    "limit", [limits.REQUEST_ID, limits.CACHE_SALT], ids=lambda each: each.path
)
async def test_what_the_gateway_adds_is_bounded_by_the_decoder(
    service: DecoderService, limit: Count
) -> None:
    for count, is_within in edges(limit, is_integer=True):
        fields: dict[str, Any] = {"request_id": "a", limit.path: "a" * int(count)}
        asked = decoder_pb2.GenerateRequest(prompt_token_ids=[1, 2], **fields)
        expected = None if is_within else limit.path
        assert await refused_by_decoder(service, asked) == expected


def test_the_client_sends_as_much_as_the_gateway_takes() -> None:
    assert limits.MESSAGE_BYTES.most == MAX_MESSAGE_BYTES


def numbers(limit: Range) -> st.SearchStrategy[float]:
    """At the edges, about as often within as not, and anywhere."""
    low, high = limit.low, min(limit.high, 1e9)
    at = [value for value, _ in edges(limit, is_integer=False)]
    return st.sampled_from(at) | st.floats(low, high) | st.floats(low, high) | st.floats()


def integers(limit: Range) -> st.SearchStrategy[int]:
    low, high = int(limit.low), int(min(limit.high, 2**63 - 1))
    at = [int(value) for value, _ in edges(limit, is_integer=True)]
    near = st.integers(max(low, 0), min(high, 100))
    return st.sampled_from(at) | near | st.integers(low, high) | st.integers(-(2**63), 2**63 - 1)


def sizes(count: Count) -> st.SearchStrategy[int]:
    return st.sampled_from([count.most, count.most + 1]) | st.integers(0, count.most + 1)


def texts(count: Count, length: Count) -> st.SearchStrategy[list[str]]:
    long = sizes(length).map(lambda size: "a" * size)
    one = st.text(max_size=4) | st.just("a\u00e9") | long
    many = sizes(count).map(lambda size: ["b"] * size)
    return st.lists(one, max_size=3) | many


def ids(count: Count) -> st.SearchStrategy[list[int]]:
    many = sizes(count).map(lambda size: list(range(size)))
    return st.lists(st.integers(0, 1000) | st.integers(0, UINT32_MAX), max_size=3) | many


def sized(limit: Count) -> st.SearchStrategy[str]:
    return st.text(max_size=6) | sizes(limit).map(lambda size: "a" * size)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "stop": texts(limits.STOP, limits.STOP_LENGTH),
    "bad_words": texts(limits.BAD_WORDS, limits.BAD_WORD_LENGTH),
    "stop_token_ids": ids(limits.STOP_TOKEN_IDS),
    "allowed_token_ids": ids(limits.ALLOWED_TOKEN_IDS),
    "ignore_eos": st.booleans(),
    "logit_bias": st.dictionaries(
        st.integers(0, 200_000), numbers(limits.LOGIT_BIAS_VALUE), max_size=3
    )
    | sizes(limits.LOGIT_BIAS).map(lambda size: dict.fromkeys(range(size), 1.0)),
    "structured_output": st.one_of(
        st.fixed_dictionaries({"regex": sized(limits.REGEX_CHARACTERS)}),
        st.fixed_dictionaries({"grammar": sized(limits.GRAMMAR_CHARACTERS)}),
        st.fixed_dictionaries(
            {"choice": texts(limits.CHOICES, limits.CHOICE_LENGTH).map(lambda v: {"values": v})}
        ),
        st.fixed_dictionaries(
            {"json_schema": st.integers(1, limits.SCHEMA_DEPTH.most + 1).map(nested)},
            optional={"disable_any_whitespace": st.booleans()},
        ),
        st.fixed_dictionaries({"json_object": st.booleans()}),
        st.just({}),
    ),
    **{
        name: integers(limit) if is_of_integers(name) else numbers(limit)
        for name, limit in limits.SAMPLING.items()
    },
}


@st.composite
def samplings(draw: st.DrawFn) -> dict[str, Any]:
    """Few fields at once, so that the gateway accepts about as many as it refuses."""
    names = draw(st.sets(st.sampled_from([*FIELDS]), min_size=1, max_size=4))
    return {name: draw(FIELDS[name]) for name in sorted(names)}


# The gateway and the tiers stay the same; each example is a request of its own.
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=samplings(), priority=st.integers(-1, 2**63 - 1))
async def test_what_the_gateway_accepts_the_decoder_accepts(
    client: Client, decoders: list[FakeDecoder], fields: dict[str, Any], priority: int
) -> None:
    try:
        request = sampled(**fields)
    except ValueError:
        # No message can carry it.
        return
    request.priority = priority
    (decoder,) = decoders
    decoder.calls.clear()
    field = await refused_field(client, request)
    # A refusal is the gateway's own: the decoder was not asked, or it did what was asked for.
    assert bool(decoder.calls) == (field is None), field
