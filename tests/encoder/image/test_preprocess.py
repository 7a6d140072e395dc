"""Preprocessing against `mistral_common`'s own, from the same files."""

import asyncio
import base64
import struct
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from mistral_common.protocol.instruct.chunk import ImageURLChunk
from mistral_common.tokens.tokenizers.image import (
    ImageConfig,
    ImageEncoder,
    SpecialImageIDs,
    transform_image,
)
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin

from pixtral_core.errors import InvalidRequest
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_encoder.image import preprocess
from pixtral_encoder.image.preprocess import Preprocessor
from tests.encoder.pictures import chunk, file_of, picture, png, png_that_claims


def spec_of(patch_size: int, merge_size: int, max_image_size: int) -> VisionSpec:
    return VisionSpec.from_params(
        {
            "vision_encoder": {
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 128,
                "rope_theta": 10_000,
                "patch_size": patch_size,
                "spatial_merge_size": merge_size,
                "max_image_size": max_image_size,
                "image_token_id": 10,
            }
        }
    )


PIXTRAL = spec_of(16, 1, 1024)
MERGING = spec_of(14, 2, 1540)


@pytest.fixture
def preprocessor() -> Iterator[Preprocessor]:
    made = Preprocessor(PIXTRAL, workers=2, max_pixels=64_000_000, timeout_seconds=60)
    yield made
    made.close()


def reference(data: bytes, spec: VisionSpec) -> NDArray[np.float32]:
    encoder = ImageEncoder(
        ImageConfig(spec.patch_size, spec.max_image_size, spec.merge_size),
        SpecialImageIDs(10, 12, 13),
    )
    url = "data:image/any;base64," + base64.b64encode(data).decode()
    return encoder(ImageURLChunk(image_url=url)).image


def frames(count: int) -> list[Image.Image]:
    return [picture(70, 50, seed) for seed in range(count)]


def with_alpha() -> Image.Image:
    image = picture(333, 77).convert("RGBA")
    image.putalpha(picture(333, 77, seed=1).convert("L"))
    return image


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


FILES = {
    "rgb": png(333, 777),
    "one pixel": png(1, 1),
    "wide": png(1024, 16),
    "tall": png(16, 1024),
    "larger than the model takes": png(1500, 700),
    "very thin": png(3000, 1),
    "rgba": file_of(with_alpha()),
    "grey": file_of(picture(99, 101).convert("L")),
    "grey with alpha": file_of(with_alpha().convert("LA")),
    "bilevel": file_of(picture(99, 101).convert("1")),
    "palette": file_of(picture(99, 101).convert("P")),
    "palette with transparency": file_of(picture(99, 101).convert("P"), transparency=3),
    "16-bit grey": file_of(
        Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20)
    ),
    "jpeg": file_of(picture(333, 777), "JPEG"),
    "progressive jpeg": file_of(picture(200, 100), "JPEG", progressive=True),
    "grey jpeg": file_of(picture(200, 100).convert("L"), "JPEG"),
    "cmyk jpeg": file_of(picture(200, 100).convert("CMYK"), "JPEG"),
    "turned jpeg": file_of(
        picture(200, 100),
        "JPEG",
        exif=turned(),
    ),
    "gif": file_of(picture(120, 80), "GIF"),
    "animated gif": file_of(frames(3)[0], "GIF", save_all=True, append_images=frames(3)[1:]),
    "webp": file_of(picture(120, 80), "WEBP"),
    "lossless webp with alpha": file_of(with_alpha(), "WEBP", lossless=True),
    "animated webp": file_of(frames(3)[0], "WEBP", save_all=True, append_images=frames(3)[1:]),
}


@pytest.mark.parametrize("spec", [PIXTRAL, MERGING], ids=["pixtral", "merging"])
@pytest.mark.parametrize("name", FILES)
async def test_equals_mistral_common_to_the_bit(name: str, spec: VisionSpec) -> None:
    preprocessor = Preprocessor(spec, workers=1, max_pixels=64_000_000, timeout_seconds=60)
    opened = await preprocessor.open(FILES[name])
    pixels = await preprocessor.pixels(opened)
    preprocessor.close()
    expected = reference(FILES[name], spec)
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, *reversed(spec.resized(opened.grid)))
    assert np.array_equal(pixels, expected)


