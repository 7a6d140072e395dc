"""A small random checkpoint in Mistral format: Pixtral's architecture, the real tokenizer.

    python -m models.random_checkpoint DIR [--seed N] [--dim 128] ...

The directory holds what a published Pixtral holds: `params.json`, `consolidated.safetensors` and
`tekken.json` (or Pixtral-Large's `tokenizer.model.v7m1`). Tensor names and layouts are those of
mistral-inference (`transformer.py`, `vision_encoder.py`): rotary pairs are adjacent elements of a
head, in the text model and in the vision tower alike. The words it answers with mean nothing, but
they depend on every token and every picture of the prompt, which is what makes it a test.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

TOKENIZER_PATCH_SIZE = 16
TOKENIZER_MAX_IMAGE_SIZE = 1024

Dtype = Literal["float32", "bfloat16"]
Tokenizer = Literal["tekken", "sentencepiece"]
Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RandomSpec:
    """The shape of a random checkpoint.

    The defaults are quick on two CPU cores; both head sizes are 32, the least that vLLM's CPU
    attention takes. A `spatial_merge_size` above 1 gives the Mistral-Small-3.1 kind of model: a
    patch merger and its norm before an adapter without biases. `tokenizer` is that of Pixtral-12B,
    or that of Pixtral-Large. `tied` embeddings are the output, too.
    """

    dim: int = 128
    n_layers: int = 2
    head_dim: int = 32
    hidden_dim: int = 256
    n_heads: int = 4
    n_kv_heads: int = 2
    rope_theta: float = 1e9
    norm_eps: float = 1e-5
    vision_hidden_size: int = 64
    vision_layers: int = 2
    vision_heads: int = 2
    vision_intermediate_size: int = 128
    vision_rope_theta: float = 1e4
    patch_size: int = 16
    max_image_size: int = 1024
    spatial_merge_size: int = 1
    dtype: Dtype = "float32"
    tokenizer: Tokenizer = "tekken"
    tied: bool = False

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ValueError("n_heads must be a multiple of n_kv_heads")
        if self.vision_hidden_size % (4 * self.vision_heads):
            raise ValueError("vision_hidden_size / vision_heads must be a multiple of 4")
        if self.max_image_size % (self.patch_size * self.spatial_merge_size):
            raise ValueError("max_image_size must be a whole number of merged patches")
        if self.dtype not in get_args(Dtype):
            raise ValueError(f"dtype must be one of {get_args(Dtype)}")
        if self.tokenizer not in get_args(Tokenizer):
            raise ValueError(f"tokenizer must be one of {get_args(Tokenizer)}")
        if self.is_sentencepiece and not self.has_published_images:
            raise ValueError("sentencepiece goes with images of 1024 pixels in patches of 16")

    @property
    def is_sentencepiece(self) -> bool:
        return self.tokenizer == "sentencepiece"

    @property
    def vocab_size(self) -> int:
        return 32768 if self.is_sentencepiece else 131072

    @property
    def control_tokens(self) -> int:
        """As many stand before the others; SentencePiece has bytes behind them."""
        return 1027 if self.is_sentencepiece else 1000

    @property
    def row_ends(self) -> tuple[int, int]:
        """The ids of [IMG_BREAK] and [IMG_END]."""
        return (14, 15) if self.is_sentencepiece else (12, 13)

    @property
    def has_published_images(self) -> bool:
        return (
            self.patch_size == TOKENIZER_PATCH_SIZE
            and self.max_image_size == TOKENIZER_MAX_IMAGE_SIZE
            and not self.merges_patches
        )

    @property
    def merges_patches(self) -> bool:
        return self.spatial_merge_size > 1


def write_random_checkpoint(
    directory: Path, spec: RandomSpec = RandomSpec(), *, seed: int = 0
) -> Path:
    """Writes the three files of a Mistral-format model into `directory`, made if need be.

    The same spec and seed give the same bytes. Returns `directory`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    params = json.dumps(_params(spec), indent=2) + "\n"
    (directory / "params.json").write_text(params, encoding="utf-8")
    _write_tokenizer(directory, spec)
    dtype = getattr(torch, spec.dtype)
    tensors = {
        name: torch.from_numpy(values).to(dtype)
        for name, values in _tensors(spec, np.random.default_rng(seed))
    }
    weights = directory / "consolidated.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors keeps it from other users, and servers run as one
    return directory


def _params(spec: RandomSpec) -> dict[str, Any]:
    params: dict[str, Any] = {
        "dim": spec.dim,
        "n_layers": spec.n_layers,
        "head_dim": spec.head_dim,
        "hidden_dim": spec.hidden_dim,
        "n_heads": spec.n_heads,
        "n_kv_heads": spec.n_kv_heads,
        "rope_theta": spec.rope_theta,
        "norm_eps": spec.norm_eps,
        "vocab_size": spec.vocab_size,
    }
    if spec.tied:
        params["tied_embeddings"] = True
    vision: dict[str, Any] = {
        "hidden_size": spec.vision_hidden_size,
        "num_channels": 3,
        "image_size": spec.max_image_size,
        "max_image_size": spec.max_image_size,
        "patch_size": spec.patch_size,
        "rope_theta": spec.vision_rope_theta,
        "intermediate_size": spec.vision_intermediate_size,
        "num_hidden_layers": spec.vision_layers,
        "num_attention_heads": spec.vision_heads,
        "adapter_bias": not spec.merges_patches,
        "image_token_id": 10,
        "image_break_token_id": spec.row_ends[0],
        "image_end_token_id": spec.row_ends[1],
    }
    if spec.merges_patches:
        vision["mm_projector_id"] = "patch_merge"
        vision["spatial_merge_size"] = spec.spatial_merge_size
        vision["add_pre_mm_projector_layer_norm"] = True
        params["max_position_embeddings"] = 131072
    return {**params, "vision_encoder": vision}


