"""Writes a random checkpoint as the quantised Pixtrals are published.

They are in Hugging Face's form, quantised by compressed-tensors: the linear layers of the language
model are, and vision tower, adapter, embeddings and output are not.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.hf_reference import hf_config, hf_name, hf_rows
from tests.support.reference import Reference

GROUP = 128
INT4_IN_INT32 = 8
FP8 = torch.float8_e4m3fn
_QUANTISED = re.compile(r"layers\.\d+\.(attention|feed_forward)\.w[a-z0-9]+\.weight")
_TOWER, _PROJECTOR = "vision_tower.", "multi_modal_projector."


@dataclass(frozen=True, slots=True)
class Quantised:
    """A linear layer's weight as a file holds it.

    Attributes:
        stored: the tensors by the ends of their names. Rows are the layer's outputs in each but
            `weight_shape`.
        meant: the weight that they mean, in float32.
        flat: the same if all scales were their mean.
    """

    stored: dict[str, Tensor]
    meant: Tensor
    flat: Tensor


@dataclass(frozen=True, slots=True)
class Form:
    """A form in which quantised Pixtrals are published."""

    name: str
    format: str
    weights: dict[str, Any]
    activations: dict[str, Any] | None
    quantise: Callable[[Tensor], Quantised]

    def config(self, ignore: list[str]) -> dict[str, Any]:
        """The `quantization_config` of `config.json`."""
        group = {
            "weights": self.weights,
            "input_activations": self.activations,
            "output_activations": None,
            "targets": ["Linear"],
        }
        return {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": self.format,
            "global_compression_ratio": None,
            "kv_cache_scheme": None,
            "config_groups": {"group_0": group},
            "ignore": ignore,
        }


def _numbers(bits: int, kind: str, strategy: str, group_size: int | None) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": kind,
        "strategy": strategy,
        "group_size": group_size,
        "symmetric": True,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }


def _by_token(bits: int, kind: str) -> dict[str, Any]:
    """Activations, with a scale for each token that the engine computes."""
    return {**_numbers(bits, kind, "token", None), "dynamic": True, "observer": None}


def _int8(weight: Tensor) -> Quantised:
    scale = (weight.abs().amax(1, keepdim=True) / 127).bfloat16()
    whole = (weight / scale.float()).round().clamp(-128, 127)
    return _quantised({"weight": whole.to(torch.int8), "weight_scale": scale}, whole, scale)


def _fp8(weight: Tensor) -> Quantised:
    most = torch.finfo(FP8).max
    scale = (weight.abs().amax(1, keepdim=True) / most).bfloat16()
    rounded = (weight / scale.float()).clamp(-most, most).to(FP8)
    return _quantised({"weight": rounded, "weight_scale": scale}, rounded.float(), scale)


def _int4(weight: Tensor) -> Quantised:
    rows, columns = weight.shape
    groups = weight.reshape(rows, -1, GROUP)
    scale = (groups.abs().amax(2, keepdim=True) / 7.5).bfloat16()
    whole = (groups / scale.float()).round().clamp(-8, 7)
    # Eight in a row are an int32, the first one in its lowest bits.
    eights = (whole + 8).to(torch.int64).reshape(rows, -1, INT4_IN_INT32)
    packed = (eights << torch.arange(0, 32, 4)).sum(2)
    signed = torch.where(packed >= 1 << 31, packed - (1 << 32), packed)
    stored = {
        "weight_packed": signed.to(torch.int32),
        "weight_scale": scale.squeeze(2),
        "weight_shape": torch.tensor([rows, columns]),
    }
    return _quantised(stored, whole, scale)


def _quantised(stored: dict[str, Tensor], whole: Tensor, scale: Tensor) -> Quantised:
    scales = scale.float()
    return Quantised(stored, (whole * scales).flatten(1), (whole * scales.mean()).flatten(1))


W8A8 = Form(
    "INT8 W8A8",
    "int-quantized",
    _numbers(8, "int", "channel", None),
    _by_token(8, "int"),
    _int8,
)
FP8_DYNAMIC = Form(
    "FP8 dynamic",
    "float-quantized",
    _numbers(8, "float", "channel", None),
    _by_token(8, "float"),
    _fp8,
)
W4A16 = Form("INT4 W4A16", "pack-quantized", _numbers(4, "int", "group", GROUP), None, _int4)
FORMS = (FP8_DYNAMIC, W4A16, W8A8)


def plain(original: Path, weights: Mapping[str, Tensor]) -> Reference:
    """The plain model of `original` with these weights, and activations that are not quantised."""
    reference = Reference(original)
    reference.weights |= weights
    return reference


def write_quantised(form: Form, original: Path, to: Path) -> dict[str, Quantised]:
    """Writes the Mistral-format checkpoint `original` in a published form into `to`.

    The quantised weights are of uneven sizes, because a random layer's scales are nearly equal.
    Returns them by their names in `original`.
    """
    params = json.loads((original / "params.json").read_text("utf-8"))
    sizes = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    found: dict[str, Quantised] = {}
    for name, tensor in load_file(original / "consolidated.safetensors").items():
        stored = {"": tensor.bfloat16()}
        if _QUANTISED.fullmatch(name):
            found[name] = form.quantise(_uneven(tensor.float(), sizes))
            stored = found[name].stored
        for end, part in stored.items():
            is_of_rows = end != "weight_shape"
            values = hf_rows(name, part, params) if is_of_rows else part
            tensors[_published(name, end)] = values.contiguous()
    to.mkdir(parents=True)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    config = hf_config(original).to_dict()
    config |= {
        "architectures": ["LlavaForConditionalGeneration"],
        "dtype": "bfloat16",
        "quantization_config": form.config(_left_out(tensors)),
    }
    (to / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copy(original / "tekken.json", to)
    return found


def _uneven(weight: Tensor, sizes: torch.Generator) -> Tensor:
    """Each row, and each group of a row, a half to one and a half times as large."""
    rows, columns = weight.shape
    groups = max(1, columns // GROUP)
    factors = 0.5 + torch.rand(rows, 1, generator=sizes)
    of_groups = 0.5 + torch.rand(rows, groups, generator=sizes)
    return weight * factors * of_groups.repeat_interleave(columns // groups, 1)


def _published(name: str, end: str) -> str:
    """As the quantised Pixtrals have the names: with the language model's outermost."""
    name = hf_name(name).removeprefix("model.")
    if name.startswith("language_model."):
        name = name.replace("language_model.", "language_model.model.", 1)
    name = name.replace("lm_head.", "language_model.lm_head.", 1)
    return name.removesuffix("weight") + end if end else name


def _left_out(tensors: dict[str, Tensor]) -> list[str]:
    """The linear layers that are not quantised, each by its name."""
    return sorted(
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.endswith(".weight")
        and tensor.dim() == 2
        and name.startswith((_TOWER, _PROJECTOR, "language_model.lm_head."))
    )
