"""Message lists as people write them, made into `pixtral.v1.Message`.

A client takes the message lists of OpenAI's chat API and of vLLM's `LLM.chat`. Content is a string
or a list of parts:

    {"type": "text", "text": "What is this?"}           or "What is this?"
    {"type": "image_url", "image_url": {"url": URL}}    or "image_url": URL
    {"type": "image", "image": IMAGE}                   or IMAGE ("image_pil" works, too)

- URL is a `data:` or http(s) URL. The client fetches http(s) URLs itself.
- IMAGE is a `pathlib.Path`, the bytes of an image file, a PIL image, a result of `put_image`, or a
  URL.
- An image may have OpenAI's "detail" beside its type or its URL: with "low" the model sees it
  smaller.

A client reads a file only for a `Path`, and never for a string: a message list that came as JSON
from elsewhere cannot read files of this machine. A lone text in a list of parts that names an
existing image file is an error, because the model would get a question about an image that it never
sees. {"type": "text", "text": ...} is always text.

An assistant's message may have

- `reasoning`, the thought before its answer, or a part {"type": "thinking", "thinking": TEXT};
- `tool_calls` in place of content or beside it (see `pixtral_client.tools`). A message of role
  "tool" with the `tool_call_id` has the result of a tool call;
- `"prefix": True` if it is the last message: the answer continues it.
"""

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pixtral.v1 import chat_pb2
from pixtral_client.image_fetch import fetch
from pixtral_client.results import UploadedImage
from pixtral_client.tools import to_call

_ROLES = {
    "system": chat_pb2.ROLE_SYSTEM,
    "developer": chat_pb2.ROLE_SYSTEM,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
    "tool": chat_pb2.ROLE_TOOL,
}
_DETAILS: dict[Any, chat_pb2.ImageDetail.ValueType] = {
    None: chat_pb2.IMAGE_DETAIL_UNSPECIFIED,
    "auto": chat_pb2.IMAGE_DETAIL_UNSPECIFIED,
    "low": chat_pb2.IMAGE_DETAIL_LOW,
    "high": chat_pb2.IMAGE_DETAIL_HIGH,
    "original": chat_pb2.IMAGE_DETAIL_HIGH,
}
_TEXT_TYPES = ("text", "input_text")
_IMAGE_TYPES = ("image_url", "input_image", "image", "image_pil")
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")

_IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".ico", ".jp2", ".jpeg", ".jpg", ".pdf", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)

Messages = Sequence[Mapping[str, Any]]


def to_protos(messages: Messages) -> list[chat_pb2.Message]:
    """Converts a conversation; reads its files and fetches its http(s) URLs.

    Raises:
        TypeError: a value has a type that no conversation contains.
        ValueError: an unknown role or part, an unusable URL, or an image that cannot be read.

    Both name the field, such as `messages[1].content[0]`.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TypeError(f"messages must be a list of messages, not {_kind(messages)}")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def goes_on(messages: Messages) -> bool:
    """Whether the last message has Mistral's `prefix`, so that the answer continues it."""
    return bool(messages and messages[-1].get("prefix"))


def is_text(messages: Messages) -> bool:
    """Whether the conversion, or its error, needs no image to be read, fetched or encoded."""
    return isinstance(messages, list | tuple) and all(
        isinstance(message, Mapping) and _is_text(message.get("content")) for message in messages
    )


def _is_text(content: Any) -> bool:
    if isinstance(content, list | tuple):
        return all(map(_is_text_part, content))
    return content is None or isinstance(content, str)


def _is_text_part(part: Any) -> bool:
    if isinstance(part, str):
        return not has_image_suffix(part)
    return isinstance(part, Mapping) and part.get("type") in _TEXT_TYPES


def has_image_suffix(text: str) -> bool:
    """Whether a text ends like the path of an image file."""
    return text[-5:].lower().endswith(_IMAGE_SUFFIXES)


def _message(message: Any, where: str) -> chat_pb2.Message:
    if isinstance(message, Sequence) and not isinstance(message, str):
        raise TypeError(f"{where} is a list: `chat` takes one conversation, and `map` many")
    if not isinstance(message, Mapping):
        raise TypeError(f"{where} must be a dict with 'role' and 'content', not {_kind(message)}")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"{where}.role must be one of {', '.join(_ROLES)}, not {role!r}")
    if message.get("function_call"):
        raise ValueError(f"{where}.function_call: give it as one of tool_calls")
    calls = [
        to_call(call, f"{where}.tool_calls[{i}]")
        for i, call in enumerate(message.get("tool_calls") or ())
    ]
    content = message.get("content")
    # An empty text makes no part, and an assistant or a tool may have no content.
    if content == "" or (content is None and role in ("assistant", "tool")):
        content = []
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    thought = [chat_pb2.ContentPart(thinking=reasoning)] if reasoning else []
    return chat_pb2.Message(
        role=_ROLES[role],
        content=[*thought, *_content(content, f"{where}.content")],
        tool_calls=calls,
        tool_call_id=message.get("tool_call_id") or "",
    )


