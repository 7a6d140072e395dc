"""The tower against transformers' own, with the same weights, in float32."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PixtralVisionModel

from models.random_checkpoint import RandomSpec
from pixtral_core.model.vision_spec import VisionSpec, read_params
from pixtral_encoder.tower.attention import LEAST_IN_PRODUCTS, SCORES, Attention, Packing
from pixtral_encoder.tower.cuda_graphs import MOST_PATCHES
from pixtral_encoder.tower.layers import Heads
from pixtral_encoder.tower.tower import VisionTower
from pixtral_encoder.tower.weights import load_tower
from tests.encoder.tower.embedding import Pixels, embed, picture, relative_error
from tests.support.fixture_types import Checkpoints
from tests.support.hf_reference import hf_embed, load_hf_vision

SIZES = [(1, 1), (16, 1024), (1024, 16), (333, 777), (1024, 1024)]
MERGING = RandomSpec(patch_size=14, max_image_size=1540, spatial_merge_size=2)

Pair = tuple[VisionTower, PixtralVisionModel, VisionSpec]


@pytest.fixture(scope="module", params=[RandomSpec(), MERGING], ids=["pixtral", "merging"])
def checkpoint(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Path:
    return checkpoints(request.param)


@pytest.fixture(scope="module")
def pair(checkpoint: Path) -> Pair:
    spec = VisionSpec.from_params(read_params(checkpoint))
    tower = load_tower(checkpoint, spec, dtype=torch.float32, device=torch.device("cpu"))
    return tower, load_hf_vision(checkpoint), spec


@pytest.fixture(scope="module")
def merge_weights(checkpoint: Path) -> tuple[Tensor, Tensor] | None:
    """The pre-projector norm and the merging layer, where the checkpoint has them."""
    tensors = load_file(checkpoint / "consolidated.safetensors")
    if "patch_merger.merging_layer.weight" not in tensors:
        return None
    return tensors["pre_mm_projector_norm.weight"], tensors["patch_merger.merging_layer.weight"]


def merged(x: Tensor, rows: int, cols: int, weights: tuple[Tensor, Tensor]) -> Tensor:
    """Norm and merger written out token by token."""
    norm, layer = weights
    width = x.shape[1]
    x = x / (x.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * norm
    grid = x.view(rows, cols, width)
    kernel = layer.view(width, width, 2, 2)
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    tokens = [
        torch.stack([kernel[:, :, i, j] @ grid[row + i, col + j] for i, j in corners]).sum(0)
        for row in range(0, rows, 2)
        for col in range(0, cols, 2)
    ]
    return torch.stack(tokens)


def expected(
    pair: Pair, images: list[Pixels], weights: tuple[Tensor, Tensor] | None
) -> list[Tensor]:
    _, reference, spec = pair
    towers = hf_embed(reference, images)
    if weights is None:
        return towers
    side = spec.patch_size
    return [
        merged(x, image.shape[1] // side, image.shape[2] // side, weights)
        for x, image in zip(towers, images, strict=True)
    ]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_one_image_equals_transformers(
    pair: Pair, merge_weights: tuple[Tensor, Tensor] | None, width: int, height: int
) -> None:
    image = picture(pair[2], width, height)
    (reference,) = expected(pair, [image], merge_weights)
    (found,) = embed(pair[0], [image])
    assert found.shape == (pair[2].grid(width, height).tokens, pair[2].width)
    assert relative_error(found, reference) < 1e-4


def test_a_mixed_batch_equals_transformers(
    pair: Pair, merge_weights: tuple[Tensor, Tensor] | None
) -> None:
    images = [picture(pair[2], *size, seed) for seed, size in enumerate(SIZES[:4])]
    references = expected(pair, images, merge_weights)
    for found, reference in zip(embed(pair[0], images), references, strict=True):
        assert relative_error(found, reference) < 1e-4


def test_an_image_does_not_depend_on_its_companions(pair: Pair) -> None:
    tower, _, spec = pair
    images = [picture(spec, *size, seed) for seed, size in enumerate(SIZES[:4])]
    alone = [embed(tower, [image])[0] for image in images]
    for batch in ([0, 1, 2, 3], [3, 1], [2, 0, 1], [0, 3]):
        run_all = embed(tower, [images[index] for index in batch])
        for index, found in zip(batch, run_all, strict=True):
            assert relative_error(found, alone[index]) < 1e-6


def test_images_of_one_size_are_told_apart(
    pair: Pair, merge_weights: tuple[Tensor, Tensor] | None
) -> None:
    sizes = [(64, 64), (300, 200), (64, 64), (128, 32), (64, 64), (300, 200)]
    images = [picture(pair[2], *size, seed) for seed, size in enumerate(sizes)]
    references = expected(pair, images, merge_weights)
    for found, reference in zip(embed(pair[0], images), references, strict=True):
        assert relative_error(found, reference) < 1e-4


def test_bfloat16_is_near_float32(checkpoint: Path, pair: Pair) -> None:
    tower, _, spec = pair
    half = load_tower(checkpoint, spec, dtype=torch.bfloat16, device=torch.device("cpu"))
    image = picture(spec, 333, 777)
    (found,) = embed(half, [image])
    assert found.dtype == torch.bfloat16
    assert relative_error(found.float(), embed(tower, [image])[0]) < 0.02


class EagerGraphs:
    """In place of graphs where there is no GPU: shares out as they do, and has none of its own."""

    singles = (64,)

    def run(self, images: Sequence[Tensor], positions: Sequence[Tensor]) -> None:
        assert len(images) == 1 or sum(map(len, images)) <= MOST_PATCHES


def test_a_batch_in_several_runs_is_the_same(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    tower, _, spec = pair
    side = spec.token_size
    sizes = [(8 * side, 8 * side), (1024, 1024), (side, side), (8 * side, 8 * side), (1000, 700)]
    images = [picture(spec, *size, seed) for seed, size in enumerate(sizes)]
    as_on_a_cpu = embed(tower, images)
    with monkeypatch.context() as patched:
        patched.setattr(tower, "_graphs", EagerGraphs())
        as_on_a_gpu = embed(tower, images)
    monkeypatch.setattr("pixtral_encoder.tower.tower.MOST_PATCHES_ON_CPU", 1 << 20)
    run_all = embed(tower, images)
    for found in (as_on_a_cpu, as_on_a_gpu):
        for each, reference in zip(found, run_all, strict=True):
            assert relative_error(each, reference) < 1e-6


@pytest.mark.parametrize("is_imitated", [False, True])
@pytest.mark.parametrize("scores", [SCORES, 5000, 300])
@pytest.mark.parametrize(("images", "length"), [(1, 1100), (3, 37), (2, 256), (1, 9)])
def test_attention_in_bfloat16_is_within_each_image(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    images: int,
    length: int,
    scores: int,
    is_imitated: bool,
) -> None:
    monkeypatch.setattr("pixtral_encoder.tower.attention.SCORES", scores)
    monkeypatch.setattr(
        "pixtral_encoder.tower.attention.multiplies_bfloat16", lambda: not is_imitated
    )
    spec = VisionSpec.from_params(read_params(checkpoint))
    size = spec.width // spec.heads
    generator = torch.Generator().manual_seed(length)
    exact = torch.randn(3, images * length, spec.heads, size, generator=generator).bfloat16()
    attention = Attention(spec, torch.device("cpu"), torch.bfloat16)
    found = attention(Heads(*exact), Packing(((images, length),)))
    queries, keys, values = exact.double().view(3, images, length, spec.heads, size)
    shares = torch.einsum("iqhs,ikhs->ihqk", queries, keys).div(size**0.5).softmax(-1)
    expected = torch.einsum("ihqk,ikhs->iqhs", shares, values).reshape(found.shape)
    # Numbers about 1, of 8 bits, rounded some times.
    torch.testing.assert_close(found.double(), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("side", [640, 128])
def test_bfloat16_is_as_near_as_its_bits_allow(checkpoint: Path, side: int) -> None:
    spec = VisionSpec.from_params(read_params(checkpoint))
    image = picture(spec, side, side)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        tower = load_tower(checkpoint, spec, dtype=dtype, device=torch.device("cpu"))
        (found[dtype],) = embed(tower, [image])
    reference, rounded = found[torch.float32], found[torch.bfloat16].float()
    assert len(reference) * spec.merge_size**2 >= LEAST_IN_PRODUCTS
    cosine = torch.cosine_similarity(rounded.flatten(), reference.flatten(), dim=0)
    assert float(cosine) > 0.9995
