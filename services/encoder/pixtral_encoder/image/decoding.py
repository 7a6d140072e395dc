"""Decodes and resizes an image file as `mistral_common` does, in the memory of one image.

Two things differ from `mistral_common`, so that the model sees what a viewer shows: a photograph is
turned upright by its orientation, as in vLLM, and 16-bit grey is scaled to 8 bits, where Pillow
clips all values above 255 to white. Pillow's own check refuses truncated data.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    IcoImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pixtral_core.image.formats import ImageFormat
from pixtral_core.image.header import ImageHeader
from pixtral_encoder.image.pixel_parts import (
    MAX_SCANNED_PIXELS,
    Malformed,
    TooMuchWork,
    pixel_parts,
)

# Pillow imports its plugins when it first needs them. An import while an image is decoded would
# count towards the memory limit of that image.
_PLUGINS = (
    AvifImagePlugin,
    BmpImagePlugin,
    IcoImagePlugin,
    Jpeg2KImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

CHANNELS = 3
# The mean and deviation with which mistral_common normalises.
MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)

# The number of pixels that are converted at a time.
STRIP_PIXELS = 1 << 18

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The most bytes of memory for each pixel while an image is decoded. Every format needs the floats
# of the whole image and the pixels that Pillow has decoded. In addition:
# - WebP needs libwebp's two canvases, libwebp's frame, and Pillow's copy of the frame.
# - AVIF needs planes of up to 16 bits in libavif and in its decoder, the RGB values that libavif
#   makes from them, and Pillow's two copies.
# - ICO and PPM need the bytes that Pillow collects in Python.
# - TIFF needs a strip of up to 16 bits a channel, and a turned copy.
# - JPEG 2000 needs channels of 32 bits, and a tile of these channels.
_FLOATS = CHANNELS * 4
_DECODED = 4
_BYTES_A_PIXEL = {
    ImageFormat.WEBP: _FLOATS + 4 * _DECODED,
    ImageFormat.AVIF: _FLOATS + 5 * _DECODED,
    ImageFormat.BMP: _FLOATS + 3 * _DECODED,
    ImageFormat.ICO: _FLOATS + 4 * _DECODED,
    ImageFormat.PPM: _FLOATS + 4 * _DECODED,
    ImageFormat.TIFF: _FLOATS + 4 * _DECODED,
    ImageFormat.JPEG_2000: _FLOATS + 6 * _DECODED,
}
# _FILES is the number of copies of the file in memory. _ANYWAY is the memory that the libraries
# need for any image, whatever its size.
_FILES = 3
_ANYWAY = 64 << 20


@dataclass(frozen=True, slots=True)
class TargetSize:
    """Width and height, in pixels, to which an image is resized."""

    width: int
    height: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, CHANNELS

    @property
    def nbytes(self) -> int:
        return self.width * self.height * _FLOATS


class Undecodable(ValueError):
    """The file cannot be decoded; `reason` is a name of pixtral.v1.ErrorReason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def memory_bytes(header: ImageHeader, file_bytes: int, size: TargetSize) -> int:
    """The most bytes that `decode` needs in addition to the memory of its process."""
    pixels = header.width * header.height
    each = _BYTES_A_PIXEL.get(header.format, _FLOATS + _DECODED)
    return each * pixels + _FILES * file_bytes + 2 * size.nbytes + _ANYWAY


def decode(
    data: bytes, header: ImageHeader, size: TargetSize, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Returns (height, width, 3) in float32, normalised. The result is in `out` if that is given.

    Raises:
        Undecodable: if the file is damaged, or if its pixels do not agree with its header.
        Exception: Pillow and OpenCV raise exceptions of many types on bad data.
    """
    whole = _floats(_open(data, header), header)
    resized: NDArray[np.float32] = cv2.resize(
        whole, (size.width, size.height), interpolation=cv2.INTER_CUBIC
    )
    del whole
    # The steps and their order are those of mistral_common. Another order would change the last
    # bits of the result.
    normalised = np.divide(resized, np.float32(255.0), out=out, dtype=np.float32)
    normalised -= MEAN
    normalised /= STD
    return normalised


def _open(data: bytes, header: ImageHeader) -> Image.Image:
    width, height = header.stored_size
    try:
        parts, scans = pixel_parts(data)
        if width * height * scans > MAX_SCANNED_PIXELS:
            raise TooMuchWork
        image = Image.open(io.BytesIO(parts), formats=(header.format.upper(),))
        # Pillow turns a TIFF while it loads the pixels, so width and height may be swapped here.
        if sorted(image.size) != sorted((width, height)):
            raise Malformed
        image.load()
        if image.size != (width, height):
            raise Malformed
    except TooMuchWork:
        raise Undecodable("IMAGE_TOO_COMPLEX") from None
    except Malformed:
        raise Undecodable("IMAGE_MALFORMED") from None
    return image


def _floats(image: Image.Image, header: ImageHeader) -> NDArray[np.float32]:
    """The upright image in RGB, in floats from 0 to 255."""
    whole = np.empty((header.height, header.width, CHANNELS), np.float32)
    begin = 0
    for strip in _strips(image, header):
        whole[begin : begin + len(strip)] = strip
        begin += len(strip)
    return whole


def _strips(image: Image.Image, header: ImageHeader) -> Iterator[NDArray[np.uint8]]:
    """Strips of rows of the upright image. A conversion of the whole image at once would need
    several copies of the image in memory."""
    rows = max(1, STRIP_PIXELS // header.width)
    for top in range(0, header.height, rows):
        bottom = min(top + rows, header.height)
        strip = image.crop(_stored_box(header, top, bottom))
        turn = _TURNS.get(header.orientation)
        yield _rgb(strip if turn is None else strip.transpose(turn), header.format)


def _stored_box(header: ImageHeader, top: int, bottom: int) -> tuple[int, int, int, int]:
    """The box in the stored image that contains these rows of the upright image."""
    width, height = header.stored_size
    match header.orientation:
        case 3 | 4:
            return 0, height - bottom, width, height - top
        case 5 | 6:
            return top, 0, bottom, height
        case 7 | 8:
            return width - bottom, 0, width - top, height
        case _:
            return 0, top, width, bottom


def _rgb(image: Image.Image, form: ImageFormat) -> NDArray[np.uint8]:
    """The image as RGB. A transparent image gets a white background."""
    if image.mode.startswith("I;16") or (image.mode == "I" and form == ImageFormat.PPM):
        return _scaled(image)
    if image.mode != "RGB":
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "WHITE")
        white.paste(image, (0, 0), image)
        image = white.convert("RGB")
    return np.asarray(image)


def _scaled(image: Image.Image) -> NDArray[np.uint8]:
    """16-bit grey as RGB. Each value becomes its upper byte, as when Pillow reads 16-bit
    colours."""
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return np.repeat(grey[:, :, None], CHANNELS, axis=2)
