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
    """An image as the client gave it: the file itself, a URL that holds it, or its 32-byte SHA-256.

    `path` is the field that it came in, such as `messages[1].content[0].image.data`. In low detail
    it is shown smaller to the model.
    """

    path: str
    data: bytes = b""
    url: str | None = None
    sha256: bytes | None = None
    low_detail: bool = False


@dataclass(frozen=True, slots=True)
class Thinking:
    """An assistant's thought before its answer, or a thought that a system message shows.

    `is_closed`: the thought has come to its end; else an answer may go on from within it.
    """

    text: str
    is_closed: bool = True


Part = str | ImageSource | Thinking


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call. `parameters` is a JSON Schema; empty: it has none."""

    name: str
    description: str
    parameters: Mapping[str, Any]


class ToolChoice(StrEnum):
    """Whether a model calls tools: as it likes, never, or always."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Tools:
    """A function that a model may call.

    Attributes:
        offered: told to the model; empty: none of this is in effect.
        forced: of these one is called; empty: the model chooses whether to call any.
        is_single: no more than one call is made.
        characters: of `offered`, as they were sent.
    """

    offered: tuple[Tool, ...] = ()
    forced: tuple[Tool, ...] = ()
    is_single: bool = False
    characters: int = 0


NO_TOOLS = Tools()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model made. `arguments` should be, and may not be, a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Turn:
    """`calls` are an assistant's, `call_id` is what a tool's result answers."""

    role: Role
    parts: tuple[Part, ...]
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, one at least, in any order: mistral_common knows what the model's template takes.

    `goes_on`: the last turn is an assistant's, and the beginning of the answer. `reasoning_effort`
    is for templates that have a place for it; empty: as the model has it by itself.
    """

    turns: tuple[Turn, ...]
    tools: Tools = NO_TOOLS
    goes_on: bool = False
    reasoning_effort: str = ""

    @property
    def images(self) -> list[ImageSource]:
        """In the order of the conversation, which is also that of the prompt."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, ImageSource)]

    @property
    def image_bytes(self) -> int:
        """The bytes of files, and of URLs that hold one."""
        return sum(len(image.data) + len(image.url or "") for image in self.images)

    @property
    def text_bytes(self) -> int:
        """The memory that its texts take, in bytes."""
        said = sum(map(getsizeof, self._texts()))
        calls = (call for turn in self.turns for call in turn.calls)
        return said + sum(getsizeof(call.name) + getsizeof(call.arguments) for call in calls)

    @property
    def characters(self) -> int:
        """The number of characters of all text; tools and their calls count."""
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
