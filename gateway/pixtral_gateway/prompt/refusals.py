"""Explains in plain words, with a field's path, why mistral_common refuses a conversation."""

from bisect import bisect_left
from collections.abc import Sequence

from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.chunk import TextChunk
from mistral_common.protocol.instruct.messages import (
    AssistantMessage,
    ChatMessage,
    SystemMessage,
    ToolMessage,
)
from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
from mistral_common.tokens.tokenizers.base import TokenizerVersion

from pixtral_core.errors import InvalidRequest

_ONLY = "a conversation's only message must be a user or system message"
_LAST = (
    "the last message must be a user, tool or system message; to have an assistant message "
    "continued, set continue_final_message"
)
_SYSTEM = (
    "a system message must come first, or after a user or system message; put it before the user "
    "message that it is about"
)
_TOOL = (
    "a tool message must come after an assistant message with tool_calls, or another tool message"
)
_RESULT = "must be the id of a call of the preceding assistant message that has no result yet"
_CALL_ID = "another call of this message has this id"
_UNANSWERED = "each call must have its result, a tool message, before the assistant goes on"
_SURPLUS = "there are more tool messages than calls in the assistant message before them"
_TEXT_AFTER_CALLS = (
    "this model's template has no text after an assistant's tool calls: leave it out"
)
_OTHER = "the model's template does not take this message here"


class MessageCheck:
    """mistral_common's own validation of messages, in the mode that vLLM uses."""

    def __init__(self, version: TokenizerVersion) -> None:
        self._validator = get_validator(version, ValidationMode.test)
        # The same checks, except that any message may be the last.
        self._of_beginnings = get_validator(version, ValidationMode.agnostic)
        self._has_text_beside_calls = version >= TokenizerVersion.v7

    def check(self, messages: list[ChatMessage]) -> None:
        """Raises InvalidRequest for messages that mistral_common refuses."""
        try:
            self._validator.validate_messages(messages)
        except MistralCommonException:
            at, field, wrong = self._explained(messages)
        else:
            found = None if self._has_text_beside_calls else _text_after_calls(messages)
            if found is None:
                return
            at, field, wrong = found, ".content", _TEXT_AFTER_CALLS
        raise InvalidRequest(f"messages[{at}]{field}", wrong)

    def _explained(self, messages: Sequence[ChatMessage]) -> tuple[int, str, str]:
        """The index of the message at fault, its field, and what is wrong with it."""
        if len(messages) == 1:
            return 0, ".role", _ONLY
        # If a beginning is refused, every longer beginning is refused, too, so bisection finds the
        # first.
        counts = range(2, len(messages) + 1)
        at = bisect_left(counts, True, key=lambda count: self._is_refused(messages[:count])) + 1
        if at == len(messages):
            if getattr(messages[-1], "tool_calls", None):
                return at - 1, ".tool_calls", _UNANSWERED
            return at - 1, ".role", _LAST
        match messages[at]:
            case SystemMessage():
                return at, ".role", _SYSTEM
            case ToolMessage():
                before = messages[at - 1]
                if isinstance(before, AssistantMessage | ToolMessage):
                    return at, ".tool_call_id", _RESULT
                return at, ".role", _TOOL
            case AssistantMessage(tool_calls=calls):
                return _explained_assistant(messages, at, [call.id for call in calls or ()])
        return at, "", _OTHER

    def _is_refused(self, messages: Sequence[ChatMessage]) -> bool:
        try:
            self._of_beginnings.validate_messages(list(messages))
        except MistralCommonException:
            return True
        return False


def _text_after_calls(messages: Sequence[ChatMessage]) -> int | None:
    """The index of an assistant message whose text mistral_common would join to calls before it.

    mistral_common's validator accepts such a message if the calls are the first of the
    conversation, but its tokenizer then fails.
    """
    has_called = False
    for at, message in enumerate(messages):
        match message:
            case AssistantMessage(tool_calls=None, content=content) if has_called:
                if any(isinstance(chunk, TextChunk) and chunk.text for chunk in content or ()):
                    return at
            case AssistantMessage(tool_calls=calls):
                has_called |= calls is not None
            case _:
                has_called = False
    return None


def _explained_assistant(
    messages: Sequence[ChatMessage], at: int, ids: Sequence[str]
) -> tuple[int, str, str]:
    """Like `MessageCheck._explained`, for an assistant message whose calls have these ids."""
    again = next((k for k, call_id in enumerate(ids) if call_id in ids[:k]), None)
    if again is not None:
        return at, f".tool_calls[{again}].id", _CALL_ID
    before = range(at - 1, -1, -1)
    asking = next((i for i in before if isinstance(messages[i], AssistantMessage)), 0)
    calls = getattr(messages[asking], "tool_calls", None) or ()
    results = [i for i in range(asking, at) if isinstance(messages[i], ToolMessage)]
    if len(results) < len(calls):
        return asking, ".tool_calls", _UNANSWERED
    return (*results[len(calls) :], at)[0], ".role", _SURPLUS
