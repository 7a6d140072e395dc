"""Anthropic's messages, which are lists of blocks, as turns of a conversation."""

import json
import re
from collections.abc import Sequence
from typing import Any

from pixtral_core.errors import InvalidRequest
from pixtral_gateway.api.anthropic.request import CountTokensRequest, SentMessage
from pixtral_gateway.api.turns import Turns
from pixtral_gateway.checks.conversation import ImageSource, Part, Thinking, ToolCall
from pixtral_gateway.checks.tools import check_call
from pixtral_gateway.checks.validation import check_parts

# The first block of Claude Code's system prompt. It differs in each request, so with it no two
# prompts would begin alike, and none would use the prefix cache. vLLM leaves it out, too.
_BILLING = "x-anthropic-billing-header"
_MEDIA_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]+", re.IGNORECASE)


class Blocks(Turns):
    """The turns of a request's system prompt and messages.

    Later system messages join the first one, as in vLLM. Raises InvalidRequest, with paths as
    Anthropic writes them.
    """

    def __init__(self, asked: CountTokensRequest, *, context_length: int) -> None:
        super().__init__("messages", {".tool_call_id": ".tool_use_id"})
        messages = asked.messages
        check_parts([_length(message.content) for message in messages], context_length)
        texts = _system_texts(asked.system, "system")
        for i, message in enumerate(messages):
            if message.role == "system":
                texts += _system_texts(message.content, f"messages.{i}.content")
        if texts:
            self.system("system", ["".join(texts)])
        for i, message in enumerate(messages):
            if message.role != "system":
                self._add(message, f"messages.{i}")

    def _add(self, message: SentMessage, path: str) -> None:
        if isinstance(message.content, str):
            # mistral_common ignores an empty string, but not a part with an empty text.
            text = {"type": "text", "text": message.content}
            blocks: Sequence[Any] = [text] if message.content else []
        elif isinstance(message.content, list):
            blocks = message.content
        else:
            raise InvalidRequest(f"{path}.content", "must be a text or a list of blocks")
        is_user = message.role == "user"
        parts: list[Part] = []
        has_results = False
        for j, block in enumerate(blocks):
            at = f"{path}.content.{j}"
            match block:
                case {"type": "tool_result"} if is_user:
                    has_results = True
                    self._tool_result(block, at)
                case {"type": "tool_use"} if not is_user:
                    # Tool calls are added below, because the text of a turn precedes them wherever
                    # it stands.
                    pass
                case {"type": "thinking", "thinking": str(thought)} if not is_user:
                    parts.append(Thinking(thought))
                case {"type": "redacted_thinking"} if not is_user:
                    # Anthropic has encrypted this thought, and no other model can read it.
                    pass
                case _:
                    parts += _part(block, at, may_show=is_user)
        if not is_user:
            self.assistant(path, parts)
            for j, block in enumerate(blocks):
                if block.get("type") == "tool_use":
                    self.call(f"{path}.content.{j}", _call(block, f"{path}.content.{j}"))
        elif parts or not has_results:
            self.user(path, parts)

    def _tool_result(self, block: dict[str, Any], path: str) -> None:
        call_id, content = block.get("tool_use_id"), block.get("content")
        if not isinstance(call_id, str):
            raise InvalidRequest(f"{path}.tool_use_id", "must be a text")
        parts: list[Part] = []
        match content:
            case None:
                pass
            case str():
                parts = [content] if content else []
            case list():
                for j, part in enumerate(content):
                    parts += _part(part, f"{path}.content.{j}", may_show=True)
            case _:
                raise InvalidRequest(f"{path}.content", "must be a text or a list of blocks")
        self.result(path, call_id, parts)


def _length(content: Any) -> int:
    return len(content) if isinstance(content, list) else 1


def _system_texts(system: Any, path: str) -> list[str]:
    match system:
        case None:
            texts = []
        case str():
            texts = [system]
        case list():
            texts = []
            for i, block in enumerate(system):
                if not isinstance(block, dict) or block.get("type") != "text":
                    raise InvalidRequest(f"{path}.{i}.type", "must be text")
                if not isinstance(block.get("text"), str):
                    raise InvalidRequest(f"{path}.{i}.text", "must be a text")
                texts.append(block["text"])
        case _:
            raise InvalidRequest(path, "must be a text or a list of blocks")
    return [text for text in texts if text and not text.startswith(_BILLING)]


def _part(block: Any, path: str, *, may_show: bool) -> list[Part]:
    """A text or an image."""
    match block:
        case {"type": "text", "text": str(text)}:
            return [text]
        case {"type": "text"}:
            raise InvalidRequest(f"{path}.text", "must be a text")
        case {"type": "image"}:
            if not may_show:
                raise InvalidRequest(path, "only user messages may have images")
            return [_image(block.get("source"), f"{path}.source")]
        case {"type": str()}:
            raise InvalidRequest(
                f"{path}.type",
                "must be text, image, tool_use or tool_result, in a message that may have it",
                "UNSUPPORTED_PARAMETER",
            )
        case _:
            raise InvalidRequest(path, "must be an object with a type")


def _image(source: Any, path: str) -> ImageSource:
    match source:
        case {"type": "base64", "data": str(data)}:
            kind = source.get("media_type", "image/jpeg")
            # The type is checked and not used: the file's own bytes determine its format.
            if not isinstance(kind, str) or not _MEDIA_TYPE.fullmatch(kind):
                raise InvalidRequest(f"{path}.media_type", "must be a type such as image/png")
            return ImageSource(f"{path}.data", url=f"data:{kind};base64,{data}")
        case {"type": "url", "url": str(url)}:
            return ImageSource(f"{path}.url", url=url)
        case {"type": "file"}:
            raise InvalidRequest(
                f"{path}.type",
                "this gateway stores no files: send the image as base64",
                "UNSUPPORTED_PARAMETER",
            )
        case _:
            raise InvalidRequest(path, "must be base64 with data, or url with a url")


def _call(block: dict[str, Any], path: str) -> ToolCall:
    call_id, name, given = block.get("id"), block.get("name"), block.get("input")
    if not isinstance(call_id, str):
        raise InvalidRequest(f"{path}.id", "must be a text")
    if not isinstance(name, str):
        raise InvalidRequest(f"{path}.name", "must be a text")
    if given is not None and not isinstance(given, dict):
        raise InvalidRequest(f"{path}.input", "must be an object")
    call = ToolCall(call_id, name, json.dumps(given or {}))
    check_call(call, path)
    return call
