"""Encodes a conversation to token ids with mistral_common, without reading an image."""

import asyncio
import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from mistral_common.exceptions import InvalidToolSchemaException
from mistral_common.protocol.instruct.messages import ChatMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest, ReasoningEffort
from mistral_common.protocol.instruct.tool_calls import Function
from mistral_common.protocol.instruct.tool_calls import Tool as MistralTool
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer
from mistral_common.utils.json_utils import validate_json_schema_by_draft7

from pixtral_core.errors import InvalidRequest, log_place
from pixtral_core.model.checkpoint import read_language
from pixtral_core.model.tokenizer_file import find_tokenizer, own_file
from pixtral_core.model.vision_spec import BadCheckpoint, Grid, VisionSpec
from pixtral_gateway.checks.conversation import Conversation, Tool, Tools
from pixtral_gateway.prompt.image_placeholders import leave_out_pixels, numbers
from pixtral_gateway.prompt.mistral_messages import messages_of
from pixtral_gateway.prompt.refusals import MessageCheck
from pixtral_gateway.prompt.tool_format import ToolFormat

# Tokenizing this many characters takes about a millisecond, off the event loop.
OFFLOAD_CHARACTERS = 1 << 13
# Making this many messages and parts of mistral_common takes as long as that.
OFFLOAD_PARTS = 100


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """The position of an image in a prompt: `length` tokens from `offset` on.

    `index` is the image's index in the conversation.
    """

    index: int
    offset: int
    rows: int
    cols: int
    length: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of a conversation. `image_tokens` is the sum of the lengths of `images`.

    `images` are in the prompt's order. That order differs from the conversation's if the template
    puts the results of tool calls in the order of the calls.
    """

    token_ids: Sequence[int]
    images: tuple[PlacedImage, ...]
    image_tokens: int


@dataclass(frozen=True, slots=True)
class ThinkingFormat:
    """How a checkpoint's models think.

    `token_id` begins a thought, or is None if the models do not think. `efforts` are the efforts
    that the template can request.
    """

    token_id: int | None
    efforts: tuple[str, ...]


class PromptEncoder:
    """A checkpoint's own tokenizer. It has no state of a request, and any thread may use it.

    Attributes:
        vocabulary_size: number of tokens; all token ids are smaller.
        longest_token: length of the longest token in characters.
        tools: the format in which the checkpoint's models call tools.
        thinking: the format in which these models think.
    """

    def __init__(self, tokenizer: MistralTokenizer[Any, Any, Any, Any, Any], spec: VisionSpec):
        """Raises BadCheckpoint if tokenizer and `spec` disagree.

        Raises HookBroken if mistral_common has changed.
        """
        _check_agreement(tokenizer, spec)
        self._tokenizer = tokenizer
        vocabulary = tokenizer.instruct_tokenizer.tokenizer.vocab()
        self.vocabulary_size = len(vocabulary)
        self.longest_token = max(map(len, vocabulary))
        self.tools = ToolFormat(tokenizer.instruct_tokenizer)
        self._version = tokenizer.instruct_tokenizer.tokenizer.version
        self.thinking = ThinkingFormat(self.tools.thought_token_id, _efforts(tokenizer))
        self._messages = MessageCheck(self._version)
        self._spec = spec
        leave_out_pixels(tokenizer.instruct_tokenizer, spec)

    @classmethod
    def load(cls, model_dir: Path, spec: VisionSpec) -> "PromptEncoder":
        """Reads the model's tokenizer, which takes a second or two. Raises BadCheckpoint."""
        path = own_file(model_dir)
        if path is None:
            path = find_tokenizer(model_dir, spec, read_language(model_dir).vocab_size)
        try:
            tokenizer = MistralTokenizer.from_file(path)
        except Exception as error:
            raise BadCheckpoint(f"{path} is not a tokenizer that mistral_common reads") from error
        return cls(tokenizer, spec)

    async def tokenize(self, text: str, *, bos: bool) -> Sequence[int]:
        """Token ids of a text alone; with `bos`, after the token that begins a sequence."""
        encode = self._tokenizer.instruct_tokenizer.tokenizer.encode
        try:
            if len(text) > OFFLOAD_CHARACTERS:
                return await asyncio.to_thread(encode, text, bos, False)
            return encode(text, bos, False)
        except ValueError as error:
            raise _untokenizable("prompt", error) from None

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, control tokens by their names. Raises InvalidRequest."""
        if max(token_ids, default=0) >= self.vocabulary_size:
            raise InvalidRequest("tokens", "a token id is not in the vocabulary")
        ids = list(token_ids)
        if len(ids) > OFFLOAD_CHARACTERS:
            return await asyncio.to_thread(self._spelled, ids)
        return self._spelled(ids)

    def _spelled(self, ids: list[int]) -> str:
        tokenizer = self._tokenizer.instruct_tokenizer.tokenizer
        if not isinstance(tokenizer, SentencePieceTokenizer):
            return tokenizer.decode(ids, SpecialTokenPolicy.KEEP)
        # If this tokenizer keeps control tokens, it spells all tokens as pieces, with a letter in
        # place of each space. So control tokens and text are decoded apart.
        return "".join(
            "".join(map(tokenizer.id_to_piece, run)) if is_special else tokenizer.decode(list(run))
            for is_special, run in groupby(ids, tokenizer.is_special)
        )

    async def check(self, conversation: Conversation) -> None:
        """Raises InvalidRequest with the reason for messages that mistral_common does not take."""
        if _is_long(conversation):
            await asyncio.to_thread(self.check_now, conversation)
        else:
            self.check_now(conversation)

    def check_now(self, conversation: Conversation) -> None:
        """Like `check`, but always in the caller's thread."""
        messages = messages_of(conversation, self._version, thinks=self.tools.thinks)
        self._check(conversation, messages)

    def _check(self, conversation: Conversation, messages: list[ChatMessage]) -> None:
        self._check_effort(conversation.reasoning_effort)
        self._messages.check(messages)

    def _check_effort(self, effort: str) -> None:
        efforts = self.thinking.efforts
        if effort and efforts and effort not in efforts:
            *others, last = efforts
            known = f"{', '.join(others)} or {last}" if others else last
            raise InvalidRequest("reasoning_effort", f"must be {known} for this model")

    def _effort_of(self, conversation: Conversation) -> ReasoningEffort | None:
        """The effort for the template. None if the template has no place for an effort, because
        clients send one to every model."""
        if not conversation.reasoning_effort or not self.thinking.efforts:
            return None
        return ReasoningEffort(conversation.reasoning_effort)

    async def encode(
        self, conversation: Conversation, grids: Sequence[Grid], *, is_checked: bool = True
    ) -> Prompt:
        """Like `encode_now`, but in a thread for a long conversation."""
        if _is_long(conversation):
            return await asyncio.to_thread(
                self.encode_now, conversation, grids, is_checked=is_checked
            )
        return self.encode_now(conversation, grids, is_checked=is_checked)

    def encode_now(
        self, conversation: Conversation, grids: Sequence[Grid], *, is_checked: bool = True
    ) -> Prompt:
        """Encodes a conversation. `grids` has the grid of each image, in the conversation's order.

        Raises InvalidRequest as `check` does, unless `is_checked` says that it has run, and for
        tools that mistral_common does not take.
        """
        messages = messages_of(conversation, self._version, grids, thinks=self.tools.thinks)
        if not is_checked:
            self._check(conversation, messages)
        tools = [_mistral_tool(tool) for tool in conversation.tools.offered]
        try:
            tokenized = self._tokenizer.encode_chat_completion(
                ChatCompletionRequest(
                    messages=messages,
                    tools=tools or None,
                    reasoning_effort=self._effort_of(conversation),
                )
            )
        except InvalidToolSchemaException:
            raise _bad_schema(conversation.tools) from None
        except ValueError as error:
            raise _untokenizable("messages", error) from None
        tokens = tokenized.tokens + self.tools.opening(conversation.tools)
        images, at = [], 0
        for index in numbers(tokenized):
            grid = grids[index]
            # Text never becomes a control token, so the next image token belongs to the next image.
            offset = tokens.index(self._spec.image_token_id, at)
            at = offset + grid.placeholder_length
            images.append(PlacedImage(index, offset, grid.rows, grid.cols, grid.placeholder_length))
        # An array needs four bytes for each token, and a list forty. The ids stay until the answer
        # ends.
        return Prompt(array("I", tokens), tuple(images), sum(image.length for image in images))


