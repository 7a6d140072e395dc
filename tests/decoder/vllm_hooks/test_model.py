"""The decoder's model class; `test_engine.py` and `test_family.py` run it in whole engines."""

import ast
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pixtral_core.model.checkpoint import VISION_PREFIXES
from pixtral_core.model.vision_spec import read_params
from tests.support.hf_reference import write_hf
from tests.support.published_shapes import mistral_small, pixtral_12b
from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.model_executor.models.mistral import MistralForCausalLM

    from pixtral_decoder.vllm_hooks import model


def test_still_there() -> None:
    assert_still_there(model)


def test_still_needed_while_vllms_pixtral_takes_pixels_alone() -> None:
    """Once this fails, see whether vLLM's own class will do: `model` can go then."""
    spec = find_spec("vllm.model_executor.models.pixtral")
    assert spec is not None
    assert spec.origin is not None
    # It is read and not imported: that takes torchvision.
    tree = ast.parse(Path(spec.origin).read_text())
    asked = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("pop", "get")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "kwargs"
        and isinstance(node.args[0], ast.Constant)
    }
    assert asked == {"images"}


@pytest.mark.parametrize(
    ("vision", "tokens"),
    [
        (SimpleNamespace(max_image_size=1024, patch_size=16), 4096),
        (SimpleNamespace(max_image_size=1540, patch_size=14, spatial_merge_size=2), 3025),
        (SimpleNamespace(image_size=1024, patch_size=16), 4096),
    ],
)
def test_an_image_takes_at_most_a_square_of_the_largest_side(vision: Any, tokens: int) -> None:
    assert model.max_image_tokens(vision) == tokens


def test_the_adapter_widens_an_embedding() -> None:
    adapter = model.VisionLanguageAdapter(8, 16, bias=True)
    assert adapter(torch.zeros(3, 8)).shape == (3, 16)


@pytest.mark.parametrize(
    ("stored", "ours"),
    [
        ("language_model.model.layers.0.mlp.up_proj", "language_model.model.layers.0.mlp.up_proj"),
        ("model.language_model.norm.weight", "language_model.model.norm.weight"),
        ("language_model.lm_head.weight", "language_model.lm_head.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        # As a quantised checkpoint names what it leaves as it is.
        ("lm_head", "language_model.lm_head"),
        ("multi_modal_projector.linear_1.bias", "vision_language_adapter.w_in.bias"),
        ("model.multi_modal_projector.linear_2.weight", "vision_language_adapter.w_out.weight"),
        (
            "language_model.model.layers.0.self_attn.q_proj.weight_scale_inv",
            "language_model.model.layers.0.self_attn.q_proj.weight_scale",
        ),
        (
            "model.language_model.layers.0.mlp.down_proj.activation_scale",
            "language_model.model.layers.0.mlp.down_proj.input_scale",
        ),
    ],
)
def test_names_of_hugging_faces_format_of_all_years(stored: str, ours: str) -> None:
    mapper = model.HuggingFacePixtralEmbeddingsForConditionalGeneration.hf_to_vllm_mapper
    assert mapper.apply_list([stored]) == [ours]


@pytest.mark.parametrize(
    "stored",
    [
        "vision_tower.ln_pre.weight",
        "model.vision_tower.patch_conv.weight",
        "model.multi_modal_projector.norm.weight",
        "multi_modal_projector.patch_merger.merging_layer.weight",
    ],
)
def test_the_towers_weights_are_not_the_decoders(stored: str) -> None:
    mapper = model.HuggingFacePixtralEmbeddingsForConditionalGeneration.hf_to_vllm_mapper
    (name,) = mapper.apply_list([stored])
    assert name.startswith(VISION_PREFIXES)


@pytest.mark.parametrize("make", [pixtral_12b, mistral_small])
def test_each_weight_of_hugging_faces_format_is_the_one_of_mistrals(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    original = make(tmp_path / "original")
    params = read_params(original)
    config = SimpleNamespace(
        head_dim=params["head_dim"],
        hidden_size=params["dim"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params["n_kv_heads"],
    )
    mapping = MistralForCausalLM.mistral_mapping
    vllms: Any = SimpleNamespace(config=config, mistral_mapping=mapping)
    expected = {}
    for name, weight in load_file(original / "consolidated.safetensors").items():
        if name.startswith("vision_language_adapter."):
            expected[name] = weight
        elif not name.startswith(VISION_PREFIXES):
            renamed, weight = MistralForCausalLM.maybe_remap_mistral(vllms, name, weight)
            expected[f"language_model.{renamed}"] = weight
    theirs: dict[str, torch.Tensor] = {}
    for path in write_hf(original, tmp_path / "theirs").glob("model-*.safetensors"):
        theirs |= load_file(path)
    mapper = model.HuggingFacePixtralEmbeddingsForConditionalGeneration.hf_to_vllm_mapper
    mapped = dict(mapper.apply(theirs.items()))
    found = {name for name in mapped if not name.startswith(VISION_PREFIXES)}
    assert found == expected.keys()
    assert all(torch.equal(mapped[name], expected[name]) for name in found)
