import itertools
import random
from collections import Counter

import pytest

from bench.mix import Album
from bench.workloads import (
    IMAGES_OF_SERVEGEN,
    MANY,
    POOL,
    PUBLIC,
    TOKENS_OF_SERVEGEN,
    Author,
    Prompt,
    Workload,
    chats,
    drawn,
    for_fleet,
    new_images,
    pool,
    random_mm,
    servegen,
    shared_prefix,
    sliding_window,
    zipf,
)
from pixtral_core.image.header import read_header

ALL = {each.name: each for each in (*MANY, *PUBLIC)}


def written(workload: Workload, seed: int = 1, *, is_small: bool = False) -> list[list[Prompt]]:
    album = Album(workload.sizes, b"12345678")
    return workload.sessions(Author(album, random.Random(seed), itertools.count(), is_small))


def prompts(workload: Workload, seed: int = 1) -> list[Prompt]:
    return list(itertools.chain.from_iterable(written(workload, seed)))


def test_names_are_different() -> None:
    assert len(ALL) == len((*MANY, *PUBLIC))


@pytest.mark.parametrize("workload", ALL.values(), ids=ALL.keys())
def test_what_is_shown_has_a_size_that_the_album_was_made_for(workload: Workload) -> None:
    small = workload.small()
    for each, is_small in ((workload, False), (small, True)):
        asked = list(itertools.chain.from_iterable(written(each, is_small=is_small)))
        assert asked
        assert {size for prompt in asked for _, size in prompt.shown} <= set(each.sizes)
        assert all(prompt.output_tokens > 0 for prompt in asked)
    assert small.units <= 4


@pytest.mark.parametrize("workload", [new_images(4, 8), random_mm(), servegen()])
def test_strangers_share_neither_images_nor_the_beginning_of_a_text(workload: Workload) -> None:
    asked = prompts(workload)
    shown = [number for prompt in asked for number, _ in prompt.shown]
    assert len(set(shown)) == len(shown)
    assert len({prompt.questions[0].split(":")[0] for prompt in asked}) == len(asked)


def test_a_small_image_is_a_file_of_the_size_that_is_named() -> None:
    workload = new_images(4, 8).small()
    album = Album(workload.sizes, b"12345678")
    album.make()
    author = Author(album, random.Random(1), itertools.count(), is_small=True)
    files = [picture for each in workload.sessions(author) for picture in each[0].pictures]
    assert len(set(files)) == len(files) == workload.units
    headers = [read_header(file) for file in files]
    assert {f"{each.width}x{each.height}" for each in headers if each} == set(workload.sizes)


def test_a_pool_is_the_same_in_every_turn() -> None:
    one, other = ({prompt.shown for prompt in prompts(pool(), seed)} for seed in (1, 2))
    assert one & other
    assert len(one | other) <= POOL


def test_images_come_again_by_zipfs_law_and_are_others_of_another_pool() -> None:
    workload = zipf(60, 32, 6000)
    shown = [prompt.shown for prompt in prompts(workload)]
    often = [count for _, count in Counter(shown).most_common()]
    assert len(often) <= 60
    assert often[0] / often[9] == pytest.approx(10, rel=0.5)
    album = Album(workload.sizes, b"12345678")
    author = Author(album, random.Random(1), itertools.count(), first_of_pool=5_000_000)
    others = {prompt.shown for each in workload.sessions(author) for prompt in each}
    assert not others & set(shown)


def test_a_fleets_load_grows_with_its_gpus() -> None:
    for one, four in zip(for_fleet(1), for_fleet(4), strict=True):
        assert four.name == one.name
        assert four.units == 4 * one.units
        assert four.at_once == (one.at_once and 4 * one.at_once)
        assert four.rate == 4 * one.rate
    assert len({each.name for each in for_fleet(1)}) == 4


def test_a_chat_goes_on_with_what_was_shown_and_asked() -> None:
    for turns in written(chats()):
        assert len(turns) == 6
        assert len({each.shown for each in turns}) == 1
        for earlier, later in itertools.pairwise(turns):
            assert later.questions[:-1] == earlier.questions
            roles = [role for role, _ in later.texts]
            assert roles == ["user", "assistant"] * len(earlier.questions) + ["user"]


def test_groups_share_images_and_the_beginning_of_the_text() -> None:
    asked = prompts(shared_prefix())
    groups = Counter(prompt.shown for prompt in asked)
    assert set(groups.values()) == {5}
    for shown in groups:
        texts = [prompt.questions[0] for prompt in asked if prompt.shown == shown]
        assert len({text.split("?")[0] for text in texts}) == 1
        assert len(set(texts)) == 5


def test_a_window_slides_by_one_image() -> None:
    for turns in written(sliding_window()):
        for earlier, later in itertools.pairwise(turns):
            assert later.shown[:-1] == earlier.shown[1:]


def test_servegen_has_the_medians_that_it_was_read_for() -> None:
    asked = prompts(servegen())
    counts = Counter(len(prompt.shown) for prompt in asked)
    assert counts[1] / len(asked) == pytest.approx(IMAGES_OF_SERVEGEN[1], abs=0.12)
    tokens = sorted(prompt.output_tokens for prompt in asked)
    assert tokens[len(tokens) // 2] == pytest.approx(97, rel=0.35)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.7, 0.95, 1.0])
def test_a_value_is_between_those_of_the_points_beside_it(share: float) -> None:
    below = max(value for at, value in TOKENS_OF_SERVEGEN if at <= share)
    above = min(value for at, value in TOKENS_OF_SERVEGEN if at >= share)
    assert below <= drawn(TOKENS_OF_SERVEGEN, share) <= above
