"""The dtype that the tower computes in, on CPUs of both kinds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.random_checkpoint import RandomSpec
from pixtral_core.model.vision_spec import VisionSpec, read_params
from pixtral_encoder.tower import compute_dtype
from pixtral_encoder.tower.weights import load_tower
from tests.encoder.tower.embedding import embed, picture, relative_error
from tests.support import poorer_cpu
from tests.support.fixture_types import Checkpoints

CPU = torch.device("cpu")
IMITATED = {torch.bfloat16: 1e9, torch.float32: 1e11}
NATIVE = {torch.bfloat16: 2e11, torch.float32: 1e11}

CHOICE_ON_A_POORER_CPU = """
import torch
from pixtral_encoder.tower.compute_dtype import compute_dtype
print(compute_dtype(torch.bfloat16, torch.device("cpu")))
"""


@pytest.fixture(autouse=True)
def rates_measured_anew() -> Iterator[None]:
    compute_dtype.cpu_rates.cache_clear()
    yield
    compute_dtype.cpu_rates.cache_clear()


def measured(monkeypatch: pytest.MonkeyPatch, rates: compute_dtype.Rates) -> None:
    monkeypatch.setattr(compute_dtype, "_rate", rates.__getitem__)


def test_a_cpu_that_imitates_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, IMITATED)
    assert compute_dtype.compute_dtype(torch.bfloat16, CPU) is torch.float32


def test_a_cpu_that_multiplies_bfloat16_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, NATIVE)
    assert compute_dtype.compute_dtype(torch.bfloat16, CPU) is torch.bfloat16


def test_nothing_is_computed_in_fewer_bits_than_were_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured(monkeypatch, NATIVE)
    assert compute_dtype.compute_dtype(torch.float32, CPU) is torch.float32


def test_a_gpu_computes_in_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, IMITATED)
    gpu = torch.device("cuda")
    assert compute_dtype.compute_dtype(torch.bfloat16, gpu) is torch.bfloat16


def test_measuring_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert min(compute_dtype.cpu_rates().values()) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@poorer_cpu.needs_x86
def test_this_cpu_without_its_bfloat16_computes_in_float32() -> None:
    assert poorer_cpu.printed(CHOICE_ON_A_POORER_CPU) == "torch.float32"


@pytest.fixture(
    params=[RandomSpec(), RandomSpec(patch_size=14, max_image_size=1540, spatial_merge_size=2)],
    ids=["pixtral", "merging"],
)
def checkpoint(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Path:
    return checkpoints(request.param)


def test_embeddings_are_rounded_to_what_is_asked_for_and_to_nothing_before(
    checkpoint: Path,
) -> None:
    spec = VisionSpec.from_params(read_params(checkpoint))
    images = [picture(spec, 333, 777), picture(spec, 64, 64)]
    tower = load_tower(
        checkpoint, spec, dtype=torch.bfloat16, device=CPU, computes_in=torch.float32
    )
    exact = load_tower(checkpoint, spec, dtype=torch.float32, device=CPU)
    native = load_tower(checkpoint, spec, dtype=torch.bfloat16, device=CPU)
    for found, other, reference in zip(
        *(embed(each, images) for each in (tower, native, exact)), strict=True
    ):
        assert found.dtype == torch.bfloat16
        # Both have weights of 8 bits; the one that rounds only at the end is the nearer one.
        assert relative_error(found.float(), reference) < 0.01
        assert relative_error(found.float(), reference) < relative_error(other.float(), reference)
