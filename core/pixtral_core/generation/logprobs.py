"""The log-probabilities of a completion's tokens, or of a prompt's."""

from dataclasses import dataclass

from pixtral.v1 import chat_pb2


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token that the model could pick; `text` is empty if the token is a part of a character.

    `logprob` is a natural logarithm. `rank` counts all tokens from the likeliest, which is 1.
    """

    token_id: int
    text: str
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token, and the likeliest tokens in its position, the likeliest first.

    `chosen` is None for the first token of a prompt, which has no token before it.
    """

    chosen: Logprob | None
    top: tuple[Logprob, ...]


def from_proto(token: chat_pb2.TokenLogprobs) -> TokenLogprobs:
    chosen = _from_proto(token.chosen) if token.HasField("chosen") else None
    return TokenLogprobs(chosen, tuple(map(_from_proto, token.top)))


def to_proto(token: TokenLogprobs) -> chat_pb2.TokenLogprobs:
    return chat_pb2.TokenLogprobs(
        chosen=None if token.chosen is None else _to_proto(token.chosen),
        top=map(_to_proto, token.top),
    )


def _from_proto(each: chat_pb2.Logprob) -> Logprob:
    return Logprob(each.token_id, each.text, each.logprob, each.rank)


def _to_proto(each: Logprob) -> chat_pb2.Logprob:
    return chat_pb2.Logprob(
        token_id=each.token_id, text=each.text, logprob=each.logprob, rank=each.rank
    )
