"""Turns an image file into the tower's input, exactly as `mistral_common` does.

Pillow's own check for truncated data (`ImageFile.LOAD_TRUNCATED_IMAGES` off, its default) is
relied on: what cannot be decoded in full is refused.
"""

import asyncio
import io
import logging
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from mistral_common.tokens.tokenizers.image import transform_image
from numpy.typing import NDArray
from PIL import Image

from pixtral_core.errors import InvalidRequest, log_place
from pixtral_core.model.vision_spec import Grid, VisionSpec
from pixtral_encoder.image.decode_work import MAX_SCANNED_PIXELS, Malformed, TooMuchWork, check_work

T = TypeVar("T")

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
FIELD = "image"

# The types that decoders raise on bad data; see `_log`.
BAD_DATA = (EOFError, OSError, SyntaxError, ValueError, struct.error)


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """A file whose header has been read and whose pixels have not."""

    image: Image.Image
    grid: Grid


class Preprocessor:
    """Decodes and resizes in a pool of threads, each image within `timeout_seconds`.

    A thread cannot be stopped: what passes its time is refused at once, and holds its place in
    the pool until it ends. The cap on pixels is what bounds the work itself.
    """

    def __init__(
        self, spec: VisionSpec, *, workers: int, max_pixels: int, timeout_seconds: float
    ) -> None:
        """`max_pixels` must not be above Pillow's own `Image.MAX_IMAGE_PIXELS`."""
        self._spec = spec
        self._max_pixels = max_pixels
        self._timeout_seconds = timeout_seconds
        # Of what is wrong in a file, in so many words: the log would have it, and Python keeps each
        # text that it has not shown before.
        warnings.filterwarnings("ignore", module="PIL")
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="preprocess")
        self._idle = asyncio.Semaphore(workers)

    async def open(self, data: bytes) -> OpenedImage:
        """Reads the header. Raises InvalidRequest."""
        return await self._run(partial(self._open, data))

    async def pixels(self, opened: OpenedImage) -> NDArray[np.float32]:
        """(3, height, width), normalised, of the size that the grid asks for.

        Raises:
            InvalidRequest: where the file is truncated, malformed or takes too long.
        """
        return await self._run(partial(self._pixels, opened))

    def close(self) -> None:
        """Blocks until what runs has ended."""
        self._pool.shutdown(cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        # Only with an idle thread does the clock start: waiting is no fault of the image.
        await self._idle.acquire()
        running = asyncio.get_running_loop().run_in_executor(self._pool, work)
        running.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await asyncio.shield(running)
        except TimeoutError:
            raise InvalidRequest(
                FIELD, "the image takes too long to decode", "IMAGE_DECODE_TIMEOUT"
            ) from None

    def _ended(self, running: asyncio.Future[T]) -> None:
        self._idle.release()
        if not running.cancelled():
            # Nobody may be waiting any more: then the failure is nobody's.
            running.exception()

    def _open(self, data: bytes) -> OpenedImage:
        try:
            scans = check_work(data)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except TooMuchWork:
            raise self._too_complex() from None
        except Malformed:
            raise self._malformed() from None
        except Image.DecompressionBombError:
            raise self._too_many_pixels() from None
        except Exception as error:
            _log(error)
            raise InvalidRequest(
                FIELD, "not a PNG, JPEG, WebP or GIF image", "IMAGE_FORMAT_UNSUPPORTED"
            ) from None
        width, height = image.size
        if width * height > self._max_pixels:
            raise self._too_many_pixels()
        if width * height * scans > MAX_SCANNED_PIXELS:
            raise self._too_complex()
        return OpenedImage(image, self._spec.grid(width, height))

    def _pixels(self, opened: OpenedImage) -> NDArray[np.float32]:
        try:
            return transform_image(opened.image, self._spec.resized(opened.grid))
        except MemoryError:
            raise
        except Exception as error:
            # Pillow's decoders and OpenCV raise any type on bad data.
            _log(error)
            raise self._malformed() from None

    def _too_complex(self) -> InvalidRequest:
        return InvalidRequest(FIELD, "the image has too many parts", "IMAGE_TOO_COMPLEX")

    def _malformed(self) -> InvalidRequest:
        return InvalidRequest(FIELD, "the image is truncated or malformed", "IMAGE_MALFORMED")

    def _too_many_pixels(self) -> InvalidRequest:
        return InvalidRequest(
            FIELD,
            f"the image has more than {self._max_pixels} pixels in all",
            "IMAGE_TOO_MANY_PIXELS",
        )


def _log(error: Exception) -> None:
    # Bad data is the client's; an error of another type may be a fault of ours.
    level = logging.DEBUG if isinstance(error, BAD_DATA) else logging.WARNING
    log_place(error, "an image could not be decoded", level)
