"""A conversation's turns as the messages that mistral_common validates and encodes."""

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import groupby, repeat

from mistral_common.protocol.instruct.chunk import ContentChunk, TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import (
    AssistantMessage,
    ChatMessage,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from mistral_common.protocol.instruct.tool_calls import FunctionCall
from mistral_common.protocol.instruct.tool_calls import ToolCall as MistralToolCall
from mistral_common.tokens.tokenizers.base import TokenizerVersion

from pixtral_core import limits
from pixtral_core.errors import InvalidRequest
from pixtral_core.model.vision_spec import Grid
from pixtral_gateway.checks.conversation import (
    Conversation,
    ImageSource,
    Part,
    Role,
    Thinking,
    ToolCall,
    Turn,
)
from pixtral_gateway.checks.structured_output import check_depth
from pixtral_gateway.prompt.image_placeholders import chunk_of

# mistral_common accepts no assistant message without text, but strips spaces at its end. The
# end-of-sequence token alone is left, which is all that the model wrote.
NO_TEXT = " "
FIRST_WITH_IMAGES_IN_RESULTS = TokenizerVersion.v15

_ID_LENGTH = 9
_MISTRAL_ID = re.compile(f"[a-zA-Z0-9]{{{_ID_LENGTH}}}")
_ANY_GRID = Grid(1, 1)


def messages_of(
    conversation: Conversation,
    version: TokenizerVersion,
    grids: Sequence[Grid] | None = None,
    *,
    thinks: bool = False,
) -> list[ChatMessage]:
    """A message for each turn. Images have `grids`; if it is None, each image has a grid of one
    token.

    Clients can send back every answer of the model. Before version 7 mistral_common takes no text
    beside tool calls, so an assistant's text before its tool calls is left out. An empty answer
    becomes the end-of-sequence token. A thought is left out if the model does not think: another
    model may have given that answer. Raises InvalidRequest for JSON that mistral_common cannot
    read, for thinking in a system message if the template has none there, and for an image in a
    tool's result before version 15.
    """
    maker = _Maker(conversation, version, grids, thinks=thinks)
    made: list[ChatMessage] = []
    for role, run in groupby(enumerate(conversation.turns), key=lambda each: each[1].role):
        if role is Role.ASSISTANT:
            made += maker.assistants(list(run))
        else:
            made += [maker.message(i, turn) for i, turn in run]
    if conversation.goes_on and isinstance(made[-1], AssistantMessage):
        made[-1].prefix = True
    return made


class _Maker:
    def __init__(
        self,
        conversation: Conversation,
        version: TokenizerVersion,
        grids: Sequence[Grid] | None,
        *,
        thinks: bool,
    ) -> None:
        self._thinks = thinks
        self._has_settings = version.supports_model_settings
        self._is_before_v7 = version < TokenizerVersion.v7
        self._shows_results = version >= FIRST_WITH_IMAGES_IN_RESULTS
        self._grids = enumerate(repeat(_ANY_GRID) if grids is None else grids)
        self._ids = _mistral_ids(conversation.turns)

    def message(self, index: int, turn: Turn) -> ChatMessage:
        self._check_thinking(index, turn)
        content = [self._chunk(part) for part in turn.parts]
        match turn.role:
            case Role.SYSTEM:
                return SystemMessage(content=content)
            case Role.USER:
                return UserMessage(content=content)
            case Role.TOOL:
                self._check_images(index, turn)
                if self._is_before_v7:
                    _check_readable(_joined(turn), f"messages[{index}].content")
                return ToolMessage(content=content, tool_call_id=self._ids.get(turn.call_id))
            case Role.ASSISTANT:
                raise AssertionError("assistants come in runs")

    def assistants(self, run: Sequence[tuple[int, Turn]]) -> list[ChatMessage]:
        """The messages of consecutive assistant turns, which mistral_common joins."""
        parts = [
            tuple(part for part in turn.parts if self._thinks or not isinstance(part, Thinking))
            for _, turn in run
        ]
        calling = [i for i, (_, turn) in enumerate(run) if turn.calls]
        if calling and self._is_before_v7:
            for i in (*range(calling[0]), *calling):
                parts[i] = ()
        elif not calling and not any(map(any, parts)):
            parts[0] = (NO_TEXT,)
        return [
            self._assistant(index, turn, said)
            for (index, turn), said in zip(run, parts, strict=True)
        ]

    def _assistant(self, index: int, turn: Turn, parts: Sequence[Part]) -> AssistantMessage:
        content = [self._chunk(part) for part in parts if part]
        if not content and not turn.calls:
            # mistral_common accepts an empty text beside other messages' text, but no missing
            # content.
            content = [TextChunk(text="")]
        calls = [
            self._call(call, f"messages[{index}].tool_calls[{k}]")
            for k, call in enumerate(turn.calls)
        ]
        return AssistantMessage(content=content, tool_calls=calls or None)

    def _call(self, call: ToolCall, path: str) -> MistralToolCall:
        _check_readable(call.arguments, f"{path}.arguments")
        function = FunctionCall(name=call.name, arguments=call.arguments)
        return MistralToolCall(id=self._ids[call.id], function=function)

    def _check_thinking(self, index: int, turn: Turn) -> None:
        for k, part in enumerate(turn.parts):
            if isinstance(part, Thinking) and (self._has_settings or not self._thinks):
                raise InvalidRequest(
                    f"messages[{index}].content[{k}]",
                    "this model's template has no thinking in a system message: "
                    + ("set reasoning_effort" if self._thinks else "leave it out"),
                )

    def _check_images(self, index: int, turn: Turn) -> None:
        for k, part in enumerate(turn.parts):
            if isinstance(part, ImageSource) and not self._shows_results:
                raise InvalidRequest(
                    f"messages[{index}].content[{k}]",
                    "this model's template has no images in a tool message: send the image in a "
                    "user message after it",
                )

    def _chunk(self, part: Part) -> ContentChunk:
        if isinstance(part, str):
            return TextChunk(text=part)
        if isinstance(part, Thinking):
            return ThinkChunk(thinking=part.text, closed=part.is_closed)
        number, grid = next(self._grids)
        return chunk_of(grid, number)


def _mistral_ids(turns: Sequence[Turn]) -> dict[str, str]:
    """The text in the prompt for the id of each tool call.

    An id in Mistral's form stays as it is. For a longer id, vLLM's prompts have its last nine
    characters. If these are not in Mistral's form, or stand for another id, a digest replaces the
    id.
    """
    stands: dict[str, str] = {}
    taken: set[str] = set()
    given = [call.id for turn in turns for call in turn.calls]
    given += [turn.call_id for turn in turns if turn.role is Role.TOOL]
    # The ids in Mistral's form come first, so that no other id gets their text.
    for call_id in sorted(set(given), key=lambda each: (len(each) != _ID_LENGTH, each)):
        end = call_id[-_ID_LENGTH:]
        if not _MISTRAL_ID.fullmatch(end) or end in taken:
            digest = hashlib.sha256(call_id.encode("utf-8", "surrogatepass"))
            end = digest.hexdigest()[:_ID_LENGTH]
        stands[call_id] = end
        taken.add(end)
    return stands


def _joined(turn: Turn) -> str:
    """A tool's result as mistral_common reads it."""
    return "\n\n".join(part for part in turn.parts if part and isinstance(part, str))


def _check_readable(text: str, path: str) -> None:
    """mistral_common parses a text that is JSON and writes it again. Raises InvalidRequest if it
    cannot."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return
    except (ValueError, RecursionError):
        pass
    else:
        check_depth(value, path, limits.ARGUMENTS_DEPTH)
        return
    raise InvalidRequest(path, f"JSON must have {limits.ARGUMENTS_DEPTH}, and no very long number")
