"""The form in which a checkpoint's models call tools.

The gateway, and not the decoder, parses this form: the gateway has the tokenizer's control tokens
and the request's tools, and an answer passes through it even if another decoder continues the
answer.
"""

import codecs
import json
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mistral_common.tokens.tokenizers.base import (
    InstructTokenizer,
    SpecialTokenPolicy,
)
from mistral_common.tokens.tokenizers.instruct import InstructTokenizerV3, InstructTokenizerV11
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from pixtral_core import limits
from pixtral_core.errors import InvalidRequest
from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput
from pixtral_core.model.sentencepiece import piece_bytes
from pixtral_core.model.vision_spec import BadCheckpoint
from pixtral_gateway.checks.conversation import Tool, Tools
from pixtral_gateway.checks.tools import check_forced
from pixtral_gateway.prompt.tool_parser import CallReader, Marker
from pixtral_gateway.request import Delta, FinishReason, ToolCallDelta

# The words with which a decoder names one of several schemas.
_SCHEMA_OF_A_GRAMMAR = re.compile(r"^schema ([0-9]+) of the grammar: ")
_THINKING = (Marker.THINK, Marker.END_THINK)

# The schema of the arguments of a function without parameters.
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
# The values of the keywords in _NAMED contain schemas by name, and those of _PLAIN contain none.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_PLAIN = ("const", "default", "enum", "example", "examples")


class ToolFormat:
    """How a checkpoint's models call tools. Any thread may use it."""

    def __init__(self, instruct: InstructTokenizer[Any, Any, Any]) -> None:
        """Raises BadCheckpoint for a tokenizer older than Pixtral."""
        tokenizer = instruct.tokenizer
        if not isinstance(instruct, InstructTokenizerV3) or not isinstance(
            tokenizer, Tekkenizer | SentencePieceTokenizer
        ):
            raise BadCheckpoint("this version of the tokenizer has no images and tool calls")
        self._tokenizer = tokenizer
        self._markers = {int(instruct.TOOL_CALLS): Marker.CALLS}
        self._is_named = isinstance(instruct, InstructTokenizerV11)
        if isinstance(instruct, InstructTokenizerV11):
            self._markers[int(instruct.ARGS)] = Marker.ARGS
            self._markers[int(instruct.CALL_ID)] = Marker.CALL_ID
        self.thinks = all(tokenizer.is_special(each.value) for each in _THINKING)
        if self.thinks:
            for each in _THINKING:
                self._markers[tokenizer.get_special_token(each.value)] = each
        self._token_ids = {marker: token_id for token_id, marker in self._markers.items()}

    @property
    def thought_token_id(self) -> int | None:
        """The token that begins a thought."""
        return self._token_ids.get(Marker.THINK)

    def opening(self, tools: Tools) -> list[int]:
        """The tokens that end a prompt whose answer must begin with a tool call."""
        if not tools.forced:
            return []
        name = _only_name(tools) if self._is_named else None
        if name is None:
            return [self._token_ids[Marker.CALLS]]
        spelled = self._tokenizer.encode(name, False, False)
        return [self._token_ids[Marker.CALLS], *spelled, self._token_ids[Marker.ARGS]]

    def constrain(self, tools: Tools, sampling: Sampling) -> Sampling:
        """The parameters with which a choice, after `opening`, follows the tools' schemas.

        Raises InvalidRequest for parameters that exclude a structure.
        """
        if not tools.forced:
            return sampling
        check_forced(sampling)
        if self._is_named and _only_name(tools) is None:
            grammar = StructuredOutput(Structure.GRAMMAR, (_checked(_grammar(tools)),))
            return replace(sampling, structured_output=grammar)
        schema = _arguments(tools.forced[0]) if self._is_named else _list_schema(tools)
        # The JSON is on one line, as the model has learnt to write it.
        text = _checked(json.dumps(schema))
        one_line = StructuredOutput(Structure.JSON_SCHEMA, (text,), True)
        return replace(sampling, structured_output=one_line)

    def reader(self, tools: Tools, *, is_thinking: bool = False) -> "AnswerReader":
        """A reader of one completion's deltas, which may begin within a thought."""
        return AnswerReader(tools, lambda: self._choice(tools, is_thinking))

    def ends_within_thought(self, token_ids: Sequence[int]) -> bool:
        """Whether the text after a prompt is a thought until [/THINK] comes."""
        if not self.thinks:
            return False
        begin, end = (self._token_ids[each] for each in _THINKING)
        last = next((each for each in reversed(token_ids) if each in (begin, end)), end)
        return last == begin

    def _choice(self, tools: Tools, is_thinking: bool) -> "_Choice":
        thoughts = _Thoughts(self._token_ids, is_thinking=is_thinking) if self.thinks else None
        if not tools.forced:
            form = CallReader.named if self._is_named else CallReader.listed
            calls = CallReader(form) if tools.offered else None
            return _Choice(calls, self._marked(), thoughts, is_single=tools.is_single)
        # Control tokens are text in a forced tool call: see
        # `pixtral_decoder.engine.sampling_params`.
        if not self._is_named:
            reader = CallReader(CallReader.listed, has_begun=True)
        elif (name := _only_name(tools)) is None:
            reader = CallReader(CallReader.spelled, has_begun=True)
        else:
            reader = CallReader(lambda reader: reader.called(name), has_begun=True)
        return _Choice(reader, None, None, is_single=tools.is_single)

    def _marked(self) -> "MarkedText":
        # SentencePiece drops the space at the beginning of a text, but not after other text.
        loses_space = isinstance(self._tokenizer, SentencePieceTokenizer)
        return MarkedText(self._markers, self._bytes_of, loses_space=loses_space)

    def _bytes_of(self, token_id: int) -> bytes:
        if isinstance(self._tokenizer, SentencePieceTokenizer):
            if token_id >= self._tokenizer.n_words or self._tokenizer.is_special(token_id):
                return b""
            return piece_bytes(self._tokenizer.id_to_piece(token_id))
        try:
            return self._tokenizer.id_to_byte_piece(token_id, SpecialTokenPolicy.IGNORE)
        except KeyError:
            # The model has rows for more tokens than the vocabulary.
            return b""


