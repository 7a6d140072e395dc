"""Errors say in plain words what a field of a body must be, and nothing of what it was."""

import json
from typing import Any

import pytest

from pixtral_core.errors import InvalidRequest
from pixtral_gateway.api.http.body import _parse
from pixtral_gateway.api.openai.request_schema import ChatRequest

HELLO = [{"role": "user", "content": "Hello?"}]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"temperature": "hot"}, "temperature: must be a number, not a text"),
        ({"temperature": {}}, "temperature: must be a number, not an object"),
        ({"max_tokens": 1.5}, "max_tokens: must be an integer"),
        ({"max_tokens": -1}, "max_tokens: must be 0 or more"),
        ({"max_tokens": 10**30}, "max_tokens: must be 4294967295 or less"),
        ({"messages": "hot"}, "messages: must be a list, not a text"),
        ({"messages": None}, "messages: must be a list, not null"),
        ({"messages": ["hot"]}, "messages.0: must be an object, not a text"),
        ({"messages": [{"content": "hot"}]}, "messages.0.role: is needed"),
        ({"stop": [1]}, "stop.0: must be a text, not a number"),
        ({"stream": "hot"}, "stream: must be true or false, not a text"),
        ({"stream": []}, "stream: must be true or false, not a list"),
        (
            {"response_format": {"type": "hot"}},
            "response_format.type: must be 'text', 'json_object' or 'json_schema'",
        ),
        (
            {"tools": [{"function": {"name": "a", "parameters": "hot"}}]},
            "tools.0.function.parameters: must be an object",
        ),
    ],
)
def test_it_says_what_is_wrong(fields: dict[str, Any], problem: str) -> None:
    body = {"messages": HELLO} | fields
    with pytest.raises(InvalidRequest) as refused:
        _parse(ChatRequest, bytearray(json.dumps(body).encode()))

    assert refused.value.message == problem
    assert "hot" not in problem
