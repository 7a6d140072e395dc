"""Lets a reasoning model think before its structured output begins.

Library: vLLM
Changes: StructuredOutputManager._create_grammar wraps the grammar of an answer that may begin with
    [THINK]: that token may come first, then anything until [/THINK], and then only what the grammar
    allows.
Why: a grammar that applies from the first token on keeps a reasoning model from thinking. vLLM's
    own solution is a reasoning parser for the whole engine. It does not apply the grammar to an
    answer without a thought, and mistakes a [/THINK] in a system prompt for the end of the answer's
    thought.
Upstream: none known
Versions: vLLM 0.32.0 (of 0.25.1 and 0.33.0, the names alone)
"""

from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol

from pixtral_core.hooks import Touch, check_touches

if TYPE_CHECKING:
    from vllm.v1.structured_output import StructuredOutputManager

_MANAGER = "vllm.v1.structured_output"
_GRAMMAR = "vllm.v1.structured_output.backend_types"
_METHODS = (
    "accept_tokens",
    "validate_tokens",
    "rollback",
    "fill_bitmask",
    "is_terminated",
    "reset",
)
TOUCHES = (
    Touch(
        _MANAGER,
        "StructuredOutputManager._create_grammar",
        parameters=("request",),
        mentions=("compile_grammar", "structured_output_request"),
    ),
    Touch(_MANAGER, "StructuredOutputManager.__init__", mentions=("tokenizer",)),
    Touch(
        _MANAGER,
        "StructuredOutputManager._fill_bitmasks",
        mentions=("is_terminated", "fill_bitmask"),
    ),
    Touch("vllm.v1.request", "Request.__init__", mentions=("prompt_token_ids",)),
    Touch("vllm.tokenizers.mistral", "MistralTokenizer.__init__", mentions=("tokenizer",)),
    Touch(
        "mistral_common.tokens.tokenizers.tekken",
        "Tekkenizer.get_special_token",
        parameters=("s",),
    ),
    *(Touch(_GRAMMAR, f"StructuredOutputGrammar.{method}") for method in _METHODS),
)

_THINK, _END_THINK = "[THINK]", "[/THINK]"
# An answer begins after one of these tokens.
_TURN_ENDS = ("[/INST]", "[/TOOL_RESULTS]", "[/SYSTEM_PROMPT]")
_WORD = 32


class Grammar(Protocol):
    """The methods of vLLM's StructuredOutputGrammar that this hook uses."""

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool: ...

    def validate_tokens(self, tokens: list[int]) -> list[int]: ...

    def rollback(self, num_tokens: int) -> None: ...

    def fill_bitmask(self, bitmask: Any, batch_index: int) -> None: ...

    def is_terminated(self) -> bool: ...

    def reset(self) -> Any: ...


def check_upstream() -> None:
    """Raises HookBroken if vLLM or mistral_common has changed."""
    check_touches(__name__, TOUCHES)


def let_think() -> None:
    """Lets answers with a grammar begin with a thought, in this process from now on."""
    from vllm.v1.structured_output import StructuredOutputManager

    create = StructuredOutputManager._create_grammar
    if create.__module__ == __name__:
        return

    # `wraps` must not copy __module__, by which the line above distinguishes this function from
    # vLLM's.
    @wraps(create, assigned=("__name__", "__qualname__", "__doc__"))
    def create_with_thought(manager: "StructuredOutputManager", request: Any) -> Any:
        grammar = create(manager, request)
        ids = _control_ids(manager.tokenizer)
        begin, end = ids.get(_THINK), ids.get(_END_THINK)
        if begin is None or end is None:
            return grammar
        prompt = request.prompt_token_ids or []
        is_thinking = _is_within_thought(prompt, begin, end, ids["</s>"])
        may_think = bool(prompt) and prompt[-1] in {ids[name] for name in _TURN_ENDS if name in ids}
        if not (is_thinking or may_think):
            return grammar
        return ThinkingGrammar(grammar, begin, end, is_thinking=is_thinking)

    StructuredOutputManager._create_grammar = create_with_thought  # type: ignore[assignment, method-assign]


class ThinkingGrammar:
    """Wraps a grammar of vLLM so that an optional thought may come before it."""

    def __init__(self, grammar: Grammar, begin: int, end: int, *, is_thinking: bool) -> None:
        """`begin` and `end` are the tokens around a thought.

        `is_thinking` means that the prompt ends within a thought.
        """
        self._grammar = grammar
        self._begin = begin
        self._end = end
        self._begins_thinking = is_thinking
        # The tokens of the thought, and the number of tokens after it, which the grammar has taken.
        self._thought: list[int] = []
        self._taken = 0

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        said = self._think(tokens)
        if not said:
            return True
        self._taken += len(said)
        return self._grammar.accept_tokens(request_id, said)

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        before = len(self._thought)
        said = self._think(tokens)
        thought = tokens[: len(tokens) - len(said)]
        del self._thought[before:]
        return thought + (self._grammar.validate_tokens(said) if said else [])

    def rollback(self, num_tokens: int) -> None:
        said = min(num_tokens, self._taken)
        if said:
            self._grammar.rollback(said)
            self._taken -= said
        if thought := num_tokens - said:
            del self._thought[-thought:]

    def fill_bitmask(self, bitmask: Any, batch_index: int) -> None:
        if self._is_thinking:
            bitmask[batch_index].fill_(-1)
            return
        self._grammar.fill_bitmask(bitmask, batch_index)
        if not self._thought and not self._taken and not self._begins_thinking:
            word, bit = divmod(self._begin, _WORD)
            mask = 1 << bit
            bitmask[batch_index, word] |= mask - (1 << _WORD) if bit == _WORD - 1 else mask

    def is_terminated(self) -> bool:
        return not self._is_thinking and self._grammar.is_terminated()

    def reset(self) -> None:
        self._grammar.reset()
        self._thought, self._taken = [], 0

    @property
    def _is_thinking(self) -> bool:
        if self._thought:
            return self._thought[-1] != self._end
        return self._begins_thinking and not self._taken

    def _think(self, tokens: list[int]) -> list[int]:
        """Consumes the thought, and returns the remaining tokens."""
        if self._taken:
            return tokens
        for i, token in enumerate(tokens):
            is_first = not self._thought and not self._begins_thinking
            if not self._is_thinking and not (is_first and token == self._begin):
                return tokens[i:]
            self._thought.append(token)
        return []

    # `mask_time` stores the time of a grammar in an attribute of it. The scheduler reads the
    # attribute from this object.
    def __getattr__(self, name: str) -> Any:
        return getattr(self._grammar, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            setattr(self._grammar, name, value)


def _control_ids(tokenizer: Any) -> dict[str, int]:
    """The ids of the control tokens by name; empty for a tokenizer without thoughts."""
    if not getattr(tokenizer, "is_tekken", False):
        return {}
    tekken = tokenizer.tokenizer
    if not tekken.is_special(_THINK):
        return {}
    names = (_THINK, _END_THINK, "</s>", *_TURN_ENDS)
    return {name: tekken.get_special_token(name) for name in names if tekken.is_special(name)}


def _is_within_thought(prompt: list[int], begin: int, end: int, end_of_turn: int) -> bool:
    """Whether the prompt ends with the beginning of an answer that is still thinking."""
    for token in reversed(prompt):
        if token in (end, end_of_turn):
            return False
        if token == begin:
            return True
    return False
