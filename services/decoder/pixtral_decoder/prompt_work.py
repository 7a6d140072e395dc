"""Counts the prompt tokens that the engine has to compute, and how many it computes in a second."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

# A prompt with fewer new tokens waits for a step rather than for its own computation, so its time
# says nothing about the rate.
MEASURED_TOKENS: Final = 512
# A sample of this age counts a third as much as a new one.
MEMORY_SECONDS: Final = 30.0
# With less work than this in the samples, the rate is unknown.
LEAST_SECONDS: Final = 0.1


class PromptWork:
    """The prompts that wait for their first token.

    The rate is measured while a long prompt waits or is computed. Without a long prompt for a while
    it is forgotten, so that one slow moment does not count forever.

    Attributes:
        tokens: tokens that the engine probably has to compute for them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.tokens = 0
        self._clock = clock
        self._looked_at = clock()
        self._long = 0
        # Computed tokens of long prompts, and the time for them. Old samples fade.
        self._computed = self._seconds = 0.0

    @property
    def tokens_per_second(self) -> float:
        """0 without recent samples."""
        self._look()
        return self._computed / self._seconds if self._seconds >= LEAST_SECONDS else 0.0

    @contextmanager
    def prompt(self, tokens: int) -> Iterator[Callable[[int], None]]:
        """A prompt waits for its first token during the block. Yields a function to call when it
        comes.

        Call it with the number of computed tokens. A second call changes nothing.
        """
        self._look()
        self.tokens += tokens
        is_long = tokens >= MEASURED_TOKENS
        self._long += is_long
        is_left = True

        def begun(computed: int) -> None:
            nonlocal is_left
            if is_left:
                is_left = False
                self._look()
                self.tokens -= tokens
                self._long -= is_long
                if is_long:
                    self._computed += computed

        try:
            yield begun
        finally:
            begun(0)

    def _look(self) -> None:
        now = self._clock()
        passed, self._looked_at = now - self._looked_at, now
        fading = math.exp(-passed / MEMORY_SECONDS)
        self._computed *= fading
        self._seconds *= fading
        if self._long:
            self._seconds += MEMORY_SECONDS * (1 - fading)
