"""Leaves only those parts of a file that its pixels need, and bounds the work of decoding them.

The caps on bytes and pixels do not bound that work. A part of a PNG beside its pixels, such as a
colour profile or text, can inflate a thousandfold. A JPEG's EXIF segments are joined one by one and
read as a directory. None of that changes a pixel, so no decoder sees it. A JPEG can also have a
million scans, each a pass over all of its pixels, and a PNG a million chunks: those are counted.
Files from cameras and programs stay far below these bounds.
"""

import re
import struct

from pixtral_core import limits
from pixtral_core.image.header import PNG_CHECKSUM_BYTES, PNG_CHUNK, PNG_SIGNATURE

MAX_SCANS = limits.IMAGE_SCANS.most
MAX_SCANNED_PIXELS = limits.IMAGE_SCANNED_PIXELS.most
MAX_BLOCKS = limits.IMAGE_BLOCKS.most
MAX_JUNK_BYTES = limits.IMAGE_JUNK_BYTES.most

# Pillow decodes the first frame of an animation as these chunks describe it.
_PNG_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"})

# Neither a byte of the image's data nor a restart of it.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
_LENGTH = struct.Struct(">H")
_END, _SCAN = 0xD9, 0xDA
# Pillow and libjpeg ignore these as a whole. They look into the content of any other.
_WITH_LENGTH = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE}) - {0xC8}
# JFIF's segment and Adobe's define the colours. The others, and comments, say nothing about a
# pixel.
_JPEG_NOT_NEEDED = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})


class TooMuchWork(ValueError):
    """Nobody writes such a file on purpose."""


class Malformed(ValueError):
    """Readers would differ about it."""


def pixel_parts(data: bytes) -> tuple[bytes, int]:
    """The file without the parts that no pixel needs, and the number of passes over all pixels.

    Raises TooMuchWork and Malformed. Files of formats other than PNG and JPEG pass unchanged: their
    readers do their work in C, once.
    """
    if data.startswith(PNG_SIGNATURE):
        return _of_png(data), 1
    if data.startswith(b"\xff\xd8"):
        return _of_jpeg(data)
    return data, 1


def _of_png(data: bytes) -> bytes:
    needed: list[bytes | memoryview] = [PNG_SIGNATURE]
    at = len(PNG_SIGNATURE)
    view = memoryview(data)
    for number in range(MAX_BLOCKS):
        if at + PNG_CHUNK.size > len(data):
            return b"".join((*needed, view[at:]))
        length, kind = PNG_CHUNK.unpack_from(data, at)
        if kind == b"IHDR" and number > 0:
            # Pillow would use this one, and other readers the first.
            raise Malformed
        end = at + PNG_CHUNK.size + length + PNG_CHECKSUM_BYTES
        if kind in _PNG_NEEDED:
            needed.append(view[at:end])
        at = end
        if kind == b"IEND":
            return b"".join(needed)
    raise TooMuchWork


def _of_jpeg(data: bytes) -> tuple[bytes, int]:
    needed, view = list[memoryview](), memoryview(data)
    kept, at, scans, junk = 0, 2, 0, 0
    for _ in range(MAX_BLOCKS):
        found = _MARKER.search(data, at)
        if not scans:
            junk += (len(data) if found is None else found.start()) - at
        marker = _END if found is None else found[1][0]
        scans += marker == _SCAN
        if scans > MAX_SCANS or junk > MAX_JUNK_BYTES:
            raise TooMuchWork
        # Before the first scan Pillow does not take it for the end.
        if found is None or (marker == _END and scans):
            return b"".join((*needed, view[kept:])), scans
        at = found.end()
        if marker in _WITH_LENGTH and at + _LENGTH.size <= len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            at += length
            if not scans and marker in _JPEG_NOT_NEEDED and length >= _LENGTH.size:
                needed.append(view[kept : found.start()])
                kept = at
    raise TooMuchWork
