"""Workloads, asked by turns; a turn that was finished before is not asked again."""

import itertools
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.fleet.report import line
from bench.fleet.results import Results
from bench.fleet.router import open_router
from bench.fleet.sides import STICKY, TITLES, Fleet
from bench.mix import Album
from bench.one_card import WARM_UP_SHARE, ask
from bench.servers import Address
from bench.workloads import FIRST_OF_POOL, Author, Prompt, Workload


@dataclass(frozen=True, slots=True)
class Task:
    """The workloads, sides and turns for fleets of one size."""

    count: int
    workloads: Sequence[Workload]
    sides: Sequence[str]
    turns: int

    def missing(self, results: Results, workload: Workload) -> list[tuple[int, str]]:
        """The turns and sides that `results` lacks, in the order in which they are asked: each
        side is first as often as it is last."""
        return [
            (turn, side)
            for turn in range(self.turns)
            for side in self.sides[:: -1 if turn % 2 else 1]
            if len(results.turns(self.count, workload.name, side)) <= turn
        ]

    def missing_sides(self, results: Results) -> list[str]:
        lacking = {side for each in self.workloads for _, side in self.missing(results, each)}
        return [side for side in self.sides if side in lacking]


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes the sessions of each side's turns: equal in sizes and lengths, and other images and
    texts, because sides may share servers, with what these have computed."""

    is_small: bool
    numbers: Iterator[int] = field(default_factory=itertools.count)
    pools: Iterator[int] = field(default_factory=lambda: itertools.count(2))

    def sessions(self, workload: Workload, turn: int, album: Album) -> list[list[Prompt]]:
        rng = random.Random(f"{workload.name} {turn}")
        pool = FIRST_OF_POOL * next(self.pools)
        return workload.sessions(Author(album, rng, self.numbers, self.is_small, pool))


async def ask_by_turns(
    task: Task, fleet: Fleet, started: Mapping[str, Address], results: Results, writer: Writer
) -> None:
    for workload in task.workloads:
        missing = task.missing(results, workload)
        if not missing:
            continue
        album = Album(workload.sizes)
        album.make()
        for side in dict.fromkeys(side for _, side in missing):
            sessions = writer.sessions(workload, -1, album)
            # Each server is to have had some.
            del sessions[max(2 * task.count, len(sessions) // WARM_UP_SHARE) :]
            await _ask(fleet.addresses(side, started), side, workload, sessions, 0)
        for turn, side in missing:
            sessions = writer.sessions(workload, turn, album)
            addresses = fleet.addresses(side, started)
            found = await _ask(addresses, side, workload, sessions, turn)
            results.add(task.count, workload.name, workload.what, side, found)
            where = f"{workload.name}, {task.count}, turn {turn + 1} of {task.turns}"
            print(f"{time.strftime('%H:%M:%S')} {where}, {TITLES[side]}: {line(found)}", flush=True)


async def _ask(
    addresses: Sequence[Address],
    side: str,
    workload: Workload,
    sessions: Sequence[Sequence[Prompt]],
    seed: int,
) -> dict[str, Any]:
    """`bench.one_card.ask`, and the requests that the router has `moved`."""
    async with open_router(addresses, is_sticky=side == STICKY) as router:
        found = await ask(router, workload, sessions, seed)
    return {**found, "moved": router.moved}
