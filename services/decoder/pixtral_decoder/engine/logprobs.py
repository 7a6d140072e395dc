"""How likely the tokens of an answer, or of a prompt, were."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token that the model could pick; `text` is empty for a part of a character.

    `rank` is among all tokens, from the likeliest, which is 1.
    """

    token_id: int
    text: str
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token, and the likeliest in its place, the likeliest first.

    `chosen` is None for the first token of a prompt, which nothing comes before.
    """

    chosen: Logprob | None
    top: tuple[Logprob, ...]


# Of a prompt's tokens at once, so that other streams have their turn between.
PROMPT_PIECE = 256


def from_vllm(positions: Sequence[Mapping[int, Any]], count: int) -> tuple[TokenLogprobs, ...]:
    """`count` of the likeliest at each position.

    vLLM gives the chosen token first, whatever its rank, and then the likeliest.
    """
    return tuple(_position(position, count) for position in positions)


def prompt_pieces(
    positions: Sequence[Mapping[int, Any] | None], count: int
) -> Iterator[tuple[TokenLogprobs, ...]]:
    """The same of a prompt, whose first token vLLM has None for."""
    for begin in range(0, len(positions), PROMPT_PIECE):
        yield tuple(
            TokenLogprobs(None, ()) if position is None else _position(position, count)
            for position in positions[begin : begin + PROMPT_PIECE]
        )


def _position(position: Mapping[int, Any], count: int) -> TokenLogprobs:
    made = {
        token_id: Logprob(token_id, each.decoded_token or "", each.logprob, each.rank)
        for token_id, each in position.items()
    }
    ranked = sorted(position, key=lambda token_id: position[token_id].rank)
    top = (made[token_id] for token_id in ranked if position[token_id].rank <= count)
    return TokenLogprobs(next(iter(made.values())), tuple(top))
