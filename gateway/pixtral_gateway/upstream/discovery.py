"""Finds the processes of a tier as they come and go."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Generic, Protocol, TypeAlias, TypeVar

from pixtral_core.errors import StartupError
from pixtral_core.server.certificates import WatchedFiles
from pixtral_core.settings import DNS_SCHEME

logger = logging.getLogger(__name__)

LOOKUP_SECONDS = 3.0
SECONDS_BETWEEN_LOOKUPS = 5.0

# Resolves a name and a port to host:port of each address. Raises OSError.
Resolve = Callable[[str, int], Awaitable[set[str]]]


async def resolve(name: str, port: int) -> set[str]:
    """host:port of every current address of a name. Raises OSError, such as TimeoutError."""
    async with asyncio.timeout(LOOKUP_SECONDS):
        found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return {
        f"[{address[0]}]:{port}" if family is socket.AF_INET6 else f"{address[0]}:{port}"
        for family, _, _, _, address in found
    }


class Member(Protocol):
    """The part of a replica that this module uses."""

    address: str

    def retire(self) -> None: ...

    async def close(self) -> None: ...


M = TypeVar("M", bound=Member)
Watch: TypeAlias = Callable[[M], Coroutine[None, None, None]]


class Group(Generic[M]):
    """The members of one tier. Iterating yields the current members.

    A target host:port is one member. dns:///name:port stands for a member at each address of the
    name, which is looked up every few seconds. A new address joins. A missing address gets no new
    work, and is closed `linger_seconds` later. A lookup that fails changes nothing. Members read
    `files` when they are made. When the files change, a new member replaces each one that was found
    by a name.

    `make` takes host:port and, for a member that was found by a name, the name.
    """

    def __init__(
        self,
        targets: Iterable[str],
        make: Callable[[str, str | None], M],
        *,
        linger_seconds: float = 0.0,
        resolve: Resolve = resolve,
        files: WatchedFiles | None = None,
    ) -> None:
        targets = tuple(targets)
        self._names = [t.removeprefix(DNS_SCHEME) for t in targets if t.startswith(DNS_SCHEME)]
        self._make = make
        self._linger_seconds = linger_seconds
        self._resolve = resolve
        self._files = files
        self._members = [make(t, None) for t in targets if not t.startswith(DNS_SCHEME)]
        self._tasks: dict[M, asyncio.Task[None]] = {}
        self._lookups: list[asyncio.Task[None]] = []
        self._broken = asyncio.Event()

    def __iter__(self) -> Iterator[M]:
        return iter(self._members)

    def start(self, watch: Watch[M], broken: asyncio.Event) -> None:
        """Runs `watch` for each current member.

        An error of a watch or a lookup sets `broken`.
        """
        self._broken = broken
        for member in self._members:
            self._tasks[member] = self._run(watch(member))
        self._lookups = [self._run(self._follow(name, watch)) for name in self._names]

    async def stop(self) -> None:
        """Ends every task and closes every member."""
        tasks = (*self._lookups, *self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in {*self._members, *self._tasks}:
            await member.close()

    async def _follow(self, name: str, watch: Watch[M]) -> None:
        host, _, port = name.rpartition(":")
        members: dict[str, M] = {}
        replaced: list[M] = []
        has_failed = False
        while True:
            if members:
                for member in replaced:
                    self._leave(member)
                replaced = []
            if self._files is not None and self._files.changed():
                # The loop removes the old members at a later lookup, when there are new ones.
                replaced, members = [*replaced, *members.values()], {}
            try:
                found = await self._resolve(host.strip("[]"), int(port))
            except (OSError, UnicodeError) as error:
                if not has_failed:
                    logger.warning("%s cannot be looked up: %s", host, type(error).__name__)
                has_failed = True
            else:
                has_failed = False
                for address in members.keys() - found:
                    self._leave(members.pop(address))
                for address in sorted(found - members.keys()):
                    try:
                        members[address] = self._join(address, host, watch)
                    except StartupError as error:
                        # The files of the certificate are being replaced. The next lookup tries
                        # again.
                        logger.warning("%s cannot be called: %s", address, error)
            await asyncio.sleep(SECONDS_BETWEEN_LOOKUPS)

    def _join(self, address: str, name: str, watch: Watch[M]) -> M:
        member = self._make(address, name)
        self._members.append(member)
        self._tasks[member] = self._run(watch(member))
        return member

    def _leave(self, member: M) -> None:
        self._members.remove(member)
        self._tasks[member].cancel()
        member.retire()
        self._tasks[member] = asyncio.create_task(self._linger(member))

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.error("the discovery of a tier has failed", exc_info=task.exception())
            self._broken.set()

    async def _linger(self, member: M) -> None:
        await asyncio.sleep(self._linger_seconds)
        await member.close()
        del self._tasks[member]
