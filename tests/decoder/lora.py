"""A random LoRA adapter, and the plain model that it makes."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.support.reference import Reference

RANK, ALPHA = 4, 8
# PEFT's name for a module, and that of Mistral's own checkpoint.
TARGETS = {
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}


def write_adapter(directory: Path, reference: Reference, seed: int = 1) -> None:
    """Writes a random one into `directory`, and adds it to the weights of `reference`."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(reference.params["n_layers"]):
        for module, ours in TARGETS.items():
            weight = reference.weights[f"layers.{layer}.{ours}.weight"]
            down = torch.randn(RANK, weight.shape[1], generator=generator) / RANK
            up = torch.randn(weight.shape[0], RANK, generator=generator) / RANK
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
            weight += up @ down * (ALPHA / RANK)
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    names = [name.rpartition(".")[2] for name in TARGETS]
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": names}
    (directory / "adapter_config.json").write_text(json.dumps(config))
