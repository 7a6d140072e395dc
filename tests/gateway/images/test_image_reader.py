import base64
import hashlib
import io
import threading
from collections.abc import Callable, Collection

import pytest
from PIL import Image, ImageFile

from pixtral_core.errors import InvalidRequest
from pixtral_core.image.formats import ImageFormat
from pixtral_core.image.header import ImageHeader, read_header
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_gateway.checks.conversation import ImageSource
from pixtral_gateway.images import image_reader
from pixtral_gateway.images.image_reader import ImageReader
from pixtral_gateway.images.named_images import ImageSize
from tests.support.gateway_pictures import picture, png_of

PATH = "messages[1].content[0].image.data"


@pytest.fixture
def reader(spec: VisionSpec) -> ImageReader:
    return ImageReader(spec, max_bytes=3_000_000, max_pixels=20_000_000)


async def refusal(reader: ImageReader, source: ImageSource) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        await reader.read(source)
    assert [path for path, _ in refused.value.violations] == [source.path]
    return refused.value


async def test_bytes_are_kept_and_named_by_their_digest(
    reader: ImageReader, spec: VisionSpec
) -> None:
    data = picture(333, 777)

    image = await reader.read(ImageSource(PATH, data=data))

    assert image.data == data
    assert image.sha256 == hashlib.sha256(data).digest()
    assert (image.width, image.height) == (333, 777)
    assert image.grid == spec.grid(333, 777)
    assert image.path == PATH


async def test_large_file_is_named_alike(reader: ImageReader) -> None:
    data = picture(64, 64) + bytes(2_000_000)

    image = await reader.read(ImageSource(PATH, data=data))

    assert image.sha256 == hashlib.sha256(data).digest()


@pytest.mark.parametrize("padding", [0, 1, 2, 2_000_000])
async def test_data_url_holds_the_same_bytes(reader: ImageReader, padding: int) -> None:
    data = picture(32, 32) + bytes(padding)
    url = "data:image/png;base64," + base64.b64encode(data).decode()

    image = await reader.read(ImageSource("messages[0].content[0].image.url", url=url))

    assert image.data == data


def in_lines(text: str) -> str:
    """As `base64 -i` writes it."""
    return "".join(text[at : at + 76] + "\n" for at in range(0, len(text), 76))


@pytest.mark.parametrize(
    "write",
    [
        in_lines,
        lambda text: in_lines(text).replace("\n", "\r\n"),
        lambda text: text.rstrip("="),
        lambda text: f" {text}\t\f",
        lambda text: text.replace("=", "%3D").replace("+", "%2b").replace("/", "%2F"),
    ],
    ids=["lines", "lines of Windows", "no padding", "spaces", "percent"],
)
@pytest.mark.parametrize("padding", [0, 1, 2, 400_000])
async def test_base64_is_read_as_browsers_read_it(
    reader: ImageReader, padding: int, write: Callable[[str], str]
) -> None:
    data = picture(32, 32) + bytes(padding)
    url = "data:image/png;base64," + write(base64.b64encode(data).decode())

    image = await reader.read(ImageSource("messages[0].content[0].image.url", url=url))

    assert image.data == data


@pytest.mark.parametrize(
    "head", ["DATA:image/png;BASE64,", "data:;base64,", "data:image/png;charset=utf-8; base64,"]
)
async def test_a_data_url_may_begin_in_many_ways(reader: ImageReader, head: str) -> None:
    url = head + base64.b64encode(picture(8, 8)).decode()

    image = await reader.read(ImageSource("messages[0].content[0].image.url", url=url))

    assert image.data == picture(8, 8)


async def test_a_url_is_refused_with_the_setting_that_allows_it(reader: ImageReader) -> None:
    source = ImageSource("messages[0].content[0].image.url", url="https://example.com/cat.png")

    assert "PIXTRAL_IMAGE_URL_HOSTS" in (await refusal(reader, source)).message


@pytest.mark.parametrize("form", list(ImageFormat))
async def test_the_formats_are_those_of_the_setting(spec: VisionSpec, form: ImageFormat) -> None:
    data = picture(64, 48, form=form.upper())
    alone = ImageReader(spec, max_bytes=3_000_000, max_pixels=20_000_000, formats={form})
    others = ImageReader(
        spec,
        max_bytes=3_000_000,
        max_pixels=20_000_000,
        formats=frozenset(ImageFormat) - {form},
    )

    image = await alone.read(ImageSource(PATH, data=data))

    assert (image.width, image.height) == Image.open(io.BytesIO(data)).size
    refused = await refusal(others, ImageSource(PATH, data=data))
    assert refused.reason == "IMAGE_FORMAT_UNSUPPORTED"
    assert "PIXTRAL_IMAGE_FORMATS" in refused.message


