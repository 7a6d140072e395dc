"""Files that reach new lines of the readers, by atheris: looks for what `images.Images` refuses.

    python -m tests.fuzz.guided DIRECTORY -max_total_time=60

Findings on the way are kept in the directory and begun with the next time; inputs that break
something are put among the regressions. Other arguments are libFuzzer's.
"""

import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[
        "pixtral_core.image.header",
        "pixtral_core.image.orientation",
        "pixtral_encoder.image.pixel_parts",
        *(f"PIL.{name}ImagePlugin" for name in ("Gif", "Jpeg", "Mpo", "Png", "Tiff", "WebP")),
    ]
):
    from tests.fuzz.images import PIXTRAL, REGRESSIONS, Images

from tests.fuzz.pictures import Mutator, originals

MAX_BYTES = 200_000


def main() -> None:
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    REGRESSIONS.mkdir(parents=True, exist_ok=True)
    files = originals()
    for name, data in files.items():
        (corpus / name.translate({ord(" "): "-", ord(":"): ""})).write_bytes(data)
    images = Images(PIXTRAL)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        if random.Random(seed).random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        return Mutator(seed, list(files.values())).mutated(data)[:most]

    atheris.Setup(
        [*sys.argv, f"-max_len={MAX_BYTES}", f"-artifact_prefix={REGRESSIONS}/"],
        images.check,
        custom_mutator=mutated,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
