"""Reads a Pixtral in Hugging Face's format, in the terms of Mistral's format.

The tensors are the same under other names, except those of queries and keys. In Hugging Face's
format, all first rows of a head's rotary pairs precede all second rows; in Mistral's format, the
two rows of a pair are adjacent (transformers, `convert_mistral3_weights_to_hf.py`).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pixtral_core.model.language_spec import LanguageSpec
from pixtral_core.model.safetensors_header import read_header
from pixtral_core.model.tokenizer_file import row_end_ids
from pixtral_core.model.vision_spec import BadCheckpoint, VisionSpec

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
# The defaults of transformers' PixtralVisionConfig, for fields that a config.json leaves out.
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
# The same defaults for the language models that are served, by the type in text_config.
TEXT_DEFAULTS = {
    "mistral": {
        "num_hidden_layers": 32,
        "vocab_size": 32_000,
        "max_position_embeddings": 131_072,
    },
    "ministral3": {
        "num_hidden_layers": 34,
        "vocab_size": 131_072,
        "max_position_embeddings": 262_144,
    },
}

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


# The modules with which names of tensors begin. Newer names have a further `model.` in front.
_WRAPPERS = ("model.", "language_model.", "model.")
_OUTPUT = "lm_head."


def is_hugging_face(model_dir: Path) -> bool:
    """Whether the directory is read in Hugging Face's format; its weights decide.

    A published model may be in both formats, and is then read in Mistral's. A directory with these
    weights may also have a `params.json`, which does not describe them.
    """
    if not (model_dir / CONFIG).is_file() or any(model_dir.glob("consolidated*.safetensors")):
        return False
    has_weights = (model_dir / INDEX).is_file() or any(model_dir.glob("model*.safetensors"))
    return has_weights or not (model_dir / "params.json").is_file()


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
        raise BadCheckpoint(
            f"{CONFIG} does not describe a Pixtral: it must be llava or mistral3 "
            "with a Pixtral tower"
        )
    # For these fields the defaults differ from published Pixtrals.
    if vision.get("hidden_act") != "silu":
        raise BadCheckpoint(
            f"{CONFIG}: vision_config.hidden_act must be silu: set it to silu if these are a "
            "published Pixtral's weights, because their conversion is wrong"
        )
    if config.get("vision_feature_layer", -1 if model_type == "mistral3" else None) != -1:
        raise BadCheckpoint(f"{CONFIG}: vision_feature_layer must be -1")
    if model_type == "llava" and config.get("vision_feature_select_strategy") != "full":
        raise BadCheckpoint(f"{CONFIG}: vision_feature_select_strategy must be full")
    if config.get("projector_hidden_act", "gelu") != "gelu":
        raise BadCheckpoint(f"{CONFIG}: projector_hidden_act must be gelu")
    text = config.get("text_config")
    vocab_size = text.get("vocab_size") if isinstance(text, Mapping) else None
    try:
        return VisionSpec.from_params(
            {"vision_encoder": _vision_params(config, vision)},
            row_ends=row_end_ids(model_dir, vocab_size),
        )
    except BadCheckpoint:
        raise BadCheckpoint(f"{CONFIG}: a number in vision_config is wrong") from None


def read_language(model_dir: Path) -> LanguageSpec:
    """The language model, as `config.json` and the tensors' names describe it.

    Raises BadCheckpoint.
    """
    config = _read(model_dir / CONFIG)
    text = config.get("text_config")
    text_type = text.get("model_type", "mistral") if isinstance(text, Mapping) else None
    if not isinstance(text, Mapping) or text_type not in TEXT_DEFAULTS:
        raise BadCheckpoint(
            f"{CONFIG}: text_config.model_type is {text_type}, and must be "
            f"{' or '.join(TEXT_DEFAULTS)} in this format: use the model's files in Mistral format"
        )
    numbers = {name: text.get(name, default) for name, default in TEXT_DEFAULTS[text_type].items()}
    for name, number in numbers.items():
        if not isinstance(number, int) or number < 1:
            raise BadCheckpoint(f"{CONFIG}: text_config.{name} is not a number above 0")
    says_tied = bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    return LanguageSpec(
        layers=numbers["num_hidden_layers"],
        vocab_size=numbers["vocab_size"],
        context_length=numbers["max_position_embeddings"],
        # The defaults of transformers' classes differ, and a config.json may lack this field.
        is_tied=says_tied and not _has_output(model_dir),
        is_quantized=bool(config.get("quantization_config")),
    )


def weight_files(model_dir: Path, *, is_all: bool = False) -> list[Path]:
    """The files that have vision tensors by the index; all files without an index, or if `is_all`.
    Raises BadCheckpoint."""
    index = model_dir / INDEX
    if not index.is_file():
        single = model_dir / "model.safetensors"
        if not single.is_file():
            raise BadCheckpoint(f"{model_dir} has no {INDEX} and no {single.name}")
        return [single]
    names = {file for tensor, file in _indexed(index).items() if is_all or mistral_name(tensor)}
    files = [model_dir / Path(name).name for name in sorted(names)]
    for path in files:
        if not path.is_file():
            raise BadCheckpoint(f"{path} is missing, which {INDEX} names")
    return files


def parts(language: LanguageSpec) -> list[str]:
    """The beginnings of the names of tensors that the decoder requires, without wrappers."""
    layers = [f"layers.{number}." for number in range(language.layers)]
    adapter = [f"multi_modal_projector.linear_{number}." for number in (1, 2)]
    output = [] if language.is_tied else [_OUTPUT]
    return ["embed_tokens.", "norm.", *layers, *output, *adapter]


def unwrapped(name: str) -> str:
    """A tensor's name without the modules in front, whose order differs between checkpoints."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _has_output(model_dir: Path) -> bool:
    index, single = model_dir / INDEX, model_dir / "model.safetensors"
    names: Iterable[str] = ()
    if index.is_file():
        names = _indexed(index)
    elif single.is_file():
        names = read_header(single)[1]
    return any(unwrapped(name).startswith(_OUTPUT) for name in names)


def _indexed(index: Path) -> dict[str, str]:
    """The file of each tensor, from an index."""
    places = _read(index).get("weight_map")
    if not isinstance(places, Mapping):
        raise BadCheckpoint(f"{index} has no weight_map")
    return {tensor: str(file) for tensor, file in places.items()}


def mistral_name(name: str) -> str | None:
    """A vision tensor's name in Mistral's format; None for any other tensor."""
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
    """Whether the tensor with this name in Mistral's format has its rows in another order in
    Hugging Face's."""
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
