import io
import random
import struct

import pytest
from PIL import Image, ImageOps

from pixtral_core.image.formats import (
    DEFAULT_FORMATS,
    BadHeader,
    ImageFormat,
    why_unsupported,
)
from pixtral_core.image.header import read_header
from tests.support.gateway_pictures import header_of, picture, png_of

SIZES = [(1, 1), (1, 1024), (1024, 1), (333, 777), (257, 255)]
KINDS = [
    ("PNG", "RGB"),
    ("PNG", "P"),
    ("PNG", "RGBA"),
    ("JPEG", "RGB"),
    ("JPEG", "L"),
    ("JPEG", "CMYK"),
    ("WEBP", "RGB"),
    ("WEBP", "RGBA"),
    ("GIF", "P"),
    ("GIF", "L"),
    ("BMP", "RGB"),
    ("BMP", "1"),
    ("AVIF", "RGB"),
    ("AVIF", "RGBA"),
    ("TIFF", "RGB"),
    ("TIFF", "L"),
    ("JPEG2000", "RGB"),
    ("PPM", "RGB"),
    ("PPM", "1"),
]
ALL = frozenset(ImageFormat)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("form", "mode"), KINDS)
def test_size_and_format_are_those_that_pillow_finds(
    form: str, mode: str, size: tuple[int, int]
) -> None:
    data = picture(*size, form=form, mode=mode)

    header = read_header(data, ALL)

    assert header is not None
    assert header.format.upper() == form
    assert (header.width, header.height) == Image.open(io.BytesIO(data)).size == size


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": b"Exif\0\0" + b"\xff\xc0" * 500, "comment": b"\xff\xc0 no frame"}),
        ("JPEG", {"icc_profile": bytes(200_000)}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"lossless": True, "exif": b"Exif\0\0" + bytes(100)}),
        ("GIF", {"comment": b"," * 1000}),
    ],
)
def test_what_stands_before_the_size_does_not_disturb_it(
    form: str, options: dict[str, object]
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (41, 29)).save(buffer, form, **options)

    header = read_header(buffer.getvalue(), ALL)

    assert header is not None
    assert (header.width, header.height) == (41, 29)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animation_has_the_size_of_its_canvas(form: str) -> None:
    frames = [Image.new("RGB", (30, 20), color) for color in ("red", "green", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])

    header = read_header(buffer.getvalue(), ALL)

    assert header is not None
    assert (header.width, header.height) == Image.open(buffer).size == (30, 20)


def test_first_gif_frame_that_sticks_out_of_the_screen_widens_it() -> None:
    data = bytearray(picture(30, 20, form="GIF"))
    data[6:10] = struct.pack("<HH", 8, 8)

    header = read_header(bytes(data))

    assert header is not None
    assert (header.width, header.height) == Image.open(io.BytesIO(data)).size == (30, 20)


@pytest.mark.parametrize(("form", "mode"), KINDS)
def test_nothing_after_the_header_is_needed(form: str, mode: str) -> None:
    data = picture(64, 48, form=form, mode=mode)

    assert read_header(header_of(data), ALL) == read_header(data, ALL)


# The header of a PPM is shorter than the others' beginnings.
@pytest.mark.parametrize(("form", "mode"), [kind for kind in KINDS if kind[0] != "PPM"])
def test_every_cut_within_the_header_is_refused(form: str, mode: str) -> None:
    header = header_of(picture(64, 48, form=form, mode=mode))
    shortest = next(n for n in range(12, len(header) + 1) if _reads(header[:n]))

    assert all(not _reads(header[:n]) for n in range(shortest))


@pytest.mark.parametrize(("form", "mode"), KINDS)
def test_damaged_headers_are_refused_or_read_and_nothing_else(form: str, mode: str) -> None:
    rng = random.Random(0)
    header = header_of(picture(64, 48, form=form, mode=mode))
    for _ in range(300):
        damaged = bytearray(header)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        _reads(bytes(damaged))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff\xfe\x00\x02" * 1_000_000,
        b"\xff\xd8" + b"\xff" * 4_000_000,
        b"GIF89a\x01\x00\x01\x00\x00\x00\x00!\xfe" + b"\x01a" * 2_000_000,
    ],
    ids=["JPEG segments", "JPEG fill bytes", "GIF blocks"],
)
def test_endless_headers_are_given_up(data: bytes) -> None:
    with pytest.raises(BadHeader, match="too many"):
        read_header(data, ALL)


def test_no_size_is_refused() -> None:
    with pytest.raises(BadHeader):
        read_header(png_of(0, 5))


def test_claimed_size_is_told_whatever_it_is() -> None:
    header = read_header(png_of(50_000, 50_000))

    assert header is not None
    assert (header.format, header.width, header.height) == (ImageFormat.PNG, 50_000, 50_000)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"not an image at all",
        b"BM" + bytes(60),
        b"%PDF-1.7",
        b"Post scriptum",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    ],
)
def test_other_formats_are_none(data: bytes) -> None:
    assert read_header(data, ALL) is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("bitmaps", ["bmp", "png"])
def test_an_icon_has_the_size_of_its_largest_image(bitmaps: str, mode: str) -> None:
    buffer = io.BytesIO()
    image = Image.new(mode, (64, 48))
    image.save(buffer, "ICO", sizes=[(16, 16), (64, 48), (32, 32)], bitmap_format=bitmaps)

    header = read_header(buffer.getvalue(), ALL)

    assert header is not None
    assert (header.width, header.height) == Image.open(buffer).size == (64, 48)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["AVIF", "TIFF"])
def test_the_size_is_that_of_the_upright_image(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, form, exif=exif)

    header = read_header(buffer.getvalue(), ALL)

    assert header is not None
    upright = ImageOps.exif_transpose(Image.open(buffer))
    assert (header.width, header.height) == upright.size


def test_a_format_that_is_not_among_those_taken_is_none_and_told_by_its_name() -> None:
    data = picture(8, 8, form="TIFF")

    assert read_header(data) is None
    told = why_unsupported(data, DEFAULT_FORMATS)
    assert told.startswith("TIFF images are not accepted here")
    assert "PIXTRAL_IMAGE_FORMATS" in told
    assert "HEIC" in why_unsupported(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", DEFAULT_FORMATS)
    assert why_unsupported(b"hello", {ImageFormat.PNG}) == "not a PNG image"


def _reads(data: bytes) -> bool:
    try:
        return read_header(data, ALL) is not None
    except BadHeader:
        return False
