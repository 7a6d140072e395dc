"""How likely the tokens of an answer were."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token that the model could pick; `text` is empty for a part of a character."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token of an answer, and the likeliest in its place, the likeliest first."""

    chosen: Logprob
    top: tuple[Logprob, ...]


def from_vllm(positions: Sequence[Mapping[int, Any]], count: int) -> tuple[TokenLogprobs, ...]:
    """`count` of the likeliest at each position.

    vLLM gives the chosen token first, whatever its rank, and then the likeliest.
    """
    return tuple(_position(position, count) for position in positions)


def _position(position: Mapping[int, Any], count: int) -> TokenLogprobs:
    made = {
        token_id: Logprob(token_id, each.decoded_token or "", each.logprob)
        for token_id, each in position.items()
    }
    ranked = sorted(position, key=lambda token_id: position[token_id].rank)
    top = (made[token_id] for token_id in ranked if position[token_id].rank <= count)
    return TokenLogprobs(next(iter(made.values())), tuple(top))
