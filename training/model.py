"""Pixtral in plain torch, for training. Its parameters have the names of a Mistral checkpoint.

All sequences of a batch have pictures of the same grids, so the tower needs no mask: it attends
within each picture, as the block-diagonal attention of a packed batch does. Texts are padded at
their end, because the tokens of a causal model do not depend on later tokens.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_TOKEN_ID: Final = 10
IMAGE_BREAK_TOKEN_ID: Final = 12
IMAGE_END_TOKEN_ID: Final = 13
VISION_NORM_EPS: Final = 1e-5
CHANNELS: Final = 3

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of the model, in the terms of `params.json`."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int
    vision_dim: int
    vision_layers: int
    vision_heads: int
    vision_hidden_dim: int
    head_dim: int = 32
    vocab_size: int = 4096
    rope_theta: float = 1e4
    vision_rope_theta: float = 1e4
    norm_eps: float = 1e-5
    patch_size: int = 16
    max_image_size: int = 256

    def params(self) -> dict[str, Any]:
        """The contents of `params.json`."""
        return {
            "dim": self.dim,
            "n_layers": self.n_layers,
            "head_dim": self.head_dim,
            "hidden_dim": self.hidden_dim,
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads,
            "rope_theta": self.rope_theta,
            "norm_eps": self.norm_eps,
            "vocab_size": self.vocab_size,
            "vision_encoder": {
                "hidden_size": self.vision_dim,
                "num_channels": CHANNELS,
                "image_size": self.max_image_size,
                "max_image_size": self.max_image_size,
                "patch_size": self.patch_size,
                "rope_theta": self.vision_rope_theta,
                "intermediate_size": self.vision_hidden_dim,
                "num_hidden_layers": self.vision_layers,
                "num_attention_heads": self.vision_heads,
                "adapter_bias": True,
                "image_token_id": IMAGE_TOKEN_ID,
                "image_break_token_id": IMAGE_BREAK_TOKEN_ID,
                "image_end_token_id": IMAGE_END_TOKEN_ID,
            },
        }


def angles_1d(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """The rotation of each pair of a head, (tokens, head dim / 2)."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    return torch.outer(positions.float(), theta ** -(exponents / head_dim))


