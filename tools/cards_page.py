"""Writes docs/cards.md from the memory arithmetic of `pixtral-serve doctor`.

python -m tools.cards_page [--check]: with --check, fails if the page is out of date.
"""

import json
import math
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixtral_cli.checkpoint_report import CardFit, fit_on_card
from tools.generated_page import write_or_check

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cards.md"
GB = 10**9
CARDS = (24, 40, 48, 80, 141)
BYTES = {"BF16": 2, "F8_E4M3": 1}
HEAD = """\
# Checkpoints and cards

The context that fits if encoder and decoder share one card. **The table is computed, not
measured**: `python -m tools.cards_page` makes it with the arithmetic of `pixtral-serve doctor`,
from the shapes of the published checkpoints.

"""
FOOT = """\

- **A number** is the most tokens of prompt and answer for which the card has room, of one request
  or of several together: `--max-model-len` sets the context. "all" is the model's whole context.
  "no" means that the weights alone are too large.
- **It is an upper bound.** vLLM also needs memory to compute with, and for its graphs.
  `pixtral-serve up` prints the tokens for which its engine has memory.
- **A GB** is 10⁹ bytes; most cards have somewhat more. For your own card and your own files, run
  `pixtral-serve doctor --model-dir MODEL`.
- **The decoder's share** is 0.9 of a card, and on cards below 48 GB 0.8, so that the encoder
  [has enough](how-to/co-locate.md): add `--gpu-memory-utilization 0.8` there.
- **8 bits.** `--quantization fp8` needs a GPU; `int8_per_channel_weight_only` takes as much memory,
  and also works on a CPU. A checkpoint in FP8 needs no flag. [Serve in 8 bits](how-to/fp8.md) says
  what changes.
"""


@dataclass(frozen=True, slots=True)
class Vision:
    width: int = 1024
    layers: int = 24
    hidden: int = 4096
    patch: int = 16
    merge: int = 1


MERGING = Vision(patch=14, merge=2)


@dataclass(frozen=True, slots=True)
class Shape:
    """A published checkpoint. `dtype` is the dtype of the matrices in its layers."""

    name: str
    dim: int
    layers: int
    hidden: int
    context: int
    heads: int = 32
    kv_heads: int = 8
    head_size: int = 128
    vocabulary: int = 131_072
    is_tied: bool = False
    dtype: str = "BF16"
    vision: Vision = MERGING


SHAPES = (
    Shape("Pixtral-12B-2409", 5120, 40, 14_336, 131_072, vision=Vision()),
    Shape("Mistral-Small-3.1, 3.2; Magistral-Small-2509", 5120, 40, 32_768, 131_072),
    Shape("Ministral-3-3B, Reasoning", 3072, 26, 9216, 262_144, is_tied=True),
    Shape("Ministral-3-3B, Instruct", 3072, 26, 9216, 262_144, is_tied=True, dtype="F8_E4M3"),
    Shape("Ministral-3-8B, Reasoning", 4096, 34, 14_336, 262_144),
    Shape("Ministral-3-8B, Instruct", 4096, 34, 14_336, 262_144, dtype="F8_E4M3"),
    Shape("Ministral-3-14B, Reasoning", 5120, 40, 16_384, 262_144),
    Shape("Ministral-3-14B, Instruct", 5120, 40, 16_384, 262_144, dtype="F8_E4M3"),
    Shape(
        *("Pixtral-Large-2411", 12_288, 88, 28_672, 131_072),
        heads=96,
        vocabulary=32_768,
        vision=Vision(width=1408, layers=40, hidden=6144),
    ),
)


def page() -> str:
    cards = " | ".join(f"{card} GB" for card in CARDS)
    head = f"| checkpoint | weights | flags | context | {cards} |\n"
    line = "|---" * 4 + "|--:" * len(CARDS) + "|\n"
    return f"{HEAD}{head}{line}{''.join(_rows())}{FOOT}"


