"""All of Pixtral in plain float32 torch, the reference for the answers of the serving path.

It follows the published architecture (arXiv:2410.07073, and mistral-inference's
`vision_encoder.py` and `transformer.py`), and imports none of the serving code. It runs one
sequence and one image at a time, so the block-diagonal attention of a packed batch is plain
attention within an image.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

EOS_TOKEN_ID = 2
VISION_NORM_EPS = 1e-5

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Heads:
    """Head counts and norm epsilon of a stack of layers."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float


class KVCache:
    """The keys and values of one layer for all tokens so far, each (kv heads, tokens, head dim)."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], dim=1)
            values = torch.cat([self.values, values], dim=1)
        self.keys, self.values = keys, values
        return keys, values


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def angles_1d(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """The angle of each pair of a head, (tokens, head dim / 2)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return torch.outer(positions.float(), 1.0 / theta**exponents)


def angles_2d(rows: int, columns: int, head_dim: int, theta: float) -> Tensor:
    """The angles of 2-D RoPE, (rows * columns, head dim / 2).

    The even frequencies rotate by row, and fill the first half of the pairs. The odd frequencies
    rotate by column, and fill the second half.
    """
    by_row = angles_1d(torch.arange(rows), head_dim, theta)[:, 0::2]
    by_column = angles_1d(torch.arange(columns), head_dim, theta)[:, 1::2]
    grid = [
        by_row[:, None, :].expand(rows, columns, -1),
        by_column[None, :, :].expand(rows, columns, -1),
    ]
    return torch.cat(grid, dim=-1).reshape(rows * columns, head_dim // 2)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates each adjacent pair of `x` (heads, tokens, head dim) by its angle."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def block(
    x: Tensor, weights: Weights, prefix: str, heads: Heads, angles: Tensor, cache: KVCache | None
) -> Tensor:
    """One transformer layer over `x` (tokens, width); causal if there is a cache."""

    def split(name: str, count: int) -> Tensor:
        projected = F.linear(normed, weights[f"{prefix}.attention.{name}.weight"])
        return projected.view(len(x), count, heads.head_dim).transpose(0, 1)

    normed = rms_norm(x, weights[f"{prefix}.attention_norm.weight"], heads.norm_eps)
    queries = rotate(split("wq", heads.n_heads), angles)
    keys = rotate(split("wk", heads.n_kv_heads), angles)
    values = split("wv", heads.n_kv_heads)
    if cache is not None:
        keys, values = cache.extend(keys, values)
    group = heads.n_heads // heads.n_kv_heads
    attended = F.scaled_dot_product_attention(
        queries[None],
        keys.repeat_interleave(group, dim=0)[None],
        values.repeat_interleave(group, dim=0)[None],
        is_causal=cache is not None and len(x) > 1,
    )
    joined = attended[0].transpose(0, 1).reshape(len(x), -1)
    x = x + F.linear(joined, weights[f"{prefix}.attention.wo.weight"])

    normed = rms_norm(x, weights[f"{prefix}.ffn_norm.weight"], heads.norm_eps)
    gate = F.silu(F.linear(normed, weights[f"{prefix}.feed_forward.w1.weight"]))
    up = F.linear(normed, weights[f"{prefix}.feed_forward.w3.weight"])
    return x + F.linear(gate * up, weights[f"{prefix}.feed_forward.w2.weight"])


