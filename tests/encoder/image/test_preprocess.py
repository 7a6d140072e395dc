"""Image files on their way through the processes that decode them."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest

from pixtral_core.errors import InvalidRequest, Unavailable
from pixtral_encoder.image import decode_processes, preprocess
from pixtral_encoder.image.decode_processes import DecodeTimeout, NoProcess, ProcessLost
from pixtral_encoder.image.decoding import TargetSize, decode
from pixtral_encoder.image.preprocess import OpenedImage, Preprocessor
from tests.encoder.image_files import FILES, MERGING, PIXTRAL, photograph
from tests.encoder.pictures import file_of, picture, png, png_that_claims

MIB = 1 << 20


@pytest.fixture(scope="module")
def preprocessor() -> Iterator[Preprocessor]:
    made = Preprocessor(PIXTRAL, workers=2, max_pixels=64_000_000, timeout_seconds=60)
    yield made
    made.close()


async def opened_by(preprocessor: Preprocessor, data: bytes) -> OpenedImage:
    return await preprocessor.open(data, hashlib.sha256(data).digest())


@pytest.mark.parametrize("spec", [PIXTRAL, MERGING], ids=["pixtral", "merging"])
async def test_pixels_come_back_as_they_were_decoded(spec: object) -> None:
    preprocessor = Preprocessor(PIXTRAL, workers=1, max_pixels=64_000_000, timeout_seconds=60)
    for data in (FILES["larger than the model takes"], photograph("JPEG", 6), FILES["webp"]):
        opened = await opened_by(preprocessor, data)
        size = TargetSize(*PIXTRAL.resized(opened.grid))
        pixels = await preprocessor.pixels(opened)
        assert pixels.dtype == np.float32
        assert pixels.shape == (3, size.height, size.width)
        assert np.array_equal(pixels.transpose(1, 2, 0), decode(data, opened.header, size))
    preprocessor.close()


async def test_the_grid_of_a_photograph_is_the_upright_ones(preprocessor: Preprocessor) -> None:
    lying = await opened_by(preprocessor, photograph("JPEG", 1))
    upright = await opened_by(preprocessor, photograph("JPEG", 6))
    assert (lying.grid.rows, lying.grid.cols) == (upright.grid.cols, upright.grid.rows) == (7, 13)


JPEG = file_of(picture(400, 300), "JPEG")
PNG = png(400, 300)
BAD_FILES = {
    "garbage": (b"\xde\xad\xbe\xef" * 100, "IMAGE_FORMAT_UNSUPPORTED"),
    "text": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "IMAGE_FORMAT_UNSUPPORTED"),
    "a format that Pillow knows and we do not": (
        file_of(picture(8, 8), "TIFF"),
        "IMAGE_FORMAT_UNSUPPORTED",
    ),
    "a JPEG's first bytes": (JPEG[:3], "IMAGE_MALFORMED"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "IMAGE_MALFORMED"),
    "truncated PNG": (PNG[: len(PNG) // 2], "IMAGE_MALFORMED"),
    "PNG with a wrong byte": (PNG[:2000] + b"\0\0\0\0" + PNG[2004:], "IMAGE_MALFORMED"),
    "truncated GIF": (FILES["gif"][: len(FILES["gif"]) // 2], "IMAGE_MALFORMED"),
    "truncated WebP": (FILES["webp"][: len(FILES["webp"]) // 2], "IMAGE_MALFORMED"),
    "one row too few": (png_that_claims(10, 10), "IMAGE_MALFORMED"),
    "no pixels": (png_that_claims(0, 10), "IMAGE_MALFORMED"),
    "endless segments": (JPEG[:2] + b"\xff\xfe\0\2" * 20_000, "IMAGE_TOO_COMPLEX"),
    "endless chunks": (PNG[:33] + b"\0\0\0\0teStabcd" * 20_000, "IMAGE_TOO_COMPLEX"),
    "above the cap": (png_that_claims(8001, 8000), "IMAGE_TOO_MANY_PIXELS"),
    "above Pillow's warning": (png_that_claims(10_000, 10_000), "IMAGE_TOO_MANY_PIXELS"),
    "a bomb": (png_that_claims(50_000, 50_000), "IMAGE_TOO_MANY_PIXELS"),
}


@pytest.mark.parametrize("name", BAD_FILES)
async def test_a_bad_file_is_the_requests_fault(preprocessor: Preprocessor, name: str) -> None:
    data, reason = BAD_FILES[name]
    # A bad file that is quickly found is not remembered.
    for _ in range(2):
        with pytest.raises(InvalidRequest) as refused:
            await preprocessor.pixels(await opened_by(preprocessor, data))
        assert refused.value.reason == reason
        assert [field for field, _ in refused.value.violations] == ["image"]


class Failing:
    """In place of the processes, raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.jobs = 0

    async def decode(self, *_: object) -> None:
        self.jobs += 1
        raise self._error


REFUSED = {
    "it took its time": (DecodeTimeout(51.0), "IMAGE_DECODE_TIMEOUT", True),
    "others took the processor": (DecodeTimeout(1.0), "IMAGE_DECODE_TIMEOUT", False),
    "it ended its process": (ProcessLost(), "IMAGE_TOO_COMPLEX", True),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_file_that_cost_much_is_refused_at_once_when_it_comes_again(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    error, reason, is_remembered = REFUSED[name]
    preprocessor = Preprocessor(PIXTRAL, workers=1, max_pixels=64_000_000, timeout_seconds=60)
    failing = Failing(error)
    monkeypatch.setattr(preprocessor, "_processes", failing)
    for times in range(1, 4):
        with pytest.raises(InvalidRequest) as refused:
            await preprocessor.pixels(await opened_by(preprocessor, PNG))
        assert refused.value.reason == reason
        assert failing.jobs == (1 if is_remembered else times)
    # Another file is not refused.
    assert (await opened_by(preprocessor, JPEG)).header.width == 400


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "REMEMBERED", 2)
    preprocessor = Preprocessor(PIXTRAL, workers=1, max_pixels=64_000_000, timeout_seconds=60)
    monkeypatch.setattr(preprocessor, "_processes", Failing(ProcessLost()))
    files = [png(8, 8, seed) for seed in range(3)]
    for data in (files[0], files[1], files[0], files[2]):
        with pytest.raises(InvalidRequest):
            await preprocessor.pixels(await opened_by(preprocessor, data))
    # The one that was not sent for the longest time is forgotten.
    assert (await opened_by(preprocessor, files[1])).header.width == 8
    with pytest.raises(InvalidRequest):
        await opened_by(preprocessor, files[0])


async def test_without_a_process_no_image_is_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessor = Preprocessor(PIXTRAL, workers=1, max_pixels=64_000_000, timeout_seconds=60)

    def none() -> None:
        raise NoProcess

    monkeypatch.setattr(decode_processes, "_started", none)
    opened = await opened_by(preprocessor, PNG)
    with pytest.raises(Unavailable):
        await preprocessor.pixels(opened)
    monkeypatch.undo()
    assert (await preprocessor.pixels(opened)).shape == (3, 304, 400)
    preprocessor.close()
