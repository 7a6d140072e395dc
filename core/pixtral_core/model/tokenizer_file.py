"""Finds the tokenizer of a model: its own file, or an equal one in mistral_common."""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pixtral_core.model.vision_spec import BadCheckpoint, VisionSpec

TEKKEN = "tekken.json"
# Mistral's name for a SentencePiece tokenizer with images, such as `tokenizer.model.v7m1`.
SENTENCEPIECE = "*.model.v*m*"
# The tokenizer that transformers writes beside weights in Hugging Face's format.
TRANSFORMERS = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Shipped:
    """A tokenizer with images among mistral_common's data.

    Attributes:
        name: name of the file.
        vocab_size: number of its tokens, control tokens included.
        control_tokens: number of its control tokens, which have the lowest ids.
        patch_size: side of a patch in pixels; patches are not merged.
        max_image_size: the longest side of an image in pixels.
        image_ids: token ids of [IMG], [IMG_BREAK] and [IMG_END].
        of: the model with which Mistral published the tokenizer.
    """

    name: str
    vocab_size: int
    control_tokens: int
    patch_size: int
    max_image_size: int
    image_ids: tuple[int, int, int]
    of: str

    def fits(self, spec: VisionSpec, vocab_size: int) -> bool:
        return (self.vocab_size, self.patch_size, self.max_image_size, 1, self.image_ids[0]) == (
            vocab_size,
            spec.patch_size,
            spec.max_image_size,
            spec.merge_size,
            spec.image_token_id,
        )

    @property
    def path(self) -> Path:
        """Raises BadCheckpoint if mistral_common is not installed, or does not ship the
        tokenizer."""
        try:
            path = Path(str(resources.files("mistral_common"))) / "data" / self.name
        except ModuleNotFoundError:
            raise BadCheckpoint("mistral_common is not installed") from None
        if not path.is_file():
            raise BadCheckpoint(f"the installed mistral_common has no {self.name}")
        return path


SHIPPED = (
    Shipped(
        name="tekken_240911.json",
        vocab_size=131_072,
        control_tokens=1000,
        patch_size=16,
        max_image_size=1024,
        image_ids=(10, 12, 13),
        of="Pixtral-12B-2409",
    ),
    Shipped(
        name="mistral_instruct_tokenizer_241114.model.v7m1",
        vocab_size=32_768,
        control_tokens=771,
        patch_size=16,
        max_image_size=1024,
        image_ids=(10, 14, 15),
        of="Pixtral-Large-2411",
    ),
)
_TEKKENS, _SENTENCEPIECES = SHIPPED


def own_file(model_dir: Path) -> Path | None:
    """The tokenizer in a model's directory, in one of Mistral's formats; None if there is none."""
    tekken = model_dir / TEKKEN
    if tekken.is_file():
        return tekken
    return max(model_dir.glob(SENTENCEPIECE), default=None)


def row_end_ids(model_dir: Path, vocab_size: Any) -> tuple[int, int]:
    """The ids of [IMG_BREAK] and [IMG_END] in a checkpoint that does not name them."""
    own = own_file(model_dir)
    is_sentencepiece = (
        vocab_size == _SENTENCEPIECES.vocab_size if own is None else own.name != TEKKEN
    )
    return (_SENTENCEPIECES if is_sentencepiece else _TEKKENS).image_ids[1:]


def find_tokenizer(model_dir: Path, spec: VisionSpec, vocab_size: int) -> Path:
    """The file from which mistral_common makes the model's tokenizer.

    Raises:
        BadCheckpoint: if the directory has no tokenizer, and mistral_common ships none for the
            model; the message says what to do.
    """
    if own := own_file(model_dir):
        return own
    advice = (
        f"put the {TEKKEN} there (of Pixtral-Large, the tokenizer.model.v7m1) with which Mistral "
        "has published the model that this one was made from"
    )
    shipped = next((each for each in SHIPPED if each.fits(spec, vocab_size)), None)
    if shipped is None:
        raise BadCheckpoint(
            f"{model_dir} has no {TEKKEN}, and mistral_common ships no tokenizer for {vocab_size} "
            f"tokens and images of this model's size: {advice}"
        )
    path = shipped.path
    theirs = model_dir / TRANSFORMERS
    if theirs.is_file() and not _is_same(shipped, path, theirs):
        raise BadCheckpoint(
            f"{model_dir} has no {TEKKEN}, and its {TRANSFORMERS} is not the tokenizer of "
            f"{shipped.of}, which mistral_common ships: {advice}"
        )
    return path


def _is_same(shipped: Shipped, path: Path, theirs: Path) -> bool:
    """Whether transformers' file has the vocabulary of the shipped tokenizer.

    A SentencePiece file is compared only by its size and its tokens for images.
    """
    try:
        found = json.loads(theirs.read_text(encoding="utf-8"))
        ids = {str(token): int(at) for token, at in found["model"]["vocab"].items()}
        ids |= {str(each["content"]): int(each["id"]) for each in found.get("added_tokens", ())}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadCheckpoint(f"{theirs} is not a tokenizer that transformers has written") from None
    names = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    if tuple(ids.get(name) for name in names) != shipped.image_ids:
        return False
    if max(ids.values()) >= shipped.vocab_size or shipped is not _TEKKENS:
        return max(ids.values()) < shipped.vocab_size
    entries = json.loads(path.read_text(encoding="utf-8"))["vocab"]
    others = _differing(ids, entries, shipped)
    # A few tokens may differ: only one of the two files has a token that is spelled like a control
    # token.
    return others <= shipped.vocab_size // 1000


def _differing(
    ids: Mapping[str, int], entries: Iterable[Mapping[str, Any]], shipped: Shipped
) -> int:
    letters = _letters()
    count = shipped.vocab_size - shipped.control_tokens
    spelled = [
        "".join(letters[byte] for byte in base64.b64decode(entry["token_bytes"]))
        for entry, _ in zip(entries, range(count), strict=False)
    ]
    return sum(ids.get(token) != at for at, token in enumerate(spelled, shipped.control_tokens))


def _letters() -> list[str]:
    """The letter for each byte in transformers' byte-level tokenizers.

    A byte that Latin-1 prints is its own letter. The others get the characters after Latin-1, in
    their order (transformers, `bytes_to_unicode`).
    """
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printed else next(others)) for byte in range(0x100)]
