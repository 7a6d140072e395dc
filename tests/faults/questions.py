"""Questions whose answers are known in advance, to the token."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from models.training import scenes
from models.training.batches import sample_scenes
from models.training.held_out import png
from pixtral_client.naming import MIN_BYTES
from tests.reference import Reference

MODEL_DIR = Path(__file__).parents[2] / "models" / "pixtral-mini"
# One size for all, so that an embedding in another's place fits.
GRID = (8, 8)
SINGLES, PAIRS, GALLERIES, LONG = 16, 6, 3, 4
PICTURES_OF_A_GALLERY = 4
MAX_TOKENS = 24
LONG_TOKENS = 128
# Between the likeliest token and the next: float32 is a thousand times finer, however it is added.
MARGIN = 1e-2

_OPENINGS = ("Good morning!", "What is a tower?", "Name a colour.")

Tokenizer = MistralTokenizer[Any, Any, Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """`text` is asked of `pictures`, PNG files, which come first.

    `tokens` and `answer` are what the plain model says to it, greedily, in `max_tokens`; a long
    one is asked to go on behind its end.
    """

    name: str
    pictures: tuple[bytes, ...]
    text: str
    is_long: bool
    max_tokens: int
    tokens: tuple[int, ...]
    answer: str


def fresh(picture: bytes, tag: str) -> bytes:
    """The same pixels in another file: to every cache a picture that was never there.

    Large enough for a client to send it by name the next time.
    """
    note = PngInfo()
    note.add_text("tag", tag.ljust(MIN_BYTES))
    out = io.BytesIO()
    Image.open(io.BytesIO(picture)).save(out, "PNG", pnginfo=note)
    return out.getvalue()


class Asker:
    """The plain model, from pictures and text to tokens."""

    def __init__(self, model_dir: Path = MODEL_DIR) -> None:
        self._reference = Reference(model_dir)
        self._tokenizer: Tokenizer = MistralTokenizer.from_file(str(model_dir / "tekken.json"))

    def question(
        self, name: str, pictures: Sequence[bytes], text: str, *, is_long: bool = False
    ) -> Question | None:
        """None where two tokens are too nearly as likely for float32 to tell them apart."""
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": url_of(picture)}} for picture in pictures
        ]
        content.append({"type": "text", "text": text})
        encoded = self._tokenizer.encode_chat_completion(
            ChatCompletionRequest.from_openai([{"role": "user", "content": content}])
        )
        margins: list[float] = []

        def watch(logits: torch.Tensor, generated: list[int]) -> torch.Tensor:
            first, second = logits.topk(2).values.tolist()
            margins.append(first - second)
            return logits

        most = LONG_TOKENS if is_long else MAX_TOKENS
        tokens = self._reference.generate(
            encoded.tokens, encoded.images, most, watch, ignore_eos=is_long
        )
        sure = next((at for at, margin in enumerate(margins) if margin < MARGIN), len(tokens))
        if sure < (LONG_TOKENS // 2 if is_long else len(tokens)):
            return None
        if is_long:
            tokens, most = tokens[:sure], sure
        answer = self._tokenizer.decode(tokens)
        return Question(name, tuple(pictures), text, is_long, most, tuple(tokens), answer)

    def questions(self, seed: int) -> list[Question]:
        """Some of each kind; no two of those about one picture have the same answer."""
        rng = np.random.default_rng(seed)
        found: list[Question] = []
        answers: set[str] = set()

        def take(kind: str, pictures: int, count: int, *, is_long: bool = False) -> None:
            begun = len(found)
            while len(found) < begun + count:
                scene = _scene(rng, pictures)
                name = f"{kind}-{len(found) - begun}"
                files = [png(picture.image) for picture in scene.pictures]
                while len(files) < pictures:
                    files += [png(picture.image) for picture in _scene(rng, 1).pictures]
                text = scenes.choose(rng, [question.text for question in scene.questions])
                made = self.question(name, files, text, is_long=is_long)
                if made is None or (kind == "single" and made.answer in answers):
                    continue
                answers.add(made.answer)
                found.append(made)

        take("single", 1, SINGLES)
        take("pair", 2, PAIRS)
        take("gallery", PICTURES_OF_A_GALLERY, GALLERIES)
        take("long", 1, LONG, is_long=True)
        for number, text in enumerate(_OPENINGS):
            made = self.question(f"text-{number}", (), text, is_long=True)
            if made is not None:
                found.append(made)
        return found


def _scene(rng: np.random.Generator, pictures: int) -> scenes.Scene:
    grids = [GRID] * (2 if pictures > 1 else 1)
    while True:
        (scene,) = sample_scenes(rng, grids, 1, scenes.HELD_OUT)
        if scene.questions:
            return scene


def url_of(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
