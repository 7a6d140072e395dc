"""Turns image files into the tower's input, in processes of their own."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixtral_core.errors import InvalidRequest, Unavailable
from pixtral_core.image.formats import (
    DEFAULT_FORMATS,
    BadHeader,
    ImageFormat,
    TooManyBlocks,
    why_unsupported,
)
from pixtral_core.image.header import ImageHeader, read_header
from pixtral_core.model.vision_spec import Grid, VisionSpec
from pixtral_encoder.image.decode_processes import (
    DecodeProcesses,
    DecodeTimeout,
    NoProcess,
    ProcessLost,
)
from pixtral_encoder.image.decode_worker import Job
from pixtral_encoder.image.decoding import TargetSize, Undecodable, memory_bytes

logger = logging.getLogger(__name__)

FIELD = "image"
# The number of files that the encoder remembers and refuses at once. A file is remembered if its
# decode took too long or ended the process.
REMEMBERED = 4096

_TEXTS = {
    "IMAGE_MALFORMED": "the image is truncated or malformed",
    "IMAGE_TOO_COMPLEX": "the image has too many parts, or needs too much memory to decode",
    "IMAGE_DECODE_TIMEOUT": "the image takes too long to decode",
}


class BadImage(InvalidRequest):
    """The image cannot be decoded; `reason` is a key of `_TEXTS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(FIELD, _TEXTS[reason], reason)


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """A file whose header has been read and whose pixels have not.

    Attributes:
        size: size after the resize, in pixels.
        decode_bytes: memory that decoding needs. Memory and time grow with the number of pixels
            in the file, not with the size after the resize.
    """

    data: bytes
    sha256: bytes
    header: ImageHeader
    grid: Grid
    size: TargetSize
    decode_bytes: int


class Preprocessor:
    """Decodes and resizes images. Each may use `timeout_seconds` of processor time.

    A decode that takes longer is ended. From then on, the preprocessor refuses that file at once.
    """

    def __init__(
        self,
        spec: VisionSpec,
        *,
        workers: int,
        max_pixels: int,
        timeout_seconds: float,
        memory_bytes: int = 1 << 30,
        formats: Collection[ImageFormat] = DEFAULT_FORMATS,
    ) -> None:
        """`max_pixels` must not be above Pillow's own `Image.MAX_IMAGE_PIXELS`.

        `memory_bytes` is the memory for all images that are being decoded. `formats` are the
        formats that are decoded.
        """
        self._spec = spec
        self._max_pixels = max_pixels
        self._formats = formats
        self._timeout_seconds = timeout_seconds
        self._processes = DecodeProcesses(workers, memory_bytes=memory_bytes)
        self._refused: OrderedDict[bytes, str] = OrderedDict()

    async def start(self) -> None:
        """Starts the processes. Raises NoProcess if one does not come up."""
        await self._processes.start()

    async def open(self, data: bytes, sha256: bytes, *, low_detail: bool = False) -> OpenedImage:
        """Reads the header. Raises InvalidRequest."""
        if (reason := self._refused.get(sha256)) is not None:
            self._refused.move_to_end(sha256)
            raise BadImage(reason)
        try:
            header = await asyncio.to_thread(read_header, data, self._formats)
        except TooManyBlocks:
            raise BadImage("IMAGE_TOO_COMPLEX") from None
        except BadHeader:
            raise BadImage("IMAGE_MALFORMED") from None
        if header is None:
            raise InvalidRequest(
                FIELD, why_unsupported(data, self._formats), "IMAGE_FORMAT_UNSUPPORTED"
            )
        if header.width * header.height > self._max_pixels:
            raise InvalidRequest(
                FIELD,
                f"the image has more than {self._max_pixels} pixels in all",
                "IMAGE_TOO_MANY_PIXELS",
            )
        grid = self._spec.grid(header.width, header.height, low_detail=low_detail)
        size = TargetSize(*self._spec.resized(grid))
        decode_bytes = memory_bytes(header, len(data), size)
        return OpenedImage(data, sha256, header, grid, size, decode_bytes)

    def is_large(self, opened: OpenedImage) -> bool:
        """Whether the decode of this image needs a large part of the memory for all images."""
        return self._processes.is_large(opened.decode_bytes)

    async def pixels(self, opened: OpenedImage) -> NDArray[np.float32]:
        """Returns (3, height, width), normalised, of the size that the grid requires.

        Raises:
            InvalidRequest: the file is truncated or malformed, or needs too much time or memory.
            Unavailable: no process can decode it.
        """
        job = Job(opened.header, opened.size, opened.decode_bytes, self._timeout_seconds)
        try:
            pixels = await self._processes.decode(job, opened.data)
        except Undecodable as error:
            raise BadImage(error.reason) from None
        except DecodeTimeout as late:
            # If other work took the CPU time, the image is not at fault.
            if late.cpu_seconds > self._timeout_seconds / 2:
                self._remember(opened.sha256, "IMAGE_DECODE_TIMEOUT")
            raise BadImage("IMAGE_DECODE_TIMEOUT") from None
        except ProcessLost:
            self._remember(opened.sha256, "IMAGE_TOO_COMPLEX")
            raise BadImage("IMAGE_TOO_COMPLEX") from None
        except NoProcess:
            logger.error("cannot start a process that decodes images")
            raise Unavailable("the encoder cannot decode images now") from None
        return pixels.transpose(2, 0, 1)

    def close(self) -> None:
        """Blocks until the running decodes have ended."""
        self._processes.close()

    def _remember(self, sha256: bytes, reason: str) -> None:
        logger.warning("refusing an image from now on: %s", reason)
        self._refused[sha256] = reason
        if len(self._refused) > REMEMBERED:
            self._refused.popitem(last=False)
