"""Orientations against Pillow's `ImageOps.exif_transpose`, by which vLLM turns images."""

import random
import struct
import warnings

import pytest
from PIL import ExifTags, Image

from pixtral_core.image.orientation import UPRIGHT, orientation

TYPES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16)
BYTE_ORDERS = {"big": b"MM\0*", "little": b"II*\0"}


def entry(kind: int, count: int, data: bytes, tag: int = 0x0112, order: str = ">") -> bytes:
    return struct.pack(f"{order}HHL", tag, kind, count) + data.ljust(4, b"\0")


def block(*entries: bytes, head: bytes = b"MM\0*", order: str = ">", tail: bytes = b"") -> bytes:
    start = head + struct.pack(f"{order}LH", 8, len(entries))
    return start + b"".join(entries) + bytes(4) + tail


def pillows(exif: bytes | None, xmp: bytes | None = None) -> int:
    """The orientation that vLLM goes by: where Pillow raises, the image stays as it is."""
    image = Image.new("L", (1, 1))
    image.info |= {} if exif is None else {"exif": exif}
    image.info |= {} if xmp is None else {"xmp": xmp}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = image.getexif().get(ExifTags.Base.Orientation, 1)
            return next((each for each in range(1, 9) if found == each), UPRIGHT)
        except Exception:
            return UPRIGHT


@pytest.mark.parametrize("number", range(1, 9))
def test_all_that_pillow_writes_are_found(number: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "x" * 20
    exif[ExifTags.Base.Orientation] = number
    assert orientation(exif.tobytes(), None) == pillows(exif.tobytes()) == number


SHORT_6 = entry(3, 1, b"\0\6")
XMP_8 = b'<rdf tiff:Orientation="8">'
CASES: dict[str, tuple[bytes | None, bytes | None, int]] = {
    "nothing": (None, None, 1),
    "an empty block": (b"", None, 1),
    "a prefix alone": (b"Exif\0\0", XMP_8, 8),
    "two prefixes": (b"Exif\0\0" * 2 + block(SHORT_6), None, 6),
    "little-endian": (
        block(entry(3, 1, b"\6\0", order="<"), head=b"II*\0", order="<"),
        None,
        6,
    ),
    "the two bytes of 42 changed over": (block(SHORT_6, head=b"MM*\0"), None, 6),
    "no TIFF": (b"abcdefgh" + block(SHORT_6), XMP_8, 1),
    "a header cut short": (b"MM\0*\0", XMP_8, 1),
    "a directory behind the end": (b"MM\0*" + struct.pack(">L", 10_000), XMP_8, 8),
    "a directory cut short": (block(SHORT_6)[:-8], XMP_8, 8),
    "no next directory": (block(SHORT_6)[:-4], None, 6),
    "0": (block(entry(3, 1, b"\0\0")), XMP_8, 1),
    "9": (block(entry(3, 1, b"\0\x09")), XMP_8, 1),
    "65535": (block(entry(3, 1, b"\xff\xff")), None, 1),
    "no value": (block(entry(3, 0, b"\0\6")), XMP_8, 8),
    "twice": (block(SHORT_6, entry(3, 1, b"\0\3")), None, 6),
    "two values": (block(entry(3, 2, b"\0\6\0\3")), None, 6),
    "three values elsewhere": (
        block(entry(3, 3, struct.pack(">L", 26)), tail=b"\0\6\0\3\0\1"),
        None,
        6,
    ),
    "values behind the end": (block(entry(3, 3, struct.pack(">L", 24))), XMP_8, 8),
    "behind another's that are outside": (
        block(entry(2, 20, struct.pack(">L", 99), tag=0x010F), SHORT_6),
        XMP_8,
        8,
    ),
    "behind more values than there are bytes": (
        block(entry(2, 9999, struct.pack(">L", 8), tag=0x010F), SHORT_6),
        None,
        6,
    ),
    "an unknown type, and then it": (block(entry(99, 1, b"\0\3"), SHORT_6), None, 6),
    "a long": (block(entry(4, 1, struct.pack(">L", 6))), None, 6),
    "a fraction": (
        block(entry(5, 1, struct.pack(">L", 26)), tail=struct.pack(">LL", 12, 2)),
        None,
        6,
    ),
    "a fraction over zero": (
        block(entry(5, 1, struct.pack(">L", 26)), tail=struct.pack(">LL", 6, 0)),
        None,
        1,
    ),
    "bytes": (block(entry(1, 1, b"\6")), XMP_8, 1),
    "a text": (block(entry(2, 2, b"6\0")), XMP_8, 1),
    "XMP alone": (None, XMP_8, 8),
    "XMP as an element": (None, b"<tiff:Orientation>6</tiff:Orientation>", 6),
    "XMP with a number that is none": (None, b'tiff:Orientation="0"', 1),
    "both": (block(SHORT_6), XMP_8, 6),
}


@pytest.mark.parametrize("name", CASES)
def test_an_odd_block_is_read_as_vllm_reads_it(name: str) -> None:
    exif, xmp, expected = CASES[name]
    assert orientation(exif, xmp) == expected
    assert pillows(exif, xmp) == expected


@pytest.mark.parametrize("order", BYTE_ORDERS)
def test_damaged_blocks_are_read_as_vllm_reads_them(order: str) -> None:
    rng, sign = random.Random(order), ">" if order == "big" else "<"
    found = set()
    for _ in range(3000):
        entries = [
            entry(
                rng.choice(TYPES),
                rng.choice((1, 1, 1, 0, 2, 3, 9)),
                struct.pack(f"{sign}L", rng.choice((6, 6 << 16, 8, 26, 38, 99))),
                rng.choice((0x0112, 0x0112, 0x010F, 0x0110)),
                sign,
            )
            for _ in range(rng.randint(1, 4))
        ]
        data = bytearray(
            block(
                *entries, head=BYTE_ORDERS[order], order=sign, tail=bytes(range(rng.randrange(40)))
            )
        )
        for _ in range(rng.choice((0, 1, 3))):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 2, 3, 6, 8, 18, rng.randrange(256)))
        exif = bytes(data[: rng.randint(0, len(data))] if rng.random() < 0.2 else data)
        xmp = rng.choice((None, XMP_8))
        found.add(orientation(exif, xmp))
        assert orientation(exif, xmp) == pillows(exif, xmp), exif.hex()
    assert {1, 6, 8} <= found
