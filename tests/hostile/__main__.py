"""Attacks a running stack beside an innocent tenant, and says what that tenant felt.

    python -m tests.hostile [--minutes M] [--only TEXT] [--keep DIRECTORY]

Each attack is one that once succeeded, or that was tried and held. While it lasts, the innocent
tenant must be answered, with a 99th percentile under three times its calm one; no process may end;
the memory of each stays under the bound that docs/security.md derives. The exit code is 1 where
something else was seen.
"""

import argparse
import asyncio
import logging
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc

from pixtral_client import PixtralError
from tests.hostile import connections, generation, images, messages  # noqa: F401 - they register
from tests.hostile.attack import ATTACKS, Attack, Ground
from tests.hostile.payloads import Payloads
from tests.hostile.stack import BOUNDS_MIB, TIERS, Innocent, Stack, key_of
from tests.hostile.verdict import (
    MOST_TIMES_SLOWER,
    Answer,
    Harm,
    Observed,
    allowed,
    by_kind,
    judge,
    slowest,
)

CALM_SECONDS = 8.0
# Seconds of an attack that needs no longer.
SECONDS = 2.5
# Within which the innocent tenant must be served as before.
RECOVERY_SECONDS = 15.0
LOOK_SECONDS = 0.05
# An attack that does not end when it is cancelled.
PATIENCE_SECONDS = 10.0


@dataclass(slots=True)
class Outcome:
    attack: Attack
    ground: Ground
    seen: Observed
    harms: list[Harm]


class Run:
    """All attacks, one after the other, against one stack; a stack that did not stand its ground is
    started anew."""

    def __init__(self, stack: Stack, payloads: Payloads, seconds: float) -> None:
        self._stack, self._payloads, self._seconds = stack, payloads, seconds
        self.calm: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self.outcomes: list[Outcome] = []

    async def all(self, attacks: list[Attack]) -> None:
        left = list(attacks)
        while left:
            addresses = self._stack.addresses["gateway"]
            assert addresses.http is not None
            async with Innocent(addresses.grpc, addresses.http, key_of("bob")) as innocent:
                # The first of each kind pays for what is made once.
                while len({each.kind for each in innocent.answers}) < len(KINDS):
                    await asyncio.sleep(LOOK_SECONDS)
                await self._calm(innocent)
                while left:
                    outcome = await self._one(left[0], innocent)
                    # A machine that is busy with something else is slow once, or when it is calm.
                    if outcome.harms and all(harm.is_time for harm in outcome.harms):
                        await self._calm(innocent)
                        outcome = await self._one(left[0], innocent)
                    self.outcomes.append(outcome)
                    print(line(outcome, self.calm), flush=True)
                    left.pop(0)
                    if outcome.seen.ended or not outcome.seen.recovered:
                        break
            if left:
                await asyncio.to_thread(self._stack.stop)
                await asyncio.to_thread(self._stack.start)

    async def _calm(self, innocent: Innocent) -> None:
        """Measures what 99 in 100 answers take. Later measurements follow a machine that gets busy,
        but not far: what an attack has left undone would be calm, too."""
        await asyncio.sleep(1.0)
        began = time.monotonic()
        found: dict[str, list[float]] = {}
        while time.monotonic() < began + CALM_SECONDS or len(found) < len(KINDS):
            await asyncio.sleep(LOOK_SECONDS)
            found = by_kind(each for each in innocent.answers if each.began >= began)
        now = {kind: slowest(found[kind]) for kind in KINDS}
        self._first = self._first or now
        self.calm = {
            kind: min(seconds, MOST_TIMES_SLOWER * self._first[kind])
            for kind, seconds in now.items()
        }
        shown = ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in self.calm.items())
        print(f"calm, the 99th percentile: {shown}", flush=True)

    async def _one(self, attack: Attack, innocent: Innocent) -> Outcome:
        seconds = max(attack.seconds, self._seconds)
        ground = Ground(self._stack, self._payloads, seconds)
        memory = self._stack.memory
        memory.reset()
        began = time.monotonic()
        task = asyncio.ensure_future(attack.run(ground))
        while not task.done() and time.monotonic() < began + seconds:
            # A service that is broken need not be broken further.
            if self._stack.ended() or any(
                memory.peak[tier] > most for tier, most in BOUNDS_MIB.items()
            ):
                break
            await asyncio.sleep(LOOK_SECONDS)
        # One that ends itself says something in the end.
        await asyncio.wait((task,), timeout=1.0)
        task.cancel()
        await asyncio.wait((task,), timeout=PATIENCE_SECONDS)
        if task.done() and not task.cancelled() and (error := task.exception()):
            ground.came[type(error).__name__] += 1
            # One that does not attack proves nothing.
            if not _is_refusal(error):
                ground.said.append(f"the attack itself failed: {error!r}")
        ended = time.monotonic()
        recovered = await self._until_recovered(innocent, ended)
        await innocent.until_ended(ended)
        seen = Observed(
            innocent.during(began, ended),
            dict(memory.peak),
            self._stack.ended(),
            sorted(set(ground.said)),
            recovered,
        )
        return Outcome(attack, ground, seen, judge(seen, self.calm, BOUNDS_MIB))

    async def _until_recovered(self, innocent: Innocent, since: float) -> bool:
        """Whether each kind of request is answered as before soon enough."""
        most = allowed(self.calm)
        with suppress(TimeoutError):
            async with asyncio.timeout(RECOVERY_SECONDS):
                while True:
                    later = [each for each in innocent.answers if each.began >= since]
                    if all(any(_is_good(each, kind, most) for each in later) for kind in KINDS):
                        return True
                    await asyncio.sleep(LOOK_SECONDS)
        return False