def angles_2d(grid: Grid, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """The angles of 2-D RoPE, (rows * columns, head dim / 2): first the even frequencies times the
    row, then the odd frequencies times the column."""
    rows, columns = grid
    by_row = angles_1d(torch.arange(rows, device=device), head_dim, theta)[:, None, 0::2]
    by_column = angles_1d(torch.arange(columns, device=device), head_dim, theta)[None, :, 1::2]
    both = [by_row.expand(rows, columns, -1), by_column.expand(rows, columns, -1)]
    return torch.cat(both, dim=-1).flatten(0, 1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each adjacent pair of `x` (batch, tokens, heads, head dim) by its angle."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def cosines(count: int, size: int) -> Tensor:
    """The first `count` cosine waves of a patch, (count, channels * size * size), from the slowest
    to the fastest.

    Each wave comes three times: with all channels equal, with red against blue, and with green
    against both. A faster wave is usually weaker in pictures. So it is scaled up, in order that the
    products of patches with all waves have about the same size.
    """
    middles = (torch.arange(size) + 0.5) * torch.pi / size
    waves = torch.cos(torch.outer(torch.arange(size).float(), middles))
    speeds = [(u * u + v * v, u, v) for u in range(size) for v in range(size)]
    channels = torch.tensor([(1.0, 1.0, 1.0), (1.4, 0.0, -1.4), (-0.8, 1.6, -0.8)])
    rows = []
    for at in range(count):
        speed, u, v = sorted(speeds)[at // len(channels)]
        wave = torch.outer(waves[u], waves[v])
        wave = wave / wave.norm() * (1 + speed) ** 0.5
        rows.append((channels[at % len(channels)][:, None, None] * wave).flatten())
    return torch.stack(rows) / (3**0.5 * size)


class RMSNorm(nn.RMSNorm):
    """Computes in float32, whatever the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.wq = nn.Linear(dim, heads * head_dim, bias=False)
        self.wk = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.wv = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.wo = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, is_causal: bool) -> Tensor:
        batch, tokens, _ = x.shape
        queries = self.wq(x).view(batch, tokens, self.heads, self.head_dim)
        keys = self.wk(x).view(batch, tokens, self.kv_heads, self.head_dim)
        values = self.wv(x).view(batch, tokens, self.kv_heads, self.head_dim)
        queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)
        group = self.heads // self.kv_heads
        if group > 1:
            keys = keys.repeat_interleave(group, dim=2)
            values = values.repeat_interleave(group, dim=2)
        attended = F.scaled_dot_product_attention(
            queries.transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            is_causal=is_causal,
        )
        joined: Tensor = self.wo(attended.transpose(1, 2).flatten(-2))
        return joined


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return y


class Block(nn.Module):
    def __init__(
        self, dim: int, hidden_dim: int, heads: int, kv_heads: int, head_dim: int, eps: float
    ) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, kv_heads, head_dim)
        self.feed_forward = FeedForward(dim, hidden_dim)
        self.attention_norm = RMSNorm(dim, eps)
        self.ffn_norm = RMSNorm(dim, eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, is_causal: bool) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, is_causal)
        y: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return y


class Blocks(nn.Module):
    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor, angles: Tensor, is_causal: bool) -> Tensor:
        cos, sin = angles.cos()[:, None, :], angles.sin()[:, None, :]
        for layer in self.layers:
            x = layer(x, cos, sin, is_causal)
        return x


class VisionEncoder(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        dim, heads = spec.vision_dim, spec.vision_heads
        # A convolution whose stride is its size is the same as a matrix. `export` writes the
        # matrix in the shape of a convolution.
        self.patch_conv = nn.Linear(CHANNELS * spec.patch_size**2, dim, bias=False)
        self.ln_pre = RMSNorm(dim, VISION_NORM_EPS)
        self.transformer = Blocks(
            [
                Block(dim, spec.vision_hidden_dim, heads, heads, dim // heads, VISION_NORM_EPS)
                for _ in range(spec.vision_layers)
            ]
        )

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        """Maps (pictures, rows * columns, channels * patch pixels) to (pictures, tokens, width)."""
        x = self.ln_pre(self.patch_conv(patches))
        head_dim = self.spec.vision_dim // self.spec.vision_heads
        angles = angles_2d(grid, head_dim, self.spec.vision_rope_theta, patches.device)
        y: Tensor = self.transformer(x, angles, is_causal=False)
        return y


class Adapter(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.w_in = nn.Linear(spec.vision_dim, spec.dim)
        self.w_out = nn.Linear(spec.dim, spec.dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.w_out(F.gelu(self.w_in(x)))
        return y


class Pixtral(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.tok_embeddings = nn.Embedding(spec.vocab_size, spec.dim)
        self.vision_encoder = VisionEncoder(spec)
        self.vision_language_adapter = Adapter(spec)
        # This is no `Blocks`, because the names of these layers have no prefix in a checkpoint.
        self.layers = nn.ModuleList(
            Block(
                spec.dim,
                spec.hidden_dim,
                spec.n_heads,
                spec.n_kv_heads,
                spec.head_dim,
                spec.norm_eps,
            )
            for _ in range(spec.n_layers)
        )
        self.norm = RMSNorm(spec.dim, spec.norm_eps)
        self.output = nn.Linear(spec.dim, spec.vocab_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            if name == "tok_embeddings.weight":
                nn.init.normal_(parameter, std=0.5)
                continue
            std = parameter[0].numel() ** -0.5
            if name.endswith(("wo.weight", "w2.weight")):
                std *= 0.3
            nn.init.normal_(parameter, std=std)
        patch_conv = self.vision_encoder.patch_conv.weight
        with torch.no_grad():
            patch_conv.copy_(cosines(len(patch_conv), self.spec.patch_size))

    def embed_images(self, patches: list[Tensor], grids: list[Grid]) -> list[Tensor]:
        """The inputs of the adapter. The first item has the embeddings of the first picture of
        every sequence, (sequences, tokens, width); the second item those of the second picture."""
        return [self.vision_encoder(p, grid) for p, grid in zip(patches, grids, strict=True)]

    def hidden(self, token_ids: Tensor, embeddings: list[Tensor]) -> Tensor:
        """The normalised state after the last layer, (sequences, tokens, dim)."""
        x = self.tok_embeddings(token_ids)
        if embeddings:
            # In each sequence, the [IMG] tokens of the first picture precede those of the second.
            features = self.vision_language_adapter(torch.cat(embeddings, dim=1)).to(x.dtype)
            is_image = (token_ids == IMAGE_TOKEN_ID)[..., None].expand_as(x)
            x = x.masked_scatter(is_image, features)
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        angles = angles_1d(positions, self.spec.head_dim, self.spec.rope_theta)
        cos, sin = angles.cos()[:, None, :], angles.sin()[:, None, :]
        for layer in self.layers:
            x = layer(x, cos, sin, True)
        y: Tensor = self.norm(x)
        return y


class PatchTeacher(nn.Module):
    """Predicts the attributes of what was drawn on each patch from the patch's embedding. It is not
    part of the checkpoint."""

    # Most patches show only background, and the tower learns this quickly.
    BACKGROUND_WEIGHT = 0.1

    def __init__(self, width: int, attributes: dict[str, int]) -> None:
        super().__init__()
        self.sizes = list(attributes.values())
        self.heads = nn.Linear(width, sum(self.sizes))

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """The losses, one number for each attribute. `labels` is (..., attributes), and -1 where a
        patch has no label. The first attribute is 0 on background."""
        logits = self.heads(embedding).float().split(self.sizes, dim=-1)
        background = labels[..., 0].flatten() == 0
        losses = []
        for at, of_attribute in enumerate(logits):
            target = labels[..., at].flatten()
            loss = F.cross_entropy(
                of_attribute.flatten(0, -2), target, ignore_index=-1, reduction="none"
            )
            weight = (target >= 0) * torch.where(background, self.BACKGROUND_WEIGHT, 1.0)
            losses.append((loss * weight).sum() / weight.sum().clamp(min=1))
        return torch.stack(losses)
