from pathlib import Path

import pytest

from pixtral_core.image import header
from tests.fuzz import images
from tests.fuzz.images import PIXTRAL, Broken, Images, fuzz_images, replayed
from tests.fuzz.pictures import originals

ORIGINALS = {name: data for name, data in originals().items() if not name.endswith("cut")}


@pytest.mark.parametrize("name", ORIGINALS)
def test_what_pillow_writes_is_taken(name: str) -> None:
    assert Images(PIXTRAL).check(ORIGINALS[name]) == "taken"


def test_gateway_and_encoder_agree_or_one_of_them_refuses() -> None:
    """A slice of `make fuzz-images`."""
    ended = fuzz_images(PIXTRAL, 7, count=2500)
    assert {"taken", "IMAGE_MALFORMED", "IMAGE_FORMAT_UNSUPPORTED"} <= set(ended)


@pytest.mark.parametrize(
    "planted",
    [
        ("orientation", lambda *_: 1),
        ("orientation", lambda exif, xmp: 6 if exif else 1),
    ],
    ids=["none is turned", "all are turned alike"],
)
def test_readers_that_differ_are_found_out(
    planted: tuple[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "REGRESSIONS", tmp_path)
    monkeypatch.setattr(header, *planted)
    with pytest.raises(Broken, match=r"for vLLM|that vLLM has"):
        fuzz_images(PIXTRAL, 1, count=10_000)
    (kept,) = tmp_path.iterdir()
    monkeypatch.undo()
    assert Images(PIXTRAL).check(kept.read_bytes()) == "taken"


@pytest.mark.parametrize("path", replayed(), ids=lambda path: path.name)
def test_what_was_broken_once_holds(path: Path) -> None:
    Images(PIXTRAL).check(path.read_bytes())
