"""Uses OpenAI's Responses API; checks answers against OpenAI's types and /openapi.json."""

from typing import Any

import httpx
import pydantic
from openai.types.responses import Response, ResponseStreamEvent

from tests.support.openapi import PATH, Described, events_of

RESPONSES = "/v1/responses"
EVENT: Any = pydantic.TypeAdapter(ResponseStreamEvent)


async def respond(http: httpx.AsyncClient, given: Any, **fields: Any) -> dict[str, Any]:
    response = await http.post(RESPONSES, json={"input": given} | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    # OpenAI's client can validate answers in the same way.
    Response.model_validate(answer)
    return answer


async def stream(http: httpx.AsyncClient, given: Any, **fields: Any) -> list[dict[str, Any]]:
    response = await http.post(RESPONSES, json={"input": given, "stream": True} | fields)
    assert response.status_code == 200, response.text
    described = Described((await http.get(PATH)).json())
    events = events_of(response.text)
    named = [line[7:] for line in response.text.split("\n") if line.startswith("event: ")]
    assert named == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        EVENT.validate_python(event)
        assert described.event_problem(RESPONSES, event) is None
    return events
