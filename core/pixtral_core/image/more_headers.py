"""Reads the size of BMP, ICO, AVIF, TIFF, JPEG 2000 and PPM files, as Pillow finds it.

Each reader takes a file that begins as its format, and returns width, height and orientation of the
file. It raises BadHeader, or IndexError and struct.error if the file is cut short.
"""

import re
import struct
from collections.abc import Iterator

from pixtral_core import limits
from pixtral_core.image.formats import JPEG_2000_CODESTREAM, BadHeader, TooManyBlocks
from pixtral_core.image.orientation import SIDEWAYS, UPRIGHT, orientation

MAX_BLOCKS = limits.IMAGE_BLOCKS.most
# Comments in a real PPM are shorter.
MAX_PPM_HEADER = 4096

_Found = tuple[int, int, int]
# A box's kind, and the begin and end of its content in the file.
_Box = tuple[bytes, int, int]

_CORE_HEADER_BYTES = 12
_PNG_BEGINNING = struct.Struct(">8s4x4sII")
_ICO_ENTRY = struct.Struct("<BBBBHHII")
_TIFF_ENTRY_BYTES = 12
_WIDTH, _HEIGHT, _XMP = 256, 257, 700
_SHORT, _LONG = 3, 4
_PPM_TOKEN = re.compile(rb"(?:[ \t\n\v\f\r]|#[^\r\n]*[\r\n])*([0-9]{1,10})(?=[ \t\n\v\f\r])")

# EXIF's numbers for an AVIF's rotation and mirror. The key is the number of anticlockwise quarter
# turns. The three numbers are for no mirror, one that swaps top and bottom, and one that swaps left
# and right.
_TURNED = {0: (1, 4, 2), 1: (8, 5, 7), 2: (3, 2, 4), 3: (6, 7, 5)}


def bmp(data: bytes) -> _Found:
    return *_bitmap_size(data, 14), UPRIGHT


def ico(data: bytes) -> _Found:
    """The size is that of the image that Pillow chooses: the largest, or the one with the fewest
    colours if several are the largest."""
    (count,) = struct.unpack_from("<H", data, 4)
    if count > MAX_BLOCKS:
        raise TooManyBlocks("too many images in one file")
    entries = [_ICO_ENTRY.unpack_from(data, 6 + i * _ICO_ENTRY.size) for i in range(count)]
    if not entries:
        raise BadHeader("the file has no image")
    *_, at = min(entries, key=_ico_order)
    if data.startswith(b"\x89PNG\r\n\x1a\n", at):
        _, kind, width, height = _PNG_BEGINNING.unpack_from(data, at)
        if kind != b"IHDR":
            raise BadHeader("no IHDR at the beginning of the PNG in the file")
        return width, height, UPRIGHT
    width, height = _bitmap_size(data, at)
    # Half of the bitmap's rows are the image's mask.
    return width, height // 2, UPRIGHT


def _ico_order(entry: tuple[int, ...]) -> tuple[int, int]:
    width, height, colours, _, _, bits, _, _ = entry
    depth = bits or (colours - 1).bit_length() if bits or colours else 256
    return -(width or 256) * (height or 256), depth or 256


def _bitmap_size(data: bytes, at: int) -> tuple[int, int]:
    (header_bytes,) = struct.unpack_from("<I", data, at)
    if header_bytes == _CORE_HEADER_BYTES:
        width, height = struct.unpack_from("<HH", data, at + 4)
        return width, height
    width, height = struct.unpack_from("<Ii", data, at + 4)
    # A negative height means that the first row is the top one.
    return width, abs(height)


def ppm(data: bytes) -> _Found:
    at, numbers = 2, list[int]()
    head = data[:MAX_PPM_HEADER]
    for _ in range(2):
        token = _PPM_TOKEN.match(head, at)
        if token is None:
            raise BadHeader("no width and height at the beginning")
        numbers.append(int(token[1]))
        at = token.end()
    width, height = numbers
    return width, height, UPRIGHT


