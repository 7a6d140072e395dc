"""Loads a Mistral-format Pixtral directory into transformers' own models, in float32.

transformers rotates the halves of a head, and Mistral's format adjacent elements. So the rows of
every wq and wk change their order here; everything else only changes its name.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Ministral3Config,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PixtralVisionModel,
)

RENAMED = {
    "tok_embeddings.weight": "model.language_model.embed_tokens.weight",
    "norm.weight": "model.language_model.norm.weight",
    "output.weight": "lm_head.weight",
    "pre_mm_projector_norm.weight": "model.multi_modal_projector.norm.weight",
    "patch_merger.merging_layer.weight": (
        "model.multi_modal_projector.patch_merger.merging_layer.weight"
    ),
}
PREFIXES = {
    "layers.": "model.language_model.layers.",
    "vision_encoder.": "model.vision_tower.",
    "vision_language_adapter.w_in.": "model.multi_modal_projector.linear_1.",
    "vision_language_adapter.w_out.": "model.multi_modal_projector.linear_2.",
}
PROJECTIONS = {
    "attention.wq.": "attention.q_proj.",
    "attention.wk.": "attention.k_proj.",
    "attention.wv.": "attention.v_proj.",
    "attention.wo.": "attention.o_proj.",
    "feed_forward.w1.": "feed_forward.gate_proj.",
    "feed_forward.w2.": "feed_forward.down_proj.",
    "feed_forward.w3.": "feed_forward.up_proj.",
}
TEXT_MODULES = {
    ".attention.": ".self_attn.",
    ".feed_forward.": ".mlp.",
    ".attention_norm.": ".input_layernorm.",
    ".ffn_norm.": ".post_attention_layernorm.",
}
TOWER = "model.vision_tower."


def load_hf_vision(directory: Path) -> PixtralVisionModel:
    """The vision tower alone, before any patch merger."""
    params = _params(directory)
    model: Any = PixtralVisionModel(_vision_config(params["vision_encoder"]))
    state = _converted(directory, params, only="vision_encoder.")
    model.load_state_dict({name.removeprefix(TOWER): tensor for name, tensor in state.items()})
    tower: PixtralVisionModel = model.eval()
    return tower


def hf_config(directory: Path) -> LlavaConfig | Mistral3Config:
    """Llava's configuration, or Mistral3's if the checkpoint has a patch merger."""
    params = _params(directory)
    vision = params["vision_encoder"]
    common: dict[str, Any] = {
        "vision_config": _vision_config(vision),
        "text_config": _text_config(params),
        "image_token_index": vision["image_token_id"],
        "multimodal_projector_bias": vision["adapter_bias"],
        "vision_feature_layer": -1,
        "tie_word_embeddings": bool(params.get("tied_embeddings")),
    }
    if vision.get("mm_projector_id") == "patch_merge":
        return Mistral3Config(**common, spatial_merge_size=vision["spatial_merge_size"])
    return LlavaConfig(**common, vision_feature_select_strategy="full")


def load_hf(directory: Path) -> Any:
    """The whole model: Llava, or Mistral3 if the checkpoint has a patch merger."""
    params = _params(directory)
    config = hf_config(directory)
    model: Any
    if isinstance(config, Mistral3Config):
        model = Mistral3ForConditionalGeneration(config)
    else:
        model = LlavaForConditionalGeneration(config)
    state = _converted(directory, params)
    if params.get("tied_embeddings"):
        state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval()


def write_hf(directory: Path, into: Path) -> Path:
    """Writes the model as transformers does, in several files with an index. Returns `into`."""
    load_hf(directory).save_pretrained(into, max_shard_size="20MB")
    assert (into / "model.safetensors.index.json").is_file()
    return into


@torch.inference_mode()
def hf_embed(model: PixtralVisionModel, images: list[NDArray[np.float32]]) -> list[Tensor]:
    """The tower's output for each image by itself, (patches, width)."""
    return [
        model(torch.from_numpy(np.ascontiguousarray(image))[None]).last_hidden_state[0]
        for image in images
    ]


