"""Answers in the gateway's stead, for what no small model says by itself."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Page, Route

CHAT = "**/v1/chat/completions"
FULL = {"error": {"message": "The gateway is full.", "param": None}}


def delta(index: int = 0, finish: str | None = None, **what: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": what, "finish_reason": finish}]}


@dataclass
class Canned:
    """Each request gets the next of the answers: a text, the chunks of a stream, or a wait."""

    answers: list[str | Sequence[Mapping[str, Any]] | int]
    bodies: list[Any] = field(default_factory=list)

    async def fulfil(self, route: Route) -> None:
        self.bodies.append(json.loads(route.request.post_data or ""))
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            headers = {"Retry-After": str(answer)}
            await route.fulfill(status=429, headers=headers, body=json.dumps(FULL))
            return
        if isinstance(answer, str):
            answer = [delta(content=answer), delta(finish="stop")]
        body = "".join(f"data: {json.dumps(each)}\n\n" for each in answer) + "data: [DONE]\n\n"
        await route.fulfill(content_type="text/event-stream", body=body)


@asynccontextmanager
async def canned(
    page: Page, *answers: str | Sequence[Mapping[str, Any]] | int
) -> AsyncIterator[Canned]:
    """Each answer is asked for once, by the end."""
    made = Canned(list(answers))
    await page.route(CHAT, made.fulfil)
    yield made
    await page.unroute(CHAT)
    assert not made.answers
