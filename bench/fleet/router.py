"""A router before several servers, inside the client: it adds no hop to stock vLLM's requests."""

import hashlib
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from bench.doors import Answer, Door, Prompt, open_door
from bench.loops import Outcome
from bench.servers import Address
from pixtral_gateway.upstream.placement import rendezvous


class Router:
    """A `Door` over the doors of several servers, by their URLs.

    Servers take turns. With `is_sticky`, a request goes to the server that the digest of its first
    image names, and a request without an image to the next in turn.

    A request whose server does not answer goes to another one. `moved` counts these requests: a
    measurement with any is one of fewer servers.
    """

    def __init__(self, doors: Mapping[str, Door], *, is_sticky: bool) -> None:
        self._doors = doors
        self._is_sticky = is_sticky
        self._turns = itertools.cycle(range(len(doors)))
        self.moved = 0

    async def __call__(self, prompt: Prompt, answer: Answer) -> Outcome:
        first, *others = self._preference(prompt)
        outcome: Outcome = await self._doors[first](prompt, answer)
        for url in others:
            if outcome.code != "UNAVAILABLE" or answer.came:
                break
            self.moved += 1
            outcome = await self._doors[url](prompt, answer)
        return outcome

    def _preference(self, prompt: Prompt) -> Sequence[str]:
        if self._is_sticky and (images := prompt.pictures):
            return rendezvous(hashlib.sha256(images[0]).digest(), self._doors)
        urls, turn = list(self._doors), next(self._turns)
        return [*urls[turn:], *urls[:turn]]


@asynccontextmanager
async def open_router(
    addresses: Sequence[Address], *, is_sticky: bool = False
) -> AsyncIterator[Router]:
    async with AsyncExitStack() as stack:
        doors = {
            url: await stack.enter_async_context(open_door(url, None, model))
            for url, model in addresses
        }
        yield Router(doors, is_sticky=is_sticky)
