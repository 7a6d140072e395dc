"""The report of `doctor` about a model's directory."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from pixtral_cli.checkpoint_report import INDEX, check_model

VISION = "vision_encoder.patch_conv.weight"
PIXTRAL = {VISION: "BF16", "tok_embeddings.weight": "BF16", "output.weight": "BF16"}


def write_weights(path: Path, dtypes: Mapping[str, str]) -> None:
    header = {
        name: {"dtype": dtype, "shape": [0], "data_offsets": [0, 0]}
        for name, dtype in dtypes.items()
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    (tmp_path / "params.json").write_text(json.dumps({"vision_encoder": {}}))
    (tmp_path / "tekken.json").write_text("{}")
    write_weights(tmp_path / "consolidated.safetensors", PIXTRAL)
    return tmp_path


def failures(model_dir: Path) -> list[str]:
    return [finding.what for finding in check_model(model_dir) if finding.level == "fail"]


def test_a_whole_checkpoint_is_fine(model_dir: Path) -> None:
    assert failures(model_dir) == []


def test_a_file_of_the_index_that_is_missing_is_named(model_dir: Path) -> None:
    places = {VISION: "consolidated.safetensors", "layers.7.x": "consolidated-2.safetensors"}
    (model_dir / INDEX).write_text(json.dumps({"weight_map": places}))
    assert failures(model_dir) == [f"consolidated-2.safetensors is missing, which {INDEX} names"]


def test_a_broken_index_is_a_failure(model_dir: Path) -> None:
    (model_dir / INDEX).write_text("{}")
    assert failures(model_dir) == [f"{INDEX} has no weight_map"]


def test_a_quantised_tower_is_a_failure(model_dir: Path) -> None:
    write_weights(model_dir / "consolidated.safetensors", PIXTRAL | {VISION: "F8_E4M3"})
    assert failures(model_dir) == [f"{VISION} is F8_E4M3: the vision tower is quantised"]


def test_a_model_without_its_output_is_a_failure_unless_tied(model_dir: Path) -> None:
    kept = {name: dtype for name, dtype in PIXTRAL.items() if name != "output.weight"}
    write_weights(model_dir / "consolidated.safetensors", kept)
    (failure,) = failures(model_dir)
    assert failure.startswith("the weights hold no output.weight")
    (model_dir / "params.json").write_text(
        json.dumps({"vision_encoder": {}, "tied_embeddings": True})
    )
    assert failures(model_dir) == []
