"""Makes batches of tokens, patches and labels from scenes, by step, in any process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from training import scenes
from training.drawing import PATCH
from training.model import (
    IMAGE_BREAK_TOKEN_ID,
    IMAGE_END_TOKEN_ID,
    IMAGE_TOKEN_ID,
    Grid,
)
from training.scenes import Question, Scene, Source

BOS, EOS, BEGIN_INST, END_INST, PAD = 1, 2, 3, 4, 11
MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32)
STD = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences whose pictures have the same grids.

    A lesson is a batch from which only the tower learns. It has pictures but no token ids.

    Attributes:
        grids: the grid of the first picture of every sequence, and that of the second, if any.
        patches: for each grid, uint8 (sequences, tokens, 768).
        labels: for each grid, (sequences, tokens, attributes).
        token_ids: (sequences, positions).
        targets: the next token that the model learns at each position, (sequences, positions);
            -100 where it learns none.
    """

    grids: list[Grid]
    patches: list[Tensor]
    labels: list[Tensor]
    token_ids: Tensor
    targets: Tensor

    @property
    def is_lesson(self) -> bool:
        return self.token_ids.numel() == 0

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            self.grids,
            [patches.to(device, non_blocking=True) for patches in self.patches],
            [labels.to(device, non_blocking=True).long() for labels in self.labels],
            self.token_ids.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
        )


