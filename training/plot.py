"""Draws the losses of a training run as a picture, with Pillow alone."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = (900, 420)
MARGIN = 46
COLOURS = {"tower": (30, 120, 200), "kind": (230, 140, 20), "answers": (200, 40, 60)}
SMOOTHING = 5


def plot_losses(log: Path, path: Path) -> None:
    """Draws the losses in `log` by step, on a logarithmic scale. Each line of `log` is a JSON
    object."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    width, height = SIZE
    low, high = -3.0, 1.0
    last = max((line["step"] for line in lines), default=1)
    for power in range(int(low), int(high) + 1):
        y = MARGIN + (high - power) / (high - low) * (height - 2 * MARGIN)
        draw.line((MARGIN, y, width - MARGIN, y), fill=(220, 220, 220))
        draw.text((4, y - 6), f"1e{power}", fill="black")
    draw.text((width - MARGIN - 60, height - 24), f"step {last}", fill="black")
    for at, (name, colour) in enumerate(COLOURS.items()):
        draw.text((MARGIN + 120 * at, 12), name, fill=colour)
        found = [(line["step"], line[name]) for line in lines if name in line]
        if len(found) < SMOOTHING:
            continue
        steps, losses = np.array(found).T
        smooth = np.convolve(losses, np.ones(SMOOTHING) / SMOOTHING, mode="valid")
        xs = MARGIN + steps[SMOOTHING - 1 :] / last * (width - 2 * MARGIN)
        ys = np.clip((high - np.log10(np.maximum(smooth, 1e-9))) / (high - low), 0, 1)
        points = zip(xs, MARGIN + ys * (height - 2 * MARGIN), strict=True)
        draw.line([(float(x), float(y)) for x, y in points], fill=colour, width=2)
    image.save(path)
