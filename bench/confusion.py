"""Draws the mistakes of the small model as an image."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

from training.drawing import CHARACTERS, COLOURS, SHAPES
from training.held_out import Item, value
from training.scenes import PLACES

CELL: Final = 18
LABEL: Final = 110
PANELS: Final = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "position": PLACES,
    "count": tuple("0123456"),
    "characters": tuple(CHARACTERS),
}


def draw_confusions(items: Sequence[Item], answers: Sequence[str], path: Path) -> None:
    """Draws expected answers (rows) against given ones (columns) for each kind of answer."""
    counts: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in PANELS}
    for item, answer in zip(items, answers, strict=True):
        category, expected = item.question.category, item.question.answer
        if category in {"word", "number"}:
            pair = (value(category, expected), value(category, answer))
            if len(pair[0]) == len(pair[1]):
                counts["characters"].update(zip(*pair, strict=True))
        elif category in PANELS:
            key = value(category, expected), value(category, answer)
            counts[category][key] += 1
    panels = [_panel(name, PANELS[name], counts[name]) for name in PANELS]
    width = max(panel.width for panel in panels)
    image = Image.new("RGB", (width, sum(panel.height for panel in panels)), "white")
    top = 0
    for panel in panels:
        image.paste(panel, (0, top))
        top += panel.height
    image.save(path)


def _panel(name: str, values: Sequence[str], counts: Counter[tuple[str, str]]) -> Image.Image:
    side = len(values) * CELL
    image = Image.new("RGB", (LABEL + side + 20, side + 50), "white")
    draw = ImageDraw.Draw(image)
    draw.text((4, 6), f"{name}: expected (rows), answered (columns)", fill="black")
    for row, expected in enumerate(values):
        total = sum(counts[expected, given] for given in values)
        y = 28 + row * CELL
        draw.text((4, y + 3), expected, fill="black")
        for column, given in enumerate(values):
            share = counts[expected, given] / total if total else 0.0
            x = LABEL + column * CELL
            shade = 255 - round(235 * share**0.5)
            fill = (
                (shade, 255 - (255 - shade) // 3, shade) if row == column else (255, shade, shade)
            )
            draw.rectangle((x, y, x + CELL - 2, y + CELL - 2), fill=fill)
    return image