async def test_low_detail_has_a_grid_of_its_own_where_it_makes_the_image_smaller(
    reader: ImageReader, spec: VisionSpec
) -> None:
    half = spec.max_image_size // 2
    large, small = picture(spec.max_image_size, half), picture(half, 40)

    shrunk = await reader.read(ImageSource(PATH, data=large, low_detail=True))
    assert shrunk.grid == spec.grid(half, half // 2)
    assert shrunk.low_detail
    assert (shrunk.width, shrunk.height) == (spec.max_image_size, half)

    for data, low in ((large, False), (small, True)):
        image = await reader.read(ImageSource(PATH, data=data, low_detail=low))
        assert image.grid == spec.grid(image.width, image.height)
        assert not image.low_detail


async def test_a_header_that_may_be_long_is_read_beside_the_event_loop(
    reader: ImageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by: list[threading.Thread] = []

    def read(data: bytes, formats: Collection[ImageFormat]) -> ImageHeader | None:
        read_by.append(threading.current_thread())
        return read_header(data, formats)

    monkeypatch.setattr(image_reader, "read_header", read)
    for data in (picture(8, 8), picture(8, 8) + bytes(40_000)):
        await reader.read(ImageSource(PATH, data=data))
    small, large = read_by
    assert small is threading.current_thread()
    assert large is not small


async def test_no_pixel_is_decoded(reader: ImageReader, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    data = picture(64, 48, form="JPEG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)

    assert (await reader.read(ImageSource(PATH, data=data))).width == 64


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "IMAGE_EMPTY"),
        (b"hello", "IMAGE_FORMAT_UNSUPPORTED"),
        (b"BM" + bytes(100), "IMAGE_FORMAT_UNSUPPORTED"),
        (picture(9, 9, form="TIFF"), "IMAGE_FORMAT_UNSUPPORTED"),
        (picture(9, 9)[:20], "IMAGE_MALFORMED"),
        (png_of(50_000, 50_000), "IMAGE_TOO_MANY_PIXELS"),
        (png_of(20_001, 1000), "IMAGE_TOO_MANY_PIXELS"),
        (picture(9, 9) + bytes(3_000_000), "IMAGE_TOO_LARGE"),
    ],
    ids=["empty", "text", "letters", "tiff", "cut", "bomb", "just above", "large"],
)
async def test_bad_files_are_refused(reader: ImageReader, data: bytes, reason: str) -> None:
    assert (await refusal(reader, ImageSource(PATH, data=data))).reason == reason


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (ImageSize(20_001, 1000, 100), "IMAGE_TOO_MANY_PIXELS"),
        (ImageSize(64, 48, 3_000_001), "IMAGE_TOO_LARGE"),
    ],
)
def test_named_images_keep_to_the_same_limits(
    reader: ImageReader, spec: VisionSpec, size: ImageSize, reason: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        reader.named(bytes(32), size, ImageSource(PATH))
    assert refused.value.reason == reason

    image = reader.named(bytes(32), ImageSize(333, 777, 100), ImageSource(PATH))
    assert image.grid == spec.grid(333, 777)
    assert (image.data, image.sha256, image.path) == (b"", bytes(32), PATH)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://example.com/cat.png", "IMAGE_URL_NOT_ALLOWED"),
        ("http://169.254.169.254/latest", "IMAGE_URL_NOT_ALLOWED"),
        ("file:///etc/passwd", "IMAGE_URL_NOT_ALLOWED"),
        ("", "IMAGE_URL_NOT_ALLOWED"),
        ("data:image/png,abc", "IMAGE_URL_NOT_ALLOWED"),
        ("data:image/png;base64,", "IMAGE_EMPTY"),
        ("data:image/png;base64,a", "IMAGE_MALFORMED"),
        ("data:image/png;base64,ab=cd", "IMAGE_MALFORMED"),
        ("data:image/png;base64,abc==", "IMAGE_MALFORMED"),
        ("data:image/png;base64,ab-_", "IMAGE_MALFORMED"),
        ("data:image/png;base64,%C3%A9", "IMAGE_MALFORMED"),
        ("data:image/png;base64,é===", "IMAGE_MALFORMED"),
        ("data:image/png;base64," + "A" * 5_000_000, "IMAGE_TOO_LARGE"),
        ("data:image/png;base64," + "A\n" * 5_000_000, "IMAGE_TOO_LARGE"),
    ],
)
async def test_bad_urls_are_refused_and_not_echoed(
    reader: ImageReader, url: str, reason: str
) -> None:
    refused = await refusal(reader, ImageSource("messages[0].content[0].image.url", url=url))

    assert refused.reason == reason
    assert len(url) < 30 or url[:30] not in refused.message