def tiff(data: bytes) -> _Found:
    """The size is that of the first image after rotation, because Pillow itself turns a TIFF
    upright."""
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    if count > MAX_BLOCKS:
        raise TooManyBlocks("too many entries in the file's directory")
    sizes: dict[int, int] = {}
    xmp = None
    for begin in range(at + 2, at + 2 + _TIFF_ENTRY_BYTES * count, _TIFF_ENTRY_BYTES):
        tag, kind, values, where = struct.unpack_from(f"{order}HHII", data, begin)
        if tag in (_WIDTH, _HEIGHT) and kind in (_SHORT, _LONG) and values == 1:
            form = "H" if kind == _SHORT else "I"
            sizes.setdefault(tag, struct.unpack_from(order + form, data, begin + 8)[0])
        elif tag == _XMP and xmp is None:
            xmp = data[where : where + values]
    if len(sizes) < 2:
        raise BadHeader("no width and height in the file's directory")
    turned = orientation(data, xmp)
    width, height = sizes[_WIDTH], sizes[_HEIGHT]
    return (height, width, UPRIGHT) if turned in SIDEWAYS else (width, height, UPRIGHT)


def jpeg_2000(data: bytes) -> _Found:
    if data.startswith(JPEG_2000_CODESTREAM):
        width, height, left, top = struct.unpack_from(">IIII", data, 8)
        return width - left, height - top, UPRIGHT
    header = _only(data, b"jp2h", 0, len(data))
    _, begin, _ = _only(data, b"ihdr", *header[1:])
    height, width = struct.unpack_from(">II", data, begin)
    return width, height, UPRIGHT


def avif(data: bytes) -> _Found:
    if data[8:12] == b"avis":
        raise BadHeader("an AVIF that begins as an animation is not accepted")
    _, begin, end = _only(data, b"meta", 0, len(data))
    # The content of this box begins with a version and flags, before the inner boxes.
    meta = begin + 4, end
    _, at, _ = _only(data, b"pitm", *meta)
    primary = int.from_bytes(data[at + 4 : at + (6 if data[at] == 0 else 8)], "big")
    _, *properties = _only(data, b"iprp", *meta)
    _, *container = _only(data, b"ipco", *properties)
    kept = list(_boxes(data, *container))
    size: tuple[int, int] | None = None
    quarters, mirror = 0, 0
    for index in _property_indices(data, _only(data, b"ipma", *properties)[1], primary):
        if not 1 <= index <= len(kept):
            continue
        kind, at, _ = kept[index - 1]
        if kind == b"ispe":
            size = struct.unpack_from(">II", data, at + 4)
        elif kind == b"irot":
            quarters = data[at] & 3
        elif kind == b"imir":
            mirror = 1 + (data[at] & 1)
    if size is None:
        raise BadHeader("the file gives no size")
    return *size, _TURNED[quarters][mirror]


def _property_indices(data: bytes, at: int, item: int) -> list[int]:
    version, flags = data[at], data[at + 3]
    (count,) = struct.unpack_from(">I", data, at + 4)
    at += 8
    for _ in range(min(count, MAX_BLOCKS)):
        (found,) = struct.unpack_from(">H" if version == 0 else ">I", data, at)
        at += 2 if version == 0 else 4
        length, at = data[at], at + 1
        if flags & 1:
            indices = [each & 0x7FFF for each in struct.unpack_from(f">{length}H", data, at)]
        else:
            indices = [each & 0x7F for each in struct.unpack_from(f">{length}B", data, at)]
        if found == item:
            return indices
        at += length * (2 if flags & 1 else 1)
    raise BadHeader("the image has no properties")


def _only(data: bytes, kind: bytes, begin: int, end: int) -> _Box:
    found = next((box for box in _boxes(data, begin, end) if box[0] == kind), None)
    if found is None:
        raise BadHeader(f"the file has no box {kind.decode()}")
    return found


def _boxes(data: bytes, begin: int, end: int) -> Iterator[_Box]:
    """Boxes of ISO's container, which AVIF and JPEG 2000 share."""
    end = min(end, len(data))
    for _ in range(MAX_BLOCKS):
        if begin + 8 > end:
            return
        length, kind = struct.unpack_from(">I4s", data, begin)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, begin + 8)
            head = 16
        elif length == 0:
            length = end - begin
        if length < head:
            raise BadHeader("a box is shorter than its own head")
        yield kind, begin + head, min(begin + length, end)
        begin += length
    raise TooManyBlocks("too many boxes before the size")
