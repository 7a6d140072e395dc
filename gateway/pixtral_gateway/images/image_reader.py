"""Reads an image of a request: its bytes, digest and size, without decoding a pixel."""

import asyncio
import base64
import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from pixtral_core.concurrency.turns import Turns
from pixtral_core.errors import InvalidRequest
from pixtral_core.image.formats import (
    DEFAULT_FORMATS,
    BadHeader,
    ImageFormat,
    why_unsupported,
)
from pixtral_core.image.header import ImageHeader, read_header
from pixtral_core.model.vision_spec import Grid, VisionSpec
from pixtral_gateway.checks.conversation import ImageSource
from pixtral_gateway.images.named_images import ImageSize
from pixtral_gateway.images.url_fetch import Fetcher

# Hashing this much blocks the loop for about as long as a switch to a thread takes.
OFFLOAD_BYTES = 256 << 10
# A header of this length can have thousands of segments, which take milliseconds.
OFFLOAD_HEADER_BYTES = 32 << 10
# The longest media type with its parameters.
MAX_HEAD = 1024

_BASE64_HEAD = re.compile(r";[ ]*base64[ \t\n\f\r]*\Z", re.IGNORECASE)
_WHITE_SPACE = {ord(each): None for each in " \t\n\f\r"}


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image file that passed the gateway's checks.

    `width` and `height` are pixels of the upright image, and `grid` has its tokens. `sha256` is the
    32-byte digest of the file, and `path` the request's field with the image. `low_detail` is False
    even if low detail was requested, when low detail does not shrink the image. `data` is empty if
    the request named the image: `request_images` loads it on demand.
    """

    data: bytes
    sha256: bytes
    width: int
    height: int
    grid: Grid
    path: str
    low_detail: bool = False


class ImageReader:
    """Reads images of `formats`, up to `max_bytes` of file and `max_pixels` of width times height.

    Without a fetcher, only data: URLs are accepted.
    """

    def __init__(
        self,
        spec: VisionSpec,
        *,
        max_bytes: int,
        max_pixels: int,
        fetcher: Fetcher | None = None,
        formats: Collection[ImageFormat] = DEFAULT_FORMATS,
    ) -> None:
        self._spec = spec
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._fetcher = fetcher
        self._formats = formats
        # Threads that run Python at once only delay each other, and the loop.
        self._headers = Turns(1)

    async def read(self, source: ImageSource, tenant: str = "") -> ImageInput:
        """Reads an image. Tenants take turns to have large headers read. Raises InvalidRequest with
        the source's field."""
        data = source.data if source.url is None else await self._from_url(source.url, source.path)
        if not data:
            raise InvalidRequest(source.path, "the image is empty", "IMAGE_EMPTY")
        self.check_size(len(data), source.path)
        if len(data) > OFFLOAD_HEADER_BYTES:
            async with self._headers.turn(tenant):
                header = await asyncio.to_thread(self._header, data, source.path)
        else:
            header = self._header(data, source.path)
        if len(data) > OFFLOAD_BYTES:
            sha256 = await asyncio.to_thread(_sha256, data)
        else:
            sha256 = _sha256(data)
        size = ImageSize(header.width, header.height, len(data))
        return self._input(data, sha256, size, source)

    async def _from_url(self, url: str, path: str) -> bytes:
        if url[:5].lower() != "data:":
            if self._fetcher is not None:
                return await self._fetcher.fetch(url, path)
            raise InvalidRequest(
                path,
                "only data: URLs are accepted: send the image in one, or ask the operator to "
                "allow its host in PIXTRAL_IMAGE_URL_HOSTS",
                "IMAGE_URL_NOT_ALLOWED",
            )
        head, comma, _ = url[:MAX_HEAD].partition(",")
        if not comma or _BASE64_HEAD.search(head) is None:
            raise InvalidRequest(
                path,
                "the data: URL is not base64: it must begin as data:image/png;base64,",
                "IMAGE_URL_NOT_ALLOWED",
            )
        try:
            if len(url) > OFFLOAD_BYTES:
                return await asyncio.to_thread(self._decoded, url, len(head) + 1, path)
            return self._decoded(url, len(head) + 1, path)
        except ValueError:
            raise InvalidRequest(path, "the base64 is malformed", "IMAGE_MALFORMED") from None

    def _decoded(self, url: str, start: int, path: str) -> bytes:
        """Decodes a data: URL by WHATWG's rules
        (https://fetch.spec.whatwg.org/#data-url-processor): white space may be anywhere, padding
        may be missing, and %3D may stand for =. Raises ValueError."""
        text = url[start:]
        if "%" in text:
            text = unquote_to_bytes(text).decode("ascii")
        text = text.translate(_WHITE_SPACE)
        if len(text) % 4 == 0:
            text = text.removesuffix("=").removesuffix("=")
        self.check_size(len(text) * 3 // 4, path)
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)

    def named(self, sha256: bytes, size: ImageSize, source: ImageSource) -> ImageInput:
        """An image whose size is known and whose bytes are not read. Raises InvalidRequest as
        `read` does."""
        self.check_size(size.nbytes, source.path)
        self._check_pixels(size.width, size.height, source.path)
        return self._input(b"", sha256, size, source)

    def again(self, image: ImageInput, source: ImageSource) -> ImageInput:
        """The same image in another field of the request, perhaps in another detail."""
        size = ImageSize(image.width, image.height, len(image.data))
        return self._input(image.data, image.sha256, size, source)

    def _input(
        self, data: bytes, sha256: bytes, size: ImageSize, source: ImageSource
    ) -> ImageInput:
        grid = self._spec.grid(size.width, size.height)
        low = self._spec.grid(size.width, size.height, low_detail=source.low_detail)
        return ImageInput(
            data, sha256, size.width, size.height, low, source.path, low_detail=low != grid
        )

    def check_size(self, nbytes: int, path: str) -> None:
        """Raises InvalidRequest if an image has too many bytes."""
        if nbytes > self._max_bytes:
            raise InvalidRequest(
                path, f"the image is larger than {self._max_bytes} bytes", "IMAGE_TOO_LARGE"
            )

    def _header(self, data: bytes, path: str) -> ImageHeader:
        try:
            header = read_header(data, self._formats)
        except BadHeader as error:
            raise InvalidRequest(
                path, f"the image is malformed: {error}", "IMAGE_MALFORMED"
            ) from None
        if header is None:
            raise InvalidRequest(
                path, why_unsupported(data, self._formats), "IMAGE_FORMAT_UNSUPPORTED"
            )
        self._check_pixels(header.width, header.height, path)
        return header

    def _check_pixels(self, width: int, height: int, path: str) -> None:
        if width * height > self._max_pixels:
            raise InvalidRequest(
                path,
                f"the image has {width}x{height} pixels, more than {self._max_pixels} in all",
                "IMAGE_TOO_MANY_PIXELS",
            )


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
