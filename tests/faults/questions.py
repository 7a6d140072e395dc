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
COUNTS = {"single": 16, "pair": 6, "gallery": 3, "long": 4, "text": 3, "letter": 6, "talk": 3}
_PICTURES = {"single": 1, "pair": 2, "gallery": 4, "long": 1, "talk": 2}
# Beyond a block of the engine's prefix cache, which what is shown of no picture must fill, too.
LETTER_WORDS = 60
MAX_TOKENS = 24
LONG_TOKENS = 128
# Between the likeliest token and the next: float32 is a thousand times finer, however it is added.
MARGIN = 1e-2

_WORDS = ("red", "round", "small", "seven", "tower", "colour", "above", "window", "never", "letter")
_OPENINGS = ("Good morning!", "What is a tower?", "Name a colour.", "How many are seven?")

Tokenizer = MistralTokenizer[Any, Any, Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """`text` is the question about `pictures`, PNG files, which come first.

    `tokens` and `answer` are what the plain model says to it, greedily, in `max_tokens`; a long
    one is asked to go on behind its end. `turns` are what was asked and answered before, of the
    same pictures; `logprobs` has the log-probability of each token.
    """

    name: str
    pictures: tuple[bytes, ...]
    text: str
    is_long: bool
    max_tokens: int
    tokens: tuple[int, ...]
    answer: str
    turns: tuple[tuple[str, str], ...] = ()
    logprobs: tuple[float, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that no log may have."""
        return (self.text, self.answer, *(text for turn in self.turns for text in turn))


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
        self,
        name: str,
        pictures: Sequence[bytes],
        text: str,
        *,
        is_long: bool = False,
        turns: Sequence[tuple[str, str]] = (),
    ) -> Question | None:
        """None if two tokens are too nearly as likely for float32 to tell them apart."""
        encoded = self._tokenizer.encode_chat_completion(
            ChatCompletionRequest.from_openai(
                conversation(list(map(url_of, pictures)), text, turns)
            )
        )
        margins: list[float] = []
        logprobs: list[float] = []

        def watch(logits: torch.Tensor, generated: list[int]) -> torch.Tensor:
            first, second = logits.topk(2).values.tolist()
            margins.append(first - second)
            logprobs.append(float(logits.log_softmax(-1).max()))
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
        return Question(
            name,
            tuple(pictures),
            text,
            is_long,
            most,
            tuple(tokens),
            self._tokenizer.decode(tokens),
            tuple(turns),
            tuple(logprobs[: len(tokens)]),
        )

    def questions(self, seed: int, counts: Mapping[str, int] = COUNTS) -> list[Question]:
        """Questions of each kind; no two about a single picture have the same answer."""
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
            elif kind == "letter":
                words = " ".join(rng.choice(_WORDS, LETTER_WORDS))
                made = self.question(name, (), f"Letter {rng.integers(1 << 30)}: {words}")
            elif kind == "talk":
                made = self._talk(rng, name)
            else:
                pictures, text = _scene(rng, _PICTURES[kind])
                made = self.question(name, pictures, text, is_long=kind == "long")
            if made is not None:
                found.setdefault(made.answer if kind == "single" else name, made)
        return list(found.values())

    def _talk(self, rng: np.random.Generator, name: str) -> Question | None:
        """A second question about pictures, behind the answer to a first."""
        pictures, text = _scene(rng, _PICTURES["talk"])
        first = self.question(name, pictures, text)
        # One that is cut off at its most tokens is not an answer.
        if first is None or len(first.tokens) == MAX_TOKENS:
            return None
        again = scenes.choose(rng, _OPENINGS)
        return self.question(name, pictures, again, turns=[(text, first.answer)])


def conversation(
    pictures: Sequence[Any], text: str, turns: Sequence[tuple[str, str]] = ()
) -> list[dict[str, Any]]:
    """OpenAI's form of it; `pictures` are URLs, and come first."""
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    messages: list[dict[str, Any]] = []
    for asked, answered in turns:
        messages += [
            {"role": "user", "content": [*shown, {"type": "text", "text": asked}]},
            {"role": "assistant", "content": answered},
        ]
        shown = []
    return [*messages, {"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def _scene(rng: np.random.Generator, count: int) -> tuple[list[bytes], str]:
    """`count` pictures, and a question about the first one or two."""
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