def _rows() -> Iterator[str]:
    for shape in SHAPES:
        is_published_in_8_bits = shape.dtype != "BF16"
        for in_8_bits in (False,) if is_published_in_8_bits else (False, True):
            fits = fits_of(shape, in_8_bits=in_8_bits)
            size = f"{(fits[0].tower + fits[0].language) / GB:.1f} GB"
            flag = "`--quantization fp8`" if in_8_bits else "none"
            cells = " | ".join(_cell(fit, shape) for fit in fits)
            yield f"| {shape.name} | {size} | {flag} | {shape.context:,} | {cells} |\n"


def fits_of(shape: Shape, *, in_8_bits: bool = False) -> list[CardFit]:
    """The fit on each card, as doctor computes it from a directory with these files."""
    with tempfile.TemporaryDirectory() as directory:
        write_headers(Path(directory), shape)
        fits = [fit_on_card(Path(directory), card * GB, in_8_bits=in_8_bits) for card in CARDS]
    found = [fit for fit in fits if fit is not None]
    if len(found) < len(fits):
        raise ValueError(f"doctor cannot compute {shape.name}")
    return found


def _cell(fit: CardFit, shape: Shape) -> str:
    if fit.tokens < 1:
        return "no"
    return "all" if fit.tokens >= shape.context else f"{fit.tokens:,}"


def write_headers(directory: Path, shape: Shape) -> None:
    """Writes `params.json`, and `consolidated.safetensors` with its header but without numbers."""
    params: Mapping[str, Any] = {
        "dim": shape.dim,
        "n_layers": shape.layers,
        "n_heads": shape.heads,
        "n_kv_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "vision_encoder": {"hidden_size": shape.vision.width},
    }
    (directory / "params.json").write_text(json.dumps(params), "utf-8")
    header, end = {}, 0
    for name, sizes, dtype in _tensors(shape):
        start, end = end, end + math.prod(sizes) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": sizes, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    weights = directory / "consolidated.safetensors"
    weights.write_bytes(struct.pack("<Q", len(text)) + text)


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], str]]:
    vision, dim = shape.vision, shape.dim
    for name in ("tok_embeddings",) if shape.is_tied else ("tok_embeddings", "output"):
        yield f"{name}.weight", (shape.vocabulary, dim), "BF16"
    yield "norm.weight", (dim,), "BF16"
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    for layer in range(shape.layers):
        yield from _layer(f"layers.{layer}", dim, shape.hidden, queries, keys, shape.dtype)
    pixels = (vision.width, 3, vision.patch, vision.patch)
    yield "vision_encoder.patch_conv.weight", pixels, "BF16"
    yield "vision_encoder.ln_pre.weight", (vision.width,), "BF16"
    for layer in range(vision.layers):
        name = f"vision_encoder.transformer.layers.{layer}"
        yield from _layer(name, vision.width, vision.hidden, vision.width, vision.width, "BF16")
    if vision.merge > 1:
        merged = (vision.width, vision.width * vision.merge**2)
        yield "patch_merger.merging_layer.weight", merged, "BF16"
        yield "pre_mm_projector_norm.weight", (vision.width,), "BF16"
    for name, columns in (("w_in", vision.width), ("w_out", dim)):
        yield f"vision_language_adapter.{name}.weight", (dim, columns), "BF16"
        if vision.merge == 1:
            yield f"vision_language_adapter.{name}.bias", (dim,), "BF16"


def _layer(
    name: str, dim: int, hidden: int, queries: int, keys: int, dtype: str
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    for norm in ("attention_norm", "ffn_norm"):
        yield f"{name}.{norm}.weight", (dim,), "BF16"
    for part, rows in (("wq", queries), ("wk", keys), ("wv", keys)):
        yield f"{name}.attention.{part}.weight", (rows, dim), dtype
    yield f"{name}.attention.wo.weight", (dim, queries), dtype
    for part, sizes in (("w1", (hidden, dim)), ("w2", (dim, hidden)), ("w3", (hidden, dim))):
        yield f"{name}.feed_forward.{part}.weight", sizes, dtype


def main(arguments: list[str]) -> int:
    return write_or_check(PAGE, page(), "tools.cards_page", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
