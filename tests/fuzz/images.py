"""The rules for any bytes that are shown as an image.

    python -m tests.fuzz.images [--count 100000] [--seed 0]

Inputs that break something are kept under tests/fuzz/regressions, and ends the run with exit code
1.
"""

import argparse
import hashlib
import io
import time
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mistral_common.tokens.tokenizers.image import transform_image
from PIL import ExifTags, Image, ImageOps

from pixtral_core.image.formats import BadHeader, ImageFormat
from pixtral_core.image.header import read_header
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_encoder.image.decoding import TargetSize, Undecodable, decode
from tests.fuzz.pictures import Mutator, originals

FORMATS = frozenset(ImageFormat)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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
REASONS = frozenset({"IMAGE_MALFORMED", "IMAGE_TOO_COMPLEX"})


class Broken(AssertionError):
    """Something that must hold does not."""


class Images:
    """The gateway's look at a file, the encoder's, and what Pillow makes of it by itself.

    Pillow stands for vLLM here, which has it turn an image upright, and mistral_common resize it.
    """

    def __init__(self, spec: VisionSpec) -> None:
        warnings.filterwarnings("ignore", module="PIL")
        self._spec = spec

    def check(self, data: bytes) -> str:
        """Its outcome. Raises Broken, or whatever else should not be raised."""
        try:
            header = read_header(data, FORMATS)
        except BadHeader:
            return "IMAGE_MALFORMED by its header"
        if header is None:
            return "IMAGE_FORMAT_UNSUPPORTED"
        if header.width * header.height > MAX_PIXELS:
            return "IMAGE_TOO_MANY_PIXELS"
        size = TargetSize(*self._spec.resized(self._spec.grid(header.width, header.height)))
        began = time.monotonic()
        try:
            pixels = decode(data, header, size)
        except Undecodable as refused:
            if refused.reason not in REASONS:
                raise Broken(refused.reason) from None
            return refused.reason
        except Exception:
            # Pillow's decoders raise any type; so does the process that decodes take them.
            return "IMAGE_MALFORMED"
        if time.monotonic() - began > SECONDS:
            raise Broken("too slow")
        image = _as_vllm_has_it(data)
        if image is None:
            return "taken, and Pillow refuses it for what no pixel needs"
        if image.format_name != header.format.upper():
            raise Broken(f"{header.format} for the gateway, {image.format_name} for Pillow")
        if image.size != (header.width, header.height):
            raise Broken(f"{header.width}x{header.height} for the gateway, {image.size} for vLLM")
        if not np.array_equal(
            pixels, transform_image(image.pixels, (size.width, size.height)).transpose(1, 2, 0)
        ):
            raise Broken("not the pixels that vLLM has")
        return "taken" if image.is_vllms else "taken and turned, where vLLM does not"


@dataclass(frozen=True, slots=True)
class _Upright:
    format_name: str
    size: tuple[int, int]
    pixels: Image.Image
    is_vllms: bool


def _as_vllm_has_it(data: bytes) -> _Upright | None:
    """None if Pillow does not take it."""
    try:
        image: Image.Image = Image.open(
            io.BytesIO(data), formats=[each.upper() for each in FORMATS]
        )
        # Pillow's name of a JPEG behind which there are more of them.
        name = {"MPO": "JPEG"}.get(image.format or "", image.format or "")
        image.load()
        image.convert("RGB")
    except Exception:
        return None
    image, is_vllms = _turned(image)
    size = image.size
    if image.mode.startswith("I;16") or (name, image.mode) == ("PPM", "I"):
        # The one way in which we differ.
        image = _scaled(image)
    return _Upright(name, size, image, is_vllms)


def _turned(image: Image.Image) -> tuple[Image.Image, bool]:
    """Upright, and whether vLLM has it so.

    Where Pillow raises, vLLM leaves the image as it is: where it cannot read the block, and where
    it cannot write it again without the orientation, which matters to nobody.
    """
    try:
        return ImageOps.exif_transpose(image), True
    except Exception:
        with suppress(Exception):
            found = image.getexif().get(ExifTags.Base.Orientation)
            turn = next((turn for number, turn in TURNS.items() if number == found), None)
            if turn is not None:
                return image.transpose(turn), False
    return image, True


def _scaled(image: Image.Image) -> Image.Image:
    grey = (np.asarray(image) >> 8).astype(np.uint8)
    key = image.info.get("transparency")
    if key is not None:
        grey[np.asarray(image) == key] = 255
    return Image.fromarray(grey)


def replayed() -> list[Path]:
    """Files that have shown a mistake once."""
    return sorted(REGRESSIONS.glob("*"))


def fuzz_images(
    spec: VisionSpec, seed: int, *, count: int | None = None, seconds: float | None = None
) -> Counter[str]:
    """Tries `count` files, or files for `seconds`. Inputs that break something are stored among
    the regressions, and raised."""
    mutator, ended = Mutator(seed, list(originals().values())), Counter[str]()
    until = None if seconds is None else time.monotonic() + seconds
    under = Images(spec)
    while ended.total() != count and (until is None or time.monotonic() < until):
        data = mutator.next()
        try:
            ended[under.check(data)] += 1
        except Exception:
            keep(data, REGRESSIONS)
            raise
    return ended


def keep(data: bytes, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.images")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ended = fuzz_images(PIXTRAL, given.seed, count=given.count)
    print(f"{ended.total()} files of seed {given.seed}, and gateway, encoder and vLLM agree on all")
    for ending, count in ended.most_common():
        print(f"  {count:7} {ending}")


if __name__ == "__main__":
    main()
