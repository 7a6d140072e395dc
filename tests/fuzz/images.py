"""What must hold of any bytes that are shown as an image."""

import asyncio
import base64
import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mistral_common.protocol.instruct.chunk import ImageURLChunk
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from numpy.typing import NDArray

from pixtral_core.errors import InvalidRequest
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_encoder.image.preprocess import Preprocessor
from pixtral_gateway.images.image_header import BadHeader, ImageHeader, read_header
from tests.fuzz.pictures import Mutator, originals

REGRESSIONS = Path(__file__).parent / "regressions" / "images"
MAX_PIXELS = 1 << 20
# One that takes so long, of a few hundred kilobytes and at most a megapixel, does not end soon.
SECONDS = 30.0
PIXTRAL = VisionSpec.from_params(
    {
        "vision_encoder": {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 128,
            "rope_theta": 10_000,
            "patch_size": 16,
            "max_image_size": 1024,
            "image_token_id": 10,
        }
    }
)
# Not the one for too long a time.
REASONS = frozenset(
    {
        "IMAGE_FORMAT_UNSUPPORTED",
        "IMAGE_MALFORMED",
        "IMAGE_TOO_MANY_PIXELS",
        "IMAGE_TOO_COMPLEX",
    }
)
# Pillow's name of a JPEG behind which there are more of them.
SAME = {"MPO": "JPEG"}


class Broken(AssertionError):
    """Something that must hold does not."""


class Images:
    """The gateway's look at a file and the encoder's, side by side."""

    def __init__(self, spec: VisionSpec) -> None:
        self._preprocessor = Preprocessor(
            spec, workers=1, max_pixels=MAX_PIXELS, timeout_seconds=SECONDS
        )
        self._spec = spec
        self._reference = ImageEncoder(
            ImageConfig(spec.patch_size, spec.max_image_size, spec.merge_size),
            SpecialImageIDs(10, 12, 13),
        )

    def close(self) -> None:
        self._preprocessor.close()

    async def check(self, data: bytes) -> str:
        """What became of it. Raises Broken, or whatever else should not be raised."""
        try:
            header = read_header(data)
        except BadHeader:
            header = None
        if header is None or header.width * header.height > MAX_PIXELS:
            # It never gets to an encoder, which is to bear it all the same.
            return f"gateway, encoder: {await self._looked_at(data)}"
        try:
            opened = await self._preprocessor.open(data)
            found = (opened.image.format or "", opened.image.size)
            pixels = await self._preprocessor.pixels(opened)
        except InvalidRequest as refused:
            if refused.reason not in REASONS:
                raise Broken(refused.reason) from None
            return refused.reason
        self._agree(header, *found)
        if opened.grid != self._spec.grid(header.width, header.height):
            raise Broken("another grid")
        if not np.array_equal(pixels, self._expected(data)):
            raise Broken("not the pixels that mistral_common has")
        return "taken"

    async def _looked_at(self, data: bytes) -> str:
        try:
            await self._preprocessor.open(data)
        except InvalidRequest as refused:
            if refused.reason not in REASONS:
                raise Broken(refused.reason) from None
            return refused.reason
        return "opened"

    @staticmethod
    def _agree(header: ImageHeader, form: str, size: tuple[int, int]) -> None:
        if header.format.upper() != SAME.get(form, form):
            raise Broken(f"{header.format} for the gateway, {form} for the encoder")
        if (header.width, header.height) != size:
            raise Broken(f"{header.width}x{header.height} for the gateway, {size} for the encoder")

    def _expected(self, data: bytes) -> NDArray[np.float32]:
        url = "data:image/any;base64," + base64.b64encode(data).decode()
        return self._reference(ImageURLChunk(image_url=url)).image


def replayed() -> list[Path]:
    """Files that have shown a mistake once."""
    return sorted(REGRESSIONS.glob("*"))


@contextmanager
def images(spec: VisionSpec) -> Iterator[Images]:
    made = Images(spec)
    try:
        yield made
    finally:
        made.close()


async def fuzz_images(
    spec: VisionSpec, seed: int, *, count: int | None = None, seconds: float | None = None
) -> Counter[str]:
    """So many files, or for so long. What breaks is kept among the regressions, and raised."""
    mutator, ended = Mutator(seed, list(originals().values())), Counter[str]()
    until = None if seconds is None else time.monotonic() + seconds
    with images(spec) as under:
        while ended.total() != count and (until is None or time.monotonic() < until):
            data = mutator.next()
            try:
                ended[await under.check(data)] += 1
            except BaseException as error:
                if not isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
                    keep(data, REGRESSIONS)
                raise
    return ended


def keep(data: bytes, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