def _content(content: Any, where: str) -> list[chat_pb2.ContentPart]:
    if isinstance(content, str):
        return [chat_pb2.ContentPart(text=content)]
    if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray | memoryview):
        raise TypeError(f"{where} must be a string or a list of parts, not {_kind(content)}")
    return [_part(part, f"{where}[{j}]") for j, part in enumerate(content)]


def _part(part: Any, where: str) -> chat_pb2.ContentPart:
    if isinstance(part, str):
        if has_image_suffix(part) and _is_file(part):
            raise ValueError(
                f"{where} is a text that names an image file: give the file as a pathlib.Path, or "
                'the text as {"type": "text", "text": ...}'
            )
        return chat_pb2.ContentPart(text=part)
    if not isinstance(part, Mapping):
        return chat_pb2.ContentPart(image=to_image(part, where))
    kind = part.get("type")
    if kind is None:
        kind = next((name for name in (*_TEXT_TYPES, *_IMAGE_TYPES) if name in part), None)
    if kind in _TEXT_TYPES:
        text = part.get("text")
        if not isinstance(text, str):
            raise TypeError(f"{where}.text must be a string, not {_kind(text)}")
        return chat_pb2.ContentPart(text=text)
    if kind in _IMAGE_TYPES:
        key = "image_url" if kind == "input_image" else kind
        source = part.get(key)
        detail = part.get("detail")
        if isinstance(source, Mapping):
            detail = source.get("detail", detail)
            source, key = source.get("url"), f"{key}.url"
        if detail not in _DETAILS:
            raise ValueError(f"{where}.detail must be auto, low or high, not {detail!r}")
        image = to_image(source, f"{where}.{key}")
        image.detail = _DETAILS[detail]
        return chat_pb2.ContentPart(image=image)
    if kind == "thinking":
        thinking = part.get("thinking")
        if not isinstance(thinking, str):
            raise TypeError(f"{where}.thinking must be a string, not {_kind(thinking)}")
        return chat_pb2.ContentPart(thinking=thinking)
    known = ", ".join(("text", *_IMAGE_TYPES, "thinking"))
    raise ValueError(f"{where}.type must be one of {known}, not {kind!r}")


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        # The text cannot be a path: it is too long, for example.
        return False


def to_image(source: Any, where: str) -> chat_pb2.Image:
    """Converts one image; errors refer to it as `where`."""
    if isinstance(source, bytes | bytearray | memoryview):
        return chat_pb2.Image(data=bytes(source))
    if isinstance(source, str):
        return _image_from_url(source, where)
    if isinstance(source, Path):
        try:
            return chat_pb2.Image(data=source.read_bytes())
        except OSError as error:
            raise ValueError(f"{where}: cannot read {source}: {error.strerror}") from error
    if isinstance(source, UploadedImage):
        return chat_pb2.Image(sha256=source.sha256)
    # A caller with a PIL image has imported PIL, so this module need not import it.
    pil = sys.modules.get("PIL.Image")
    if pil is not None and isinstance(source, pil.Image):
        return chat_pb2.Image(data=_png(source))
    raise TypeError(
        f"{where} must be a URL, a pathlib.Path, bytes or a PIL image, not {_kind(source)}"
    )


def _image_from_url(url: str, where: str) -> chat_pb2.Image:
    scheme, colon, _ = url[:16].partition(":")
    match scheme.lower() if colon else "":
        case "data":
            return chat_pb2.Image(url=url)
        case "http" | "https":
            try:
                return chat_pb2.Image(data=fetch(url))
            except (OSError, ValueError) as error:
                raise ValueError(f"{where}: cannot fetch {url}: {error}") from error
        case _:
            raise ValueError(
                f"{where} must be a data:, http: or https: URL; give a file as a pathlib.Path"
            )


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    if image.mode not in _PNG_MODES:
        image = image.convert("RGB")
    # The lowest compression, because more would take longer than it saves on the network.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
