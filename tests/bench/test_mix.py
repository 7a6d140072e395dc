from collections import Counter
from pathlib import Path

import pytest

from bench.mix import Album, Asked, Mix, plan
from bench.simulation.arrivals import constant, trace
from pixtral_core.image.header import read_header

MIX = Mix(sizes=("32x48", "64x32"), window=20)
SALT = b"12345678"


def planned(mix: Mix, seconds: float = 100.0, seed: int = 3) -> list[Asked]:
    arrivals = trace(constant(10), highest=10, seconds=seconds, traffic=mix.traffic, seed=seed)
    album = Album(mix.sizes, SALT)
    album.make()
    return list(plan(mix, arrivals, album, seed))


def test_shares_are_those_that_were_asked_for() -> None:
    asked = planned(MIX.changed({"cancels": 0.2}))
    openings = [each for each in asked if len(each.questions) == 1]
    shown = [each.shown for each in openings if each.shown is not None]

    def share(part: int, whole: int) -> float:
        return part / whole

    assert share(len(openings), len(asked)) == pytest.approx(1 - MIX.follow_ups, abs=0.06)
    assert share(len(shown), len(openings)) == pytest.approx(MIX.images, abs=0.06)
    assert share(len(set(shown)), len(shown)) == pytest.approx(1 - MIX.reuse, abs=0.08)
    given_up = [each for each in asked if each.given_up is not None]
    assert share(len(given_up), len(asked)) == pytest.approx(0.2, abs=0.06)
    assert all(1 <= (each.given_up or 0) <= each.output_tokens for each in given_up)


def test_a_later_turn_goes_on_with_what_was_asked_and_shown_before() -> None:
    asked = planned(MIX)
    seen = {each.questions: each.shown for each in asked}
    later = [each for each in asked if len(each.questions) > 1]
    assert later
    for each in later:
        assert seen[each.questions[:-1]] == each.shown
    assert max(Counter(len(each.questions) for each in asked)) == MIX.turns


def test_the_same_seed_is_the_same_load_and_another_album_shows_other_files() -> None:
    assert [e.questions for e in planned(MIX)] == [e.questions for e in planned(MIX)]
    one, other = Album(MIX.sizes, SALT), Album(MIX.sizes, b"87654321")
    for album in (one, other):
        album.make()
    pictures = {one.picture(1), one.picture(1), one.picture(2), other.picture(1)}
    assert len(pictures) == 3
    for picture in pictures:
        header = read_header(picture)
        assert header is not None
        assert f"{header.width}x{header.height}" in MIX.sizes


@pytest.mark.parametrize(
    "text",
    ["reuse = 1.5", "colour = 1", 'sizes = ["32"]', "sizes = []", "words = [5, 2]", "window = 0"],
)
def test_a_mix_that_cannot_be_names_what_is_wrong(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mix.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"reuse|colour|32|needed"):
        Mix.read(path)


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mix.toml"
    path.write_text('reuse = 0.1\nsizes = ["10x20"]\nwords = [1, 2]')
    assert Mix.read(path) == Mix(reuse=0.1, sizes=("10x20",), words=(1, 2))
