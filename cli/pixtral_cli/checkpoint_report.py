"""The part of `pixtral-serve doctor` that looks at a model's directory."""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

GIB = 2**30
INDEX = "consolidated.safetensors.index.json"
# A vision tower in fewer bits has scales beside it, which the encoder does not read.
STORED = ("BF16", "F16", "F32")


@dataclass(frozen=True, slots=True)
class Finding:
    """`advice` says what to do, unless the level is ok."""

    level: Literal["ok", "warn", "fail"]
    what: str
    advice: str = ""


Findings = Iterator[Finding]


def check_model(model_dir: Path) -> Findings:
    """Whether a directory holds a Mistral-format checkpoint with a vision tower, whole."""
    advice = (
        "download params.json, tekken.json and consolidated*.safetensors of, say, "
        "mistralai/Pixtral-12B-2409"
    )
    if not model_dir.is_dir():
        yield Finding("fail", f"{model_dir} is not a directory", advice)
        return
    try:
        params = json.loads((model_dir / "params.json").read_text())
        has_vision = isinstance(params.get("vision_encoder"), dict)
    except (OSError, ValueError, AttributeError):
        params = {}
        yield Finding("fail", f"{model_dir}/params.json is missing or not JSON", advice)
    else:
        if has_vision:
            yield Finding("ok", "params.json describes a vision tower")
        else:
            yield Finding("fail", "params.json has no vision_encoder: a text model", advice)
    if (model_dir / "tekken.json").is_file():
        yield Finding("ok", "tekken.json is there")
    else:
        yield Finding("fail", f"{model_dir}/tekken.json is missing", advice)
    weights = sorted(model_dir.glob("consolidated*.safetensors"))
    if not weights:
        yield Finding("fail", f"{model_dir} holds no consolidated*.safetensors", advice)
        return
    yield from _check_weights(model_dir, weights, params)


def _check_weights(model_dir: Path, weights: list[Path], params: Mapping[str, Any]) -> Findings:
    again = "download it again"
    tensors: dict[str, str] = {}
    for path in weights:
        try:
            tensors |= tensor_dtypes(path)
        except (OSError, ValueError, struct.error) as error:
            yield Finding("fail", f"{path.name}: {error}", again)
            return
    try:
        missing = [name for name in _indexed(model_dir / INDEX) if not (model_dir / name).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError):
        yield Finding("fail", f"{INDEX} has no weight_map", again)
        return
    if missing:
        yield Finding("fail", f"{missing[0]} is missing, which {INDEX} names", again)
        return
    vision = {name: tensors[name] for name in tensors if name.startswith("vision_encoder.")}
    if not vision:
        yield Finding(
            "fail", "the weights hold no vision_encoder", "take a checkpoint of a Pixtral"
        )
    elif quantised := sorted(name for name in vision if vision[name] not in STORED):
        yield Finding(
            "fail",
            f"{quantised[0]} is {vision[quantised[0]]}: the vision tower is quantised",
            f"take a checkpoint whose vision tower is one of {', '.join(STORED)}",
        )
    elif not params.get("tied_embeddings") and not any(n.startswith("output.") for n in tensors):
        yield Finding(
            "fail",
            "the weights hold no output.weight, and params.json does not set tied_embeddings",
            "download its files again",
        )
    else:
        yield Finding("ok", f"{len(tensors)} tensors in {len(weights)} files, all there")


def _indexed(index: Path) -> list[str]:
    """Names of the files that an index says the checkpoint has; none where there is no index."""
    if not index.is_file():
        return []
    return sorted(set(json.loads(index.read_text())["weight_map"].values()))


def tensor_dtypes(path: Path) -> dict[str, str]:
    """The tensors of a safetensors file's header, with the format's names for their dtypes.

    Raises:
        ValueError: the file is not one, or is shorter than its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size - 8:
            raise ValueError("not a safetensors file, or cut short")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    if any(8 + length + tensor["data_offsets"][1] > size for tensor in header.values()):
        raise ValueError("shorter than its header says: a download cut short")
    return {name: tensor["dtype"] for name, tensor in header.items()}


def check_memory(model_dir: Path) -> Findings:
    weights = sum(path.stat().st_size for path in model_dir.glob("consolidated*.safetensors"))
    available = available_memory()
    what = f"{available / GIB:.1f} GiB of memory available, {weights / GIB:.1f} GiB of weights"
    # They are mapped while they are loaded, by encoder and decoder alike; 2 GiB is what the
    # processes take beside them.
    if available < weights + 2 * GIB:
        yield Finding("warn", what, "on a CPU this is too little; on a GPU loading will be slow")
    else:
        yield Finding("ok", what)


def available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return 0
