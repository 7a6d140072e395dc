"""Files that would be all work, and what is left of the others."""

import struct
import zlib

import pytest
from PIL import Image, PngImagePlugin

from pixtral_core.image.header import read_header
from pixtral_encoder.image.decoding import TargetSize, Undecodable, decode
from pixtral_encoder.image.pixel_parts import MAX_SCANNED_PIXELS, TooMuchWork, pixel_parts
from tests.encoder.image_files import FILES, photograph
from tests.encoder.pictures import chunk, file_of, picture, png

JPEG = file_of(picture(400, 300), "JPEG")
PNG = png(400, 300)
BEGIN, REST = PNG[:33], PNG[33:]
SIZE = TargetSize(64, 48)


def scanned(times: int) -> bytes:
    """A JPEG whose last scan, which changes next to nothing, comes `times` more times."""
    data = file_of(picture(64, 48), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * times + data[-2:]


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


SCANS = scanned(0).count(b"\xff\xda")
TOO_COMPLEX = {
    "scans": scanned(101 - SCANS),
    "scans behind what looks like a segment": JPEG[:-2] + b"\xff\x05\xff\xff" + scanned(101),
    "segments": JPEG[:2] + b"\xff\xfe\0\2" * 20_000 + JPEG[2:],
    "junk between segments": JPEG[:2] + bytes(70_000) + JPEG[2:],
    "fill bytes": JPEG[:2] + b"\xff" * 70_000 + JPEG[2:],
    "junk behind an end": JPEG[:2] + b"\xff\xd9" + bytes(70_000) + JPEG[2:],
    "chunks": BEGIN + chunk(b"teSt") * 20_000 + REST,
    "chunks behind the image": PNG[:-12] + chunk(b"teSt") * 20_000 + PNG[-12:],
    "empty chunks of the image": BEGIN + chunk(b"IDAT") * 20_000 + REST,
}


@pytest.mark.parametrize("name", TOO_COMPLEX)
def test_a_file_that_is_all_parts_is_too_much_work(name: str) -> None:
    with pytest.raises(TooMuchWork):
        pixel_parts(TOO_COMPLEX[name])


@pytest.mark.parametrize(
    ("data", "scans"),
    [
        (scanned(100 - SCANS), 100),
        # The data that a telephone puts behind a picture, or in it, is not a scan.
        (JPEG + b"\xff\xda" * 1000, 1),
        (JPEG[:2] + segment(0xE2, b"\xff\xda" * 1000) + JPEG[2:], 1),
        (BEGIN + chunk(b"teSt") * 10_000 + REST, 1),
    ],
    ids=["scans", "behind the image", "in a segment", "chunks"],
)
def test_many_parts_are_none_too_many(data: bytes, scans: int) -> None:
    assert pixel_parts(data)[1] == scans
    header = read_header(data)
    assert header is not None
    assert decode(data, header, SIZE).shape == (48, 64, 3)


BOMB = zlib.compress(bytes(1 << 20), 9)
TEXT = b"key\0\0" + BOMB
INFLATING = {
    "colour profiles": chunk(b"iCCP", b"icc\0\0" + BOMB),
    "compressed text": chunk(b"zTXt", TEXT),
    "compressed international text": chunk(b"iTXt", b"key\0\1\0\0\0" + BOMB),
    # Pillow forgets to count what these inflate to.
    "compressed text with a wrong checksum": chunk(b"zTXt", TEXT[:-4] + b"\0\0\0\0"),
}


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("name", INFLATING)
def test_nothing_beside_the_pixels_is_inflated(
    name: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bombs = INFLATING[name] * 1000
    data = BEGIN + bombs + REST if where == "before" else PNG[:-12] + bombs + PNG[-12:]

    def inflated(data: bytes) -> bytes:
        raise AssertionError

    monkeypatch.setattr(PngImagePlugin, "_safe_zlib_decompress", inflated)
    header = read_header(data)
    assert header is not None
    assert (decode(data, header, SIZE) == decode(PNG, header, SIZE)).all()
    assert pixel_parts(data)[0] == PNG


def test_exif_of_many_segments_never_reaches_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow joins them one by one, and so copies each of them as often as there are others."""
    many = segment(0xE1, b"Exif\0\0" + bytes(1000)) * 15_000
    data = JPEG[:2] + many + JPEG[2:]
    monkeypatch.delattr(Image.Image, "getexif")
    header = read_header(data)
    assert header is not None
    assert pixel_parts(data)[0] == JPEG
    assert (decode(data, header, SIZE) == decode(JPEG, header, SIZE)).all()


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_what_no_pixel_needs_is_left_out(name: str) -> None:
    data = photograph(name.upper(), 6)
    parts, _ = pixel_parts(data)
    # libwebp itself ignores it, and reads nothing of it.
    assert (b"MM\0*" in parts or b"II*\0" in parts) == (name == "webp")


@pytest.mark.parametrize("name", FILES)
def test_what_is_left_is_a_file_of_the_same_size(name: str) -> None:
    parts, _ = pixel_parts(FILES[name])
    assert len(parts) <= len(FILES[name])
    assert read_header(parts) == read_header(FILES[name])


def test_the_larger_a_picture_the_fewer_scans_may_go_over_it() -> None:
    # Its size is all that is looked at.
    height, width = struct.pack(">H", 7000), struct.pack(">H", 9000)
    small = scanned(40)
    at = small.index(b"\xff\xc2") + 5
    large = small[:at] + height + width + small[at + 4 :]
    header = read_header(large)
    assert header is not None
    assert pixel_parts(small)[1] == pixel_parts(large)[1]
    assert 9000 * 7000 * pixel_parts(large)[1] > MAX_SCANNED_PIXELS
    with pytest.raises(Undecodable) as refused:
        decode(large, header, SIZE)
    assert refused.value.reason == "IMAGE_TOO_COMPLEX"


def test_a_png_that_gives_its_size_twice_is_refused() -> None:
    # Pillow goes by the last one, and browsers by the first.
    data = BEGIN + png(8, 8)[8:33] + REST
    header = read_header(data)
    assert header is not None
    with pytest.raises(Undecodable) as refused:
        decode(data, header, SIZE)
    assert refused.value.reason == "IMAGE_MALFORMED"
