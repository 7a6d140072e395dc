"""vLLM's log-probabilities in the project's types."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pixtral_core.generation.logprobs import Logprob, TokenLogprobs

# The decoder converts this many tokens of a prompt at once, so that other streams get turns between
# the pieces.
PROMPT_PIECE = 256


def from_vllm(positions: Sequence[Mapping[int, Any]], count: int) -> tuple[TokenLogprobs, ...]:
    """The `count` likeliest tokens at each position.

    vLLM puts the chosen token first, even if it is not the likeliest, and then the likeliest
    tokens.
    """
    return tuple(_position(position, count) for position in positions)


def prompt_pieces(
    positions: Sequence[Mapping[int, Any] | None], count: int
) -> Iterator[tuple[TokenLogprobs, ...]]:
    """The `count` likeliest tokens at each position of a prompt, in pieces.

    A piece has PROMPT_PIECE positions. vLLM has None for the first token of a prompt.
    """
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
