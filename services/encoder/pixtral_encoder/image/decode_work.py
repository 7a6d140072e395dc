"""Bounds the work of decoding a file, by its scans, segments and chunks.

The caps on bytes and pixels bound neither: a JPEG of 20 MB can have a million scans, each a pass
over all of its pixels, and a PNG as many chunks, each some microseconds of Python with its lock
held. A thread that decodes cannot be stopped, so that a few such files would be all that an encoder
does for hours. What cameras and programs write stays far below these bounds.
"""

import re
import struct

from pixtral_core import limits

MAX_SCANS = limits.IMAGE_SCANS.most
MAX_SCANNED_PIXELS = limits.IMAGE_SCANNED_PIXELS.most
MAX_BLOCKS = limits.IMAGE_BLOCKS.most
MAX_JUNK_BYTES = limits.IMAGE_JUNK_BYTES.most

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK = struct.Struct(">I4s")
_CHECKSUM_BYTES = 4

# Neither a byte of the image's data nor a restart of it.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
_LENGTH = struct.Struct(">H")
_END, _SCAN = 0xD9, 0xDA
# Those that Pillow and libjpeg pass over as a whole; of any other they look into what follows.
_WITH_LENGTH = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE}) - {0xC8}


class TooMuchWork(ValueError):
    """Nobody means such a file."""


class Malformed(ValueError):
    """Readers would differ about it."""


def check_work(data: bytes) -> int:
    """How often decoding goes over all pixels. Raises TooMuchWork and Malformed.

    What is no PNG or JPEG passes: the readers of the others do their work in C, once.
    """
    if data.startswith(_PNG_SIGNATURE):
        _check_png(data)
    elif data.startswith(b"\xff\xd8"):
        return _check_jpeg(data)
    return 1


def _check_png(data: bytes) -> None:
    at = len(_PNG_SIGNATURE)
    for number in range(MAX_BLOCKS):
        if at + _CHUNK.size > len(data):
            return
        length, kind = _CHUNK.unpack_from(data, at)
        if kind == b"IHDR" and number > 0:
            # Pillow would go by this one, and others by the first.
            raise Malformed
        at += _CHUNK.size + length + _CHECKSUM_BYTES
    raise TooMuchWork


def _check_jpeg(data: bytes) -> int:
    at, scans, junk = 2, 0, 0
    for _ in range(MAX_BLOCKS):
        found = _MARKER.search(data, at)
        if not scans:
            junk += (len(data) if found is None else found.start()) - at
        marker = _END if found is None else found[1][0]
        scans += marker == _SCAN
        if scans > MAX_SCANS or junk > MAX_JUNK_BYTES:
            raise TooMuchWork
        # Before any scan Pillow does not take it for the end.
        if found is None or (marker == _END and scans):
            return scans
        at = found.end()
        if marker in _WITH_LENGTH and at + _LENGTH.size <= len(data):
            at += _LENGTH.unpack_from(data, at)[0]
    raise TooMuchWork
