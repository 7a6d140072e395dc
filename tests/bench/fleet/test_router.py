"""The router before real HTTP servers, one of which may be gone."""

import itertools
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from bench.doors import Answer
from bench.fleet.router import Router, open_router
from bench.mix import Album
from bench.workloads import Author, Prompt

SERVERS = 3


@dataclass
class Servers:
    """Servers that answer each request with a token, after which they cut it off if `breaks`."""

    runners: list[web.AppRunner] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    breaks: bool = False

    async def start(self, stack: AsyncExitStack) -> None:
        app = web.Application()
        runner = web.AppRunner(app)
        name = f"server {len(self.runners)}"

        async def answer(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            images = [
                part["image_url"]["url"]
                for part in body["messages"][0]["content"]
                if part["type"] == "image_url"
            ]
            self.asked.append((name, images[0] if images else ""))
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(_event({"choices": [{"delta": {"content": "a"}}]}))
            if self.breaks:
                assert request.transport
                request.transport.abort()
                return response
            await response.write(b"data: [DONE]\n\n")
            return response

        app.router.add_post("/v1/chat/completions", answer)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.runners.append(runner)
        self.urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")

    def counts(self) -> Counter[str]:
        return Counter(name for name, _ in self.asked)


def _event(event: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(event)}\n\n".encode()


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        found = Servers()
        for _ in range(SERVERS):
            await found.start(stack)
        yield found


@asynccontextmanager
async def router(servers: Servers, *, is_sticky: bool) -> AsyncIterator[Router]:
    addresses = [(url, "stock") for url in servers.urls]
    async with open_router(addresses, is_sticky=is_sticky) as found:
        yield found


@pytest.fixture
def author() -> Author:
    album = Album(("32x32",), b"12345678")
    album.make()
    return Author(album, random.Random(1), itertools.count())


def about_image(author: Author, shown: tuple[tuple[int, str], ...]) -> Prompt:
    return author.prompt(author.text(2), tokens=1, shown=shown)


async def test_servers_take_turns(servers: Servers, author: Author) -> None:
    shown = author.images("32x32")
    async with router(servers, is_sticky=False) as found:
        for _ in range(2 * SERVERS):
            assert (await found(about_image(author, shown), Answer())).code == "OK"
    assert [name for name, _ in servers.asked] == [f"server {n}" for n in range(SERVERS)] * 2
    assert found.moved == 0


async def test_an_image_stays_with_its_server_and_images_spread(
    servers: Servers, author: Author
) -> None:
    images = [author.images("32x32") for _ in range(30)]
    async with router(servers, is_sticky=True) as found:
        for shown in (*images, *images):
            await found(about_image(author, shown), Answer())
    assert len(set(servers.asked)) == len(images)
    assert len(servers.counts()) == SERVERS


async def test_a_text_has_no_server_of_its_own(servers: Servers, author: Author) -> None:
    async with router(servers, is_sticky=True) as found:
        for _ in range(SERVERS):
            await found(author.prompt(author.text(2), tokens=1), Answer())
    assert set(servers.counts().values()) == {1}


@pytest.mark.parametrize("is_sticky", [True, False])
async def test_a_dead_server_s_requests_go_to_the_others_and_only_those(
    servers: Servers, author: Author, is_sticky: bool
) -> None:
    images = [author.images("32x32") for _ in range(30)]
    async with router(servers, is_sticky=is_sticky) as found:
        for shown in images:
            await found(about_image(author, shown), Answer())
        before, servers.asked = servers.asked, []
        await servers.runners[0].cleanup()
        for shown in images:
            assert (await found(about_image(author, shown), Answer())).code == "OK"
    assert "server 0" not in servers.counts()
    assert found.moved == Counter(name for name, _ in before)["server 0"] > 0
    if is_sticky:
        assert {one for one in before if one[0] != "server 0"} <= set(servers.asked)


async def test_an_answer_that_has_begun_is_not_asked_for_again(
    servers: Servers, author: Author
) -> None:
    servers.breaks = True
    async with router(servers, is_sticky=False) as found:
        outcome = await found(about_image(author, author.images("32x32")), Answer())
    assert outcome.code != "OK"
    assert len(servers.asked) == 1


async def test_a_request_that_no_server_takes_is_not_answered(
    servers: Servers, author: Author
) -> None:
    for runner in servers.runners:
        await runner.cleanup()
    async with router(servers, is_sticky=True) as found:
        outcome = await found(about_image(author, author.images("32x32")), Answer())
    assert outcome.code == "UNAVAILABLE"
