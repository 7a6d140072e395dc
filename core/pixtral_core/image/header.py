"""Reads format, size and orientation from an image file, with bounded work for any bytes.

Gateway and encoder both use this reader, so that they always agree about an image's grid. The
encoder refuses a file in which Pillow finds another size. Pillow's own reader does unbounded work:
it inflates the text and the colour profile of a PNG, reads any number of JPEG and GIF blocks, and
makes a WebP decoder with memory for the whole canvas.
"""

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pixtral_core import limits
from pixtral_core.image import more_headers
from pixtral_core.image.formats import (
    DEFAULT_FORMATS,
    BadHeader,
    ImageFormat,
    TooManyBlocks,
    sniff,
)
from pixtral_core.image.orientation import EXIF_PREFIX, SIDEWAYS, UPRIGHT, orientation

MAX_BLOCKS = limits.IMAGE_BLOCKS.most

JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
JPEG_END, JPEG_SCAN, JPEG_APP1 = 0xD9, 0xDA, 0xE1
JPEG_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_XMP_PREFIX = b"XML:com.adobe.xmp\0"
PNG_CHUNK = struct.Struct(">I4s")
PNG_CHECKSUM_BYTES = 4

WEBP_CHUNK = struct.Struct("<4sI")
WEBP_HAS_XMP, WEBP_HAS_EXIF = 4, 8

GIF_EXTENSION, GIF_IMAGE = 0x21, 0x2C


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header's size and format. For a file with several images they are those of the image that
    Pillow shows first.

    Attributes:
        width: pixels of the upright image, at least 1.
        height: pixels of the upright image, at least 1.
        orientation: EXIF's number, from 1 to 8, for the rotation of the file's pixels.
    """

    format: ImageFormat
    width: int
    height: int
    orientation: int = UPRIGHT

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height of the pixels in the file's own orientation."""
        is_sideways = self.orientation in SIDEWAYS
        return (self.height, self.width) if is_sideways else (self.width, self.height)


# Width, height and orientation.
_Found = tuple[int, int, int]


def read_header(
    data: bytes, formats: Collection[ImageFormat] = DEFAULT_FORMATS
) -> ImageHeader | None:
    """The header of an image file; None if the file is in none of `formats`. Raises BadHeader if
    the header is malformed."""
    format_ = sniff(data)
    if format_ is None or format_ not in formats:
        return None
    try:
        width, height, turned = _READERS[format_](data)
    except (struct.error, IndexError):
        raise BadHeader("the header is cut short") from None
    if width < 1 or height < 1:
        raise BadHeader("the header gives no size")
    if turned in SIDEWAYS:
        width, height = height, width
    return ImageHeader(format_, width, height, turned)


def _png(data: bytes) -> _Found:
    kind, width, height = struct.unpack_from(">4sII", data, 12)
    if kind != b"IHDR":
        raise BadHeader("no IHDR at the beginning")
    return width, height, _png_orientation(data)


def _png_orientation(data: bytes) -> int:
    # The EXIF and the XMP block may come after the pixels. Compressed text is never inflated.
    exif, xmp = None, None
    at = len(PNG_SIGNATURE)
    for _ in range(MAX_BLOCKS):
        if at + PNG_CHUNK.size > len(data):
            break
        length, kind = PNG_CHUNK.unpack_from(data, at)
        begin, at = at + PNG_CHUNK.size, at + PNG_CHUNK.size + length + PNG_CHECKSUM_BYTES
        if kind == b"IEND":
            break
        if kind == b"eXIf":
            exif = data[begin : begin + length]
        elif kind == b"iTXt" and data.startswith(PNG_XMP_PREFIX, begin):
            text = data[begin + len(PNG_XMP_PREFIX) : begin + length]
            # A flag of compression, its method, a language and a translated keyword precede the
            # text.
            parts = text[2:].split(b"\0", 2)
            if text[:1] == b"\0" and len(parts) == 3:
                xmp = parts[2]
    return orientation(exif, xmp)


