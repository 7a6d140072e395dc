"""Reads the vision tower's weights from a checkpoint, in Mistral's format or Hugging Face's."""

from itertools import groupby
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pixtral_core.model.checkpoint import STORED_DTYPES, StoredTensor, vision_tensors
from pixtral_core.model.load_progress import LoadProgress
from pixtral_core.model.vision_spec import BadCheckpoint, VisionSpec
from pixtral_encoder.tower.tower import VisionTower, tensor_shapes


def load_tower(
    model_dir: Path,
    spec: VisionSpec,
    *,
    dtype: torch.dtype,
    device: torch.device,
    computes_in: torch.dtype | None = None,
    is_compiled: bool = False,
    is_fp8: bool = False,
) -> VisionTower:
    """The tower of a model directory. Its embeddings have the dtype `dtype`."""
    weights = load_weights(model_dir, spec, dtype=dtype, device=device, computes_in=computes_in)
    return VisionTower(spec, weights, embedding_dtype=dtype, is_compiled=is_compiled, is_fp8=is_fp8)


def load_weights(
    model_dir: Path,
    spec: VisionSpec,
    *,
    dtype: torch.dtype,
    device: torch.device,
    computes_in: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The tensors of `tensor_shapes`, rounded to `dtype`, on `device`.

    The tensors returned have the dtype `computes_in`, which is wider than `dtype` if the device
    multiplies the wider one faster. Their values are still rounded to `dtype`, so that every device
    serves the same weights.

    The function reads only the vision tensors. It blocks.

    Raises:
        BadCheckpoint: if a tensor is missing, has another shape or is quantised. The error names
            the first such tensor.
    """
    shapes = tensor_shapes(spec)
    stored = [tensor for tensor in vision_tensors(model_dir) if tensor.name in shapes]
    names = {tensor.name for tensor in stored}
    for name in shapes:
        if name not in names:
            raise BadCheckpoint(f"{model_dir}: its safetensors have no {name}")
    for tensor in stored:
        if tensor.shape != shapes[tensor.name]:
            raise BadCheckpoint(
                f"{tensor.path}: {tensor.stored_name} is {list(tensor.shape)} and should be "
                f"{list(shapes[tensor.name])} by the model's own numbers"
            )
        if tensor.dtype not in STORED_DTYPES:
            raise BadCheckpoint(
                f"{tensor.path}: {tensor.stored_name} is {tensor.dtype}, and a vision tower must "
                f"be one of {', '.join(STORED_DTYPES)}: use a checkpoint whose vision tower is "
                "not quantised, as nearly all published ones are"
            )
    progress = LoadProgress(sum(tensor.end - tensor.begin for tensor in stored))
    weights: dict[str, Tensor] = {}
    for path, tensors in groupby(sorted(stored, key=_path), _path):
        try:
            with safe_open(path, framework="pt") as file:
                for tensor in tensors:
                    matrix = file.get_tensor(tensor.stored_name)
                    if tensor.has_halves:
                        matrix = _pairs(matrix, spec.heads)
                    weights[tensor.name] = matrix.to(dtype).to(device, computes_in or dtype)
                    progress.add(tensor.end - tensor.begin)
        except SafetensorError:
            raise BadCheckpoint(f"{path} is not a safetensors file, or is cut short") from None
    return weights


def _path(tensor: StoredTensor) -> Path:
    return tensor.path


def _pairs(matrix: Tensor, heads: int) -> Tensor:
    """Puts the two rows of each rotary pair of a head side by side. In `matrix`, all first rows
    of a head precede all second rows."""
    halves = matrix.view(heads, 2, -1, matrix.shape[1])
    return halves.transpose(1, 2).reshape(matrix.shape)
