"""Counts the prompt tokens that the engine has to compute, and how many it computes in a second."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

# A prompt with fewer tokens to compute waits for a step rather than for its own computation, and
# says nothing of the rate.
MEASURED_TOKENS: Final = 512
# A sample of this age counts a third of a new one.
MEMORY_SECONDS: Final = 30.0
# With less than this of work to go by, a rate is not known.
LEAST_SECONDS: Final = 0.1


class PromptWork:
    """The prompts that have no first token yet.

    The rate is that of the time in which a long prompt waited or was computed. It is forgotten when
    the decoder has had no long prompt for a while, so that one slow moment is not held against it
    for ever.

    Attributes:
        tokens: that the engine is expected to compute for them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.tokens = 0
        self._clock = clock
        self._looked_at = clock()
        self._long = 0
        # Tokens of long prompts that were computed, and the time that it took; the past fades.
        self._computed = self._seconds = 0.0

    @property
    def tokens_per_second(self) -> float:
        """0 where nothing was seen lately."""
        self._look()
        return self._computed / self._seconds if self._seconds >= LEAST_SECONDS else 0.0

    @contextmanager
    def prompt(self, tokens: int) -> Iterator[Callable[[int], None]]:
        """While a prompt waits for its first token; gives what is to be called then.

        It is called with the tokens that were computed, and may be called again to no effect.
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
