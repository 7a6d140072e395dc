"""Encodes a conversation to token ids by mistral_common, without looking into an image."""

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mistral_common.exceptions import InvalidToolSchemaException
from mistral_common.protocol.instruct.chunk import ContentChunk, TextChunk
from mistral_common.protocol.instruct.messages import (
    AssistantMessage,
    ChatMessage,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.tool_calls import Function, FunctionCall
from mistral_common.protocol.instruct.tool_calls import Tool as MistralTool
from mistral_common.protocol.instruct.tool_calls import ToolCall as MistralToolCall
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy, TokenizerVersion
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.utils.json_utils import validate_json_schema_by_draft7

from pixtral_core import limits
from pixtral_core.errors import InvalidRequest
from pixtral_core.model.vision_spec import BadCheckpoint, Grid, VisionSpec
from pixtral_gateway.checks.conversation import Conversation, Role, Tool, ToolCall, Tools, Turn
from pixtral_gateway.checks.structured_output import check_depth
from pixtral_gateway.prompt.image_placeholders import chunk_of, leave_out_pixels
from pixtral_gateway.prompt.tool_format import ToolFormat

# Tokenizing this many characters takes about a millisecond.
OFFLOAD_CHARACTERS = 1 << 13

_MISTRAL_ID = re.compile(r"[a-zA-Z0-9]{9}")


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """Where an image stands in a prompt: `length` tokens from `offset` on."""

    offset: int
    rows: int
    cols: int
    length: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of a conversation; `images` in its order, `image_tokens` their lengths' sum."""

    token_ids: Sequence[int]
    images: tuple[PlacedImage, ...]
    image_tokens: int


class PromptEncoder:
    """A checkpoint's own tokenizer. Holds no state of a request; any thread may call it.

    Attributes:
        vocabulary_size: token ids are below it.
        longest_token: in characters.
        tools: how the checkpoint's models call them.
    """

    def __init__(self, tokenizer: MistralTokenizer[Any, Any, Any, Any, Any], spec: VisionSpec):
        """Raises BadCheckpoint where tokenizer and `spec` disagree.

        And HookBroken where mistral_common has moved.
        """
        _check_agreement(tokenizer, spec)
        self._tokenizer = tokenizer
        vocabulary = tokenizer.instruct_tokenizer.tokenizer.vocab()
        self.vocabulary_size = len(vocabulary)
        self.longest_token = max(map(len, vocabulary))
        self.tools = ToolFormat(tokenizer.instruct_tokenizer)
        self._version = tokenizer.instruct_tokenizer.tokenizer.version
        self._spec = spec
        leave_out_pixels(tokenizer.instruct_tokenizer, spec)

    @classmethod
    def load(cls, model_dir: Path, spec: VisionSpec) -> "PromptEncoder":
        """Reads `tekken.json`, which takes a second or two. Raises BadCheckpoint."""
        path = model_dir / "tekken.json"
        if not path.is_file():
            raise BadCheckpoint(f"{path} is missing: a model in Mistral format is needed")
        try:
            tokenizer = MistralTokenizer.from_file(path)
        except Exception as error:
            raise BadCheckpoint(f"{path} is no tokenizer that mistral_common reads") from error
        return cls(tokenizer, spec)

    async def tokenize(self, text: str, *, bos: bool) -> Sequence[int]:
        """Token ids of a text alone, after the one that begins a sequence where `bos` is set."""
        encode = self._tokenizer.instruct_tokenizer.tokenizer.encode
        if len(text) > OFFLOAD_CHARACTERS:
            return await asyncio.to_thread(encode, text, bos, False)
        return encode(text, bos, False)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, control tokens by their names. Raises InvalidRequest."""
        if max(token_ids, default=0) >= self.vocabulary_size:
            raise InvalidRequest("tokens", "one is not in the vocabulary")
        decode = self._tokenizer.instruct_tokenizer.tokenizer.decode
        ids, policy = list(token_ids), SpecialTokenPolicy.KEEP
        if len(ids) > OFFLOAD_CHARACTERS:
            return await asyncio.to_thread(decode, ids, policy)
        return decode(ids, policy)

    async def encode(self, conversation: Conversation, grids: Sequence[Grid]) -> Prompt:
        """As `encode_now`, off the event loop where the text is long."""
        if conversation.characters > OFFLOAD_CHARACTERS:
            return await asyncio.to_thread(self.encode_now, conversation, grids)
        return self.encode_now(conversation, grids)

    def encode_now(self, conversation: Conversation, grids: Sequence[Grid]) -> Prompt:
        """Encodes a validated conversation whose images have these grids, in its order.

        Raises InvalidRequest for tools and calls that mistral_common does not take.
        """
        remaining = iter(grids)
        messages = [
            self._message(turn, remaining, f"messages[{i}]")
            for i, turn in enumerate(conversation.turns)
        ]
        tools = [_mistral_tool(tool) for tool in conversation.tools.offered]
        try:
            tokens = self._tokenizer.encode_chat_completion(
                ChatCompletionRequest(messages=messages, tools=tools or None)
            ).tokens
        except InvalidToolSchemaException:
            raise _bad_schema(conversation.tools) from None
        tokens += self.tools.opening(conversation.tools)
        images, at = [], 0
        for grid in grids:
            # Text never becomes a control token, so that the next one is the next image's.
            offset = tokens.index(self._spec.image_token_id, at)
            at = offset + grid.placeholder_length
            images.append(PlacedImage(offset, grid.rows, grid.cols, grid.placeholder_length))
        return Prompt(tokens, tuple(images), sum(image.length for image in images))

    def _message(self, turn: Turn, grids: Iterator[Grid], path: str) -> ChatMessage:
        content: list[ContentChunk] = []
        for part in turn.parts:
            if isinstance(part, str):
                content.append(TextChunk(text=part))
            else:
                content.append(chunk_of(next(grids)))
        match turn.role:
            case Role.SYSTEM:
                return SystemMessage(content=content)
            case Role.USER:
                return UserMessage(content=content)
            case Role.ASSISTANT:
                if content and turn.calls and self._version < TokenizerVersion.v7:
                    raise InvalidRequest(
                        f"{path}.content", "this model takes no text beside tool calls"
                    )
                return AssistantMessage(
                    content=content,
                    tool_calls=[
                        _mistral_call(call, f"{path}.tool_calls[{i}]")
                        for i, call in enumerate(turn.calls)
                    ]
                    or None,
                )
            case Role.TOOL:
                for joint in ("", "\n\n"):
                    said = joint.join(part for part in turn.parts if isinstance(part, str))
                    _check_readable(said, f"{path}.content")
                return ToolMessage(content=content, tool_call_id=_mistral_id(turn.call_id))


def _mistral_tool(tool: Tool) -> MistralTool:
    function = Function(
        name=tool.name, description=tool.description, parameters=dict(tool.parameters)
    )
    return MistralTool(function=function)


def _mistral_call(call: ToolCall, path: str) -> MistralToolCall:
    _check_readable(call.arguments, f"{path}.arguments")
    function = FunctionCall(name=call.name, arguments=call.arguments)
    return MistralToolCall(id=_mistral_id(call.id), function=function)


def _mistral_id(call_id: str) -> str:
    """The id of a call as Mistral's template has it; another's is stood for by one of its own."""
    if _MISTRAL_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _check_readable(text: str, path: str) -> None:
    """What is JSON, mistral_common reads and writes anew. Raises InvalidRequest where it cannot."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return
    except (ValueError, RecursionError):
        pass
    else:
        check_depth(value, path, limits.ARGUMENTS_DEPTH)
        return
    raise InvalidRequest(path, f"JSON must have {limits.ARGUMENTS_DEPTH}, and short numbers")


def _bad_schema(tools: Tools) -> InvalidRequest:
    paths = []
    for i, tool in enumerate(tools.offered):
        try:
            validate_json_schema_by_draft7(dict(tool.parameters))
        except ValueError:
            paths.append(f"tools[{i}].parameters")
    return InvalidRequest((*paths, "tools")[0], "is no JSON Schema (draft 7)")


def _check_agreement(
    tokenizer: MistralTokenizer[Any, Any, Any, Any, Any], spec: VisionSpec
) -> None:
    encoder = tokenizer.instruct_tokenizer.image_encoder
    if encoder is None:
        raise BadCheckpoint("tekken.json has no image settings: not a Pixtral tokenizer")
    config = encoder.image_config
    ids = encoder.special_ids
    for name, in_tokenizer, in_params in (
        ("the patch size", config.image_patch_size, spec.patch_size),
        ("the largest image side", config.max_image_size, spec.max_image_size),
        ("the patches merged along a side", config.spatial_merge_size, spec.merge_size),
        ("the id of [IMG]", ids.img, spec.image_token_id),
        ("the id of [IMG_BREAK]", ids.img_break, spec.image_break_token_id),
        ("the id of [IMG_END]", ids.img_end, spec.image_end_token_id),
    ):
        if in_tokenizer != in_params:
            raise BadCheckpoint(
                f"tekken.json and params.json disagree on {name}: {in_tokenizer} and {in_params}"
            )
