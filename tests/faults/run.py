"""One run: the stack, its users, a schedule of faults, and the history that comes of it."""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tests.faults.checker import Violation, check
from tests.faults.clients import TIMEOUT_SECONDS, Clients
from tests.faults.faults import UNAVAILABLE, Fault, Ground, catalogue
from tests.faults.history import Ask, History, Window
from tests.faults.mutated import MUTATIONS
from tests.faults.questions import Asker, Question
from tests.faults.recovery import until_idle, until_recovered, work_done
from tests.faults.resources import Watch, check_files, check_logs, check_samples, secrets_of
from tests.faults.stack import GATEWAYS, PASSWORD, Stack
from tests.faults.workload import USERS, Workload
from tests.support.redis_server import RedisServer

CALM_SECONDS = 2.0
# gRPC's wait between two tries to connect, as long as it gets in the longest of the faults.
LINGER_SECONDS = 20.0
AT_ONCE = 8
# The slowest of AT_ONCE answers on a machine without other work.
ORDINARY_SECONDS = 5.0
# The share of the schedule's steps that have two faults.
AT_ONCE_SHARE, RECOVERING_SHARE = 0.12, 0.12


async def run(
    seed: int, minutes: float, directory: Path, only: str = "", plant: str = ""
) -> tuple[History, list[Violation]]:
    """Faults one after the other for `minutes`; `only` limits them to names that match it.

    `plant` is a bug of `mutated` that every process of its tier has.
    """
    history, violations = History(), list[Violation]()
    with RedisServer(requirepass=PASSWORD) as redis:
        stack = Stack(directory, redis)
        if plant:
            tier = MUTATIONS[plant][0]
            stack.mutations |= {f"{tier}-{number}": plant for number in range(2)}
        asked = asyncio.create_task(asyncio.to_thread(lambda: Asker().questions(seed)))
        async with stack.running():
            questions = await asked
            async with Clients(stack, history) as clients:
                calm = await ask_all(stack, clients, questions)
                watch = Watch(stack)
                watch.begin()
                ground = Ground(stack, random.Random(seed))
                async with users(seed, stack, clients, questions):
                    await schedule(ground, history, seed, minutes, only)
                violations += [Violation("not idle", what) for what in await until_idle(stack)]
                calm = max(calm, await ask_all(stack, clients, questions))
                history.pace = max(1.0, calm / ORDINARY_SECONDS)
                violations += [Violation("not idle", what) for what in await until_idle(stack)]
                await watch.end()
            violations += check_samples(watch.samples)
            violations += await asyncio.to_thread(
                check_files, stack.temporary, len(history.windows)
            )
        secrets = secrets_of(questions, stack.tenants)
        violations += await asyncio.to_thread(check_logs, directory, secrets, len(history.records))
    return history, violations + check(history, questions)


async def ask_all(stack: Stack, clients: Clients, questions: Sequence[Question]) -> float:
    """Every question once by each door of each gateway, with nothing amiss. Returns the seconds of
    the slowest answer."""
    room = asyncio.Semaphore(AT_ONCE)

    async def ask(question: Question, number: int) -> float:
        async with room:
            record = await clients.ask(
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
        return record.seconds

    slowest = 0.0
    # The tenants' in turns: what one has asked is in the caches when another asks it.
    for number in range(2 * GATEWAYS):
        took = await asyncio.gather(*(ask(question, number) for question in questions))
        slowest = max(slowest, *took)
    return slowest


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
    """One after the other; some beside another, and some while another is recovered from."""
    until = time.monotonic() + 60 * minutes
    rng = random.Random(seed)
    faults = order(seed, only)
    for fault in faults:
        await asyncio.sleep(CALM_SECONDS)
        if time.monotonic() > until:
            return
        way = rng.random()
        if only or way > AT_ONCE_SHARE + RECOVERING_SHARE:
            await do(fault, ground, history)
            continue
        other = next(faults)
        if not may_meet(fault, other):
            await do(fault, ground, history)
            await do(other, ground, history)
            continue
        first, second = at_once(fault, other)
        is_recovering = way > AT_ONCE_SHARE
        print(f"{'in recovery from' if is_recovering else 'at once with'} the next:", flush=True)
        await do_both(first, second, ground, history, is_recovering=is_recovering)


async def do_both(
    first: Fault, second: Fault, ground: Ground, history: History, *, is_recovering: bool
) -> None:
    """At once, or the second when the first has ended and is recovered from."""
    ended = asyncio.Event()
    if not is_recovering:
        ended.set()

    async def later() -> None:
        await ended.wait()
        await do(second, ground, history)

    async with asyncio.TaskGroup() as both:
        both.create_task(do(first, ground, history, ended))
        both.create_task(later())


def may_meet(one: Fault, other: Fault) -> bool:
    """Whether there is still one of each tier that nothing is done to, and one way to it."""
    return not one.touches & other.touches and not one.is_of_all and not other.is_of_all


def at_once(*faults: Fault) -> list[Fault]:
    """As they are when they meet: an encoder's own copy is all there is while Redis is away."""
    touched = frozenset[str]().union(*(fault.touches for fault in faults))
    if not touched >= {"redis", "encoder"}:
        return list(faults)
    return [replace(fault, allows_images=UNAVAILABLE) for fault in faults]


def order(seed: int, only: str = "") -> Iterator[Fault]:
    """All faults in an order of the seed's, again and again in others."""
    rng = random.Random(seed)
    while True:
        faults = [fault for fault in catalogue(rng) if re.search(only, fault.name)]
        rng.shuffle(faults)
        yield from faults


async def do(
    fault: Fault, ground: Ground, history: History, ended: asyncio.Event | None = None
) -> None:
    """Begins it, ends it, sets `ended` and waits until it is over; all that is in the history."""
    window = Window(
        fault.name,
        time.monotonic(),
        fault.allows,
        fault.gateway,
        fault.pictures_only,
        fault.encodes_twice,
        allows_once=fault.allows_once,
        allows_uploads=fault.allows_uploads,
        allows_images=fault.allows_images,
        most_seconds=fault.most_seconds,
        lingers=LINGER_SECONDS if fault.gateway is not None else 0.0,
    )
    history.windows.append(window)
    await fault.begin(ground)
    try:
        await asyncio.sleep(ground.random.uniform(*fault.hold))
    finally:
        # Nothing stays stopped, however this run ends.
        await fault.end(ground)
        if ended is not None:
            ended.set()
    window.ended = window.began if fault.is_kill else time.monotonic()
    before = (
        {} if fault.is_kill else await work_done(ground.stack, history, fault.parts, window.ended)
    )
    window.recovered = await until_recovered(ground.stack, history, fault.parts, before)
    took = "not" if window.recovered is None else f"{window.recovered - window.ended:.1f} s"
    print(f"{fault.name} ({fault.of}): recovered {took}", flush=True)
