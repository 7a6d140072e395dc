"""Draws scenes, and makes questions about them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from training.drawing import COLOURS, PATCH, SHAPES, UNLABELLED, Canvas, Picture, Rgb
from training.fonts import HELD_OUT_FONTS, TRAINING_FONTS
from training.words import (
    HELD_OUT_WORDS,
    TRAINING_WORDS,
    random_letters,
    random_number,
)

CATEGORIES = ("shape", "colour", "count", "position", "word", "number", "chart", "compare")

PLACES = (
    "at the top left", "at the top", "at the top right",
    "at the left", "in the centre", "at the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip
MOST_SHAPES: Final = 6
ORDINALS: Final = ("first", "second")
INKS: dict[str, Rgb] = {**COLOURS, "white": (250, 250, 250)}


@dataclass(frozen=True, slots=True)
class Question:
    category: str
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two pictures, and the questions about them."""

    pictures: tuple[Picture, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """The fonts and words of a set of scenes: those of training, or those held out."""

    fonts: tuple[str, ...]
    words: tuple[str, ...]
    # The share of printed words that are random letters. The other words come from `words`.
    random_words: float


TRAINING = Source(TRAINING_FONTS, TRAINING_WORDS, random_words=0.7)
HELD_OUT = Source(HELD_OUT_FONTS, HELD_OUT_WORDS, random_words=0.3)


@dataclass(frozen=True, slots=True)
class Shape:
    kind: str
    colour: str
    x: float
    y: float

    @property
    def place(self) -> int:
        """The ninth of the picture that contains the shape, as an index into PLACES."""
        return int(self.y * 3) * 3 + int(self.x * 3)


@dataclass(frozen=True, slots=True)
class Print:
    """Printed characters and their colour."""

    text: str
    colour: str

    @property
    def question(self) -> Question:
        return word_question(self.text)


def choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def word_question(text: str, which: str = "") -> Question:
    if text.isdigit():
        return Question("number", f"What number is printed{which}?", f"It is {text}.")
    return Question("word", f"What word is printed{which}?", f"It says {text}.")


def shapes_scene(rng: np.random.Generator, rows: int, columns: int) -> Scene:
    """1 to MOST_SHAPES shapes."""
    canvas = Canvas(rows, columns, rng)
    shapes = _draw_shapes(canvas, (0.0, 1.0), int(rng.integers(1, MOST_SHAPES + 1)))
    canvas.count_shapes([(shape.kind, shape.colour) for shape in shapes])
    return Scene((canvas.finish(),), tuple(_about_shapes(rng, shapes)))


def print_scene(rng: np.random.Generator, rows: int, columns: int, source: Source) -> Scene:
    """One word or number, on the background or on a sign."""
    canvas = Canvas(rows, columns, rng)
    printed = _draw_print(canvas, source, (0, 0, canvas.width, canvas.height))
    canvas.labels[..., 5] = len(printed.text)
    what = "number" if printed.text.isdigit() else "word"
    questions = [printed.question]
    if printed.colour in COLOURS:
        questions.append(
            Question("colour", f"What colour is the {what}?", f"It is {printed.colour}.")
        )
    return Scene((canvas.finish(),), tuple(questions))


def street_scene(rng: np.random.Generator, rows: int, columns: int, source: Source) -> Scene:
    """A sign over or under a row of shapes."""
    canvas = Canvas(rows, columns, rng)
    above = bool(rng.random() < 0.5)
    share = max(2 * PATCH + 4, 0.4 * canvas.height) / canvas.height
    low, high = (0.0, share) if above else (1 - share, 1.0)
    sign = (0, low * canvas.height, canvas.width, high * canvas.height)
    printed = _draw_print(canvas, source, sign)
    rest = (share, 1.0) if above else (0.0, 1 - share)
    shapes = _draw_shapes(canvas, rest, int(rng.integers(1, 4)))
    canvas.count_shapes([(shape.kind, shape.colour) for shape in shapes])
    about = [q for q in _about_shapes(rng, shapes) if q.category != "position"]
    return Scene((canvas.finish(),), (printed.question, *about))


def chart_scene(rng: np.random.Generator, rows: int, columns: int, source: Source) -> Scene:
    """Bars with their values above them and their letters below."""
    canvas = Canvas(rows, columns, rng)
    face = choose(rng, source.fonts)
    size = int(rng.integers(18, 23))
    least = size * 1.35 + 4
    count = int(rng.integers(2, int(np.clip(canvas.width / least, 2, 5)) + 1))
    values = rng.choice(np.arange(1, 100), count, replace=False).tolist()
    colours = rng.permutation([name for name in COLOURS if name != "black"])[:count].tolist()
    ink: Rgb = (235, 235, 235) if canvas.is_dark else (20, 20, 20)
    foot, head = canvas.height - size - 2, size + 2
    slot = canvas.width / count
    for at, (value, colour) in enumerate(zip(values, colours, strict=True)):
        middle = slot * (at + 0.5)
        top = foot - 3 - max(4.0, (foot - head - 6) * value / 100)
        half = slot * float(rng.uniform(0.25, 0.38))
        bar = (middle - half, top, middle + half, foot - 3)
        canvas.rectangle(bar, COLOURS[colour])
        canvas.mark(bar, "bar", colour, at)
        for text, y in ((str(value), top - size * 0.72 - 3), ("ABCDE"[at], foot + 2)):
            width, _ = canvas.text_size(text, face, size, 0)
            canvas.text(text, (middle - width / 2, y), face, size, ink, colour=colour)
    canvas.labels[..., 5] = count
    columns_of_bars = (np.arange(columns) + 0.5) * count / columns
    bar_of_patch = np.broadcast_to(columns_of_bars.astype(np.int8), (rows, columns))
    canvas.labels[..., 3] = np.where(canvas.labels[..., 0] > 0, bar_of_patch, UNLABELLED)
    questions = [
        Question("chart", "How many bars are there?", f"There are {count} bars."),
        Question("chart", "Which bar is the highest?", f"Bar {'ABCDE'[int(np.argmax(values))]}."),
        Question("chart", "Which bar is the lowest?", f"Bar {'ABCDE'[int(np.argmin(values))]}."),
    ]
    for at, (value, colour) in enumerate(zip(values, colours, strict=True)):
        letter = "ABCDE"[at]
        questions += [
            Question("chart", f"What is the value of bar {letter}?", f"It is {value}."),
            Question("chart", f"What is the value of the {colour} bar?", f"It is {value}."),
            Question("chart", f"What colour is bar {letter}?", f"It is {colour}."),
        ]
    return Scene((canvas.finish(),), tuple(questions))


def page_scene(rng: np.random.Generator, rows: int, columns: int, source: Source) -> Scene:
    """Lines of words and numbers from edge to edge. It has no questions: the tower learns from the
    labels of the patches."""
    canvas = Canvas(rows, columns, rng)
    y = float(rng.uniform(0, 8))
    while True:
        size = int(rng.integers(18, 34))
        if y + size * 0.72 > canvas.height:
            break
        face, ink = choose(rng, source.fonts), _ink(canvas)
        spacing, x = float(rng.uniform(0.5, 3.0)), float(rng.uniform(-4, 12))
        while True:
            text = random_number(rng) if rng.random() < 0.35 else random_letters(rng, 6)
            width, _ = canvas.text_size(text, face, size, spacing)
            if x + width > canvas.width:
                break
            colour = ink if ink in COLOURS else None
            canvas.text(text, (x, y), face, size, INKS[ink], spacing=spacing, colour=colour)
            x += width + size * 0.6
        y += size * 0.72 + float(rng.uniform(4, 14))
    return Scene((canvas.finish(),), ())


def crowd_scene(rng: np.random.Generator, rows: int, columns: int) -> Scene:
    """As many shapes as fit into the picture. Like a page, it has no questions."""
    canvas = Canvas(rows, columns, rng)
    radius = float(rng.uniform(8.5, 16.0))
    step = 2.3 * radius + 1
    for y in np.arange(radius + 1, canvas.height - radius, step):
        for x in np.arange(radius + 1, canvas.width - radius, step):
            size = radius * float(rng.uniform(0.8, 1.0))
            centre = float(x + rng.uniform(-1, 1)), float(y + rng.uniform(-1, 1))
            canvas.shape(choose(rng, SHAPES), _colour(canvas), centre, max(8.5, size))
    return Scene((canvas.finish(),), ())


def pair_scene(rng: np.random.Generator, grids: Sequence[tuple[int, int]], source: Source) -> Scene:
    """Two pictures, both with shapes or both with print."""
    if rng.random() < 0.6:
        return pair_of_shapes(rng, grids)
    drawn = []
    for rows, columns in grids:
        canvas = Canvas(rows, columns, rng)
        drawn.append((canvas, _draw_print(canvas, source, (0, 0, canvas.width, canvas.height))))
    questions = []
    for which, (_, printed) in zip(ORDINALS, drawn, strict=True):
        read = word_question(printed.text, f" in the {which} picture")
        questions.append(Question("compare", read.text, read.answer))
    return Scene(tuple(canvas.finish() for canvas, _ in drawn), tuple(questions))


def pair_of_shapes(rng: np.random.Generator, grids: Sequence[tuple[int, int]]) -> Scene:
    """Two pictures with 1 to 4 shapes each."""
    pictures, both = [], []
    for rows, columns in grids:
        canvas = Canvas(rows, columns, rng)
        shapes = _draw_shapes(canvas, (0.0, 1.0), int(rng.integers(1, 5)))
        canvas.count_shapes([(shape.kind, shape.colour) for shape in shapes])
        pictures.append(canvas.finish())
        both.append(shapes)
    questions = []
    counts = [len(shapes) for shapes in both]
    if counts[0] != counts[1]:
        more = ORDINALS[int(counts[1] > counts[0])]
        questions.append(Question("compare", "Which picture has more shapes?", f"The {more}."))
    for kind in SHAPES:
        seen = [any(shape.kind == kind for shape in shapes) for shapes in both]
        if seen[0] != seen[1]:
            text, answer = f"Which picture shows a {kind}?", f"The {ORDINALS[int(seen[1])]}."
            questions.append(Question("compare", text, answer))
    for which, count in zip(ORDINALS, counts, strict=True):
        text = f"How many shapes are in the {which} picture?"
        questions.append(Question("compare", text, _there_are(count, "shape")))
    return Scene(tuple(pictures), tuple(questions))


def _draw_shapes(canvas: Canvas, band: tuple[float, float], count: int) -> list[Shape]:
    """Draws up to `count` shapes that do not touch. They lie between the two fractions of the
    picture's height in `band`."""
    rng, high, wide = canvas.rng, canvas.height * (band[1] - band[0]), canvas.width
    # Some pictures have few colours and few kinds, so that several shapes share one.
    kinds = rng.permutation(SHAPES)[: int(rng.integers(1, 7))].tolist()
    colours = rng.permutation(_colours(canvas))[: int(rng.integers(1, 7))].tolist()
    shapes: list[Shape] = []
    spots: list[tuple[float, float, float]] = []
    largest = max(9.0, min(high, wide) * (0.42 if count == 1 else 0.3))
    for _ in range(60):
        if len(shapes) == count:
            break
        radius = float(rng.uniform(8.5, max(9.0, min(largest, 30.0))))
        if 2 * radius + 3 > min(high, wide):
            continue
        x = float(rng.uniform(radius + 1, wide - radius - 1))
        y = canvas.height * band[0] + float(rng.uniform(radius + 1, high - radius - 1))
        if any(np.hypot(x - a, y - b) < (radius + c) * 1.12 + 1 for a, b, c in spots):
            continue
        # The shape would be too near the edge between two ninths to belong to only one of them.
        if _is_near_an_edge(x, wide) or _is_near_an_edge(y, canvas.height):
            continue
        shape = Shape(choose(rng, kinds), choose(rng, colours), x / wide, y / canvas.height)
        canvas.shape(shape.kind, shape.colour, (x, y), radius)
        shapes.append(shape)
        spots.append((x, y, radius))
    return shapes


def _is_near_an_edge(at: float, size: float) -> bool:
    """Whether `at` is near a third or two thirds of `size`: within 3 pixels, or within a 25th of
    `size` if that is more."""
    return any(abs(at - size * edge / 3) < max(3.0, size * 0.04) for edge in (1, 2))


def _draw_print(canvas: Canvas, source: Source, box: tuple[float, float, float, float]) -> Print:
    """Prints a word or a number that fits in `box`."""
    rng = canvas.rng
    x0, y0, x1, y1 = box
    wide, high = x1 - x0, y1 - y0
    longest = int(np.clip((wide - 8) // 16, 2, 6))
    if rng.random() < 0.4:
        text = random_number(rng, min(4, longest))
    else:
        words = [word for word in source.words if len(word) <= longest]
        meaningless = not words or rng.random() < source.random_words
        text = random_letters(rng, longest) if meaningless else choose(rng, words)
    face = choose(rng, source.fonts)
    spacing = float(rng.uniform(0.5, 3.0))
    per_pixel = canvas.text_size(text, face, 20, 0)[0] / 20
    largest = min((wide - 8 - spacing * len(text)) / per_pixel, (high - 6) / 0.72, 34)
    size = int(rng.uniform(min(20.0, largest), largest))
    width, height = canvas.text_size(text, face, size, spacing)
    x = x0 + 3 + float(rng.random()) * max(wide - width - 6, 0)
    y = y0 + 3 + float(rng.random()) * max(high - height - 6, 0)
    if rng.random() < 0.3:
        panel = choose(rng, ("red", "green", "blue", "purple", "black"))
        canvas.rectangle((x - 4, y - 4, x + width + 4, y + height + 4), COLOURS[panel])
        colour = "white"
    else:
        colour = _ink(canvas)
    labelled = colour if colour in COLOURS else None
    canvas.text(text, (x, y), face, size, INKS[colour], spacing=spacing, colour=labelled)
    return Print(text, colour)


def _colours(canvas: Canvas) -> list[str]:
    """The colours that differ enough from the background for a shape."""
    return [name for name in COLOURS if not (canvas.is_dark and name == "black")]


def _colour(canvas: Canvas) -> str:
    return choose(canvas.rng, _colours(canvas))


def _ink(canvas: Canvas) -> str:
    """A colour in which print can be read on the background."""
    unlike = ("black", "purple", "blue") if canvas.is_dark else ("yellow", "pink", "white")
    return choose(canvas.rng, [name for name in INKS if name not in unlike])


def _about_shapes(rng: np.random.Generator, shapes: Sequence[Shape]) -> list[Question]:
    kinds = Counter(shape.kind for shape in shapes)
    colours = Counter(shape.colour for shape in shapes)
    places = Counter(shape.place for shape in shapes)
    questions = [Question("count", "How many shapes are there?", _there_are(len(shapes), "shape"))]
    for kind in (*kinds, choose(rng, SHAPES)):
        text = f"How many {_plural(kind)} are there?"
        questions.append(Question("count", text, _there_are(kinds[kind], kind)))
    for colour in (*colours, choose(rng, list(COLOURS))):
        text = f"How many {colour} shapes are there?"
        questions.append(Question("count", text, _there_are(colours[colour], f"{colour} shape")))
    for shape in shapes:
        where = PLACES[shape.place]
        if kinds[shape.kind] == 1:
            text = f"What colour is the {shape.kind}?"
            questions.append(Question("colour", text, f"It is {shape.colour}."))
            questions.append(Question("position", f"Where is the {shape.kind}?", f"It is {where}."))
        if colours[shape.colour] == 1:
            text = f"What shape is {shape.colour}?"
            questions.append(Question("shape", text, f"It is a {shape.kind}."))
            text = f"Where is the {shape.colour} shape?"
            questions.append(Question("position", text, f"It is {where}."))
        if places[shape.place] == 1:
            text = f"What shape is {where}?"
            questions.append(Question("shape", text, f"It is a {shape.kind}."))
            text = f"What colour is the shape {where}?"
            questions.append(Question("colour", text, f"It is {shape.colour}."))
    unique = [shape for shape in shapes if kinds[shape.kind] == 1]
    for a, b in pairwise(unique):
        if abs(a.x - b.x) > 0.2:
            side = "left" if a.x < b.x else "right"
            text = f"Is the {a.kind} left or right of the {b.kind}?"
            questions.append(Question("position", text, f"It is {side} of the {b.kind}."))
        if abs(a.y - b.y) > 0.2:
            side = "above" if a.y < b.y else "below"
            text = f"Is the {a.kind} above or below the {b.kind}?"
            questions.append(Question("position", text, f"It is {side} the {b.kind}."))
    return questions


def _plural(kind: str) -> str:
    return f"{kind}es" if kind == "cross" else f"{kind}s"


def _there_are(count: int, what: str) -> str:
    kind = what.split()[-1]
    many = what.removesuffix(kind) + _plural(kind)
    match count:
        case 0:
            return f"There are no {many}."
        case 1:
            return f"There is 1 {what}."
        case _:
            return f"There are {count} {many}."
