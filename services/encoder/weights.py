"""The vision tower's weights out of a Mistral-format checkpoint."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from embeddings.fingerprint import weight_files
from embeddings.vision import BadCheckpoint, VisionSpec
from services.encoder.tower import Shape, VisionTower, tensor_shapes


def load_tower(
    model_dir: Path,
    spec: VisionSpec,
    *,
    dtype: torch.dtype,
    device: torch.device,
    is_compiled: bool = False,
) -> VisionTower:
    """The tower of `consolidated*.safetensors`, in `dtype` on `device`.

    Reads the vision tensors and no others (0.8 GB of Pixtral-12B's 25). Blocking.

    Raises:
        BadCheckpoint: names the first tensor that is missing or of another shape.
    """
    shapes = tensor_shapes(spec)
    weights: dict[str, Tensor] = {}
    for path in weight_files(model_dir):
        weights |= _read(path, shapes, dtype, device)
    for name in shapes:
        if name not in weights:
            raise BadCheckpoint(f"{model_dir}: consolidated*.safetensors holds no {name}")
    return VisionTower(spec, weights, is_compiled=is_compiled)


def _read(
    path: Path, shapes: Mapping[str, Shape], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    weights = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in shapes.keys() & set(file.keys()):
                tensor = file.get_tensor(name)
                if tensor.shape != shapes[name]:
                    raise BadCheckpoint(
                        f"{path}: {name} is {list(tensor.shape)} and should be "
                        f"{list(shapes[name])} by params.json"
                    )
                weights[name] = tensor.to(device, dtype)
    except SafetensorError:
        raise BadCheckpoint(f"{path} is not a safetensors file, or is cut short") from None
    return weights
