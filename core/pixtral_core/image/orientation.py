"""Finds an image's orientation in its EXIF block or, if it has none, in its XMP.

An orientation is a number from 1 to 8, and 1 means upright. For a damaged block the result is that
of Pillow's `ImageOps.exif_transpose`, with which vLLM turns images. A block without a TIFF header
leaves the image as it is. An entry of an unknown type is ignored. An entry whose values lie outside
of the block ends the search. One case differs: vLLM leaves an image as it is if Pillow can read the
block but cannot write it again.
"""

import re
import struct
from collections.abc import Callable

UPRIGHT = 1
# With these, rows of the file are columns of the upright image.
SIDEWAYS = frozenset({5, 6, 7, 8})

EXIF_PREFIX = b"Exif\0\0"

_ALL = range(1, 9)
_TAG = 0x0112
_PREFIXES = re.compile(rb"(?:Exif\0\0){0,2}")
_XMP_TAG = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
# `MM*\0` and `II\0*` are not in the standard, but Pillow accepts them.
_BYTE_ORDERS = {b"MM\0*": ">", b"II*\0": "<", b"MM*\0": ">", b"II\0*": "<", b"MM\0+": ">"}
_HEADER_BYTES = 8
_INLINE_BYTES = 4

# Sizes of TIFF's types, and the types whose values may be a number from 1 to 8.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_NUMBERS = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 11: "f", 12: "d", 13: "L", 16: "Q"}
_FRACTIONS = {5: "LL", 10: "ll"}


def orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """The orientation in the blocks, each as it is in the file, or UPRIGHT."""
    found = None
    if exif is not None and len(exif) > (begin := _end_of_prefixes(exif)):
        try:
            found = _in_tiff(exif[begin:])
        except (struct.error, _NoTiffError):
            return UPRIGHT
    if found is None and xmp:
        match = _XMP_TAG.search(xmp)
        found = None if match is None else int(match[1])
    return UPRIGHT if found is None or found not in _ALL else found


class _NoTiffError(ValueError):
    pass


def _end_of_prefixes(exif: bytes) -> int:
    match = _PREFIXES.match(exif)
    return 0 if match is None else match.end()


def _in_tiff(block: bytes) -> int | None:
    """The orientation in the first directory; None if it has no such entry, 0 if its value is not a
    number from 1 to 8."""
    order = _BYTE_ORDERS.get(block[:4])
    if order is None:
        raise _NoTiffError
    (at,) = struct.unpack(f"{order}L", block[4:_HEADER_BYTES])
    if at + 2 > len(block):
        return None
    (count,) = struct.unpack_from(f"{order}H", block, at)
    entry = struct.Struct(f"{order}HHL4s")
    seen, outside = set[int](), 0
    for begin in range(at + 2, min(at + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, values, data = entry.unpack_from(block, begin)
        if tag in seen or kind not in _SIZES or not values:
            continue
        size = values * _SIZES[kind]
        if size > _INLINE_BYTES:
            outside += size
            (offset,) = struct.unpack(f"{order}L", data)
            if outside > len(block):
                continue
            if offset + size > len(block):
                return None
        seen.add(tag)
        if tag == _TAG:
            return _value(order, kind, data if size <= _INLINE_BYTES else block[offset:])
    return None


def _value(order: str, kind: int, data: bytes) -> int:
    fits: Callable[[int], bool]
    if kind in _NUMBERS:
        (number,) = struct.unpack_from(order + _NUMBERS[kind], data)
        fits = number.__eq__
    elif kind in _FRACTIONS:
        above, below = struct.unpack_from(order + _FRACTIONS[kind], data)
        fits = lambda each: below != 0 and above == each * below  # noqa: E731
    else:
        return 0
    return next((each for each in _ALL if fits(each)), 0)