def patchify(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cuts (height, width, 3) into patches, (rows * columns, 3 * 16 * 16), channels outermost."""
    rows, columns = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    cut = pixels.reshape(rows, PATCH, columns, PATCH, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(cut).reshape(rows * columns, -1)


def normalise(patches: Tensor) -> Tensor:
    """Normalises the pixels of uint8 patches as mistral_common does, in float32."""
    mean = torch.from_numpy(MEAN).to(patches.device).repeat_interleave(PATCH * PATCH)
    std = torch.from_numpy(STD).to(patches.device).repeat_interleave(PATCH * PATCH)
    return (patches.float() / 255 - mean) / std


def placeholder(grid: Grid) -> list[int]:
    rows, columns = grid
    ids = ([IMAGE_TOKEN_ID] * columns + [IMAGE_BREAK_TOKEN_ID]) * rows
    ids[-1] = IMAGE_END_TOKEN_ID
    return ids


def conversation(
    tokenizer: Tekkenizer, grids: Sequence[Grid], questions: Sequence[Question]
) -> tuple[list[int], list[int]]:
    """Token ids of a chat about pictures, as mistral_common encodes it, and the target of each
    position (-100: none)."""
    ids = [BOS]
    targets = [-100]
    for turn, question in enumerate(questions):
        asked = [BEGIN_INST]
        if turn == 0:
            for grid in grids:
                asked += placeholder(grid)
        asked += [*tokenizer.encode(question.text, bos=False, eos=False), END_INST]
        answer = [*tokenizer.encode(question.answer, bos=False, eos=False), EOS]
        ids += asked + answer
        targets += [-100] * (len(asked) - 1) + answer + [-100]
    return ids, targets


def sample_grid(rng: np.random.Generator, largest: int, patches: int) -> Grid:
    """A random grid with at most `patches` patches, and at most `largest` on a side. Most grids are
    wider than tall."""
    while True:
        rows = int(rng.integers(2, largest + 1))
        columns = int(rng.integers(3, largest + 1))
        if rows * columns <= patches and rows <= columns * 1.7:
            return rows, columns


def sample_pair_of_grids(rng: np.random.Generator, largest: int, patches: int) -> list[Grid]:
    """Two grids. Most are smaller than the grid of a single picture."""
    smaller = largest if rng.random() < 0.3 else max(8, largest // 2)
    return [sample_grid(rng, smaller, patches) for _ in range(2)]


def sample_scenes(
    rng: np.random.Generator, grids: Sequence[Grid], count: int, source: Source
) -> Iterator[Scene]:
    """Scenes of random kinds, among the kinds that fit into these grids."""
    if len(grids) == 2:
        for _ in range(count):
            yield scenes.pair_scene(rng, grids, source)
        return
    rows, columns = grids[0]
    kinds = ["print"] * (1 if columns >= 4 else 0)
    kinds += ["shapes"] * (4 if rows >= 4 and columns >= 4 else 1)
    kinds += ["street"] * (1 if rows >= 5 and columns >= 6 else 0)
    kinds += ["chart"] * (3 if rows >= 6 and columns >= 5 else 0)
    for _ in range(count):
        match scenes.choose(rng, kinds):
            case "print":
                yield scenes.print_scene(rng, rows, columns, source)
            case "street":
                yield scenes.street_scene(rng, rows, columns, source)
            case "chart":
                yield scenes.chart_scene(rng, rows, columns, source)
            case _:
                yield scenes.shapes_scene(rng, rows, columns)


def sample_lessons(
    rng: np.random.Generator, grid: Grid, count: int, source: Source
) -> Iterator[Scene]:
    """Scenes without questions, from which only the tower learns. In most of them, many patches
    show a character or a shape."""
    for _ in range(count):
        chance = rng.random()
        if chance < 0.5:
            yield scenes.page_scene(rng, *grid, source)
        elif chance < 0.7:
            yield scenes.crowd_scene(rng, *grid)
        else:
            (scene,) = sample_scenes(rng, [grid], 1, source)
            yield Scene(scene.pictures, ())


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The kinds and sizes of batches.

    Attributes:
        tokens: about the number of tokens in each batch.
        turns: the most questions in a conversation.
        tower_steps: before this step, all batches are lessons, from which only the tower learns.
        lessons: after `tower_steps`, the share of lessons.
        pairs: the share of batches with two pictures in each sequence.
        prints: the share of batches whose pictures show one word or number each. Such a batch has
            many pictures, with few patches and short texts.
    """

    tokens: int
    largest_grid: int
    most_patches: int
    turns: int
    tower_steps: int
    lessons: float = 0.1
    pairs: float = 0.18
    prints: float = 0.2


def draw_batch(seed: int, step: int, plan: BatchPlan, tokenizer: Tekkenizer) -> Batch:
    """The batch of a step. A seed and a step always give the same batch, in any process."""
    rng = np.random.default_rng((seed, step))
    drawn, grids = _draw(rng, plan, alone=step < plan.tower_steps)
    pictures = [[scene.pictures[place] for scene in drawn] for place in range(len(grids))]
    patches = [np.stack([patchify(picture.resized) for picture in of]) for of in pictures]
    labels = [np.stack([picture.labels for picture in of]) for of in pictures]
    sequences = [
        conversation(tokenizer, grids, _pick(rng, scene.questions, plan.turns))
        for scene in drawn
        if scene.questions
    ]
    # The length is a multiple of 16, so that few shapes have to be compiled.
    longest = -(-max((len(ids) for ids, _ in sequences), default=0) // 16) * 16
    token_ids = np.full((len(sequences), longest), PAD, dtype=np.int64)
    targets = np.full((len(sequences), longest), -100, dtype=np.int64)
    for at, (ids, answers) in enumerate(sequences):
        token_ids[at, : len(ids)] = ids
        targets[at, : len(answers)] = answers
    return Batch(
        grids,
        [torch.from_numpy(of) for of in patches],
        [torch.from_numpy(of).flatten(1, 2) for of in labels],
        torch.from_numpy(token_ids),
        torch.from_numpy(targets),
    )


def _draw(
    rng: np.random.Generator, plan: BatchPlan, *, alone: bool
) -> tuple[list[Scene], list[Grid]]:
    """The scenes of a batch, and the grids of the pictures of each scene."""
    source = scenes.TRAINING
    chance = 0.0 if alone else rng.random()
    if chance < plan.lessons:
        grid = sample_grid(rng, plan.largest_grid, plan.most_patches)
        count = _count(plan, [grid], text=30)
        return list(sample_lessons(rng, grid, count, source)), [grid]
    if chance < plan.lessons + plan.pairs:
        grids = sample_pair_of_grids(rng, plan.largest_grid, plan.most_patches)
        count = _count(plan, grids, text=70)
        return list(sample_scenes(rng, grids, count, source)), grids
    if chance < plan.lessons + plan.pairs + plan.prints:
        grid = int(rng.integers(2, 5)), int(rng.integers(4, plan.largest_grid + 1))
        count = _count(plan, [grid], text=35)
        return [scenes.print_scene(rng, *grid, source) for _ in range(count)], [grid]
    grid = sample_grid(rng, plan.largest_grid, plan.most_patches)
    count = _count(plan, [grid], text=80)
    return list(sample_scenes(rng, [grid], count, source)), [grid]


def _count(plan: BatchPlan, grids: Sequence[Grid], *, text: int) -> int:
    return max(4, plan.tokens // (text + sum(rows * columns for rows, columns in grids)))


def _pick(rng: np.random.Generator, questions: Sequence[Question], turns: int) -> list[Question]:
    """Up to `turns` of the questions in random order, from the categories as evenly as possible."""
    order = [questions[at] for at in rng.permutation(len(questions))]
    seen: dict[str, int] = {}
    ranked = []
    for question in order:
        rank = seen.get(question.category, 0)
        seen[question.category] = rank + 1
        ranked.append((rank, question))
    chosen = [question for _, question in sorted(ranked, key=lambda pair: pair[0])][:turns]
    return [chosen[at] for at in rng.permutation(len(chosen))]


class Batches(IterableDataset[Batch]):
    """The batches of the steps from `start` to before `end`, divided among the loader's workers."""

    def __init__(self, tokenizer: Path, plan: BatchPlan, seed: int, start: int, end: int) -> None:
        self._tokenizer, self._plan, self._seed = tokenizer, plan, seed
        self._steps = range(start, end)

    def __iter__(self) -> Iterator[Batch]:
        tokenizer = Tekkenizer.from_file(self._tokenizer)
        worker = torch.utils.data.get_worker_info()
        first, apart = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in self._steps[first::apart]:
            yield draw_batch(self._seed, step, self._plan, tokenizer)
