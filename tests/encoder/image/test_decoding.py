"""Pixels against `mistral_common`'s own, from the same files."""

import base64
import io
import weakref
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from mistral_common.protocol.instruct.chunk import ImageChunk, ImageURLChunk
from mistral_common.tokens.tokenizers.image import (
    DATASET_MEAN,
    DATASET_STD,
    ImageConfig,
    ImageEncoder,
    SpecialImageIDs,
)
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pixtral_core.image.formats import ImageFormat
from pixtral_core.image.header import read_header
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_encoder.image import decoding
from pixtral_encoder.image.decoding import TargetSize, Undecodable, decode
from tests.encoder.image_files import FILES, GREY_16, MERGING, PIXTRAL, photograph
from tests.encoder.pictures import chunk, file_of, picture, png

ORIENTATIONS = range(1, 9)


def pixels(data: bytes, spec: VisionSpec = PIXTRAL) -> NDArray[np.float32]:
    header = read_header(data, frozenset(ImageFormat))
    assert header is not None
    grid = spec.grid(header.width, header.height)
    return decode(data, header, TargetSize(*spec.resized(grid))).transpose(2, 0, 1)


def reference(image: bytes | Image.Image, spec: VisionSpec = PIXTRAL) -> NDArray[np.float32]:
    encoder = ImageEncoder(
        ImageConfig(spec.patch_size, spec.max_image_size, spec.merge_size),
        SpecialImageIDs(10, 12, 13),
    )
    if isinstance(image, Image.Image):
        return encoder(ImageChunk(image=image)).image
    url = "data:image/any;base64," + base64.b64encode(image).decode()
    return encoder(ImageURLChunk(image_url=url)).image


def upright(data: bytes) -> Image.Image:
    """As vLLM has it."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("spec", [PIXTRAL, MERGING], ids=["pixtral", "merging"])
@pytest.mark.parametrize("name", FILES)
def test_equals_mistral_common_to_the_bit(name: str, spec: VisionSpec) -> None:
    assert np.array_equal(pixels(FILES[name], spec), reference(FILES[name], spec))


def test_threads_of_opencv_change_no_bit() -> None:
    """The processes that decode have one, where mistral_common has many."""
    before = cv2.getNumThreads()
    data = png(1500, 1100)
    try:
        cv2.setNumThreads(1)
        alone = pixels(data)
    finally:
        cv2.setNumThreads(before)
    assert np.array_equal(alone, reference(data))


def test_the_numbers_are_mistral_commons() -> None:
    assert np.array_equal(decoding.MEAN, np.array(DATASET_MEAN, np.float32))
    assert np.array_equal(decoding.STD, np.array(DATASET_STD, np.float32))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_photograph_is_turned_upright(
    form: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In several strips, the last of them shorter.
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 200 * 7)
    data = photograph(form, orientation)
    assert np.array_equal(pixels(data), reference(upright(data)))
    is_turned = not np.array_equal(reference(upright(data)), reference(data))
    assert is_turned == (orientation != 1)


def test_strips_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 1)
    for data in FILES.values():
        assert np.array_equal(pixels(data), reference(data))


def test_16_bit_grey_is_scaled() -> None:
    grey = Image.fromarray((np.asarray(GREY_16) >> 8).astype(np.uint8))
    found = pixels(file_of(GREY_16))
    assert np.array_equal(found, reference(grey))
    # Pillow, and mistral_common with it, makes all above 255 white.
    assert not np.array_equal(found, reference(file_of(GREY_16)))


def test_16_bit_grey_is_as_the_same_in_16_bit_colours() -> None:
    rows = np.asarray(GREY_16).astype(">u2")
    header = bytes([0, 0, 0, 64, 0, 0, 0, 48, 16])
    files = []
    for colour_type, values in ((0, rows[:, :, None]), (2, np.repeat(rows[:, :, None], 3, axis=2))):
        lines = b"".join(b"\0" + row.tobytes() for row in values)
        files.append(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header + bytes([colour_type, 0, 0, 0]))
            + chunk(b"IDAT", zlib.compress(lines))
            + chunk(b"IEND")
        )
    assert np.array_equal(pixels(files[0]), pixels(files[1]))
    assert np.array_equal(pixels(files[1]), reference(files[1]))


def test_16_bit_grey_that_is_transparent_is_white() -> None:
    data = file_of(GREY_16, transparency=1280)
    grey = (np.asarray(GREY_16) >> 8).astype(np.uint8)
    assert 1280 in np.asarray(GREY_16)
    grey[np.asarray(GREY_16) == 1280] = 255
    assert np.array_equal(pixels(data), reference(Image.fromarray(grey)))


def test_a_file_in_which_pillow_finds_another_size_is_refused() -> None:
    data = file_of(picture(40, 30), "JPEG")
    frame = data.index(b"\xff\xc0")
    second = bytearray(data[frame : data.index(b"\xff\xda")])
    second[5:9] = b"\0\x20\0\x10"
    doubled = data[:frame] + data[frame : data.index(b"\xff\xda")] + second
    with pytest.raises(Undecodable) as refused:
        pixels(doubled + data[data.index(b"\xff\xda") :])
    assert refused.value.reason == "IMAGE_MALFORMED"


def test_what_is_decoded_is_freed_before_it_is_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest image is in memory once as Pillow has it, and once in floats."""
    opened: list[weakref.ref[Image.Image]] = []
    open_, resize = Image.open, cv2.resize

    def watched(*given: Any, **named: Any) -> Image.Image:
        image = open_(*given, **named)
        opened.append(weakref.ref(image))
        return image

    def resized(*given: Any, **named: Any) -> Any:
        assert [each() for each in opened] == [None]
        return resize(*given, **named)

    monkeypatch.setattr(Image, "open", watched)
    monkeypatch.setattr(cv2, "resize", resized)
    assert pixels(png(64, 48)).shape == (3, 48, 64)
    assert opened
