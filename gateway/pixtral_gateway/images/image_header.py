"""Reads format and size from an image's header, with bounded work for any bytes.

Pillow reads more than the header: it inflates PNG text, walks any number of JPEG and GIF blocks,
and makes a WebP decoder with room for the whole canvas. The sizes here are those that it finds.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pixtral_core import limits

MAX_BLOCKS = limits.IMAGE_BLOCKS.most

JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
JPEG_END, JPEG_SCAN = 0xD9, 0xDA

GIF_EXTENSION, GIF_IMAGE = 0x21, 0x2C


class BadHeader(ValueError):
    """The bytes begin as an image of a known format and do not go on as one."""


class ImageFormat(StrEnum):
    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WebP"
    GIF = "GIF"


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """`width` and `height` in pixels, both at least 1; of a GIF, its first frame."""

    format: ImageFormat
    width: int
    height: int


def read_header(data: bytes) -> ImageHeader | None:
    """None where the bytes are of no format known here. Raises BadHeader."""
    format_ = _sniff(data)
    if format_ is None:
        return None
    try:
        width, height = _READERS[format_](data)
    except (struct.error, IndexError):
        raise BadHeader("the header is cut short") from None
    if width < 1 or height < 1:
        raise BadHeader("the header gives no size")
    return ImageHeader(format_, width, height)


def _sniff(data: bytes) -> ImageFormat | None:
    if data.startswith(b"\xff\xd8\xff"):
        return ImageFormat.JPEG
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return ImageFormat.PNG
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return ImageFormat.WEBP
    if data.startswith((b"GIF87a", b"GIF89a")):
        return ImageFormat.GIF
    return None


def _png(data: bytes) -> tuple[int, int]:
    kind, width, height = struct.unpack_from(">4sII", data, 12)
    if kind != b"IHDR":
        raise BadHeader("no IHDR at the beginning")
    return width, height


def _jpeg(data: bytes) -> tuple[int, int]:
    at = 2
    for _ in range(MAX_BLOCKS):
        at = data.find(b"\xff", at)
        marker = data[at + 1] if at >= 0 else JPEG_END
        if marker in (0x00, 0xFF):
            at += 1
        elif marker in JPEG_WITHOUT_LENGTH:
            at += 2
        elif marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        elif marker in (JPEG_END, JPEG_SCAN):
            raise BadHeader("no frame header before the image data")
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            at += 2 + length
    raise BadHeader("too many segments before the frame header")


def _webp(data: bytes) -> tuple[int, int]:
    # RFC 9649: the lossy, lossless and extended forms each give the size in their own way.
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        if len(data) < 30:
            raise BadHeader("the header is cut short")
        return width + 1, height + 1
    if kind == b"VP8 ":
        start_code, width, height = struct.unpack_from("<3sHH", data, 23)
        if start_code != b"\x9d\x01\x2a":
            raise BadHeader("no key frame at the beginning")
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, 20)
        if signature != 0x2F:
            raise BadHeader("no lossless signature at the beginning")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise BadHeader("no image chunk at the beginning")


def _gif(data: bytes) -> tuple[int, int]:
    screen_width, screen_height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    in_extension = False
    for _ in range(MAX_BLOCKS):
        if in_extension:
            length = data[at]
            at += 1 + length
            in_extension = length > 0
        elif data[at] == GIF_EXTENSION:
            at += 2
            in_extension = True
        elif data[at] == GIF_IMAGE:
            left, top, width, height = struct.unpack_from("<HHHH", data, at + 1)
            # A first frame that sticks out of the screen widens it.
            return max(screen_width, left + width), max(screen_height, top + height)
        else:
            raise BadHeader("no image in the first block")
    raise BadHeader("too many blocks before the first frame")


_READERS: dict[ImageFormat, Callable[[bytes], tuple[int, int]]] = {
    ImageFormat.PNG: _png,
    ImageFormat.JPEG: _jpeg,
    ImageFormat.WEBP: _webp,
    ImageFormat.GIF: _gif,
}
