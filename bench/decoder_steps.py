"""Changes the limits of the decoder's steps while its engine runs."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SCHEDULER = "bench.decoder_steps.scheduler"
# The environment variable with the path of a file that both processes map.
DIAL = "PIXTRAL_BENCH_DIAL"


@dataclass(frozen=True, slots=True)
class Steps:
    """The most tokens in a step, and the most in a step that answers wait for."""

    most: int
    awaited: int

    @classmethod
    def parse(cls, text: str) -> "Steps":
        most, _, awaited = text.partition("/")
        return cls(int(most), int(awaited))

    def __str__(self) -> str:
        return f"{self.most}/{self.awaited}"


def make_dial(path: Path, scheduler: Steps) -> None:
    np.array([scheduler.most, scheduler.awaited], np.int64).tofile(path)


class Dial:
    def __init__(self) -> None:
        self._numbers = np.memmap(os.environ[DIAL], np.int64, mode="r+", shape=(2,))

    def turn(self, scheduler: Steps) -> None:
        self._numbers[:] = scheduler.most, scheduler.awaited

    def read(self) -> Steps:
        most, awaited = map(int, self._numbers)
        return Steps(most, awaited)


def scheduler(**given: Any) -> Any:
    """The decoder's own scheduler, with limits read from the dial before each step."""
    from pixtral_decoder.vllm_hooks import scheduler

    made = scheduler.scheduler(**given)
    schedule, dial = made.schedule, Dial()

    def dialled(*args: Any, **kwargs: Any) -> Any:
        now = dial.read()
        made.most_tokens, made.awaited_tokens = now.most, now.awaited
        return schedule(*args, **kwargs)

    made.schedule = dialled
    return made
