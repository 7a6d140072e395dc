"""Products in 8 bits, by torch's own on the CPU."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixtral_core.model.checkpoint import read_spec
from pixtral_encoder.tower import fp8, layers
from pixtral_encoder.tower.layers import Layer, Rotations
from pixtral_encoder.tower.tower import VisionTower
from pixtral_encoder.tower.weights import load_tower
from tests.support.upstream import assert_still_there

HEADS = 2


def test_still_there() -> None:
    assert_still_there(fp8)


def test_still_needed_while_a_torch_without_the_public_product_is_supported() -> None:
    """Once this fails, `torch.nn.functional.scaled_mm` can take `torch._scaled_mm`'s place."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert "torch>=2.9" in project["project"]["optional-dependencies"]["encoder"]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_product_is_that_of_the_rounded_rows() -> None:
    # Rows of very different sizes: one scale for all would leave nothing of the small ones.
    x = (random(48, 64) * torch.logspace(-3, 3, 48)[:, None]).bfloat16()
    weight = random(32, 64, seed=1) * torch.logspace(-2, 2, 32)[:, None]
    matrix = fp8.quantized(weight)
    rounded = matrix.values.float() * matrix.scales.t()
    assert float(((rounded - weight).norm(dim=1) / weight.norm(dim=1)).max()) < 0.04
    by_rows = fp8.quantized(x)
    expected = (by_rows.values.float() * by_rows.scales.t()) @ rounded.t()
    found = fp8.linear(x, matrix)
    assert (found.shape, found.dtype) == ((48, 32), torch.bfloat16)
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=1e-4)


def test_rows_of_zeros_stay_zeros_and_what_is_not_finite_shows() -> None:
    matrix = fp8.quantized(random(16, 32))
    x = random(3, 32, seed=1).bfloat16()
    x[0] = 0
    x[1, 5] = torch.inf
    found = fp8.linear(x, matrix)
    assert not found[0].any()
    assert not found[1].isfinite().all()
    assert found[2].isfinite().all()


def test_a_tower_of_8_bits_is_near_the_one_of_16(checkpoint_dir: Path) -> None:
    spec = read_spec(checkpoint_dir)

    def load(*, is_fp8: bool) -> VisionTower:
        device = torch.device("cpu")
        return load_tower(checkpoint_dir, spec, dtype=torch.bfloat16, device=device, is_fp8=is_fp8)

    before, tower = load(is_fp8=False), load(is_fp8=True)
    image = random(3, 160, 96).numpy()
    (reference,) = before.embed([before.stage(image)])
    (found,) = tower.embed([tower.stage(image)])
    assert found.dtype == torch.bfloat16
    assert not torch.equal(found, reference)
    assert cosine(found, reference) > 0.99


def test_a_compiler_takes_a_layer_in_one_piece_for_all_numbers_of_patches() -> None:
    width = 64
    matrices = {f"attention.{each}": random(width, width) for each in ("wq", "wk", "wv", "wo")}
    matrices |= {f"feed_forward.{each}": random(128, width) for each in ("w1", "w3")}
    matrices["feed_forward.w2"] = random(width, 128)
    norms = {each: torch.ones(width) for each in ("attention_norm", "ffn_norm")}
    weights = {f"at.{n}.weight": each.bfloat16() for n, each in (matrices | norms).items()}
    layer, other = (Layer.of(weights, "at", HEADS, fp8.quantized) for _ in range(2))
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled: Any = torch.compile(layers.step, backend=backend, fullgraph=True, dynamic=True)
    for patches in (48, 80, 33):
        x, attended = random(patches, width).bfloat16(), random(patches, width).bfloat16()
        angles = random(patches, 1, 1, width // HEADS // 2)
        rotations = Rotations(angles.cos(), angles.sin())
        found = compiled(x.clone(), attended, layer, other, rotations)
        torch.testing.assert_close(found, layers.step(x, attended, layer, other, rotations))
    assert len(graphs) == 1