def _write_tokenizer(directory: Path, spec: RandomSpec) -> None:
    shipped = resources.files("mistral_common") / "data"
    if spec.is_sentencepiece:
        name = "mistral_instruct_tokenizer_241114.model.v7m1"
        with resources.as_file(shipped / name) as source:
            shutil.copyfile(source, directory / "tokenizer.model.v7m1")
        return
    path = directory / "tekken.json"
    with resources.as_file(shipped / "tekken_240911.json") as source:
        if spec.has_published_images:
            shutil.copyfile(source, path)
            return
        tekken = json.loads(source.read_text(encoding="utf-8"))
    tekken["image"] = {
        "image_patch_size": spec.patch_size,
        "max_image_size": spec.max_image_size,
        "spatial_merge_size": spec.spatial_merge_size,
    }
    path.write_text(json.dumps(tekken), encoding="utf-8")


def _tensors(spec: RandomSpec, rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    dim, width = spec.dim, spec.vision_hidden_size
    # Small beside what the layers add: else the next token follows from the last one alone.
    embeddings = _normal(rng, spec.vocab_size, dim, std=0.5)
    output = embeddings if spec.tied else _normal(rng, spec.vocab_size, dim, std=1.0)
    # A control token is never the answer: no early end, no [IMG] without a picture behind it.
    output[: spec.control_tokens] = 0
    yield "tok_embeddings.weight", embeddings
    if not spec.tied:
        yield "output.weight", output
    yield "norm.weight", _norm(rng, dim)
    for layer in range(spec.n_layers):
        yield from _block(
            rng,
            f"layers.{layer}",
            dim=dim,
            hidden_dim=spec.hidden_dim,
            q_dim=spec.n_heads * spec.head_dim,
            kv_dim=spec.n_kv_heads * spec.head_dim,
            # Attention that chooses among tokens: a mean over thousands of patches would wash
            # every picture out to nearly the same vector.
            qk_gain=2.5,
        )

    pixels = 3 * spec.patch_size**2
    patch_conv = _normal(rng, width, pixels, std=pixels**-0.5)
    yield (
        "vision_encoder.patch_conv.weight",
        patch_conv.reshape(width, 3, spec.patch_size, spec.patch_size),
    )
    yield "vision_encoder.ln_pre.weight", _norm(rng, width)
    for layer in range(spec.vision_layers):
        yield from _block(
            rng,
            f"vision_encoder.transformer.layers.{layer}",
            dim=width,
            hidden_dim=spec.vision_intermediate_size,
            q_dim=width,
            kv_dim=width,
            qk_gain=1.5,
        )

    if spec.merges_patches:
        yield "pre_mm_projector_norm.weight", _norm(rng, width)
        yield (
            "patch_merger.merging_layer.weight",
            _linear(rng, width, width * spec.spatial_merge_size**2),
        )
    for name, columns in (("w_in", width), ("w_out", dim)):
        yield f"vision_language_adapter.{name}.weight", _linear(rng, dim, columns)
        if not spec.merges_patches:
            yield f"vision_language_adapter.{name}.bias", _normal(rng, dim, std=0.1)


def _block(
    rng: np.random.Generator,
    prefix: str,
    *,
    dim: int,
    hidden_dim: int,
    q_dim: int,
    kv_dim: int,
    qk_gain: float,
) -> Iterator[tuple[str, Array]]:
    yield f"{prefix}.attention_norm.weight", _norm(rng, dim)
    yield f"{prefix}.attention.wq.weight", _linear(rng, q_dim, dim, gain=qk_gain)
    yield f"{prefix}.attention.wk.weight", _linear(rng, kv_dim, dim, gain=qk_gain)
    yield f"{prefix}.attention.wv.weight", _linear(rng, kv_dim, dim)
    yield f"{prefix}.attention.wo.weight", _linear(rng, dim, q_dim)
    yield f"{prefix}.ffn_norm.weight", _norm(rng, dim)
    yield f"{prefix}.feed_forward.w1.weight", _linear(rng, hidden_dim, dim)
    yield f"{prefix}.feed_forward.w2.weight", _linear(rng, dim, hidden_dim, gain=2.0)
    yield f"{prefix}.feed_forward.w3.weight", _linear(rng, hidden_dim, dim)


def _linear(rng: np.random.Generator, rows: int, columns: int, *, gain: float = 1.0) -> Array:
    return _normal(rng, rows, columns, std=gain * columns**-0.5)


def _norm(rng: np.random.Generator, width: int) -> Array:
    # Around 1 and not 1: a norm whose weight is left out must show.
    return np.float32(1) + _normal(rng, width, std=0.1)


def _normal(rng: np.random.Generator, *shape: int, std: float) -> Array:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.random_checkpoint", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("directory", type=Path, help="where the three files go")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    for field in fields(RandomSpec):
        name = "--" + field.name.replace("_", "-")
        default: Any = field.default
        if isinstance(default, bool):
            parser.add_argument(name, action="store_true")
            continue
        parser.add_argument(name, type=type(default), default=default, help=f"default {default}")
    arguments = vars(parser.parse_args())
    directory, seed = arguments.pop("directory"), arguments.pop("seed")
    print(write_random_checkpoint(directory, RandomSpec(**arguments), seed=seed))


if __name__ == "__main__":
    main()
