"""A conversation inside the gateway: messages, images, tools and tool calls."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from sys import getsizeof
from typing import Any


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image as the client sent it: the file, a URL, or its 32-byte SHA-256.

    `path` is the field of the image, such as `messages[1].content[0].image.data`. If `low_detail`
    is set, the model sees a smaller image.
    """

    path: str
    data: bytes = b""
    url: str | None = None
    sha256: bytes | None = None
    low_detail: bool = False


@dataclass(frozen=True, slots=True)
class Thinking:
    """An assistant's thought before its answer, or a thought that a system message shows.

    `is_closed` means that the thought has ended. Otherwise an answer may continue the thought.
    """

    text: str
    is_closed: bool = True


Part = str | ImageSource | Thinking


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call. `parameters` is a JSON Schema, or empty for no
    parameters."""

    name: str
    description: str
    parameters: Mapping[str, Any]


class ToolChoice(StrEnum):
    """Whether a model may, must not or must call tools."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request.

    Attributes:
        offered: the tools in the prompt; if there are none, the other fields have no effect.
        forced: tools of which the model must call one; empty if it may choose to call none.
        is_single: whether the model may make one call only.
        characters: length of `offered` as the client sent it.
    """

    offered: tuple[Tool, ...] = ()
    forced: tuple[Tool, ...] = ()
    is_single: bool = False
    characters: int = 0


NO_TOOLS = Tools()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call of a model. `arguments` should be a JSON object, but need not be."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. An assistant's turn may have `calls`, and a tool's result has the `call_id` of
    its call."""

    role: Role
    parts: tuple[Part, ...]
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """At least one turn, in any order: mistral_common checks whether the model's template accepts
    the order.

    `goes_on` means that the answer continues the last turn, which is an assistant's.
    `reasoning_effort` is for templates that use an effort; empty means the template's default.
    """

    turns: tuple[Turn, ...]
    tools: Tools = NO_TOOLS
    goes_on: bool = False
    reasoning_effort: str = ""

    @property
    def images(self) -> list[ImageSource]:
        """All images, in the order of the conversation."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, ImageSource)]

    @property
    def image_bytes(self) -> int:
        """The number of bytes in files, and in URLs with data."""
        return sum(len(image.data) + len(image.url or "") for image in self.images)

    @property
    def text_bytes(self) -> int:
        """The memory of all texts and tool calls, in bytes."""
        said = sum(map(getsizeof, self._texts()))
        calls = (call for turn in self.turns for call in turn.calls)
        return said + sum(getsizeof(call.name) + getsizeof(call.arguments) for call in calls)

    @property
    def characters(self) -> int:
        """The number of characters in all texts, tools and tool calls."""
        said = sum(map(len, self._texts()))
        called = sum(len(c.name) + len(c.arguments) for turn in self.turns for c in turn.calls)
        return said + called + self.tools.characters

    def _texts(self) -> Iterator[str]:
        for turn in self.turns:
            for part in turn.parts:
                match part:
                    case str():
                        yield part
                    case Thinking():
                        yield part.text
