"""Continues an answer that another decoder began, as if this decoder had made it from its start.

Library: vLLM
Changes: nothing; it runs vLLM's own detokenizer for the whole answer, where vLLM runs one for the
    rest.
Why: vLLM treats tokens that another decoder made as part of the prompt. So the hook counts the
    answer's tokens against its limits, and makes its text. The bytes of a character may lie on both
    sides of the cut. A stop string may, too, and its possible beginning must wait.
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

# As many are turned into text in about a millisecond.
OFFLOAD_TOKENS = 64


class NotContinued(Exception):
    """The next token depends on more of the answer than its tokens."""


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
    """The new text and tokens; `stop_string` is the one that ends it here."""

    text: str
    token_ids: Sequence[int]
    stop_string: str | None


class Continuation:
    """The text of one answer, by vLLM's own detokenizer, from the first token on."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer

    @classmethod
    async def begin(
        cls, prompt: Prompt, parameters: "SamplingParams", tokenizer: "TokenizerLike | None"
    ) -> "Continuation":
        """At the cut; `parameters` are vLLM's for the whole answer.

        They are changed to those of the rest. Raises NotContinued.
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
        """The delta for the engine's next tokens, with the reason why they are its last."""
        detokenizer = self._detokenizer
        before = detokenizer.num_output_tokens()
        stop_string = detokenizer.update(list(token_ids), finish_reason == "stop")
        is_last = stop_string is not None or finish_reason is not None
        text = detokenizer.get_next_output_text(is_last, True)
        # None that the engine made behind a stop string.
        kept = token_ids[: detokenizer.num_output_tokens() - before]
        return Piece(text, kept, stop_string)


def _at_the_cut(
    prompt: Prompt, parameters: "SamplingParams", tokenizer: "TokenizerLike | None"
) -> Detokenizer:
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    # vLLM's own kind of request, so that whatever its detokenizer looks at is there.
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
    # The client has it.
    detokenizer.get_next_output_text(False, True)
    return detokenizer