class MarkedText:
    """An answer's text, with the control tokens at their positions in it.

    Text may come later than its tokens: a character waits for all of its bytes, and a possible stop
    string waits for the text after it. So a token's position is counted in characters, from the
    tokens before it. Some versions of vLLM also write some control tokens into the text; this class
    removes them there.
    """

    def __init__(
        self,
        markers: Mapping[int, Marker],
        bytes_of: Callable[[int], bytes],
        *,
        loses_space: bool = False,
    ) -> None:
        """With `loses_space`, the text may lack the space with which its first token begins."""
        self._may_lose_space = loses_space
        self._markers = markers
        self._bytes_of = bytes_of
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._spelled = 0
        self._told = 0
        self._ahead: deque[tuple[int, Marker]] = deque()
        self._held = ""
        self._due = ""

    def add(self, text: str, token_ids: Sequence[int]) -> list[str | Marker]:
        for token_id in token_ids:
            if marker := self._markers.get(token_id):
                self._spelled += len(self._characters.decode(b"", final=True))
                self._ahead.append((self._spelled, marker))
            else:
                spelled = self._characters.decode(self._bytes_of(token_id))
                if self._may_lose_space and spelled and text:
                    self._told += spelled[0] == " " != text[0]
                    self._may_lose_space = False
                self._spelled += len(spelled)
        text, self._held = self._held + text, ""
        marked: list[str | Marker] = []
        while True:
            if self._due.startswith(text) and self._due != text:
                self._held = text
                return marked
            text, self._due = text.removeprefix(self._due), ""
            place = self._ahead[0][0] if self._ahead else self._told + len(text)
            count = max(0, place - self._told)
            before, text = text[:count], text[count:]
            self._told += len(before)
            if before:
                marked.append(before)
            if not self._ahead or self._told < place:
                return marked
            marker = self._ahead.popleft()[1]
            marked.append(marker)
            self._due = marker.value

    def end(self) -> list[str | Marker]:
        """The text that was kept back because it could become a control token."""
        return [self._held] if self._held else []


