"""Which LoRA adapters are taken, before vLLM looks at them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pixtral_decoder.engine.lora_adapters import BadAdapter, check_adapter

TEXT = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def write(directory: Path, *names: str) -> Path:
    (directory / "adapter_config.json").write_text("{}")
    save_file({name: torch.zeros(1) for name in names}, directory / "adapter_model.safetensors")
    return directory


def test_one_of_the_language_model_is_taken(tmp_path: Path) -> None:
    check_adapter(write(tmp_path, TEXT, TEXT.replace("model.layers", "language_model.layers")))


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.vision_tower.transformer.layers.0.attention.q_proj.lora_A.weight",
        "base_model.model.vision_encoder.transformer.layers.0.attention.wq.lora_A.weight",
        "base_model.model.multi_modal_projector.linear_1.lora_A.weight",
        "base_model.model.vision_language_adapter.w_in.lora_A.weight",
    ],
)
def test_one_of_the_images_side_is_not(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadAdapter, match="embeddings of images"):
        check_adapter(write(tmp_path, TEXT, name))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_that_is_missing_is_named(tmp_path: Path, file: str) -> None:
    (write(tmp_path, TEXT) / file).unlink()
    with pytest.raises(BadAdapter, match=file):
        check_adapter(tmp_path)


def test_weights_that_are_none_are_told(tmp_path: Path) -> None:
    (write(tmp_path, TEXT) / "adapter_model.safetensors").write_bytes(b"PK")
    with pytest.raises(BadAdapter, match="safetensors format"):
        check_adapter(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        TEXT.removeprefix("base_model.model."),
        "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight",
    ],
)
def test_one_by_another_library_is_taken(tmp_path: Path, name: str) -> None:
    check_adapter(write(tmp_path, name))


def test_one_that_changes_nothing_is_refused_by_a_name_of_it(tmp_path: Path) -> None:
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
    with pytest.raises(BadAdapter, match=f"changes nothing in this model: it has {name}"):
        check_adapter(write(tmp_path, name))
