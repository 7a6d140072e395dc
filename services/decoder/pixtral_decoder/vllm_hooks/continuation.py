"""Continues an answer that another decoder began, as if this decoder had made all of it.

Library: vLLM
Changes: nothing; it runs vLLM's own detokenizer for the whole answer, while vLLM would run it only
    for the new tokens.
Why: vLLM treats tokens that another decoder made as part of the prompt. So the hook subtracts them
    from the answer's limits, and makes the answer's text. A character or a stop string may begin
    before the cut and end after it, and the hook keeps the possible beginning of a stop string
    back.
Upstream: none known
Versions: vLLM 0.25.1 to 0.33.0
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pixtral_core.hooks import Touch, check_touches
from pixtral_decoder.request import Prompt

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.tokenizers import TokenizerLike

_DETOKENIZER = "vllm.v1.engine.detokenizer"
TOUCHES = (
    Touch(
        _DETOKENIZER,
        "IncrementalDetokenizer.from_new_request",
        parameters=("tokenizer", "request"),
    ),
    Touch(
        _DETOKENIZER,
        "BaseIncrementalDetokenizer.update",
        parameters=("new_token_ids", "stop_terminated"),
    ),
    Touch(
        _DETOKENIZER,
        "BaseIncrementalDetokenizer.get_next_output_text",
        parameters=("finished", "delta"),
    ),
    Touch(_DETOKENIZER, "SlowIncrementalDetokenizer.num_output_tokens"),
    Touch(
        "vllm.v1.engine",
        "EngineCoreRequest",
        parameters=("request_id", "prompt_token_ids", "sampling_params"),
    ),
)

# The conversion of this many tokens to text takes about a millisecond. More go to a thread.
OFFLOAD_TOKENS = 64


class NotContinued(Exception):
    """The answer has a parameter with which its tokens alone do not determine the next token."""


class Detokenizer(Protocol):
    """The part of vLLM's IncrementalDetokenizer that this hook touches."""

    def num_output_tokens(self) -> int: ...

    def update(self, new_token_ids: list[int], stop_terminated: bool) -> str | None: ...

    def get_next_output_text(self, finished: bool, delta: bool) -> str: ...


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


@dataclass(frozen=True, slots=True)
class Piece:
    """New text and tokens of an answer.

    `stop_string` is the stop string that ends the answer with this piece, or None.
    """

    text: str
    token_ids: Sequence[int]
    stop_string: str | None


class Continuation:
    """Makes the text of one answer with vLLM's own detokenizer, from the first token on."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer

    @classmethod
    async def begin(
        cls, prompt: Prompt, parameters: "SamplingParams", tokenizer: "TokenizerLike | None"
    ) -> "Continuation":
        """The continuation after `prompt.generated`.

        `parameters` are vLLM's parameters for the whole answer. This method changes them to those
        of the rest. Raises NotContinued.
        """
        if parameters.presence_penalty or parameters.frequency_penalty or parameters.bad_words:
            raise NotContinued
        if len(prompt.generated) > OFFLOAD_TOKENS:
            detokenizer = await asyncio.to_thread(_at_the_cut, prompt, parameters, tokenizer)
        else:
            detokenizer = _at_the_cut(prompt, parameters, tokenizer)
        made = len(prompt.generated)
        if parameters.max_tokens is not None:
            parameters.max_tokens = max(parameters.max_tokens - made, 1)
        parameters.min_tokens = max(parameters.min_tokens - made, 0)
        parameters.stop = []
        parameters.detokenize = False
        return cls(detokenizer)

    def add(self, token_ids: Sequence[int], finish_reason: str | None) -> Piece:
        """The text and tokens to return for the engine's next tokens.

        `finish_reason` is vLLM's reason if these tokens are the last.
        """
        detokenizer = self._detokenizer
        before = detokenizer.num_output_tokens()
        stop_string = detokenizer.update(list(token_ids), finish_reason == "stop")
        is_last = stop_string is not None or finish_reason is not None
        text = detokenizer.get_next_output_text(is_last, True)
        # The tokens after a stop string are not part of the answer.
        kept = token_ids[: detokenizer.num_output_tokens() - before]
        return Piece(text, kept, stop_string)


def _at_the_cut(
    prompt: Prompt, parameters: "SamplingParams", tokenizer: "TokenizerLike | None"
) -> Detokenizer:
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    # A request of vLLM's own type has all attributes that the detokenizer reads.
    request = EngineCoreRequest(
        request_id=prompt.request_id,
        prompt_token_ids=list(prompt.token_ids),
        mm_features=None,
        sampling_params=parameters,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
    for token_id in prompt.generated:
        detokenizer.update([token_id], False)
    # The client already has this text.
    detokenizer.get_next_output_text(False, True)
    return detokenizer
