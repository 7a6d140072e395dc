"""The report of `doctor` about a model's directory."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from pixtral_cli.checkpoint_report import check_card, check_model, fit_on_card

INDEX = "consolidated.safetensors.index.json"
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
    assert failure.startswith("the weights have no output.weight")
    (model_dir / "params.json").write_text(
        json.dumps({"vision_encoder": {}, "tied_embeddings": True})
    )
    assert failures(model_dir) == []


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """In Hugging Face's form, with a params.json beside it that describes other weights."""
    config = {
        "vision_config": {"model_type": "pixtral"},
        "text_config": {"vocab_size": 131_072},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "params.json").write_text("{}")
    names = {"vision_tower.patch_conv.weight": "BF16", "language_model.lm_head.weight": "BF16"}
    write_weights(tmp_path / "model-00001-of-00001.safetensors", names)
    places = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return tmp_path


def test_a_whole_checkpoint_in_hugging_faces_form_is_fine(theirs: Path) -> None:
    assert failures(theirs) == []
    whats = [finding.what for finding in check_model(theirs)]
    assert any("mistral_common ships a tokenizer" in what for what in whats)


def test_a_tokenizer_that_is_not_shipped_must_be_there(theirs: Path) -> None:
    config = json.loads((theirs / "config.json").read_text())
    config["vision_config"]["patch_size"] = 14
    (theirs / "config.json").write_text(json.dumps(config))
    assert failures(theirs) == [f"{theirs}/tekken.json is missing"]
    (theirs / "tekken.json").write_text("{}")
    assert failures(theirs) == []


def test_a_shard_in_hugging_faces_form_that_is_missing_is_named(theirs: Path) -> None:
    index = theirs / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"] | {"x": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": places}))
    assert failures(theirs) == [
        "model-00002-of-00002.safetensors is missing, which model.safetensors.index.json names"
    ]


def card(model_dir: Path, gibibytes: float) -> list[tuple[str, str]]:
    found = check_card(model_dir, "a card", int(gibibytes * 2**30))
    return [(each.level, each.what) for each in found]


MISTRALS = {"vision_encoder": {}, "n_layers": 2, "n_kv_heads": 8, "n_heads": 16, "dim": 2048}


def test_what_goes_on_one_card_is_counted_from_the_files(model_dir: Path) -> None:
    header = {
        VISION: {"dtype": "BF16", "shape": [2**29], "data_offsets": [0, 2**30]},
        "output.weight": {"dtype": "F8_E4M3", "shape": [2**32], "data_offsets": [2**30, 5 * 2**30]},
    }
    text = json.dumps(header).encode()
    weights = model_dir / "consolidated.safetensors"
    weights.write_bytes(struct.pack("<Q", len(text)) + text)
    (model_dir / "params.json").write_text(json.dumps(MISTRALS))
    token = 2 * 2 * 2 * 8 * 128
    sizes = "a card: 1.0 GiB of tower, 4.0 GiB of language model"
    large, small = (int(share * card * 2**30) for share, card in ((0.9, 80), (0.8, 10)))
    assert card(model_dir, 80) == [
        ("ok", f"{sizes}, and at most {(large - 4 * 2**30) // token} tokens")
    ]
    # Less for the decoder: the encoder needs more than a tenth of a small card.
    tokens = (small - 4 * 2**30) // token
    assert card(model_dir, 10) == [
        ("ok", f"{sizes}, and at most {tokens} tokens with --gpu-memory-utilization 0.8")
    ]
    assert card(model_dir, 4) == [("warn", f"{sizes}: more than 4 GiB hold together")]


def test_matrices_of_the_layers_are_half_as_large_in_8_bits(model_dir: Path) -> None:
    shapes = {
        "layers.0.attention.wq.weight": [2**14, 2**15],
        "layers.0.ffn_norm.weight": [2**15],
        "output.weight": [2**14, 2**15],
        "vision_encoder.transformer.layers.0.attention.wq.weight": [2**14, 2**15],
    }
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    weights = model_dir / "consolidated.safetensors"
    weights.write_bytes(struct.pack("<Q", len(text)) + text)
    (model_dir / "params.json").write_text(json.dumps(MISTRALS))

    whole = fit_on_card(model_dir, 80 * 2**30)
    half = fit_on_card(model_dir, 80 * 2**30, in_8_bits=True)
    assert whole is not None
    assert half is not None
    assert whole.tower == half.tower == 2**30
    assert whole.language - half.language == 2**29
    assert half.tokens > whole.tokens

    (finding,) = check_card(model_dir, "a card", int(2.2 * 2**30))
    assert finding.level == "warn"
    said = f"--quantization fp8 makes the language model {half.language / 2**30:.1f} GiB"
    assert finding.advice.startswith(f"{said}, for at most ")


def test_nothing_is_said_of_a_card_where_the_numbers_are_not_known(
    model_dir: Path, theirs: Path
) -> None:
    assert card(model_dir, 10) == card(theirs, 10) == []
    (model_dir / "params.json").write_text(json.dumps(MISTRALS | {"qk_nope_head_dim": 64}))
    assert card(model_dir, 10) == []