HEADER = """\
| finding | attack | what came of it | the other's slowest, s | most MiB of each tier | harm |
|---|---|---|---|---|---|"""
KINDS = ("text", "HTTP", "picture", "upload")
REFUSALS = (OSError, TimeoutError, PixtralError, grpc.RpcError, aiohttp.ClientError)


def _is_refusal(error: BaseException) -> bool:
    """Whether it is what an attack may meet."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_refusal, error.exceptions))
    return isinstance(error, REFUSALS)


def _is_good(answer: Answer, kind: str, most: dict[str, float]) -> bool:
    return answer.kind == kind and answer.outcome == "OK" and answer.seconds <= most[kind]


def line(outcome: Outcome, calm: dict[str, float]) -> str:
    """A line of Markdown's table."""
    felt = by_kind(each for each in outcome.seen.answers if each.outcome == "OK")
    times = ", ".join(
        f"{kind} {slowest(felt[kind]):.2f}" if kind in felt else f"{kind} none" for kind in calm
    )
    memory = " ".join(f"{outcome.seen.peak_mib[tier]:.0f}" for tier in TIERS)
    came = ", ".join(f"{count} {what}" for what, count in outcome.ground.came.most_common(5))
    harm = "; ".join(map(str, outcome.harms)) or "no harm"
    name, finding = outcome.attack.name, outcome.attack.finding
    return f"| {finding} | {name} | {came} | {times} | {memory} | {harm} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.hostile", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, help="minutes of attacks; default: seconds each")
    parser.add_argument("--only", default="", help="attacks with this in their names")
    parser.add_argument("--keep", type=Path, help="where the logs stay")
    given = parser.parse_args()
    logging.disable(logging.ERROR)
    # All that was started ends in order, Redis too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    attacks = [each for each in ATTACKS if given.only in each.name]
    if not attacks:
        parser.error("no attack has that in its name: " + ", ".join(a.name for a in ATTACKS))
    seconds = SECONDS if given.minutes is None else given.minutes * 60 / len(attacks)
    began = time.monotonic()
    with ExitStack() as exits:
        directory = given.keep or Path(exits.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        stack = Stack(directory)
        pool = exits.enter_context(ThreadPoolExecutor(1))
        made = pool.submit(Payloads.make)
        stack.start()
        exits.callback(stack.stop)
        run = Run(stack, made.result(), seconds)
        print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
        print(HEADER)
        asyncio.run(run.all(attacks))
    failed = [each for each in run.outcomes if each.harms]
    for name in stack.left_over:
        print(f"left in the temporary folder: {name}")
    print(
        f"{len(run.outcomes)} attacks, {len(failed)} did harm"
        f" ({time.monotonic() - began:.0f} s): {', '.join(e.attack.name for e in failed) or 'none'}"
    )
    sys.exit(bool(failed or stack.left_over))


if __name__ == "__main__":
    main()
