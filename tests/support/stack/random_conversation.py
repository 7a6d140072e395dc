"""Random conversations with images between their texts."""

import base64
import random
from typing import Any

from tests.support.stack.new_picture import new_picture

SIZES = [(16, 16), (64, 48), (33, 77), (200, 120), (480, 352), (1, 300)]


def conversation(rng: random.Random, images: int) -> list[dict[str, Any]]:
    """One to three turns with `images` images before, between and after the texts."""
    turns = rng.randint(1, 3)
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": f"Answer in {rng.randint(2, 9)} words."})
    placed = [rng.randrange(turns) for _ in range(images)]
    for turn in range(turns):
        parts: list[dict[str, Any]] = [
            {"type": "text", "text": f"Question {rng.randint(0, 999)}: what do you see?"}
        ]
        for _ in range(placed.count(turn)):
            picture = new_picture(*rng.choice(SIZES), form=rng.choice(["PNG", "JPEG"]))
            url = "data:image/png;base64," + base64.b64encode(picture).decode()
            part = {"type": "image_url", "image_url": {"url": url}}
            parts.insert(rng.randint(0, len(parts)), part)
        messages.append({"role": "user", "content": parts})
        if turn < turns - 1:
            messages.append({"role": "assistant", "content": f"I see {rng.randint(2, 99)} things."})
    return messages
