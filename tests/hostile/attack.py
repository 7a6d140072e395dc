"""An attack, and the means that it has."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc

from pixtral_client import AsyncClient
from pixtral_client.requests import channel_options
from tests.hostile.payloads import Payloads
from tests.hostile.stack import Stack, key_of

HOSTILE = "eve"


@dataclass(slots=True)
class Ground:
    """Where an attack takes place.

    Attributes:
        seconds: how long it lasts.
        came: what came of its requests, by status; for the report alone.
        said: what must not be, such as a status; each is a harm.
    """

    stack: Stack
    payloads: Payloads
    seconds: float
    came: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._began + self.seconds

    @property
    def target(self) -> str:
        return self.stack.addresses["gateway"].grpc

    @property
    def http_target(self) -> str:
        found = self.stack.addresses["gateway"].http
        assert found is not None
        return found

    def client(self, target: str | None = None) -> AsyncClient:
        return AsyncClient(
            target or self.target, api_key=key_of(HOSTILE), timeout=600, max_retries=0
        )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {key_of(HOSTILE)}"),)

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """For messages that the client would not send; they go as they are given, bytes."""
        options = [*channel_options(self.target), ("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(self.target, options) as channel:
            yield channel

    async def post(self, path: str, body: bytes) -> None:
        """Sends JSON and counts the status."""
        headers = {
            "authorization": f"Bearer {key_of(HOSTILE)}",
            "content-type": "application/json",
        }
        try:
            async with (
                aiohttp.ClientSession(f"http://{self.http_target}") as session,
                session.post(path, data=body, headers=headers) as response,
            ):
                await response.read()
                self.came[f"HTTP {response.status}"] += 1
                if response.status == 500:
                    self.said.append("the attack was answered with HTTP 500")
        except aiohttp.ClientError as error:
            self.came[type(error).__name__] += 1

    async def counted(self, call: Awaitable[Any]) -> None:
        """Awaits a call of gRPC and counts its status."""
        try:
            await call
        except grpc.RpcError as error:
            self._count(error.code().name)
        except Exception as error:
            code = getattr(error, "code", None)
            if not isinstance(code, grpc.StatusCode):
                raise
            self._count(code.name)
        else:
            self.came["OK"] += 1

    def _count(self, status: str) -> None:
        self.came[status] += 1
        if status in ("INTERNAL", "UNKNOWN"):
            self.said.append(f"the attack was answered with {status}")

    async def again(self, ask: Callable[[], Awaitable[None]], every: float) -> None:
        """Begins one each `every` seconds until the attack is over; it does not wait for any."""
        async with asyncio.TaskGroup() as group:
            while not self.is_over:
                group.create_task(_awaited(ask()))
                await asyncio.sleep(every)


async def _awaited(call: Awaitable[None]) -> None:
    await call


Run = Callable[[Ground], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Attack:
    """`finding` is what it showed when it succeeded; `expects` what stops it.

    `seconds`, where it needs more than others.
    """

    name: str
    finding: str
    expects: str
    run: Run
    seconds: float


ATTACKS: list[Attack] = []


def attack(finding: str, expects: str, *, seconds: float = 0.0) -> Callable[[Run], Run]:
    """Adds a case, under the name of its function. It may run on until it is cancelled."""

    def add(run: Run) -> Run:
        name = getattr(run, "__name__", "").replace("_", " ")
        ATTACKS.append(Attack(name, finding, expects, run, seconds))
        return run

    return add
