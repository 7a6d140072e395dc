"""Writes a trained model to a directory in Mistral's format, and reads it back."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from training.model import CHANNELS, ModelSpec, Pixtral
from training.tokenizer import write_tokenizer

PATCH_CONV = "vision_encoder.patch_conv.weight"


def write_checkpoint(directory: Path, model: Pixtral) -> None:
    """Writes `params.json`, `consolidated.safetensors` (bf16), `tekken.json` and
    `generation_config.json`. The last file makes answers greedy unless a request sets a
    temperature."""
    directory.mkdir(parents=True, exist_ok=True)
    spec = model.spec
    params = json.dumps(spec.params(), indent=2) + "\n"
    (directory / "params.json").write_text(params, encoding="utf-8")
    generation = json.dumps({"do_sample": False, "temperature": 0.0}, indent=2) + "\n"
    (directory / "generation_config.json").write_text(generation, encoding="utf-8")
    write_tokenizer(
        directory / "tekken.json", vocab_size=spec.vocab_size, max_image_size=spec.max_image_size
    )
    tensors = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    tensors[PATCH_CONV] = tensors[PATCH_CONV].view(-1, CHANNELS, spec.patch_size, spec.patch_size)
    weights = directory / "consolidated.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    # safetensors writes a file that other users cannot read, but a server may run as another user.
    weights.chmod(0o644)


def read_checkpoint(directory: Path) -> Pixtral:
    """The model that `write_checkpoint` wrote, with weights in float32."""
    params = json.loads((directory / "params.json").read_text(encoding="utf-8"))
    vision = params["vision_encoder"]
    spec = ModelSpec(
        dim=params["dim"],
        n_layers=params["n_layers"],
        n_heads=params["n_heads"],
        n_kv_heads=params["n_kv_heads"],
        hidden_dim=params["hidden_dim"],
        vision_dim=vision["hidden_size"],
        vision_layers=vision["num_hidden_layers"],
        vision_heads=vision["num_attention_heads"],
        vision_hidden_dim=vision["intermediate_size"],
        head_dim=params["head_dim"],
        vocab_size=params["vocab_size"],
        rope_theta=params["rope_theta"],
        vision_rope_theta=vision["rope_theta"],
        norm_eps=params["norm_eps"],
        patch_size=vision["patch_size"],
        max_image_size=vision["max_image_size"],
    )
    model = Pixtral(spec)
    tensors = load_file(directory / "consolidated.safetensors")
    tensors[PATCH_CONV] = tensors[PATCH_CONV].flatten(1)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model
