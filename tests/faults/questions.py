"""Questions whose answers are known in advance, to the token."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pixtral_client.sent_images import MIN_BYTES
from tests.support.reference import Reference
from training import scenes
from training.batches import sample_scenes
from training.held_out import png

MODEL_DIR = Path(__file__).parents[2] / "models" / "pixtral-mini"
# One size for all, so that an embedding in another's place fits.
GRID = (8, 8)
# How many of each kind, and of how many pictures each is.
COUNTS = {"single": 16, "pair": 6, "gallery": 3, "long": 4, "text": 3}
_PICTURES = {"single": 1, "pair": 2, "gallery": 4, "long": 1}
MAX_TOKENS = 24
LONG_TOKENS = 128
# Between the likeliest token and the next: float32 is a thousand times finer, however it is added.
MARGIN = 1e-2

_OPENINGS = ("Good morning!", "What is a tower?", "Name a colour.", "How many are seven?")

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

    def questions(self, seed: int, counts: Mapping[str, int] = COUNTS) -> list[Question]:
        """Of each kind so many; no two about a single picture have the same answer."""
        rng = np.random.default_rng(seed)
        return [
            question for kind, count in counts.items() for question in self._some(rng, kind, count)
        ]

    def _some(self, rng: np.random.Generator, kind: str, count: int) -> list[Question]:
        found: dict[str, Question] = {}
        openings = iter(_OPENINGS)
        while len(found) < count:
            name = f"{kind}-{len(found)}"
            if kind == "text":
                made = self.question(name, (), next(openings), is_long=True)
            else:
                pictures, text = _scene(rng, _PICTURES[kind])
                made = self.question(name, pictures, text, is_long=kind == "long")
            if made is not None:
                found.setdefault(made.answer if kind == "single" else name, made)
        return list(found.values())


def _scene(rng: np.random.Generator, count: int) -> tuple[list[bytes], str]:
    """So many pictures, and what may be asked about the first one or two."""
    while True:
        (scene,) = sample_scenes(rng, [GRID] * min(count, 2), 1, scenes.HELD_OUT)
        if scene.questions:
            break
    pictures = [png(picture.image) for picture in scene.pictures]
    while len(pictures) < count:
        pictures += _scene(rng, 1)[0]
    return pictures, scenes.choose(rng, [question.text for question in scene.questions])


def url_of(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
