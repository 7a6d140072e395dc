"""How far a completion has come, and whether another decoder can go on with it."""

from array import array
from dataclasses import fields
from typing import Final

from pixtral_core.generation.sampling import Sampling
from pixtral_gateway.request import Delta

# They choose the next token by the tokens before it alone, wherever the prompt ends.
STATELESS: Final = frozenset(
    {
        "max_tokens",
        "min_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "logit_bias",
        "allowed_token_ids",
        "include_stop_str_in_output",
    }
)
# The others, with values that change nothing.
IDLE: Final = {"seed": -1, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_DEFAULTS: Final = Sampling()


def can_be_continued(sampling: Sampling) -> bool:
    """Whether another decoder can go on with a completion as the one that began it would have.

    It cannot where the next token depends on state that the engine alone has: of a grammar, of a
    seeded generator, or of penalties, which count the completion's own tokens.
    """
    is_greedy = sampling.temperature == 0
    return all(
        name in STATELESS
        or (name == "seed" and is_greedy)
        or (name in IDLE and IDLE[name] == value)
        for name, value in _given(sampling)
    )


class Progress:
    """The deltas of a request's choices so far, from all decoders that it was sent to.

    `made` are token ids that the next decoder goes on from. `has_begun`: the client has some of it.
    """

    __slots__ = ("_can_be_continued", "_new", "_unfinished", "has_begun", "made")

    def __init__(self, sampling: Sampling) -> None:
        self.has_begun = False
        self.made = array("I")
        self._can_be_continued = can_be_continued(sampling)
        self._unfinished = sampling.n
        self._new = array("I")

    @property
    def is_whole(self) -> bool:
        return not self._unfinished

    def add(self, delta: Delta) -> None:
        self.has_begun = True
        if self._can_be_continued:
            self._new.extend(delta.token_ids)
        if delta.finish_reason:
            self._unfinished -= 1

    def resume(self) -> bool:
        """Whether another decoder can make what is missing; if so, `made` is complete."""
        if self.has_begun and not self._can_be_continued:
            return False
        self.made.extend(self._new)
        del self._new[:]
        return True


def _given(sampling: Sampling) -> list[tuple[str, object]]:
    """The parameters that a request sets."""
    names = (each.name for each in fields(Sampling))
    return [
        (name, value)
        for name in names
        if (value := getattr(sampling, name)) != getattr(_DEFAULTS, name)
    ]