def _efforts(tokenizer: MistralTokenizer[Any, Any, Any, Any, Any]) -> tuple[str, ...]:
    """The efforts that a template knows; none before version 15."""
    tekken = tokenizer.instruct_tokenizer.tokenizer
    settings = getattr(tekken, "model_settings_builder", None)
    if settings is None or settings.reasoning_effort is None:
        return ()
    return tuple(str(each) for each in settings.reasoning_effort.values)


def _is_long(conversation: Conversation) -> bool:
    parts = sum(1 + len(turn.parts) for turn in conversation.turns)
    return conversation.characters > OFFLOAD_CHARACTERS or parts > OFFLOAD_PARTS


def _mistral_tool(tool: Tool) -> MistralTool:
    function = Function(
        name=tool.name, description=tool.description, parameters=dict(tool.parameters)
    )
    return MistralTool(function=function)


def _untokenizable(path: str, error: ValueError) -> InvalidRequest:
    log_place(error, "a text that the tokenizer does not take", logging.WARNING)
    return InvalidRequest(
        path, "the tokenizer does not take this text: it has too much white space in a row"
    )


def _bad_schema(tools: Tools) -> InvalidRequest:
    paths = []
    for i, tool in enumerate(tools.offered):
        try:
            validate_json_schema_by_draft7(dict(tool.parameters))
        except ValueError:
            paths.append(f"tools[{i}].parameters")
    return InvalidRequest((*paths, "tools")[0], "is not a JSON Schema (draft 7)")


def _check_agreement(
    tokenizer: MistralTokenizer[Any, Any, Any, Any, Any], spec: VisionSpec
) -> None:
    encoder = tokenizer.instruct_tokenizer.image_encoder
    if encoder is None:
        raise BadCheckpoint("its tokenizer has no image settings: not a Pixtral tokenizer")
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
                f"the tokenizer and the model's numbers disagree on {name}: {in_tokenizer} and "
                f"{in_params}"
            )