@torch.inference_mode()
def hf_generate(
    model: Any,
    token_ids: list[int],
    images: list[NDArray[np.float32]],
    max_tokens: int,
) -> list[int]:
    """The greedy continuation by transformers' own `generate`; images are padded to one batch."""
    inputs: dict[str, Any] = {}
    if images:
        sizes = [image.shape[1:] for image in images]
        height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
        pixels = torch.zeros(len(images), 3, height, width)
        for index, image in enumerate(images):
            pixels[index, :, : image.shape[1], : image.shape[2]] = torch.from_numpy(image)
        inputs = {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}
    tokens = torch.tensor([token_ids])
    generated = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=2,
        **inputs,
    )
    continuation: list[int] = generated[0, len(token_ids) :].tolist()
    return continuation


def _params(directory: Path) -> dict[str, Any]:
    params: dict[str, Any] = json.loads((directory / "params.json").read_text("utf-8"))
    return params


def _vision_config(vision: dict[str, Any]) -> PixtralVisionConfig:
    return PixtralVisionConfig(
        hidden_size=vision["hidden_size"],
        intermediate_size=vision["intermediate_size"],
        num_hidden_layers=vision["num_hidden_layers"],
        num_attention_heads=vision["num_attention_heads"],
        num_channels=vision["num_channels"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        hidden_act="silu",
        rope_parameters={"rope_type": "axial", "rope_theta": vision["rope_theta"]},
    )


def _text_config(params: dict[str, Any]) -> MistralConfig | Ministral3Config:
    kind = Ministral3Config if "llama_4_scaling" in params else MistralConfig
    return kind(
        vocab_size=params["vocab_size"],
        hidden_size=params["dim"],
        intermediate_size=params["hidden_dim"],
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params["n_kv_heads"],
        head_dim=params["head_dim"],
        hidden_act="silu",
        max_position_embeddings=params.get("max_position_embeddings", 128_000),
        rms_norm_eps=params["norm_eps"],
        rope_parameters=_rope(params),
        sliding_window=None,
        tie_word_embeddings=bool(params.get("tied_embeddings")),
    )


def _rope(params: dict[str, Any]) -> dict[str, Any]:
    if "yarn" not in params:
        return {"rope_type": "default", "rope_theta": params["rope_theta"]}
    yarn = params["yarn"]
    return {
        "rope_type": "yarn",
        "type": "yarn",
        "rope_theta": params["rope_theta"],
        "factor": float(yarn["factor"]),
        "original_max_position_embeddings": yarn["original_max_position_embeddings"],
        "beta_fast": float(yarn["beta"]),
        "beta_slow": float(yarn["alpha"]),
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": params["llama_4_scaling"]["beta"],
    }


def _converted(
    directory: Path, params: dict[str, Any], *, only: str | None = None
) -> dict[str, Tensor]:
    converted = {}
    for shard in sorted(directory.glob("consolidated*.safetensors")):
        for name, stored in load_file(shard).items():
            if only is not None and not name.startswith(only):
                continue
            converted[hf_name(name)] = hf_rows(name, stored.float(), params)
    return converted


def hf_rows(name: str, tensor: Tensor, params: dict[str, Any]) -> Tensor:
    """The tensor with its rows in transformers' order, if it is wq or wk; unchanged if not."""
    found = re.search(r"\.attention\.(wq|wk)\.weight$", name)
    if not found:
        return tensor
    if name.startswith("vision_encoder."):
        return _halves_from_pairs(tensor, params["vision_encoder"]["num_attention_heads"])
    heads = {"wq": "n_heads", "wk": "n_kv_heads"}[found.group(1)]
    return _halves_from_pairs(tensor, params[heads])


def _halves_from_pairs(weight: Tensor, n_heads: int) -> Tensor:
    pairs = weight.view(n_heads, -1, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def hf_name(name: str) -> str:
    """transformers' name of a tensor of Mistral's format. Raises ValueError."""
    if name in RENAMED:
        return RENAMED[name]
    for old, new in PROJECTIONS.items():
        name = name.replace(old, new)
    if name.startswith("layers."):
        for old, new in TEXT_MODULES.items():
            name = name.replace(old, new)
    for old, new in PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise ValueError(f"unknown tensor {name}")
