"""Goes on with an answer that another decoder began, as if it had been made here from its start.

To vLLM what was made elsewhere is prompt. So the two things that it keeps of an answer are kept
here: how much of it there may be, and its text. A character may have its first bytes on one side of
the cut and its last on the other, and so may a stop string, for whose sake text is held back.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from pixtral_decoder.request import Prompt

# As many are turned into text in about a millisecond.
OFFLOAD_TOKENS = 64


class NotContinued(Exception):
    """The next token depends on more of the answer than its tokens."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of the text and of the tokens; `is_stopped` where a stop string has come."""

    text: str
    token_ids: Sequence[int]
    is_stopped: bool


class Continuation:
    """The text of one answer, by vLLM's own detokenizer, from the first token on."""

    def __init__(self, detokenizer: Any) -> None:
        self._detokenizer = detokenizer

    @classmethod
    async def begin(cls, prompt: Prompt, parameters: Any, tokenizer: Any) -> "Continuation":
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
        """What comes of the engine's next tokens, with the reason why they are its last."""
        detokenizer = self._detokenizer
        before = detokenizer.num_output_tokens()
        is_stopped = bool(detokenizer.update(list(token_ids), finish_reason == "stop"))
        text = detokenizer.get_next_output_text(is_stopped or finish_reason is not None, True)
        # None that the engine made behind a stop string.
        kept = token_ids[: detokenizer.num_output_tokens() - before]
        return Piece(text, kept, is_stopped)


def _at_the_cut(prompt: Prompt, parameters: Any, tokenizer: Any) -> Any:
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    request: Any = SimpleNamespace(
        request_id=prompt.request_id,
        prompt_token_ids=prompt.token_ids,
        prompt_embeds=None,
        sampling_params=parameters,
    )
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
    for token_id in prompt.generated:
        detokenizer.update([token_id], False)
    # The client has it.
    detokenizer.get_next_output_text(False, True)
    return detokenizer
