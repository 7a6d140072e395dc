"""Cores that all work on a machine shares."""

import heapq
import itertools

import simpy


class Processor:
    """Processor sharing: work that wants more cores than there are all slows by the same factor.

    If `cores` is None, nothing slows. `taken` is the number of cores that other processes want;
    they get their share too.
    """

    def __init__(self, env: simpy.Environment, cores: float | None, taken: float = 0.0) -> None:
        self._env = env
        self._cores = cores
        self._taken = self._wanted = taken
        # Seconds of work that every piece has had since the start: all pieces progress equally.
        self._done = 0.0
        self._since = 0.0
        self._pieces: list[tuple[float, int, float, simpy.Event]] = []
        self._numbers = itertools.count()
        self._generation = 0

    def work(self, seconds: float, cores: float = 1.0) -> simpy.Event:
        """An event for the end of work that keeps `cores` busy for `seconds` at full speed."""
        if self._cores is None:
            return self._env.timeout(seconds)
        self._advance()
        ended = self._env.event()
        heapq.heappush(self._pieces, (self._done + seconds, next(self._numbers), cores, ended))
        self._wanted += cores
        self._plan()
        return ended

    def _speed(self) -> float:
        if self._cores is None or self._wanted <= self._cores:
            return 1.0
        return self._cores / self._wanted

    def _advance(self) -> None:
        self._done += (self._env.now - self._since) * self._speed()
        self._since = self._env.now

    def _plan(self) -> None:
        self._generation += 1
        if not self._pieces:
            self._wanted = self._taken
            return
        left = max(0.0, self._pieces[0][0] - self._done)
        self._env.process(self._end_first(left / self._speed(), self._generation))

    def _end_first(self, seconds: float, generation: int) -> simpy.events.ProcessGenerator:
        yield self._env.timeout(seconds)
        if generation != self._generation:
            return
        self._advance()
        _, _, cores, ended = heapq.heappop(self._pieces)
        self._wanted -= cores
        ended.succeed()
        self._plan()
