"""Requests to the gateway over HTTP, in the form of each API."""

import base64
from typing import Any

import httpx

from tests.support.gateway_pictures import picture

PICTURE = picture(40, 30)
URL = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
HELLO = [{"role": "user", "content": "Hello?"}]
LOOK = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": URL, "detail": "auto"}},
            {"type": "text", "text": "What is this?"},
        ],
    },
]
CHAT = "/v1/chat/completions"


async def ask(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post(CHAT, json={"messages": HELLO} | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def stream(http: httpx.AsyncClient, **fields: Any) -> list[str]:
    """The text after each `data: `."""
    body = {"messages": HELLO, "stream": True} | fields
    async with http.stream("POST", CHAT, json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        text = (await response.aread()).decode()
    *events, rest = text.split("\n\n")
    assert not rest
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]


IMAGE = {
    "type": "image",
    "source": {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(PICTURE).decode(),
    },
}
SHOWN_TO_ANTHROPIC = [
    {"role": "user", "content": [IMAGE, {"type": "text", "text": "What is this?"}]}
]
ANTHROPIC_TOOL = {
    "name": "look",
    "description": "Looks.",
    "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}},
}
SHOWN_TO_RESPONSES = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": URL, "detail": "auto"},
            {"type": "input_text", "text": "What is this?"},
        ],
    }
]
PARAMETERS = {"type": "object", "properties": {"at": {"type": "string"}}}
RESPONSES_TOOL = {
    "type": "function",
    "name": "look",
    "description": "Looks.",
    "parameters": PARAMETERS,
}
