"""Image formats: their names, the first bytes of their files, and the formats accepted by
default."""

from collections.abc import Collection
from enum import StrEnum

FORMATS_SETTING = "PIXTRAL_IMAGE_FORMATS"


class BadHeader(ValueError):
    """The bytes begin like an image of a known format, but do not continue like one."""


class TooManyBlocks(BadHeader):
    """The header has more parts than the header of any real image."""


class ImageFormat(StrEnum):
    """The image formats. A value is the format's name in messages; Pillow's name is the same in
    capitals."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WebP"
    GIF = "GIF"
    BMP = "BMP"
    ICO = "ICO"
    AVIF = "AVIF"
    TIFF = "TIFF"
    JPEG_2000 = "JPEG2000"
    PPM = "PPM"


# Every browser shows these. docs/security.md says why the others need a setting.
DEFAULT_FORMATS = tuple(
    each
    for each in ImageFormat
    if each not in (ImageFormat.TIFF, ImageFormat.JPEG_2000, ImageFormat.PPM)
)

# Servers use several media types for some formats.
MEDIA_TYPES: dict[str, ImageFormat] = {
    "image/png": ImageFormat.PNG,
    "image/jpeg": ImageFormat.JPEG,
    "image/webp": ImageFormat.WEBP,
    "image/gif": ImageFormat.GIF,
    "image/bmp": ImageFormat.BMP,
    "image/x-ms-bmp": ImageFormat.BMP,
    "image/x-icon": ImageFormat.ICO,
    "image/vnd.microsoft.icon": ImageFormat.ICO,
    "image/avif": ImageFormat.AVIF,
    "image/tiff": ImageFormat.TIFF,
    "image/jp2": ImageFormat.JPEG_2000,
    "image/x-portable-anymap": ImageFormat.PPM,
    "image/x-portable-bitmap": ImageFormat.PPM,
    "image/x-portable-graymap": ImageFormat.PPM,
    "image/x-portable-pixmap": ImageFormat.PPM,
}

JPEG_2000_FILE = b"\x00\x00\x00\x0cjP  \x0d\x0a\x87\x0a"
JPEG_2000_CODESTREAM = b"\xff\x4f\xff\x51"

_BEGINNINGS: tuple[tuple[bytes, ImageFormat], ...] = (
    (b"\xff\xd8\xff", ImageFormat.JPEG),
    (b"\x89PNG\r\n\x1a\n", ImageFormat.PNG),
    (b"GIF87a", ImageFormat.GIF),
    (b"GIF89a", ImageFormat.GIF),
    (b"\0\0\1\0", ImageFormat.ICO),
    (b"II*\0", ImageFormat.TIFF),
    (b"MM\0*", ImageFormat.TIFF),
    (JPEG_2000_FILE, ImageFormat.JPEG_2000),
    (JPEG_2000_CODESTREAM, ImageFormat.JPEG_2000),
)
_BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})


def sniff(data: bytes) -> ImageFormat | None:
    """The format that the first bytes of a file show; None if they show none of these formats."""
    for beginning, format_ in _BEGINNINGS:
        if data.startswith(beginning):
            return format_
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return ImageFormat.WEBP
    # Many texts begin with these two letters, so the size of the header is checked, too.
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return ImageFormat.BMP
    if data[:1] == b"P" and data[1:2] in b"123456f" and data[2:3].isspace():
        return ImageFormat.PPM
    if data[4:8] == b"ftyp" and b"avif" in _brands(data):
        return ImageFormat.AVIF
    return None


def list_formats(formats: Collection[ImageFormat]) -> str:
    """The formats' names for a sentence, such as `PNG, JPEG or GIF`."""
    *all_but_last, last = [each.value for each in ImageFormat if each in formats]
    return f"{', '.join(all_but_last)} or {last}" if all_but_last else last


def why_unsupported(data: bytes, formats: Collection[ImageFormat]) -> str:
    """The message about a file that is in none of `formats`."""
    found = sniff(data)
    if found is not None and found not in formats:
        return (
            f"{found} images are not accepted here: send a {list_formats(formats)} image, or have "
            f"the operator set {FORMATS_SETTING}"
        )
    if data[4:8] == b"ftyp" and not _HEIC_BRANDS.isdisjoint(_brands(data)):
        return f"HEIC images are not accepted: send a {list_formats(formats)} image"
    return f"not a {list_formats(formats)} image"


def _brands(data: bytes) -> set[bytes]:
    """The brands in the first box of a file in ISO's container: they name the format of its
    content."""
    end = min(int.from_bytes(data[:4], "big"), len(data), 256)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))}
