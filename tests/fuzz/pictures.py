"""Image files of every kind that Pillow writes, and what becomes of them in bad hands."""

import io
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIZES = (0, 1, 2, 15, 16, 17, 255, 1024, 4096, 16383, 16384, 65535, 1 << 24, 2**31 - 1, 2**32 - 1)
TRAILERS = (b"PK\x03\x04" + bytes(40), b"<script>alert(1)</script>", b"%PDF-1.7\n", bytes(3000))
PNG_KINDS = (
    b"IHDR",
    b"PLTE",
    b"tRNS",
    b"IDAT",
    b"IEND",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"iCCP",
    b"eXIf",
)
TIFF = re.compile(rb"MM\0\*|II\*\0")
MODES = ("1", "L", "LA", "P", "RGB")
Blocks = list[tuple[bytes, bytes]]


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (37, 23)) -> Image.Image:
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "x" * 20
    return exif.tobytes()


def xmp(orientation: int) -> bytes:
    return b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation


def with_xmp(orientation: int) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
    return info


def flipped(bmp: bytes) -> bytes:
    height: int
    (height,) = struct.unpack_from("<i", bmp, 22)
    return bmp[:22] + struct.pack("<i", -height) + bmp[26:]


def runs() -> bytes:
    """A BMP of one colour, in which each row is one run."""
    whole = saved(picture(11, "P"), "BMP")
    made: bytes
    width, height = struct.unpack_from("<ii", whole, 18)
    (pixels,) = struct.unpack_from("<I", whole, 10)
    body = (bytes((width, 7)) + b"\0\0") * height + b"\0\1"
    made = whole[:30] + struct.pack("<II", 1, len(body)) + whole[38:pixels] + body
    return made


def behind(data: bytes) -> bytes:
    """A PNG whose EXIF block comes after its pixels."""
    blocks = list(chunks_of(data))
    blocks.sort(key=lambda block: (block[0] == b"IEND", block[0] == b"eXIf"))
    return PNG_SIGNATURE + b"".join(png_chunk(kind, body) for kind, body in blocks)