JPEG = file_of(picture(400, 300), "JPEG")
PNG = png(400, 300)
BAD_FILES = {
    "garbage": (b"\xde\xad\xbe\xef" * 100, "IMAGE_FORMAT_UNSUPPORTED"),
    "text": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "IMAGE_FORMAT_UNSUPPORTED"),
    "a format that Pillow knows and we do not": (
        file_of(picture(8, 8), "BMP"),
        "IMAGE_FORMAT_UNSUPPORTED",
    ),
    "a JPEG's first bytes": (JPEG[:3], "IMAGE_FORMAT_UNSUPPORTED"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "IMAGE_MALFORMED"),
    "truncated PNG": (PNG[: len(PNG) // 2], "IMAGE_MALFORMED"),
    "PNG with a wrong byte": (PNG[:2000] + b"\0\0\0\0" + PNG[2004:], "IMAGE_MALFORMED"),
    "truncated GIF": (FILES["gif"][: len(FILES["gif"]) // 2], "IMAGE_MALFORMED"),
    "truncated WebP": (FILES["webp"][: len(FILES["webp"]) // 2], "IMAGE_FORMAT_UNSUPPORTED"),
    "one row too few": (png_that_claims(10, 10), "IMAGE_MALFORMED"),
    "no pixels": (png_that_claims(0, 10), "IMAGE_FORMAT_UNSUPPORTED"),
    "above the cap": (png_that_claims(8001, 8000), "IMAGE_TOO_MANY_PIXELS"),
    "above Pillow's warning": (png_that_claims(10_000, 10_000), "IMAGE_TOO_MANY_PIXELS"),
    "a bomb": (png_that_claims(50_000, 50_000), "IMAGE_TOO_MANY_PIXELS"),
}


def scanned(times: int) -> bytes:
    """A JPEG whose last scan, which changes next to nothing, comes so many times more."""
    data = file_of(picture(64, 48), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * times + data[-2:]


SCANS = scanned(0).count(b"\xff\xda")
BEGIN, REST = PNG[:33], PNG[33:]
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
async def test_a_file_that_is_all_parts_is_refused_before_it_is_opened(
    preprocessor: Preprocessor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Image, "open")
    with pytest.raises(InvalidRequest) as refused:
        await preprocessor.open(TOO_COMPLEX[name])
    assert refused.value.reason == "IMAGE_TOO_COMPLEX"


async def test_the_larger_a_picture_the_fewer_scans_may_go_over_it(
    preprocessor: Preprocessor,
) -> None:
    # Its size is all that is looked at.
    height, width = struct.pack(">H", 7000), struct.pack(">H", 9000)
    small = scanned(40)
    at = small.index(b"\xff\xc2") + 5
    assert (await preprocessor.open(small)).image.size == (64, 48)
    with pytest.raises(InvalidRequest) as refused:
        await preprocessor.open(small[:at] + height + width + small[at + 4 :])
    assert refused.value.reason == "IMAGE_TOO_COMPLEX"


@pytest.mark.parametrize(
    "data",
    [
        scanned(100 - SCANS),
        # What a telephone has behind a picture, or in it, is no scan.
        JPEG + b"\xff\xda" * 1000,
        JPEG[:2] + b"\xff\xe2\x07\xd2" + b"\xff\xda" * 1000 + JPEG[2:],
        BEGIN + chunk(b"teSt") * 10_000 + REST,
    ],
    ids=["scans", "behind the image", "in a segment", "chunks"],
)
async def test_many_parts_are_none_too_many(preprocessor: Preprocessor, data: bytes) -> None:
    assert (await preprocessor.pixels(await preprocessor.open(data))).ndim == 3


async def test_a_png_that_gives_its_size_twice_is_refused(preprocessor: Preprocessor) -> None:
    # Pillow goes by the last one, and the gateway, like browsers, by the first.
    data = BEGIN + png(8, 8)[8:33] + REST
    with pytest.raises(InvalidRequest) as refused:
        await preprocessor.open(data)
    assert refused.value.reason == "IMAGE_MALFORMED"


async def test_nothing_of_what_is_odd_in_a_file_is_told_or_kept(
    recwarn: pytest.WarningsRecorder, preprocessor: Preprocessor
) -> None:
    """Each of these tags makes Pillow warn in words of its own."""
    tags = b"".join(struct.pack(">HHII", tag, 2, 1000, 8) for tag in range(1, 101))
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 100) + tags
    data = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + JPEG[20:]
    opened = await preprocessor.open(data)
    assert "exif" in opened.image.info
    assert "jfif" not in opened.image.info
    assert len(recwarn) == 0
    assert set(getattr(TiffImagePlugin, "__warningregistry__", ())) <= {"version"}


@pytest.mark.parametrize("name", BAD_FILES)
async def test_a_bad_file_is_the_requests_fault(preprocessor: Preprocessor, name: str) -> None:
    data, reason = BAD_FILES[name]
    with pytest.raises(InvalidRequest) as refused:
        await preprocessor.pixels(await preprocessor.open(data))
    assert refused.value.reason == reason
    assert [field for field, _ in refused.value.violations] == ["image"]


TEXT = "a text that may quote an image"


@pytest.mark.parametrize(("error", "level"), [(OSError, "DEBUG"), (AttributeError, "WARNING")])
async def test_an_error_of_ours_is_logged_with_its_place(
    preprocessor: Preprocessor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[Exception],
    level: str,
) -> None:
    def broken(*_: object) -> NDArray[np.float32]:
        raise error(TEXT)

    monkeypatch.setattr("pixtral_encoder.image.preprocess.transform_image", broken)
    caplog.set_level("DEBUG", logger="pixtral_core.errors")
    with pytest.raises(InvalidRequest):
        await preprocessor.pixels(await preprocessor.open(png(32, 32)))
    (record,) = caplog.records
    assert record.levelname == level
    assert error.__name__ in record.message
    assert "in broken" in record.message
    assert TEXT not in record.message


async def test_one_that_takes_too_long_is_refused_and_others_wait_without_a_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()

    def slow(image: Image.Image, size: tuple[int, int]) -> NDArray[np.float32]:
        if image.size == (64, 48):
            assert release.wait(60)
        return transform_image(image, size)

    monkeypatch.setattr("pixtral_encoder.image.preprocess.transform_image", slow)
    clocks: list[asyncio.Timeout] = []

    def timeout(seconds: float) -> asyncio.Timeout:
        assert seconds == 60
        clocks.append(asyncio.timeout(seconds))
        return clocks[-1]

    watched = SimpleNamespace(**{**vars(asyncio), "timeout": timeout})
    monkeypatch.setattr(preprocess, "asyncio", watched)
    preprocessor = Preprocessor(PIXTRAL, workers=1, max_pixels=64_000_000, timeout_seconds=60)
    slow_one, other = await preprocessor.open(png(64, 48)), await preprocessor.open(png(32, 32))
    clocks.clear()
    slow_pixels = asyncio.create_task(preprocessor.pixels(slow_one))
    await asyncio.sleep(0)
    other_pixels = asyncio.create_task(preprocessor.pixels(other))
    for _ in range(10):
        await asyncio.sleep(0)
    # The only thread is taken: the other one waits without a clock.
    (clock,) = clocks
    # The time is over.
    clock.reschedule(0)
    with pytest.raises(InvalidRequest) as refused:
        await slow_pixels
    assert refused.value.reason == "IMAGE_DECODE_TIMEOUT"
    # So it does while the thread is still taken.
    assert clocks == [clock]
    assert not other_pixels.done()
    release.set()
    assert (await other_pixels).shape == (3, 32, 32)
    assert len(clocks) == 2
    preprocessor.close()
