"""The questions that measure the model. Training uses other seeds, words and fonts."""

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from training import scenes
from training.batches import sample_grid, sample_pair_of_grids, sample_scenes
from training.drawing import MAX_IMAGE_SIZE, PATCH
from training.scenes import CATEGORIES, Question

# This seed differs from every (seed, step) from which training draws.
HELD_OUT_SEED: Final = 1 << 60
LARGEST_GRID: Final = MAX_IMAGE_SIZE // PATCH
MOST_PATCHES: Final = LARGEST_GRID**2


@dataclass(frozen=True, slots=True)
class Item:
    """A question about one picture or two, each a PNG file."""

    pictures: tuple[bytes, ...]
    question: Question


def held_out(count: int, *, seed: int = 0) -> list[Item]:
    """`count` items, about equally many of each category. A seed always gives the same items.

    Each item has new pictures. If several questions about a picture are possible, the one with the
    rarest answer so far is chosen.
    """
    rng = np.random.default_rng((HELD_OUT_SEED, seed))
    room = {category: -(-count // len(CATEGORIES)) for category in CATEGORIES}
    answered: Counter[tuple[str, str]] = Counter()
    items: list[Item] = []
    while len(items) < count:
        if room["compare"] and rng.random() < 1 / len(CATEGORIES):
            grids = sample_pair_of_grids(rng, LARGEST_GRID, MOST_PATCHES)
        else:
            grids = [sample_grid(rng, LARGEST_GRID, MOST_PATCHES)]
        (scene,) = sample_scenes(rng, grids, 1, scenes.HELD_OUT)
        wanted = [question for question in scene.questions if room[question.category]]
        if not wanted:
            continue
        question = _rarest(rng, wanted, room, answered)
        answered[_kind(question)] += 1
        room[question.category] -= 1
        pictures = tuple(png(picture.image) for picture in scene.pictures)
        items.append(Item(pictures, question))
    return items


def _rarest(
    rng: np.random.Generator,
    questions: list[Question],
    room: Mapping[str, int],
    answered: Mapping[tuple[str, str], int],
) -> Question:
    """A question of the category that still needs most questions: the one with the rarest answer so
    far."""
    most = max(room[question.category] for question in questions)
    best = [question for question in questions if room[question.category] == most]
    order = [int(at) for at in rng.permutation(len(best))]
    return best[min(order, key=lambda at: answered[_kind(best[at])])]


def _kind(question: Question) -> tuple[str, str]:
    return question.category, value(question.category, question.answer)


def value(category: str, answer: str) -> str:
    """The content of an answer: the name, place, number or word in it."""
    answer = answer.removesuffix(".")
    if category == "count" or answer.startswith("There "):
        return next((word for word in answer.split() if word.isdigit()), "0")
    if category == "position":
        return answer.removeprefix("It is ")
    return answer.split(" ")[-1]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
