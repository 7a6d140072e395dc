"""Bodies of any shape: taken, or refused for what is wrong with them, and never a fault."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixtral_core.errors import InvalidRequest, ServingError
from pixtral_core.generation.sampling import Sampling
from pixtral_gateway.api.http.body import _parse
from pixtral_gateway.api.openai.messages import to_conversation
from pixtral_gateway.api.openai.request_schema import (
    HARMLESS,
    NOTHING,
    ChatRequest,
    TokenizeRequest,
)
from pixtral_gateway.checks.conversation import Conversation, Role
from pixtral_gateway.checks.validation import check_sampling
from tools.vllm_fields_page import CHAT, fate_of, fields_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image_url", "url", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url"]) | JSON},
    optional={"text": st.text(max_size=4) | JSON, "image_url": st.text(max_size=4) | JSON},
)
NAMED = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b"]) | JSON},
    optional={"arguments": JSON, "parameters": JSON, "description": JSON, "strict": JSON},
)
CALL = st.fixed_dictionaries({"id": st.sampled_from(["a", "b"]) | JSON, "function": NAMED | JSON})
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]) | JSON},
    optional={
        "content": st.text(max_size=4) | st.lists(PART | JSON, max_size=3) | JSON,
        "tool_calls": st.lists(CALL | JSON, max_size=2),
        "tool_call_id": st.sampled_from(["a", "b"]) | JSON,
    },
)
TOOL = st.fixed_dictionaries(
    {"type": st.just("function") | JSON, "function": NAMED | JSON},
)
FIELDS = [*ChatRequest.model_fields, *NOTHING, "unknown"]
BODY = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6) | st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE | JSON, max_size=4)},
    optional=dict.fromkeys(sorted({*FIELDS} - {"messages"}), JSON)
    | {"tools": st.lists(TOOL | JSON, max_size=2)},
)


def read(body: Any) -> tuple[Conversation, Sampling]:
    asked = _parse(ChatRequest, bytearray(json.dumps(body).encode()))
    asked.check_served()
    tools = asked.called_tools()
    conversation = to_conversation(asked.messages, tools, max_images=2, context_length=100)
    sampling = asked.sampling()
    check_sampling(sampling, vocabulary_size=1000)
    return conversation, sampling


@given(BODY)
def test_a_body_is_taken_or_refused(body: Any) -> None:
    try:
        conversation, _ = read(body)
    except ServingError:
        return
    assert conversation.turns
    for turn in conversation.turns:
        assert not turn.calls or turn.role is Role.ASSISTANT


@given(JSON | BODY)
def test_a_body_to_tokenize_is_taken_or_refused(body: Any) -> None:
    try:
        _parse(TokenizeRequest, bytearray(json.dumps(body).encode())).check_served()
    except ServingError:
        return


@pytest.mark.parametrize("name", NOTHING)
def test_what_is_not_supported_is_taken_where_it_asks_for_nothing(name: str) -> None:
    hello = {"messages": [{"role": "user", "content": "Hello?"}]}
    for value in (None, *NOTHING[name]):
        read(hello | {name: value})
    with pytest.raises(InvalidRequest) as refused:
        read(hello | {name: {"ask": "for something"}})
    ((field, what),) = refused.value.violations
    assert field == name
    assert what.startswith("is not supported: ")


@pytest.mark.parametrize("name", fields_of(*CHAT))
def test_no_field_that_vllm_acts_on_is_passed_over(name: str) -> None:
    """It is taken, refused, or known to change nothing of an answer."""
    assert fate_of(name)


@pytest.mark.parametrize("name", sorted(HARMLESS - set(ChatRequest.model_fields)))
def test_what_changes_nothing_is_taken(name: str) -> None:
    read({"messages": [{"role": "user", "content": "Hello?"}], name: {"ask": "for something"}})
