"""Counts the prompt tokens that the engine has to compute, and how many it computes in a second."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

# A prompt with fewer new tokens mostly waits for the next step of the engine, and little for its
# own computation. So its time says nothing about the rate.
MEASURED_TOKENS: Final = 512
# A sample of this age counts a third as much as a new one.
MEMORY_SECONDS: Final = 30.0
# If the samples cover less time than this, the rate is unknown.
LEAST_SECONDS: Final = 0.1


class PromptWork:
    """The prompts that wait for their first token.

    This class measures the rate while a long prompt waits or the engine computes it. After a while
    without long prompts it forgets the rate, so that one slow moment does not count forever.

    Attributes:
        tokens: tokens that the engine probably has to compute for these prompts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.tokens = 0
        self._clock = clock
        self._looked_at = clock()
        self._long = 0
        # The computed tokens of long prompts, and the seconds that they took. Old samples fade.
        self._computed = self._seconds = 0.0

    @property
    def tokens_per_second(self) -> float:
        """The measured rate, or 0 without recent samples."""
        self._look()
        return self._computed / self._seconds if self._seconds >= LEAST_SECONDS else 0.0

    @contextmanager
    def prompt(self, tokens: int) -> Iterator[Callable[[int], None]]:
        """Counts a prompt as waiting for its first token during the block.

        Yields a function. Call the function when the first token comes, with the number of prompt
        tokens that the engine has computed. A second call changes nothing.
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
