"""The memory of images that wait for the engine."""

import pytest

from pixtral_core.errors import Overloaded
from pixtral_core.model.vision_spec import Grid
from pixtral_decoder.embeddings.waiting_bytes import WaitingBytes
from pixtral_decoder.request import ImagePlace
from tests.decoder.prompts import key_of

SMALL, LARGE = Grid(2, 3), Grid(10, 10)


def image(name: str, grid: Grid = SMALL) -> ImagePlace:
    return ImagePlace(key_of(name), 0, grid)


def test_an_image_is_counted_once_until_its_last_request_is_done() -> None:
    waiting = WaitingBytes(1000, 10)
    leaves = [waiting.take([image("a"), image("a"), image("b")]), waiting.take([image("a")])]
    assert waiting.bytes == 120
    leaves[0]()
    assert waiting.bytes == 60
    # Told twice, it counts once.
    leaves[0]()
    leaves[1]()
    assert waiting.bytes == 0


def test_images_beyond_the_memory_are_refused_and_those_that_wait_already_are_not() -> None:
    waiting = WaitingBytes(100, 10)
    leave = waiting.take([image("a")])
    with pytest.raises(Overloaded):
        waiting.take([image("b")])
    again, text = waiting.take([image("a")]), waiting.take([])
    assert waiting.bytes == 60
    for each in (leave, again, text):
        each()
    waiting.take([image("b")])


def test_a_request_whose_images_are_alone_is_taken_whatever_their_size() -> None:
    waiting = WaitingBytes(100, 10)
    waiting.take([image("a", LARGE)])()
    assert waiting.bytes == 0
