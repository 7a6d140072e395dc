"""Checkpoints that lack a part of the language model, which an engine might not notice."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import Ministral3Config, MistralConfig

from pixtral_core.model.checkpoint import (
    INDEX,
    check_language_model,
    read_language,
    weight_bytes,
)
from pixtral_core.model.hugging_face import is_hugging_face
from pixtral_core.model.language_spec import LanguageSpec
from pixtral_core.model.vision_spec import BadCheckpoint
from tests.support.hf_reference import write_hf
from tests.support.published_shapes import pixtral_12b

LANGUAGE = LanguageSpec(
    layers=2, vocab_size=32768, context_length=None, is_tied=False, is_quantized=False
)
ADAPTER = ("vision_language_adapter.w_in.weight", "vision_language_adapter.w_out.weight")
NAMES = (
    *ADAPTER,
    "tok_embeddings.weight",
    "layers.0.attention.wq.weight",
    "layers.1.attention.wq.weight",
    "norm.weight",
    "output.weight",
)
CONFIG = {
    "model_type": "mistral3",
    "text_config": {"model_type": "ministral3", "num_hidden_layers": 2, "vocab_size": 32768},
}
THEIRS = (
    "model.language_model.embed_tokens.weight",
    "model.language_model.layers.0.self_attn.q_proj.weight",
    "model.language_model.layers.1.self_attn.q_proj.weight",
    "model.language_model.norm.weight",
    "model.multi_modal_projector.linear_1.weight",
    "model.multi_modal_projector.linear_2.weight",
    "lm_head.weight",
)
OLDER_NAMES = (
    "language_model.model.embed_tokens.weight",
    "language_model.model.layers.0.self_attn.q_proj.weight_packed",
    "language_model.model.layers.1.self_attn.q_proj.weight_packed",
    "language_model.model.norm.weight",
    "multi_modal_projector.linear_1.weight",
    "multi_modal_projector.linear_2.weight",
    "language_model.lm_head.weight",
)


def write(path: Path, *names: str, dtype: str = "BF16") -> None:
    header = {name: {"dtype": dtype, "shape": [0], "data_offsets": [0, 0]} for name in names} | {
        "__metadata__": {"format": "pt"}
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def test_a_whole_one_is_taken_in_one_file_or_several(tmp_path: Path) -> None:
    write(tmp_path / "consolidated.safetensors", *NAMES[:2])
    write(tmp_path / "consolidated-2.safetensors", *NAMES[2:])
    check_language_model(tmp_path, LANGUAGE)


@pytest.mark.parametrize("missing", NAMES)
def test_a_part_that_no_file_holds_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path / "consolidated.safetensors", *(name for name in NAMES if name != missing))
    with pytest.raises(BadCheckpoint, match=missing.partition("attention")[0]):
        check_language_model(tmp_path, LANGUAGE)


def test_one_with_tied_embeddings_needs_no_output(tmp_path: Path) -> None:
    write(tmp_path / "consolidated.safetensors", *NAMES[:-1])
    check_language_model(tmp_path, replace(LANGUAGE, is_tied=True))


def test_a_file_that_the_index_names_must_be_there(tmp_path: Path) -> None:
    write(tmp_path / "consolidated-1.safetensors", *NAMES)
    places = {NAMES[0]: "consolidated-1.safetensors", "layers.2": "consolidated-2.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(BadCheckpoint, match=r"consolidated-2\.safetensors is missing"):
        check_language_model(tmp_path, LANGUAGE)


def test_a_quantised_adapter_is_named(tmp_path: Path) -> None:
    write(tmp_path / "consolidated.safetensors", *NAMES[1:])
    write(tmp_path / "consolidated-2.safetensors", NAMES[0], dtype="F8_E4M3")
    with pytest.raises(BadCheckpoint, match=r"w_in\.weight is quantised"):
        check_language_model(tmp_path, LANGUAGE)


@pytest.mark.parametrize("names", [THEIRS, OLDER_NAMES])
def test_hugging_faces_names_are_known_of_all_years(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    weights = tmp_path / "model.safetensors"
    write(weights, *names)
    check_language_model(tmp_path, read_language(tmp_path))
    for missing in names:
        write(weights, *(name for name in names if name != missing))
        part = missing.partition("self_attn")[0].removesuffix("weight")
        with pytest.raises(BadCheckpoint, match=part.rsplit("model.", 1)[-1]):
            check_language_model(tmp_path, read_language(tmp_path))


def test_hugging_faces_embeddings_are_tied_where_no_file_holds_the_output(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG | {"tie_word_embeddings": True}))
    write(tmp_path / "model.safetensors", *THEIRS)
    assert not read_language(tmp_path).is_tied
    write(tmp_path / "model.safetensors", *THEIRS[:-1])
    assert read_language(tmp_path).is_tied
    check_language_model(tmp_path, read_language(tmp_path))
    config.write_text(json.dumps(CONFIG))
    with pytest.raises(BadCheckpoint, match=r"lm_head\.weight.* tie_word_embeddings in config"):
        check_language_model(tmp_path, read_language(tmp_path))


def test_what_a_config_leaves_out_is_as_transformers_has_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"text_config": {"model_type": "ministral3"}}')
    found, theirs = read_language(tmp_path), Ministral3Config()
    assert (found.layers, found.vocab_size) == (theirs.num_hidden_layers, theirs.vocab_size)
    assert found.context_length == theirs.max_position_embeddings
    (tmp_path / "config.json").write_text('{"text_config": {"model_type": "mistral"}}')
    found, older = read_language(tmp_path), MistralConfig()
    assert (found.layers, found.vocab_size) == (older.num_hidden_layers, older.vocab_size)
    assert found.context_length == older.max_position_embeddings


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ({"model_type": "mistral4"}, "mistral4.* use the model's files in Mistral format"),
        ({"model_type": "mistral", "vocab_size": "many"}, "vocab_size"),
    ],
)
def test_a_language_model_that_is_not_served_is_named(
    tmp_path: Path, text: dict[str, object], says: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text}))
    with pytest.raises(BadCheckpoint, match=says):
        read_language(tmp_path)


def test_weights_in_hugging_faces_format_decide_also_beside_a_params_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert is_hugging_face(tmp_path)
    (tmp_path / "params.json").write_text("{}")
    assert not is_hugging_face(tmp_path)
    write(tmp_path / "model-00001-of-00002.safetensors", *THEIRS)
    assert is_hugging_face(tmp_path)
    write(tmp_path / "consolidated.safetensors", *NAMES)
    assert not is_hugging_face(tmp_path)


def test_the_bytes_of_all_weights_are_those_of_the_tensors(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    original = pixtral_12b(ours)
    count = sum(tensor.nbytes for tensor in load_file(ours / "consolidated.safetensors").values())
    assert weight_bytes(ours) == count
    assert weight_bytes(write_hf(original, theirs)) == count
