"""Tracks the progress of a completion, and whether another decoder can continue it."""

from array import array
from dataclasses import fields
from typing import Final

from pixtral_core.generation.sampling import Sampling
from pixtral_gateway.request import Delta

# With these parameters the next token depends on the tokens before it alone, wherever the prompt
# ends.
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
# Other parameters, each with the value that has no effect.
IDLE: Final = {"seed": -1, "presence_penalty": 0.0, "frequency_penalty": 0.0}
# The parameters that are not in STATELESS, with their defaults.
_STATEFUL: Final = tuple(
    (each.name, getattr(Sampling(), each.name))
    for each in fields(Sampling)
    if each.name not in STATELESS
)


def can_be_continued(sampling: Sampling) -> bool:
    """Whether another decoder can continue a completion exactly as the first one would have.

    It cannot if the next token depends on state that only the first engine has: the state of a
    grammar or of a seeded generator, or the counts of the completion's own tokens for penalties.
    """
    is_greedy = sampling.temperature == 0
    return all(
        (value := getattr(sampling, name)) == default
        or (name == "seed" and is_greedy)
        or (name in IDLE and IDLE[name] == value)
        for name, default in _STATEFUL
    )


class Progress:
    """The deltas of a request's choices so far, from all decoders.

    `made` are the token ids from which the next decoder continues. `has_begun` means that the
    client has got a delta.
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
        """Whether another decoder can make the missing part; if so, `made` is complete."""
        if self.has_begun and not self._can_be_continued:
            return False
        self.made.extend(self._new)
        del self._new[:]
        return True
