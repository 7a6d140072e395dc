"""Other implementations of Pixtral's vision tower, with the weights of ours."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from pixtral_core.model.vision_spec import VisionSpec

# From images on the device, each (3, height, width), to embeddings, each (patches, width).
Embed = Callable[[Sequence[Tensor]], Sequence[Tensor]]
PREFIX = "vision_encoder."


def transformers_tower(spec: VisionSpec, weights: Mapping[str, Tensor]) -> Embed:
    """transformers' `PixtralVisionModel` with torch's own attention; its RoPE base is 10,000."""
    from transformers import PixtralVisionConfig, PixtralVisionModel

    config: Any = PixtralVisionConfig(
        hidden_size=spec.width,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        image_size=spec.max_image_size,
        patch_size=spec.patch_size,
        hidden_act="silu",
    )
    config._attn_implementation = "sdpa"
    names = {
        "attention.wq": "attention.q_proj",
        "attention.wk": "attention.k_proj",
        "attention.wv": "attention.v_proj",
        "attention.wo": "attention.o_proj",
        "feed_forward.w1": "feed_forward.gate_proj",
        "feed_forward.w2": "feed_forward.down_proj",
        "feed_forward.w3": "feed_forward.up_proj",
    }
    state = {}
    for name, tensor in weights.items():
        if "attention.wq" in name or "attention.wk" in name:
            # transformers rotates the halves of a head; the checkpoint has adjacent pairs.
            pairs = tensor.view(spec.heads, -1, 2, spec.width)
            tensor = pairs.transpose(1, 2).reshape(tensor.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name.removeprefix(PREFIX)] = tensor
    some = next(iter(weights.values()))
    with torch.device(some.device):
        model: Any = PixtralVisionModel(config)
    model = model.to(some.device, some.dtype).eval()
    model.load_state_dict(state)

    @torch.inference_mode()
    def embed(images: Sequence[Tensor]) -> Sequence[Tensor]:
        # A batch needs images of one size, and one image at a time is faster.
        return [model(image[None].to(some.dtype)).last_hidden_state[0] for image in images]

    return embed


def vllm_tower(spec: VisionSpec, weights: Mapping[str, Tensor], stack: ExitStack) -> Embed:
    """The `VisionTransformer` that vLLM runs for checkpoints in Mistral's format.

    The parts of vLLM that it needs live until `stack` closes.
    """
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.model_executor.models.pixtral import VisionEncoderArgs, VisionTransformer
    from vllm.utils.network_utils import get_open_port

    some = next(iter(weights.values()))
    stack.enter_context(set_current_vllm_config(VllmConfig()))
    address = f"tcp://127.0.0.1:{get_open_port()}"
    backend = "nccl" if some.device.type == "cuda" else "gloo"
    init_distributed_environment(1, 0, address, 0, backend)
    initialize_model_parallel(1, 1)
    model: Any = VisionTransformer(
        VisionEncoderArgs(
            hidden_size=spec.width,
            num_channels=spec.channels,
            image_size=spec.max_image_size,
            patch_size=spec.patch_size,
            intermediate_size=spec.intermediate_size,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            rope_theta=spec.rope_theta,
            image_token_id=spec.image_token_id,
        )
    )
    state = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    merged = {}
    for index in range(spec.layers):
        layer = f"transformer.layers.{index}"
        for name, parts in {
            f"{layer}.attention.qkv_proj": ("attention.wq", "attention.wk", "attention.wv"),
            f"{layer}.attention.o_proj": ("attention.wo",),
            f"{layer}.feed_forward.gate_up_proj": ("feed_forward.w1", "feed_forward.w3"),
            f"{layer}.feed_forward.down_proj": ("feed_forward.w2",),
        }.items():
            merged[f"{name}.weight"] = torch.cat(
                [state.pop(f"{layer}.{part}.weight") for part in parts]
            )
    model.load_state_dict(state | merged)
    model = model.to(some.device, some.dtype).eval()

    @torch.inference_mode()
    def embed(images: Sequence[Tensor]) -> Sequence[Tensor]:
        embedded: Sequence[Tensor] = model(list(images))
        return embedded

    return embed