def originals() -> dict[str, bytes]:
    """Files by their kind; each of them whole, and cut short."""
    frames = [picture(seed) for seed in range(3)]
    deep = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30))
    more: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    made = {
        **{f"png {mode}": saved(picture(1, mode), "PNG") for mode in MODES},
        "png RGBA": saved(picture(2, "RGBA"), "PNG"),
        "png 16 bits": saved(deep, "PNG"),
        "png transparent": saved(picture(3, "P"), "PNG", transparency=3),
        "png 2 bits": saved(picture(3).quantize(4), "PNG", bits=2),
        "png ICC": saved(picture(4), "PNG", icc_profile=bytes(3000)),
        "png EXIF": saved(picture(4), "PNG", exif=turned(6)),
        "png EXIF behind": behind(saved(picture(4), "PNG", exif=turned(8))),
        "png XMP": saved(picture(4), "PNG", pnginfo=with_xmp(6)),
        "png animated": saved(frames[0], "PNG", **more),
        "jpeg": saved(picture(5), "JPEG"),
        "jpeg grey": saved(picture(5, "L"), "JPEG"),
        "jpeg CMYK": saved(picture(5, "CMYK"), "JPEG"),
        "jpeg progressive": saved(picture(6), "JPEG", progressive=True),
        "jpeg restarts": saved(picture(6), "JPEG", restart_marker_blocks=1),
        "jpeg 4:4:4": saved(picture(6), "JPEG", subsampling=0, comment=b"\xff\xc0 no frame"),
        "jpeg ICC": saved(picture(7), "JPEG", icc_profile=bytes(70_000)),
        "jpeg of many": saved(frames[0], "MPO", **more),
        **{f"jpeg turned {i}": saved(picture(8), "JPEG", exif=turned(i)) for i in range(1, 9)},
        "webp": saved(picture(9), "WEBP"),
        "webp lossless": saved(picture(9), "WEBP", lossless=True),
        "webp transparent": saved(picture(9, "RGBA"), "WEBP"),
        "jpeg XMP": saved(picture(8), "JPEG", xmp=xmp(6)),
        "jpeg EXIF and XMP": saved(picture(8), "JPEG", exif=turned(8), xmp=xmp(6)),
        "webp EXIF": saved(picture(9), "WEBP", exif=turned(3), icc_profile=bytes(100)),
        "webp turned": saved(picture(9), "WEBP", exif=turned(6)),
        "webp XMP": saved(picture(9), "WEBP", xmp=xmp(5)),
        "webp animated": saved(frames[0], "WEBP", **more),
        "gif": saved(picture(10, "P"), "GIF"),
        "gif grey": saved(picture(10, "L"), "GIF", comment=b"," * 300),
        "gif interlaced": saved(picture(10, "P"), "GIF", interlace=1),
        "gif transparent": saved(picture(10, "P"), "GIF", transparency=5),
        "gif animated": saved(frames[0], "GIF", **more),
        **{f"bmp {mode}": saved(picture(11, mode), "BMP") for mode in ("1", "L", "P", "RGB")},
        "bmp of top row first": flipped(saved(picture(11), "BMP")),
        "bmp of runs": runs(),
        "ico": saved(picture(12), "ICO", sizes=[(16, 16), (32, 32)]),
        "ico of bitmaps": saved(picture(12, "RGBA"), "ICO", bitmap_format="bmp"),
        "avif": saved(picture(13), "AVIF"),
        "avif transparent": saved(picture(13, "RGBA"), "AVIF"),
        "avif grey": saved(picture(13, "L"), "AVIF"),
        "avif of many": saved(frames[0], "AVIF", **more).replace(b"ftypavis", b"ftypavif", 1),
        **{f"avif turned {i}": saved(picture(13), "AVIF", exif=turned(i)) for i in range(2, 9)},
        **{f"tiff {mode}": saved(picture(14, mode), "TIFF") for mode in (*MODES, "RGBA", "CMYK")},
        "tiff 16 bits": saved(deep, "TIFF"),
        "tiff LZW": saved(picture(14), "TIFF", compression="tiff_lzw"),
        "tiff JPEG": saved(picture(14), "TIFF", compression="jpeg"),
        "tiff G4": saved(picture(14, "1"), "TIFF", compression="group4"),
        "tiff of many": saved(picture(0), "TIFF", save_all=True, append_images=[picture(1)]),
        **{f"tiff turned {i}": saved(picture(14), "TIFF", exif=turned(i)) for i in range(2, 9)},
        "jpeg 2000": saved(picture(15), "JPEG2000"),
        "jpeg 2000 transparent": saved(picture(15, "RGBA"), "JPEG2000"),
        "jpeg 2000 codestream": saved(picture(15), "JPEG2000", no_jp2=True),
        "jpeg 2000 tiles": saved(picture(15), "JPEG2000", tile_size=(16, 16)),
        "jpeg 2000 16 bits": saved(deep, "JPEG2000"),
        **{f"ppm {mode}": saved(picture(16, mode), "PPM") for mode in ("1", "L", "RGB")},
        "ppm 16 bits": saved(deep, "PPM"),
        "ppm in words": b"P3 # a comment\n2 1\n255\n255 0 0  0 9 255\n",
    }
    return made | {f"{name} cut": data[: len(data) // 2] for name, data in made.items()}


class Mutator:
    """The same seed makes the same files."""

    def __init__(self, seed: int, files: Sequence[bytes]) -> None:
        self._rng = random.Random(seed)
        self._files = files

    def next(self) -> bytes:
        data = self._rng.choice(self._files)
        for _ in range(self._rng.choice((0, 1, 1, 1, 2, 3))):
            data = self.mutated(data)
        return data

    def mutated(self, data: bytes) -> bytes:
        rng = self._rng
        of_its_kind: Callable[[bytes], bytes] = self._anything
        if rng.random() < 0.2 and (begin := TIFF.search(data)):
            return self._exif(data, begin.start())
        if data.startswith(PNG_SIGNATURE):
            of_its_kind = self._png
        elif data.startswith(b"\xff\xd8"):
            of_its_kind = self._jpeg
        elif data.startswith(b"RIFF"):
            of_its_kind = self._webp
        return (of_its_kind if rng.random() < 0.6 else self._anything)(data)

    def _anything(self, data: bytes) -> bytes:
        rng, at = self._rng, self._at(data)
        match rng.randrange(8):
            case 0:
                changed = bytearray(data)
                for _ in range(rng.randint(1, 8)):
                    if changed:
                        changed[self._at(data)] = rng.getrandbits(8)
                return bytes(changed)
            case 1:
                return data[:at]
            case 2:
                return data[:at] + rng.randbytes(rng.randint(1, 40)) + data[at:]
            case 3:
                return data[:at] + data[at + rng.randint(1, 40) :]
            case 4:
                end = at + rng.randint(1, 200)
                return data[:end] + data[at:end] * rng.randint(1, 30) + data[end:]
            case 5:
                number = rng.choice(SIZES).to_bytes(4, rng.choice(("big", "little")))
                piece = number[rng.choice((0, 2)) :]
                return data[:at] + piece + data[at + len(piece) :]
            case 6:
                other = rng.choice(self._files)
                return data[:at] + other[self._at(other) :]
            case _:
                return data + rng.choice((*TRAILERS, rng.choice(self._files)))

    def _exif(self, data: bytes, begin: int) -> bytes:
        """Another number in a block's header, its directory or its values."""
        rng, changed = self._rng, bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = begin + rng.randrange(64)
            if at < len(changed):
                changed[at] = rng.choice((*range(13), 0x12, 0x2A, 0x2B, rng.randrange(256)))
        return bytes(changed)

    def _at(self, data: bytes) -> int:
        # Headers are where readers differ.
        rng = self._rng
        most = len(data) if rng.random() < 0.4 else min(len(data), 64)
        return rng.randrange(max(most, 1))

    def _png(self, data: bytes) -> bytes:
        blocks = list(chunks_of(data))
        self._rearrange(blocks)
        if blocks and self._rng.random() < 0.3:
            i = self._rng.randrange(len(blocks))
            blocks[i] = (self._rng.choice(PNG_KINDS), blocks[i][1])
        return PNG_SIGNATURE + b"".join(png_chunk(kind, body) for kind, body in blocks)

    def _jpeg(self, data: bytes) -> bytes:
        blocks, rest = segments_of(data)
        self._rearrange(blocks)
        if blocks and self._rng.random() < 0.2:
            i = self._rng.randrange(len(blocks))
            blocks[i] = (bytes((0xFF, self._rng.randrange(0xC0, 0x100))), blocks[i][1])
        return (
            b"\xff\xd8"
            + b"".join(
                kind + struct.pack(">H", min(len(body) + 2, 65535)) + body for kind, body in blocks
            )
            + rest * self._rng.choice((1, 1, 1, 2))
        )

    def _webp(self, data: bytes) -> bytes:
        blocks, at = [], 12
        while at + 8 <= len(data):
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            blocks.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
            at += 8 + size + size % 2
        self._rearrange(blocks)
        body = b"".join(
            kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
            for kind, body in blocks
        )
        return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body

    def _rearrange(self, blocks: Blocks) -> None:
        rng = self._rng
        if not blocks:
            return
        i, k = rng.randrange(len(blocks)), rng.randrange(len(blocks))
        match rng.randrange(7):
            case 0:
                blocks.insert(i, blocks[k])
            case 1:
                del blocks[i]
            case 2:
                blocks[i], blocks[k] = blocks[k], blocks[i]
            case 3:
                blocks[i:i] = [blocks[k]] * rng.choice((2, 50, 300))
            case 4 | 5:
                # The same again with another number in it, such as a size.
                kind, body = blocks[i]
                at, number = rng.randrange(8), bytes((0, rng.randint(1, 40)))
                body = body[:at] + number + body[at + 2 :]
                blocks.insert(i + rng.randrange(2), (kind, body))
            case _:
                blocks[i] = (blocks[i][0], self._anything(blocks[i][1]))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def chunks_of(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(PNG_SIGNATURE)
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def segments_of(data: bytes) -> tuple[Blocks, bytes]:
    """Those before the first scan, and all the rest."""
    blocks: Blocks = []
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b"\xd9", b""):
        end = at + 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
        blocks.append((data[at : at + 2], data[at + 4 : end]))
        at = end
    return blocks, data[at:]
