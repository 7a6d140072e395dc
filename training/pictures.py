"""Draws the pictures of the demo, and writes questions about them with the right answers.

    python -m training.pictures docs/demo

The words and fonts are held out: the small model was not trained on them.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training import scenes
from training.scenes import HELD_OUT, Scene

SEED = 7
WIDE = (10, 16)


@dataclass(frozen=True, slots=True)
class Page:
    """A scene, the file names of its pictures, and the questions that the demo asks."""

    scene: Scene
    names: tuple[str, ...]
    asked: tuple[str, ...]


def pages() -> tuple[Page, ...]:
    """The pages of the demo. They were chosen by their looks and questions, not by the answers of
    the model."""

    def rng(drawing: int) -> np.random.Generator:
        return np.random.default_rng((SEED, drawing))

    return (
        Page(
            scenes.street_scene(rng(60), *WIDE, HELD_OUT),
            ("street.png",),
            (
                "What word is printed?",
                "How many shapes are there?",
                "What colour is the square?",
                "How many diamonds are there?",
                "What shape is black?",
            ),
        ),
        Page(
            scenes.chart_scene(rng(72), 11, 16, HELD_OUT),
            ("chart.png",),
            (
                "How many bars are there?",
                "Which bar is the highest?",
                "What is the value of the red bar?",
                "What colour is bar A?",
            ),
        ),
        Page(
            scenes.pair_of_shapes(rng(11), [WIDE, WIDE]),
            ("first.png", "second.png"),
            (
                "Which picture has more shapes?",
                "Which picture shows a cross?",
                "How many shapes are in the second picture?",
            ),
        ),
    )


def write_demo(directory: Path) -> None:
    """Writes the pictures as PNG files, and `questions.toml`."""
    directory.mkdir(parents=True, exist_ok=True)
    tables = []
    for page in pages():
        for name, picture in zip(page.names, page.scene.pictures, strict=True):
            picture.image.save(directory / name, optimize=True)
        answers = {question.text: question.answer for question in page.scene.questions}
        for text in page.asked:
            values = {"pictures": list(page.names), "question": text, "answer": answers[text]}
            # Strings and arrays of strings are the same in JSON and in TOML.
            lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
            tables.append("\n".join(["[[ask]]", *lines]) + "\n")
    (directory / "questions.toml").write_text("\n".join(tables), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.pictures", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("directory", type=Path)
    write_demo(parser.parse_args().directory)


if __name__ == "__main__":
    main()
