"""One run: the stack, its users, a schedule of faults, and the history that comes of it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.faults.checker import Violation, check
from tests.faults.clients import TIMEOUT_SECONDS, Clients
from tests.faults.faults import Fault, Ground, catalogue
from tests.faults.history import Ask, History, Window
from tests.faults.questions import Asker, Question
from tests.faults.recovery import until_idle, until_recovered, work_done
from tests.faults.stack import GATEWAYS, PASSWORD, Stack
from tests.faults.workload import USERS, Workload
from tests.support.redis_server import RedisServer

CALM_SECONDS = 2.0
# gRPC's wait between two tries to connect, as long as it gets in the longest of the faults.
LINGER_SECONDS = 20.0
AT_ONCE = 8


async def run(
    seed: int, minutes: float, directory: Path, only: str = ""
) -> tuple[History, list[Violation]]:
    """Faults one after the other for so many minutes; `only` those with this in their names."""
    history, violations = History(), list[Violation]()
    with RedisServer(requirepass=PASSWORD) as redis:
        stack = Stack(directory, redis)
        asked = asyncio.create_task(asyncio.to_thread(lambda: Asker().questions(seed)))
        async with stack.running():
            questions = await asked
            async with Clients(stack, history) as clients:
                await ask_all(stack, clients, questions)
                ground = Ground(stack, random.Random(seed))
                async with users(seed, stack, clients, questions):
                    await schedule(ground, history, seed, minutes, only)
                violations += [Violation("not idle", what) for what in await until_idle(stack)]
                await ask_all(stack, clients, questions)
    return history, violations + check(history, questions)


async def ask_all(stack: Stack, clients: Clients, questions: Sequence[Question]) -> None:
    """Every question once by each door of each gateway, with nothing amiss."""
    room = asyncio.Semaphore(AT_ONCE)

    async def ask(question: Question, number: int) -> None:
        async with room:
            await clients.ask(
                Ask(
                    question,
                    question.pictures,
                    stack.tenants[number % len(stack.tenants)],
                    number // 2 % GATEWAYS,
                    "http" if number % 2 else "grpc",
                    is_stream=number % 3 == 0,
                    timeout=TIMEOUT_SECONDS,
                )
            )

    await asyncio.gather(
        *(ask(question, number) for question in questions for number in range(2 * GATEWAYS))
    )


@asynccontextmanager
async def users(
    seed: int, stack: Stack, clients: Clients, questions: Sequence[Question]
) -> AsyncIterator[None]:
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for user in range(USERS):
            workload = Workload(seed, user, questions, stack.tenants, GATEWAYS)
            group.create_task(workload.run(clients, over))
        try:
            yield
        finally:
            over.set()


async def schedule(ground: Ground, history: History, seed: int, minutes: float, only: str) -> None:
    until = time.monotonic() + 60 * minutes
    for fault in order(seed, only):
        await asyncio.sleep(CALM_SECONDS)
        if time.monotonic() > until:
            return
        await do(fault, ground, history)


def order(seed: int, only: str = "") -> Iterator[Fault]:
    """All faults in an order of the seed's, again and again in others."""
    rng = random.Random(seed)
    while True:
        faults = [fault for fault in catalogue(rng) if only in fault.name]
        rng.shuffle(faults)
        yield from faults


async def do(fault: Fault, ground: Ground, history: History) -> None:
    """Begins it, ends it and waits until it is over; all that is in the history."""
    window = Window(
        fault.name,
        time.monotonic(),
        fault.allows,
        fault.gateway,
        fault.pictures_only,
        fault.encodes_twice,
        LINGER_SECONDS if fault.gateway is not None else 0.0,
    )
    history.windows.append(window)
    await fault.begin(ground)
    try:
        await asyncio.sleep(ground.random.uniform(*fault.hold))
    finally:
        # Whatever ends this run: nothing stays stopped.
        await fault.end(ground)
    window.ended = window.began if fault.is_kill else time.monotonic()
    before = (
        {} if fault.is_kill else await work_done(ground.stack, history, fault.parts, window.ended)
    )
    window.recovered = await until_recovered(ground.stack, history, fault.parts, before)
    took = "not" if window.recovered is None else f"{window.recovered - window.ended:.1f} s"
    print(f"{fault.name} ({fault.of}): recovered {took}", flush=True)
