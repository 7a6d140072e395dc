"""Reads an image of a request: its bytes, digest and size, without decoding a pixel."""

import asyncio
import base64
import binascii
import hashlib
from dataclasses import dataclass

from pixtral_core.concurrency.turns import Turns
from pixtral_core.errors import InvalidRequest
from pixtral_core.image.header import BadHeader, ImageHeader, read_header
from pixtral_core.model.vision_spec import Grid, VisionSpec
from pixtral_gateway.checks.conversation import ImageSource
from pixtral_gateway.images.named_images import ImageSize
from pixtral_gateway.images.url_fetch import Fetcher

# Hashing this much holds up the loop for 0.15 ms, which is about what a thread's turn costs.
OFFLOAD_BYTES = 256 << 10
# So much can be thousands of segments, which take milliseconds.
OFFLOAD_HEADER_BYTES = 32 << 10


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image file that passed the gateway's checks.

    `width` and `height` are pixels of the upright image, `grid` the tokens that stand for
    it, `sha256` the 32-byte digest of the file; `path` is the request's field that it came in.
    `data` is empty where the request named the image: `request_images` loads it where it is needed.
    """

    data: bytes
    sha256: bytes
    width: int
    height: int
    grid: Grid
    path: str


class ImageReader:
    """Reads images up to `max_bytes` of file and `max_pixels` of width times height.

    Without a fetcher, data: is the only kind of URL that is taken.
    """

    def __init__(
        self, spec: VisionSpec, *, max_bytes: int, max_pixels: int, fetcher: Fetcher | None = None
    ) -> None:
        self._spec = spec
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._fetcher = fetcher
        # Threads that run Python at once only hold up each other, and the loop.
        self._headers = Turns(1)

    async def read(self, source: ImageSource, tenant: str = "") -> ImageInput:
        """Takes turns among tenants. Raises InvalidRequest naming the source's field."""
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
        grid = self._spec.grid(header.width, header.height)
        return ImageInput(data, sha256, header.width, header.height, grid, source.path)

    async def _from_url(self, url: str, path: str) -> bytes:
        comma = url.find(",")
        head, length = url[: max(comma, 0)], len(url) - comma - 1
        if url[:5].lower() != "data:" and self._fetcher is not None:
            return await self._fetcher.fetch(url, path)
        if head[:5].lower() != "data:":
            raise InvalidRequest(path, "only data: URLs are taken", "IMAGE_URL_NOT_ALLOWED")
        if not head.lower().endswith(";base64"):
            raise InvalidRequest(path, "the data: URL is not base64", "IMAGE_URL_NOT_ALLOWED")
        self.check_size(length // 4 * 3 - url[-2:].count("="), path)
        try:
            if length > OFFLOAD_BYTES:
                return await asyncio.to_thread(_decoded, url, comma + 1)
            return _decoded(url, comma + 1)
        except (binascii.Error, ValueError):
            raise InvalidRequest(path, "the base64 is malformed", "IMAGE_MALFORMED") from None

    def named(self, sha256: bytes, size: ImageSize, path: str) -> ImageInput:
        """An image of which only this is known. Raises InvalidRequest as `read` does."""
        self.check_size(size.nbytes, path)
        self._check_pixels(size.width, size.height, path)
        grid = self._spec.grid(size.width, size.height)
        return ImageInput(b"", sha256, size.width, size.height, grid, path)

    def check_size(self, nbytes: int, path: str) -> None:
        """Raises InvalidRequest for more bytes than an image may have."""
        if nbytes > self._max_bytes:
            raise InvalidRequest(
                path, f"the image is larger than {self._max_bytes} bytes", "IMAGE_TOO_LARGE"
            )

    def _header(self, data: bytes, path: str) -> ImageHeader:
        try:
            header = read_header(data)
        except BadHeader as error:
            raise InvalidRequest(
                path, f"the image is malformed: {error}", "IMAGE_MALFORMED"
            ) from None
        if header is None:
            raise InvalidRequest(
                path, "not a PNG, JPEG, WebP or GIF image", "IMAGE_FORMAT_UNSUPPORTED"
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


def _decoded(url: str, start: int) -> bytes:
    return base64.b64decode(url[start:], validate=True)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