class AnswerReader:
    """Moves tool calls and thoughts from the text of a completion's deltas to fields of their
    own."""

    def __init__(self, tools: Tools, choice: Callable[[], "_Choice"]) -> None:
        self._tools = tools
        self._choice = choice
        self._choices: dict[int, _Choice] = {}

    def read(self, delta: Delta) -> Delta:
        if delta.index not in self._choices:
            self._choices[delta.index] = self._choice()
        return self._choices[delta.index].read(delta)

    @property
    def reasoning_tokens(self) -> int:
        """The number of tokens in the thoughts of all choices so far."""
        return sum(choice.reasoning_tokens for choice in self._choices.values())

    def error(self, error: InvalidRequest) -> InvalidRequest:
        """The error with the name of the request's tool whose schema caused it."""
        if self._tools.forced and error.violations[0][0].startswith("sampling.structured_output"):
            why = error.violations[0][1]
            named = _SCHEMA_OF_A_GRAMMAR.match(why)
            # `_grammar` writes one schema for each tool.
            tool = "all tools" if named is None else self._tools.forced[int(named[1]) - 1].name
            why = why if named is None else why[named.end() :]
            return InvalidRequest("tools", f"the parameters of {tool}: {why}", error.reason)
        return error


class _Thoughts:
    """Separates an answer's thought from the rest, as vLLM does.

    A thought ends with [/THINK] or at a tool call, and has no white space at its end.
    """

    def __init__(self, token_ids: Mapping[Marker, int], *, is_thinking: bool) -> None:
        self.is_thinking = is_thinking
        self.tokens = 0
        self._begin = token_ids[Marker.THINK]
        self._ends = (token_ids[Marker.END_THINK], token_ids[Marker.CALLS])
        self._is_counting = is_thinking
        self._space = ""

    def count(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            if token_id == self._begin:
                self._is_counting = True
            elif token_id in self._ends:
                self._is_counting = False
            else:
                self.tokens += self._is_counting

    def take(self, part: str | Marker) -> tuple[str, str | Marker | None]:
        """Splits a part into thought and text."""
        if part in _THINKING:
            self.is_thinking, self._space = part is Marker.THINK, ""
            return "", None
        if not self.is_thinking:
            return "", part
        if part is Marker.CALLS:
            self.is_thinking, self._space = False, ""
            return "", part
        if isinstance(part, Marker):
            return "", None
        thought = self._space + part
        said = thought.rstrip()
        self._space = thought[len(said) :]
        return said, None


class _Choice:
    def __init__(
        self,
        reader: CallReader | None,
        marked: MarkedText | None,
        thoughts: _Thoughts | None,
        *,
        is_single: bool,
    ) -> None:
        """If `reader` is None, tool calls are text."""
        self._reader = reader
        self._marked = marked
        self._thoughts = thoughts
        self._is_single = is_single
        self._has_called = False

    @property
    def reasoning_tokens(self) -> int:
        return 0 if self._thoughts is None else self._thoughts.tokens

    def read(self, delta: Delta) -> Delta:
        marked: list[str | Marker] = [delta.text]
        if self._marked is not None:
            marked = self._marked.add(delta.text, delta.token_ids)
            if delta.finish_reason:
                marked += self._marked.end()
        reasoning, said = self._thought(delta, marked)
        found = [each for part in said for each in self._read(part)]
        if delta.finish_reason and self._reader is not None:
            # A forced tool call ends with its structure, so an incomplete one was cut off.
            is_cut = self._marked is None or delta.finish_reason is FinishReason.LENGTH
            found += self._reader.end(is_cut=is_cut)
        calls = self._joined([each for each in found if isinstance(each, ToolCallDelta)])
        self._has_called |= bool(calls)
        reason = delta.finish_reason
        if reason is FinishReason.STOP and self._has_called:
            reason = FinishReason.TOOL_CALLS
        text = "".join(each for each in found if isinstance(each, str))
        return replace(
            delta, text=text, reasoning=reasoning, tool_calls=calls, finish_reason=reason
        )

    def _thought(
        self, delta: Delta, marked: Sequence[str | Marker]
    ) -> tuple[str, Sequence[str | Marker]]:
        """Splits a delta's parts into the thought and the rest."""
        if self._thoughts is None:
            return "", marked
        self._thoughts.count(delta.token_ids)
        taken = [self._thoughts.take(part) for part in marked]
        return "".join(thought for thought, _ in taken), [
            part for _, part in taken if part is not None
        ]

    def _read(self, part: str | Marker) -> Sequence[str | ToolCallDelta]:
        if self._reader is not None:
            return self._reader.add(part)
        if isinstance(part, str):
            return [part]
        # vLLM does the same when the model may call no tool.
        return [part.value] if part is Marker.CALLS else []

    def _joined(self, pieces: Sequence[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
        """Joins the pieces of each tool call: clients expect one entry for a tool call in a
        delta."""
        calls: list[ToolCallDelta] = []
        for piece in pieces:
            if self._is_single and piece.index:
                continue
            if calls and not piece.id:
                arguments = calls[-1].arguments + piece.arguments
                calls[-1] = replace(calls[-1], arguments=arguments)
            else:
                calls.append(piece)
        return tuple(calls)


def _checked(structure: str) -> str:
    """Raises InvalidRequest if the structure is longer than the decoder's limit."""
    if not limits.STRUCTURE_CHARACTERS.allows(len(structure)):
        raise InvalidRequest(
            "tools", f"the grammar of the tools' parameters must have {limits.STRUCTURE_CHARACTERS}"
        )
    return structure


def _only_name(tools: Tools) -> str | None:
    return tools.forced[0].name if len(tools.forced) == 1 and tools.is_single else None


def _arguments(tool: Tool) -> dict[str, Any]:
    return {"type": "object", **tool.parameters} if tool.parameters else NO_ARGUMENTS


def _list_schema(tools: Tools) -> dict[str, Any]:
    """The schema of a list of tool calls. Each tool's schema keeps its own definitions, under the
    tool's name."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                "arguments": {"$ref": f"#/$defs/{tool.name}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools.forced
    ]
    schema: dict[str, Any] = {
        "type": "array",
        "items": calls[0] if len(calls) == 1 else {"anyOf": calls},
        "minItems": 1,
        "$defs": {tool.name: _moved(_arguments(tool), tool.name) for tool in tools.forced},
    }
    return {**schema, "maxItems": 1} if tools.is_single else schema


def _moved(schema: Any, name: str) -> Any:
    """The schema with its references moved below `name`."""
    if isinstance(schema, list):
        return [_moved(each, name) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[keyword] = f"#/$defs/{name}{value[1:]}"
        elif keyword in _NAMED and isinstance(value, dict):
            moved[keyword] = {each: _moved(inner, name) for each, inner in value.items()}
        else:
            moved[keyword] = value if keyword in _PLAIN else _moved(value, name)
    return moved


def _grammar(tools: Tools) -> str:
    """A Lark grammar: tool calls in the form of version 11, after the first [TOOL_CALLS]."""
    calls = [
        f'call{i}: "{tool.name}" "{Marker.ARGS.value}" %json {json.dumps(_arguments(tool))}'
        for i, tool in enumerate(tools.forced)
    ]
    more = "" if tools.is_single else f' ("{Marker.CALLS.value}" call)*'
    choice = " | ".join(f"call{i}" for i in range(len(calls)))
    return "\n".join([f"start: call{more}", f"call: {choice}", *calls, ""])
