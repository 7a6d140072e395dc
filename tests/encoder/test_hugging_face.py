"""Checkpoints as transformers writes them, against transformers and against Mistral's format."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mistral_common.tokens.tokenizers.image import transform_image
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.random_checkpoint import RandomSpec
from pixtral_core.cache.wire_format import DType
from pixtral_core.model.checkpoint import read_spec
from pixtral_core.model.fingerprint import fingerprint
from pixtral_core.model.vision_spec import BadCheckpoint, VisionSpec, read_params
from pixtral_encoder.tower.tower import VisionTower
from pixtral_encoder.tower.weights import load_tower
from tests.support.fixture_types import Checkpoints
from tests.support.hf_reference import load_hf

# The language model is only carried along.
PIXTRAL = RandomSpec(dim=32, n_layers=1)
MISTRAL3 = replace(PIXTRAL, patch_size=14, max_image_size=1540, spatial_merge_size=2)

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module", params=[PIXTRAL, MISTRAL3], ids=["llava", "mistral3"])
def original(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Path:
    """In Mistral's format."""
    return checkpoints(request.param)


@pytest.fixture(scope="module")
def model(original: Path) -> Any:
    return load_hf(original)


@pytest.fixture(scope="module")
def written(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """transformers itself writes it, in several files with an index."""
    directory = tmp_path_factory.mktemp("hf")
    model.save_pretrained(directory, max_shard_size="300KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 3
    return directory


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """The files with vision tensors in them, and the index of all."""
    directory = tmp_path / "copy"
    directory.mkdir()
    for name in ("config.json", "model.safetensors.index.json", *vision_files(written)):
        shutil.copyfile(written / name, directory / name)
    return directory


def vision_files(directory: Path) -> set[str]:
    places = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    return {place for name, place in places.items() if "vision_tower" in name or is_merger(name)}


def is_merger(name: str) -> bool:
    return "patch_merger" in name or "multi_modal_projector.norm" in name


def load(directory: Path, spec: VisionSpec) -> VisionTower:
    return load_tower(directory, spec, dtype=torch.float32, device=torch.device("cpu"))


def picture(spec: VisionSpec, width: int, height: int) -> NDArray[np.float32]:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return transform_image(Image.fromarray(noise), spec.resized(spec.grid(width, height)))


@torch.inference_mode()
def transformers_embedding(model: Any, image: NDArray[np.float32]) -> Tensor:
    """The input of its projector, up to its first linear layer."""
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None]
    embedding: Tensor = model.model.vision_tower(pixels).last_hidden_state
    projector = model.model.multi_modal_projector
    if hasattr(projector, "patch_merger"):
        sizes = torch.tensor([image.shape[1:]])
        return projector.patch_merger(projector.norm(embedding[0]), sizes)  # type: ignore[no-any-return]
    return embedding[0]


def test_the_embeddings_are_those_of_transformers_and_of_mistrals_format(
    original: Path, model: Any, copy: Path
) -> None:
    spec = read_spec(copy)
    ours = VisionSpec.from_params(read_params(original))
    assert spec == replace(ours, adapter_bias=spec.adapter_bias)
    theirs, before = load(copy, spec), load(original, ours)
    for size in ((333, 77), (1024, 640), (16, 16)):
        image = picture(spec, *size)
        (found,) = theirs.embed([theirs.stage(image)])
        (same,) = before.embed([before.stage(image)])
        reference = transformers_embedding(model, image)
        assert found.shape == reference.shape
        assert float((found - reference).norm() / reference.norm()) < 1e-4
        assert float((found - same).norm() / same.norm()) < 1e-6


def test_equal_weights_have_one_fingerprint_in_both_formats(original: Path, copy: Path) -> None:
    assert fingerprint(copy, DType.F32) == fingerprint(original, DType.F32)


def test_the_order_of_rows_is_part_of_the_fingerprint(copy: Path) -> None:
    before = fingerprint(copy, DType.F32)
    path = next(copy / name for name in vision_files(copy) if has_queries(copy / name))
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("q_proj.weight") and "vision" in name)
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, path)
    assert fingerprint(copy, DType.F32) != before


def has_queries(path: Path) -> bool:
    return any(name.endswith("q_proj.weight") and "vision" in name for name in load_file(path))


def test_one_file_needs_no_index_and_newer_names_are_read_too(original: Path, copy: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for name in vision_files(copy):
        tensors |= load_file(copy / name)
        (copy / name).unlink()
    (copy / "model.safetensors.index.json").unlink()
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    for prefix in ("", "model."):
        save_file({prefix + name: bare[name] for name in bare}, copy / "model.safetensors")
        assert fingerprint(copy, DType.F32) == fingerprint(original, DType.F32)


def test_a_directory_in_both_formats_is_read_in_mistrals(original: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(original, both)
    (both / "config.json").write_text("{}")
    assert read_spec(both) == read_spec(original)
    assert fingerprint(both, DType.F32) == fingerprint(original, DType.F32)


def test_a_file_that_the_index_names_and_that_is_not_there_is_named(copy: Path) -> None:
    name = min(vision_files(copy))
    (copy / name).unlink()
    with pytest.raises(BadCheckpoint, match=name):
        load(copy, read_spec(copy))


REFUSED: dict[str, tuple[Edit, str]] = {
    "another model": (
        lambda config: config.update(model_type="qwen2_vl"),
        "does not describe a Pixtral",
    ),
    "another tower": (
        lambda config: config["vision_config"].update(model_type="siglip"),
        "does not describe a Pixtral",
    ),
    "another activation": (
        lambda config: config["vision_config"].update(hidden_act="gelu"),
        "hidden_act",
    ),
    "a layer before the last": (
        lambda config: config.update(vision_feature_layer=-2),
        "vision_feature_layer",
    ),
    "another adapter": (
        lambda config: config.update(projector_hidden_act="relu"),
        "projector_hidden_act must be gelu",
    ),
    "a wrong number": (lambda config: config["vision_config"].update(patch_size=0), "number"),
    "no number": (lambda config: config["vision_config"].update(patch_size="x"), "number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_this_tower_is_refused_by_name(copy: Path, name: str) -> None:
    edit, said = REFUSED[name]
    config = json.loads((copy / "config.json").read_text())
    edit(config)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match=said):
        read_spec(copy)
