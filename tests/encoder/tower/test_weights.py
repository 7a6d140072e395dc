import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixtral_core.model.load_progress import VARIABLE
from pixtral_core.model.vision_spec import BadCheckpoint, VisionSpec, read_params
from pixtral_encoder.tower.tower import VisionTower
from pixtral_encoder.tower.weights import load_tower

Tensors = dict[str, torch.Tensor]


def load(model_dir: Path, spec: VisionSpec) -> VisionTower:
    return load_tower(model_dir, spec, dtype=torch.float32, device=torch.device("cpu"))


def embed(tower: VisionTower, image: NDArray[np.float32]) -> list[Tensor]:
    return tower.embed([tower.stage(image)])


@pytest.fixture
def spec(checkpoint_dir: Path) -> VisionSpec:
    return VisionSpec.from_params(read_params(checkpoint_dir))


@pytest.fixture(scope="module")
def all_tensors(checkpoint_dir: Path) -> Tensors:
    tensors: Tensors = load_file(checkpoint_dir / "consolidated.safetensors")
    return tensors


@pytest.fixture
def vision(all_tensors: Tensors) -> Tensors:
    return {name: all_tensors[name] for name in all_tensors if name.startswith("vision_encoder.")}


def test_a_sharded_checkpoint_is_the_same_tower(
    checkpoint_dir: Path, spec: VisionSpec, vision: Tensors, tmp_path: Path
) -> None:
    names = sorted(vision)
    for shard in range(3):
        part = {name: vision[name] for name in names[shard::3]}
        save_file(part, tmp_path / f"consolidated-{shard + 1:05}-of-00003.safetensors")
    image = np.random.default_rng(0).random((3, 32, 48), np.float32)
    (whole,), (sharded,) = (embed(load(at, spec), image) for at in (checkpoint_dir, tmp_path))
    assert torch.equal(whole, sharded)


def test_it_says_how_much_it_has_loaded(
    checkpoint_dir: Path, spec: VisionSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "encoder.loaded"
    monkeypatch.setenv(VARIABLE, str(path))
    load(checkpoint_dir, spec)
    assert path.read_text() == "100\n"


def test_no_other_tensor_is_needed_or_read(
    checkpoint_dir: Path, spec: VisionSpec, vision: Tensors, tmp_path: Path
) -> None:
    unreadable = {
        "tok_embeddings.weight": torch.zeros(4),
        "layers.0.attention.wq.weight": torch.zeros(1),
    }
    save_file(vision | unreadable, tmp_path / "consolidated.safetensors")
    image = np.random.default_rng(0).random((3, 32, 48), np.float32)
    (whole,), (alone,) = (embed(load(at, spec), image) for at in (checkpoint_dir, tmp_path))
    assert torch.equal(whole, alone)


def test_a_missing_tensor_is_named(spec: VisionSpec, vision: Tensors, tmp_path: Path) -> None:
    name = "vision_encoder.transformer.layers.1.attention.wo.weight"
    save_file({n: t for n, t in vision.items() if n != name}, tmp_path / "consolidated.safetensors")
    with pytest.raises(BadCheckpoint, match=name):
        load(tmp_path, spec)


def test_a_missing_merger_is_named(checkpoint_dir: Path) -> None:
    params = json.loads((checkpoint_dir / "params.json").read_text())
    params["vision_encoder"] |= {"mm_projector_id": "patch_merge", "spatial_merge_size": 2}
    with pytest.raises(BadCheckpoint, match=r"patch_merger\.merging_layer\.weight"):
        load(checkpoint_dir, VisionSpec.from_params(params))


def test_a_tensor_of_another_shape_is_named(
    spec: VisionSpec, vision: Tensors, tmp_path: Path
) -> None:
    name = "vision_encoder.ln_pre.weight"
    save_file(vision | {name: torch.ones(3)}, tmp_path / "consolidated.safetensors")
    with pytest.raises(BadCheckpoint, match=name):
        load(tmp_path, spec)


def test_a_file_cut_short_is_refused(
    checkpoint_dir: Path, spec: VisionSpec, tmp_path: Path
) -> None:
    whole = (checkpoint_dir / "consolidated.safetensors").read_bytes()
    (tmp_path / "consolidated.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadCheckpoint, match="cut short"):
        load(tmp_path, spec)


def test_a_quantised_tensor_is_named(spec: VisionSpec, vision: Tensors, tmp_path: Path) -> None:
    name = "vision_encoder.transformer.layers.1.attention.wo.weight"
    quantised = {name: vision[name].to(torch.float8_e4m3fn)}
    save_file(vision | quantised, tmp_path / "consolidated.safetensors")
    with pytest.raises(BadCheckpoint, match=f"{name} is F8_E4M3"):
        load(tmp_path, spec)