class Reference:
    """A model in a Mistral-format Pixtral directory, in float32 on the CPU."""

    def __init__(self, directory: Path) -> None:
        self.params: dict[str, Any] = json.loads((directory / "params.json").read_text("utf-8"))
        self.vision: dict[str, Any] = self.params["vision_encoder"]
        self.weights: Weights = {
            name: tensor.float()
            for shard in sorted(directory.glob("consolidated*.safetensors"))
            for name, tensor in load_file(shard).items()
        }

    @torch.inference_mode()
    def embed_image(self, image: NDArray[np.float32]) -> Tensor:
        """The image embedding before the adapter, (tokens, vision width).

        `image` is (3, height, width) float32, as in `mistral_common`'s `ImageEncoding.image`.
        """
        vision, weights = self.vision, self.weights
        head_dim = vision["hidden_size"] // vision["num_attention_heads"]
        heads = Heads(
            vision["num_attention_heads"], vision["num_attention_heads"], head_dim, VISION_NORM_EPS
        )
        pixels = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
        patches = F.conv2d(
            pixels[None], weights["vision_encoder.patch_conv.weight"], stride=vision["patch_size"]
        )[0]
        _, rows, columns = patches.shape
        x = patches.flatten(1).T
        x = rms_norm(x, weights["vision_encoder.ln_pre.weight"], VISION_NORM_EPS)
        angles = angles_2d(rows, columns, head_dim, vision["rope_theta"])
        for layer in range(vision["num_hidden_layers"]):
            prefix = f"vision_encoder.transformer.layers.{layer}"
            x = block(x, weights, prefix, heads, angles, cache=None)
        if vision.get("add_pre_mm_projector_layer_norm"):
            x = rms_norm(x, weights["pre_mm_projector_norm.weight"], VISION_NORM_EPS)
        if vision.get("mm_projector_id") == "patch_merge":
            x = self._merge(x, rows, columns)
        return x

    def _merge(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Merges each square of patches to a token: channels outermost, then rows, then columns."""
        side = self.vision["spatial_merge_size"]
        squares = x.view(rows // side, side, columns // side, side, -1).permute(0, 2, 4, 1, 3)
        merged = squares.reshape((rows // side) * (columns // side), -1)
        return F.linear(merged, self.weights["patch_merger.merging_layer.weight"])

    def _adapt(self, embedding: Tensor) -> Tensor:
        weights, name = self.weights, "vision_language_adapter"
        w_in, w_out = weights[f"{name}.w_in.weight"], weights[f"{name}.w_out.weight"]
        hidden = F.gelu(F.linear(embedding, w_in, weights.get(f"{name}.w_in.bias")))
        return F.linear(hidden, w_out, weights.get(f"{name}.w_out.bias"))

    def _inputs(self, token_ids: list[int], images: list[NDArray[np.float32]]) -> Tensor:
        tokens = torch.tensor(token_ids)
        inputs = F.embedding(tokens, self.weights["tok_embeddings.weight"])
        is_image = tokens == self.vision["image_token_id"]
        features = [self._adapt(self.embed_image(image)) for image in images]
        rows = sum(len(feature) for feature in features)
        if rows != int(is_image.sum()):
            raise ValueError(f"{int(is_image.sum())} [IMG] tokens for {rows} image embeddings")
        if features:
            inputs[is_image] = torch.cat(features)
        return inputs

    def _logits(self, inputs: Tensor, start: int, caches: list[KVCache]) -> Tensor:
        """The logits (vocabulary) after the last of `inputs`, whose first position is `start`."""
        return F.linear(self._hidden(inputs, start, caches)[-1], self._output)

    def _hidden(self, inputs: Tensor, start: int, caches: list[KVCache]) -> Tensor:
        params, weights = self.params, self.weights
        heads = Heads(
            params["n_heads"], params["n_kv_heads"], params["head_dim"], params["norm_eps"]
        )
        positions = torch.arange(start, start + len(inputs))
        angles = angles_1d(positions, params["head_dim"], params["rope_theta"])
        x = inputs
        for layer, cache in enumerate(caches):
            x = block(x, weights, f"layers.{layer}", heads, angles, cache)
        return rms_norm(x, weights["norm.weight"], heads.norm_eps)

    @property
    def _output(self) -> Tensor:
        return self.weights.get("output.weight", self.weights["tok_embeddings.weight"])

    @torch.inference_mode()
    def logprobs(
        self, token_ids: list[int], images: list[NDArray[np.float32]], answer: list[int]
    ) -> Tensor:
        """The log-probabilities that gave each token of `answer`, (tokens, vocabulary)."""
        caches = [KVCache() for _ in range(self.params["n_layers"])]
        inputs, start = self._inputs(token_ids, images), 0
        rows = []
        for token in answer:
            rows.append(self._logits(inputs, start, caches).log_softmax(-1))
            start += len(inputs)
            inputs = F.embedding(torch.tensor([token]), self.weights["tok_embeddings.weight"])
        return torch.stack(rows)

    @torch.inference_mode()
    def prompt_logprobs(self, token_ids: list[int], images: list[NDArray[np.float32]]) -> Tensor:
        """Log-probabilities (tokens, vocabulary) of each token of a prompt except the first."""
        caches = [KVCache() for _ in range(self.params["n_layers"])]
        hidden = self._hidden(self._inputs(token_ids, images), 0, caches)
        return F.linear(hidden[:-1], self._output).log_softmax(-1)

    @torch.inference_mode()
    def generate(
        self,
        token_ids: list[int],
        images: list[NDArray[np.float32]],
        max_tokens: int,
        adjust: Callable[[Tensor, list[int]], Tensor] = lambda logits, generated: logits,
        *,
        ignore_eos: bool = False,
    ) -> list[int]:
        """The greedy continuation, up to `max_tokens` ids.

        It ends with an end-of-sequence id, unless `ignore_eos`. `images` are in the order of their
        `[IMG]` tokens. `adjust` changes the logits before the pick; it gets the logits and the ids
        so far. Raises ValueError if the `[IMG]` tokens do not match the images.
        """
        caches = [KVCache() for _ in range(self.params["n_layers"])]
        inputs, start = self._inputs(token_ids, images), 0
        generated: list[int] = []
        while len(generated) < max_tokens:
            token = int(adjust(self._logits(inputs, start, caches), generated).argmax())
            generated.append(token)
            if token == EOS_TOKEN_ID and not ignore_eos:
                break
            start += len(inputs)
            inputs = F.embedding(torch.tensor([token]), self.weights["tok_embeddings.weight"])
        return generated