def _jpeg(data: bytes) -> _Found:
    size: tuple[int, int] | None = None
    # An EXIF block of more than 64 KiB continues in the next segment.
    exif, xmp = list[bytes](), None
    at = 2
    for _ in range(MAX_BLOCKS):
        at = data.find(b"\xff", at)
        marker = data[at + 1] if at >= 0 and (size is None or at + 1 < len(data)) else JPEG_END
        if marker in (0x00, 0xFF):
            at += 1
        elif marker in JPEG_WITHOUT_LENGTH:
            at += 2
        elif marker in (JPEG_END, JPEG_SCAN):
            if size is None:
                raise BadHeader("no frame header before the image data")
            return *size, orientation(b"".join(exif) or None, xmp)
        else:
            if marker in JPEG_FRAMES and size is None:
                height, width = struct.unpack_from(">HH", data, at + 5)
                size = width, height
            if size is not None and at + 4 > len(data):
                at = len(data)
                continue
            (length,) = struct.unpack_from(">H", data, at + 2)
            if marker == JPEG_APP1:
                segment = data[at + 4 : at + 2 + length]
                if segment.startswith(EXIF_PREFIX):
                    exif.append(segment[len(EXIF_PREFIX) :] if exif else segment)
                elif segment.startswith(JPEG_XMP_PREFIX):
                    xmp = segment[len(JPEG_XMP_PREFIX) :]
            at += 2 + length
    raise TooManyBlocks("too many segments before the image data")


def _webp(data: bytes) -> _Found:
    # RFC 9649: the lossy, lossless and extended forms each encode the size in their own way.
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        if len(data) < 30:
            raise BadHeader("the header is cut short")
        return width + 1, height + 1, _webp_orientation(data)
    if kind == b"VP8 ":
        start_code, width, height = struct.unpack_from("<3sHH", data, 23)
        if start_code != b"\x9d\x01\x2a":
            raise BadHeader("no key frame at the beginning")
        return width & 0x3FFF, height & 0x3FFF, UPRIGHT
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, 20)
        if signature != 0x2F:
            raise BadHeader("no lossless signature at the beginning")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, UPRIGHT
    raise BadHeader("no image chunk at the beginning")


def _webp_orientation(data: bytes) -> int:
    flags = data[20]
    wanted = {
        kind for kind, flag in ((b"EXIF", WEBP_HAS_EXIF), (b"XMP ", WEBP_HAS_XMP)) if flags & flag
    }
    found: dict[bytes, bytes] = {}
    at, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    for _ in range(MAX_BLOCKS):
        if wanted == found.keys() or at + WEBP_CHUNK.size > end:
            break
        kind, length = WEBP_CHUNK.unpack_from(data, at)
        begin, at = at + WEBP_CHUNK.size, at + WEBP_CHUNK.size + length + length % 2
        if kind in wanted:
            found.setdefault(kind, data[begin : begin + length])
    return orientation(found.get(b"EXIF"), found.get(b"XMP "))


def _gif(data: bytes) -> _Found:
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
            # A first frame that extends beyond the screen enlarges the screen.
            width, height = max(screen_width, left + width), max(screen_height, top + height)
            return width, height, UPRIGHT
        else:
            raise BadHeader("no image in the first block")
    raise TooManyBlocks("too many blocks before the first frame")


_READERS: dict[ImageFormat, Callable[[bytes], _Found]] = {
    ImageFormat.PNG: _png,
    ImageFormat.JPEG: _jpeg,
    ImageFormat.WEBP: _webp,
    ImageFormat.GIF: _gif,
    ImageFormat.BMP: more_headers.bmp,
    ImageFormat.ICO: more_headers.ico,
    ImageFormat.AVIF: more_headers.avif,
    ImageFormat.TIFF: more_headers.tiff,
    ImageFormat.JPEG_2000: more_headers.jpeg_2000,
    ImageFormat.PPM: more_headers.ppm,
}
