"""A canvas that labels each patch with what was drawn there.

At first the tower learns from these labels. It learns much faster from a label for each patch than
from a single answer to a question.
"""

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.fonts import advance, font

PATCH: Final = 16
# If the longer side of a picture has more pixels, the picture is reduced to this size before it is
# cut into patches.
MAX_IMAGE_SIZE: Final = 256
SUPERSAMPLING: Final = 2

Rgb = tuple[int, int, int]
Box = tuple[float, float, float, float]

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "ring")
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
# A number for each thing that a patch can show; 0 is the background.
KINDS = {name: 1 + at for at, name in enumerate((*SHAPES, "bar", *CHARACTERS))}

COLOURS: dict[str, Rgb] = {
    "red": (214, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (245, 215, 30),
    "green": (40, 150, 60),
    "blue": (35, 80, 210),
    "purple": (125, 45, 165),
    "pink": (250, 140, 190),
    "black": (22, 22, 26),
}
COLOUR_IDS = {name: at for at, name in enumerate(COLOURS)}

# The attributes with which a patch is labelled, and the number of values of each. `order` is the
# index of a character in its word. `same_kind` and `same_colour` count the shapes of the whole
# picture that have the kind or the colour of this patch; in a chart, `same_kind` is the index of
# the patch's bar. `total` counts all shapes, bars or characters. `place` is the ninth of the
# picture that contains the middle of the thing drawn.
ATTRIBUTES: dict[str, int] = {
    "kind": 1 + len(KINDS),
    "colour": len(COLOURS),
    "order": 8,
    "same_kind": 8,
    "same_colour": 8,
    "total": 8,
    "place": 9,
}
UNLABELLED: Final = -1

Labels = NDArray[np.int8]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture. `labels` are the attributes of its patches, (rows, columns,
    attributes)."""

    image: Image.Image
    labels: Labels

    @property
    def resized(self) -> Pixels:
        """The pixels (height, width, 3) after mistral_common's resize to the size of the grid."""
        rows, columns, _ = self.labels.shape
        size = (columns * PATCH, rows * PATCH)
        pixels = np.asarray(self.image)
        if self.image.size == size:
            return pixels
        resized = cv2.resize(pixels.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
        rounded: Pixels = np.clip(np.rint(resized), 0, 255).astype(np.uint8)
        return rounded


class Canvas:
    """Draws in units of pixels after the resize; the canvas is `width` by `height` of them."""

    def __init__(self, rows: int, columns: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.rows, self.columns = rows, columns
        whole = rng.random() < 0.5
        self.width = columns * PATCH - (0 if whole else int(rng.integers(0, PATCH)))
        self.height = rows * PATCH - (0 if whole else int(rng.integers(0, PATCH)))
        # Half of the largest pictures stay larger than the model accepts, so that its preprocessing
        # reduces them.
        is_largest = max(self.width, self.height) == MAX_IMAGE_SIZE
        self._left_large = is_largest and bool(rng.random() < 0.5)
        self._scale = int(rng.integers(2, 5)) if self._left_large else SUPERSAMPLING
        self.background = _background(rng)
        size = (self.width * self._scale, self.height * self._scale)
        self._image = Image.new("RGB", size, self.background)
        self._draw = ImageDraw.Draw(self._image)
        self.labels: Labels = np.full((rows, columns, len(ATTRIBUTES)), UNLABELLED, np.int8)
        self.labels[..., 0] = 0

    @property
    def is_dark(self) -> bool:
        return sum(self.background) < 300

    def mark(
        self, box: Box, kind: str, colour: str | None = None, order: int | None = None
    ) -> None:
        """Labels the patches whose centres lie in the box. If the box contains no such centre in a
        direction, the patches at the middle of the box are labelled."""
        x0, y0, x1, y1 = box
        xs = _covered(x0 * self.columns / self.width, x1 * self.columns / self.width, self.columns)
        ys = _covered(y0 * self.rows / self.height, y1 * self.rows / self.height, self.rows)
        covered = self.labels[ys, xs]
        covered[..., 0] = KINDS[kind]
        covered[..., 1] = UNLABELLED if colour is None else COLOUR_IDS[colour]
        covered[..., 2] = UNLABELLED if order is None else order
        middle = int((x0 + x1) / 2 * 3 / self.width), int((y0 + y1) / 2 * 3 / self.height)
        covered[..., 6] = int(np.clip(middle[1], 0, 2)) * 3 + int(np.clip(middle[0], 0, 2))

    def rectangle(self, box: Box, fill: Rgb) -> None:
        self._draw.rectangle([value * self._scale for value in box], fill=fill)

    def shape(self, name: str, colour: str, centre: tuple[float, float], radius: float) -> None:
        """Draws one of SHAPES, some slightly turned, in a colour that differs slightly from
        `colour`."""
        s, fill = self._scale, jitter(self.rng, COLOURS[colour])
        x, y, r = centre[0] * s, centre[1] * s, radius * s
        turn = math.radians(float(self.rng.uniform(-8, 8)))
        match name:
            case "circle":
                self._draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
            case "ring":
                self._draw.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=int(r * 0.4))
            case _:
                points = [(px * r, py * r) for px, py in OUTLINES[name]]
                cos, sin = math.cos(turn), math.sin(turn)
                turned = [(x + px * cos - py * sin, y + px * sin + py * cos) for px, py in points]
                self._draw.polygon(turned, fill=fill)
        inner = radius * 0.8
        box = (centre[0] - inner, centre[1] - inner, centre[0] + inner, centre[1] + inner)
        self.mark(box, name, colour)

    def text_size(self, text: str, face: str, size: int, spacing: float) -> tuple[float, float]:
        """Width and height in pixels of the printed capitals."""
        advances = sum(advance(face, size * self._scale, letter) for letter in text)
        return advances / self._scale + spacing * (len(text) - 1), size * 0.72

    def text(
        self,
        text: str,
        at: tuple[float, float],
        face: str,
        size: int,
        fill: Rgb,
        *,
        spacing: float = 0.0,
        colour: str | None = None,
    ) -> None:
        """Prints capitals and digits one by one. `at` is the top left corner of the text."""
        loaded, s = font(face, size * self._scale), self._scale
        baseline = (at[1] + size * 0.72) * s
        x = at[0] * s
        for order, letter in enumerate(text):
            self._draw.text((x, baseline), letter, fill=fill, font=loaded, anchor="ls")
            pen = advance(face, size * s, letter)
            self.mark((x / s, at[1], (x + pen) / s, at[1] + size * 0.72), letter, colour, order)
            x += pen + spacing * s

    def count_shapes(self, shapes: Sequence[tuple[str, str]]) -> None:
        """Labels every patch with the number of all shapes. Labels the patches of each shape with
        the number of shapes of the same kind, and of the same colour. `shapes` has the kind and
        the colour of each shape."""
        self.labels[..., 5] = len(shapes)
        for column, alike in ((3, 0), (4, 1)):
            for name, count in Counter(shape[alike] for shape in shapes).items():
                value = COLOUR_IDS[name] if alike else KINDS[name]
                is_shape = (self.labels[..., 0] > 0) & (self.labels[..., 0] <= len(SHAPES))
                self.labels[..., column][is_shape & (self.labels[..., alike] == value)] = count

    def finish(self) -> Picture:
        """Reduces the canvas to the size of the picture, unless it stays large. Sometimes adds a
        gradient, noise or JPEG artefacts."""
        image = self._image if self._left_large else self._image.reduce(self._scale)
        pixels = np.asarray(image, dtype=np.float32)
        rng = self.rng
        if rng.random() < 0.3:
            slope = np.linspace(-1, 1, image.width, dtype=np.float32)[None, :, None]
            pixels = pixels + slope * np.float32(rng.uniform(-14, 14))
        if rng.random() < 0.4:
            noise = rng.standard_normal(pixels.shape, dtype=np.float32)
            pixels = pixels + noise * np.float32(rng.uniform(1, 9))
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        if rng.random() < 0.3:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=int(rng.integers(55, 96)))
            image = Image.open(buffer).convert("RGB")
        return Picture(image, self.labels)


def jitter(rng: np.random.Generator, colour: Rgb, by: int = 14) -> Rgb:
    r, g, b = (int(np.clip(value + rng.integers(-by, by + 1), 0, 255)) for value in colour)
    return r, g, b


def _background(rng: np.random.Generator) -> Rgb:
    if rng.random() < 0.2:
        level = int(rng.integers(45, 75))
        return jitter(rng, (level, level, level), 6)
    level = int(rng.integers(222, 256))
    return jitter(rng, (level, level, level), 12)


def _covered(start: float, end: float, cells: int) -> slice:
    """The cells, each 1 wide, whose middle lies in [start, end]. If there is none, the cell that
    contains the middle of [start, end]."""
    first, last = math.ceil(start - 0.5), math.floor(end - 0.5)
    if first > last:
        first = last = math.floor((start + end) / 2)
    return slice(max(first, 0), max(last, 0) + 1)


def _regular(points: int, inner: float) -> list[tuple[float, float]]:
    corners = []
    for at in range(2 * points):
        radius = 1.0 if at % 2 == 0 else inner
        angle = math.pi * at / points - math.pi / 2
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    return corners


def _heart() -> list[tuple[float, float]]:
    points = []
    for angle in np.linspace(0, 2 * math.pi, 32, endpoint=False):
        x = 16 * math.sin(angle) ** 3
        y = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle)
        points.append((x / 16, -(y - math.cos(4 * angle)) / 16))
    return points


OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -1), (1, 0.85), (-1, 0.85)],
    "star": _regular(5, 0.42),
    "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
    "cross": [
        (x, y)
        for x, y in (
            (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
            (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
        )
    ],
    "heart": _heart(),
}  # fmt: skip
