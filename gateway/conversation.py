"""A conversation inside the gateway."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image as the client gave it: the file itself, a URL that holds it, or its 32-byte SHA-256.

    `path` is the field that it came in, such as `messages[1].content[0].image.data`.
    """

    path: str
    data: bytes = b""
    url: str | None = None
    sha256: bytes | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    parts: tuple[str | ImageSource, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that Mistral's template takes: see `gateway.validation`."""

    turns: tuple[Turn, ...]

    @property
    def images(self) -> list[ImageSource]:
        """In the order of the conversation, which is also that of the prompt."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, ImageSource)]

    @property
    def characters(self) -> int:
        """Of text."""
        return sum(len(part) for turn in self.turns for part in turn.parts if isinstance(part, str))
