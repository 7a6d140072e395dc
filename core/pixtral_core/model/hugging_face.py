"""Reads a Pixtral in Hugging Face's format as Mistral's format would describe it.

The tensors are the same under other names, but for queries and keys: the rows of a head's rotary
pairs are apart there, all first ones in front, where Mistral's format has the two of a pair side
by side (transformers, `convert_mistral3_weights_to_hf.py`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixtral_core.model.vision_spec import BadCheckpoint, VisionSpec

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
# The defaults of transformers' PixtralVisionConfig, for what a config.json leaves out.
DEFAULTS = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 1024,
    "patch_size": 16,
}
ROPE_THETA = 10_000.0

_PREFIXES = {
    "vision_tower.": "vision_encoder.",
    "multi_modal_projector.patch_merger.": "patch_merger.",
    "multi_modal_projector.norm.": "pre_mm_projector_norm.",
}
_MODULES = {
    ".attention.q_proj.": ".attention.wq.",
    ".attention.k_proj.": ".attention.wk.",
    ".attention.v_proj.": ".attention.wv.",
    ".attention.o_proj.": ".attention.wo.",
    ".feed_forward.gate_proj.": ".feed_forward.w1.",
    ".feed_forward.down_proj.": ".feed_forward.w2.",
    ".feed_forward.up_proj.": ".feed_forward.w3.",
}


def is_hugging_face(model_dir: Path) -> bool:
    """Whether the directory is in this format alone. Published models may be in both."""
    return (model_dir / CONFIG).is_file() and not (model_dir / "params.json").is_file()


def read_spec(model_dir: Path) -> VisionSpec:
    """The vision tower, as `config.json` describes it. Raises BadCheckpoint."""
    config = _read(model_dir / CONFIG)
    vision = config.get("vision_config")
    model_type = config.get("model_type")
    if (
        model_type not in ("llava", "mistral3")
        or not isinstance(vision, Mapping)
        or vision.get("model_type") != "pixtral"
    ):
        raise BadCheckpoint(f"{CONFIG} is not of a Pixtral: no llava or mistral3 with its tower")
    # The defaults of these differ from published Pixtrals.
    if vision.get("hidden_act") != "silu":
        raise BadCheckpoint(f"{CONFIG}: vision_config.hidden_act must be silu")
    if config.get("vision_feature_layer", -1 if model_type == "mistral3" else None) != -1:
        raise BadCheckpoint(f"{CONFIG}: vision_feature_layer must be -1")
    if model_type == "llava" and config.get("vision_feature_select_strategy") != "full":
        raise BadCheckpoint(f"{CONFIG}: vision_feature_select_strategy must be full")
    try:
        return VisionSpec.from_params({"vision_encoder": _vision_params(config, vision)})
    except BadCheckpoint:
        raise BadCheckpoint(f"{CONFIG}: a number in vision_config is wrong") from None


def weight_files(model_dir: Path) -> list[Path]:
    """Those with vision tensors in them, where an index says. Raises BadCheckpoint."""
    index = model_dir / INDEX
    if not index.is_file():
        single = model_dir / "model.safetensors"
        if not single.is_file():
            raise BadCheckpoint(f"{model_dir} holds no {INDEX} and no {single.name}")
        return [single]
    places = _read(index).get("weight_map")
    if not isinstance(places, Mapping):
        raise BadCheckpoint(f"{index} has no weight_map")
    names = {str(place) for tensor, place in places.items() if mistral_name(tensor)}
    files = [model_dir / Path(name).name for name in sorted(names)]
    for path in files:
        if not path.is_file():
            raise BadCheckpoint(f"{path} is missing")
    return files


def mistral_name(name: str) -> str | None:
    """A vision tensor's name in Mistral's format; None of any other tensor."""
    name = name.removeprefix("model.")
    for theirs, ours in _PREFIXES.items():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    else:
        return None
    for theirs, ours in _MODULES.items():
        name = name.replace(theirs, ours)
    return name


def has_halves(name: str) -> bool:
    """Whether a tensor, by its name in Mistral's format, has rows in another order here."""
    return name.endswith((".attention.wq.weight", ".attention.wk.weight"))


def _vision_params(config: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    rope = vision.get("rope_parameters") or {}
    params = {name: vision.get(name, default) for name, default in DEFAULTS.items()}
    params["rope_theta"] = vision.get("rope_theta") or rope.get("rope_theta") or ROPE_THETA
    params["image_token_id"] = config.get("image_token_index", config.get("image_token_id", 10))
    params["adapter_bias"] = config.get(
        "multimodal_projector_bias", config["model_type"] == "llava"
    )
    if config["model_type"] == "mistral3":
        params |= {
            "mm_projector_id": "patch_merge",
            "spatial_merge_size": config.get("spatial_merge_size", 2),
            "add_pre_mm_projector_layer_norm": True,
        }
    return params


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise BadCheckpoint(f"{path} is not JSON") from None
    if not isinstance(found, Mapping):
        raise BadCheckpoint(f"{path} is not a JSON object")
    return found
