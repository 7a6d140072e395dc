"""Uses Anthropic's Messages API; checks answers against Anthropic's types and /openapi.json."""

from typing import Any

import httpx
import pydantic
from anthropic.types import Message, RawMessageStreamEvent

from tests.support.openapi import PATH, Described, events_of

MESSAGES = "/v1/messages"
EVENT: Any = pydantic.TypeAdapter(RawMessageStreamEvent)


async def ask(http: httpx.AsyncClient, messages: Any, **fields: Any) -> dict[str, Any]:
    body = {"model": "pixtral-small", "max_tokens": 50, "messages": messages} | fields
    response = await http.post(MESSAGES, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    # Anthropic's client can validate answers in the same way.
    Message.model_validate(answer)
    return answer


async def stream(http: httpx.AsyncClient, messages: Any, **fields: Any) -> list[dict[str, Any]]:
    body = {"max_tokens": 50, "messages": messages, "stream": True} | fields
    response = await http.post(MESSAGES, json=body)
    assert response.status_code == 200, response.text
    described = Described((await http.get(PATH)).json())
    events = events_of(response.text)
    named = [line[7:] for line in response.text.split("\n") if line.startswith("event: ")]
    assert named == [event["type"] for event in events]
    for event in events:
        if event["type"] != "error":
            EVENT.validate_python(event)
        assert described.event_problem(MESSAGES, event) is None
    return events
