import asyncio
from pathlib import Path

import pytest

from pixtral_encoder.image import preprocess
from tests.fuzz import images
from tests.fuzz.images import PIXTRAL, Broken, fuzz_images, replayed
from tests.fuzz.pictures import originals

ORIGINALS = {name: data for name, data in originals().items() if not name.endswith("cut")}


@pytest.mark.parametrize("name", ORIGINALS)
async def test_what_pillow_writes_is_taken(name: str) -> None:
    with images.images(PIXTRAL) as under:
        assert await under.check(ORIGINALS[name]) == "taken"


async def test_gateway_and_encoder_agree_or_one_of_them_refuses() -> None:
    """A slice of `make fuzz`."""
    ended = await fuzz_images(PIXTRAL, 7, count=2500)
    assert {"taken", "IMAGE_MALFORMED", "IMAGE_FORMAT_UNSUPPORTED"} <= set(ended)


def test_readers_that_differ_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check for a second size, Pillow goes by another than the gateway."""
    monkeypatch.setattr(images, "REGRESSIONS", tmp_path)
    monkeypatch.setattr(preprocess, "check_work", lambda _: 1)
    with pytest.raises(Broken, match="for the gateway"):
        asyncio.run(fuzz_images(PIXTRAL, 1, count=10_000))
    (kept,) = tmp_path.iterdir()
    monkeypatch.undo()
    with images.images(PIXTRAL) as under:
        assert asyncio.run(under.check(kept.read_bytes())) == "IMAGE_MALFORMED"


@pytest.mark.parametrize("path", replayed(), ids=lambda path: path.name)
def test_what_was_broken_once_holds(path: Path) -> None:
    with images.images(PIXTRAL) as under:
        asyncio.run(under.check(path.read_bytes()))
