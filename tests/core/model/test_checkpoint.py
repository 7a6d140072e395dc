"""Checkpoints that lack a part of the language model, which an engine might not notice."""

import json
import struct
from pathlib import Path

import pytest

from pixtral_core.model.checkpoint import INDEX, check_language_model
from pixtral_core.model.vision_spec import BadCheckpoint

PARAMS = {"n_layers": 2}
NAMES = (
    "tok_embeddings.weight",
    "layers.0.attention.wq.weight",
    "layers.1.attention.wq.weight",
    "norm.weight",
    "output.weight",
)


def write(path: Path, *names: str) -> None:
    header = {name: {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]} for name in names} | {
        "__metadata__": {"format": "pt"}
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def test_a_whole_one_is_taken_in_one_file_or_several(tmp_path: Path) -> None:
    write(tmp_path / "consolidated.safetensors", *NAMES[:2])
    write(tmp_path / "consolidated-2.safetensors", *NAMES[2:])
    check_language_model(tmp_path, PARAMS)


@pytest.mark.parametrize("missing", NAMES)
def test_a_part_that_no_file_holds_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path / "consolidated.safetensors", *(name for name in NAMES if name != missing))
    with pytest.raises(BadCheckpoint, match=missing.partition("attention")[0]):
        check_language_model(tmp_path, PARAMS)


def test_one_with_tied_embeddings_needs_no_output(tmp_path: Path) -> None:
    write(tmp_path / "consolidated.safetensors", *NAMES[:-1])
    check_language_model(tmp_path, PARAMS | {"tied_embeddings": True})


def test_a_file_that_the_index_names_must_be_there(tmp_path: Path) -> None:
    write(tmp_path / "consolidated-1.safetensors", *NAMES)
    places = {NAMES[0]: "consolidated-1.safetensors", "layers.2": "consolidated-2.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(BadCheckpoint, match=r"consolidated-2\.safetensors is missing"):
        check_language_model(tmp_path, PARAMS)
