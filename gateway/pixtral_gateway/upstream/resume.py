"""How far an answer has come, and whether another decoder can go on with it."""

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2

# What picks the next token by nothing but the tokens before it, wherever the prompt ends.
STATELESS = frozenset(
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
    }
)
# The same, where they have these values.
IDLE = {"n": 1, "seed": -1, "presence_penalty": 0.0, "frequency_penalty": 0.0}


def answers_of(sampling: chat_pb2.SamplingParams) -> int:
    """What a request takes of every limit: each of its answers runs as a request of its own."""
    return sampling.n or 1


def can_be_continued(sampling: chat_pb2.SamplingParams) -> bool:
    """Whether another decoder can go on with an answer as the one that began it would have.

    Not where the next token depends on what lies in the engine alone: the state of a grammar, of a
    seeded generator, or which tokens are the answer's own, for penalties that count these.
    """
    is_greedy = sampling.HasField("temperature") and sampling.temperature == 0
    return all(
        field.name in STATELESS
        or (field.name == "seed" and is_greedy)
        or (field.name in IDLE and IDLE[field.name] == value)
        for field, value in sampling.ListFields()
    )


class Progress:
    """What has been streamed of the answers to a request, over all decoders that it was sent to.

    Attributes:
        has_begun: the client has some of it.
    """

    __slots__ = ("_can_be_continued", "_made", "_request", "_unfinished", "has_begun")

    def __init__(self, request: decoder_pb2.GenerateRequest) -> None:
        self.has_begun = bool(request.generated_token_ids)
        self._request = request
        self._can_be_continued = can_be_continued(request.sampling)
        self._unfinished = answers_of(request.sampling)
        self._made: list[int] = []

    @property
    def is_whole(self) -> bool:
        return not self._unfinished

    def add(self, delta: chat_pb2.Choice) -> None:
        self.has_begun = True
        if self._can_be_continued:
            self._made.extend(delta.token_ids)
        if delta.finish_reason:
            self._unfinished -= 1

    def resume(self) -> bool:
        """Has the request ask for what is missing; False where nobody else can give it."""
        if self.has_begun and not self._can_be_continued:
            return False
        self._request.generated_token_ids.extend(self._made)
        self._made.clear()
        return True
