"""The innocent tenant: asks without a pause, in a process and from an address of its own.

    python -m tests.hostile.innocent GRPC HTTP KEY

Its own process, because an attack's work must not delay what measures it; its own address,
127.0.0.2, because a gateway may count per address. It writes a line of JSON when a request begins
and one when it ends, and ends with its standard input.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import aiohttp

from pixtral_client import AsyncClient, PixtralError
from tests.hostile.verdict import ANSWERED
from tests.support.stack.new_picture import new_picture
from tests.support.stack.proxy import Link, Proxy

MODEL = "pixtral-mini"
SOURCE = "127.0.0.2"
PAUSE_SECONDS = 0.1
# Longer than anything that is promised, and short enough for a run of many attacks.
TIMEOUT_SECONDS = 15.0
TOKENS = 8

Ask = Callable[[int], Awaitable[str]]


async def ask_for_ever(kind: str, ask: Ask) -> None:
    for number in itertools.count():
        began = time.monotonic()
        say({"kind": kind, "number": number, "began": began})
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS + 1):
                outcome = await ask(number)
        except PixtralError as error:
            outcome = error.code.name
        except (TimeoutError, aiohttp.ClientError) as error:
            outcome = type(error).__name__
        ended = time.monotonic()
        say(
            {
                "kind": kind,
                "number": number,
                "began": began,
                "seconds": ended - began,
                "outcome": outcome,
            }
        )
        await asyncio.sleep(PAUSE_SECONDS)


def say(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def main(grpc: str, http: str, key: str) -> None:
    async with AsyncExitStack() as stack:
        doors = []
        for name, target in (("grpc", grpc), ("http", http)):
            proxy = await stack.enter_async_context(Proxy(Link(name), source=SOURCE))
            proxy.target = target
            doors.append(proxy.address)
        client = await stack.enter_async_context(
            AsyncClient(doors[0], api_key=key, timeout=TIMEOUT_SECONDS, max_retries=0)
        )
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                f"http://{doors[1]}",
                headers={"authorization": f"Bearer {key}"},
                timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS),
            )
        )

        async def text(number: int) -> str:
            await client.chat(
                [{"role": "user", "content": f"Question {number}?"}],
                max_tokens=TOKENS,
                ignore_eos=True,
            )
            return ANSWERED

        async def over_http(number: int) -> str:
            body = {
                "model": MODEL,
                "messages": [{"role": "user", "content": f"Question {number}?"}],
                "max_tokens": TOKENS,
                "ignore_eos": True,
            }
            async with session.post("/v1/chat/completions", json=body) as response:
                await response.read()
                return ANSWERED if response.status == 200 else f"HTTP {response.status}"

        async def picture(number: int) -> str:
            await client.chat(
                [{"role": "user", "content": [new_picture(), f"Question {number}?"]}],
                max_tokens=TOKENS,
                ignore_eos=True,
            )
            return ANSWERED

        async def upload(number: int) -> str:
            await client.put_image(new_picture(64, 64))
            return ANSWERED

        kinds: dict[str, Ask] = {
            "text": text,
            "HTTP": over_http,
            "picture": picture,
            "upload": upload,
        }
        asking = [asyncio.create_task(ask_for_ever(kind, ask)) for kind, ask in kinds.items()]
        try:
            await asyncio.to_thread(sys.stdin.read)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
