"""Files and messages that are small to send and large to work on. They take seconds to make."""

import gzip
import io
import struct
import zlib
from dataclasses import dataclass
from typing import Self

from PIL import Image

from pixtral.v1 import chat_pb2
from pixtral_client.requests import chat_request

MIB = 1 << 20
LARGEST_MESSAGE = 64 * MIB
SIDE = 8000
# A field that no message of ours has.
UNKNOWN_FIELD = 1999
# They have a megabyte each, once they are inflated. As many as fit into a file take five times as
# long.
PROFILES = 4000


@dataclass(frozen=True, slots=True)
class Payloads:
    """The payloads of the attacks, made once.

    Attributes:
        names: a health check's request whose name takes all of a message, packed.
        ballast: a request for a long answer, with 60 MiB in a field that nobody knows; and packed.
        profiles: a PNG of 16 by 16 pixels whose colour profiles inflate to gigabytes.
        large: files of 64 million pixels, of a kilobyte to a megabyte.
        many: files of 36 million pixels, for an encoder all different.
        segments: a JPEG whose size stands behind nearly as many segments as a file may have.
    """

    names: bytes
    ballast: bytes
    packed_ballast: bytes
    profiles: tuple[bytes, ...]
    large: tuple[bytes, ...]
    many: tuple[bytes, ...]
    segments: bytes

    @classmethod
    def make(cls) -> Self:
        ballast = _ballast(60 * MIB)
        profiles, many = _profiles(), _flat(6000)
        return cls(
            # An emoji makes Python's text of it four times as large.
            names=gzip.compress(_field(1, b"a" * (LARGEST_MESSAGE - 64) + "🙃".encode())),
            ballast=ballast,
            packed_ballast=gzip.compress(ballast),
            profiles=tuple(variant(profiles, number) for number in range(3)),
            large=tuple(_large()),
            many=tuple(variant(many, number) for number in range(96)),
            segments=_segments(),
        )


def variant(png: bytes, number: int) -> bytes:
    """The same PNG by another digest."""
    return png[:-12] + _chunk(b"tEXt", b"n\0" + str(number).encode()) + png[-12:]


def _field(number: int, value: bytes) -> bytes:
    """A field of bytes, as protobuf writes it."""
    out = bytearray()
    for each in (number << 3 | 2, len(value)):
        while each >= 128:
            out.append(each % 128 + 128)
            each //= 128
        out.append(each)
    return bytes(out) + value


def _ballast(size: int) -> bytes:
    request = chat_request(
        chat_pb2.StreamCompleteRequest,
        [{"role": "user", "content": "Tell me a story."}],
        None,
        {"max_tokens": 4000, "ignore_eos": True},
    )
    return request.SerializeToString() + _field(UNKNOWN_FIELD, bytes(size))


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def _png(image: Image.Image, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def _profiles() -> bytes:
    plain = _png(Image.new("RGB", (16, 16)))
    profile = _chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(MIB), 9))
    after_header = 8 + 25
    return plain[:after_header] + profile * PROFILES + plain[after_header:]


def _large() -> list[bytes]:
    flat = _flat(SIDE)
    made = [variant(flat, number) for number in range(2)]
    for form in ("WEBP", "JPEG"):
        out = io.BytesIO()
        Image.new("RGB", (SIDE, SIDE), (9, 90, 200)).save(out, form, quality=50)
        made.append(out.getvalue())
    return made


def _flat(side: int) -> bytes:
    """A PNG of one colour: a bit a pixel."""
    return _png(Image.new("1", (side, side)), compress_level=9)


def _segments() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "JPEG")
    plain = out.getvalue()
    return plain[:2] + b"\xff\xfe\x00\x02" * 19_900 + plain[2:]
