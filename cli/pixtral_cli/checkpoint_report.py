"""The part of `pixtral-serve doctor` that looks at a model's directory."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

GIB = 2**30


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
    names: set[str] = set()
    for path in weights:
        try:
            names |= tensor_names(path)
        except (OSError, ValueError, struct.error) as error:
            yield Finding("fail", f"{path.name}: {error}", "download it again")
            return
    if any(name.startswith("vision_encoder.") for name in names):
        yield Finding("ok", f"{len(names)} tensors in {len(weights)} files, all there")
    else:
        yield Finding("fail", "the weights hold no vision_encoder", advice)


def tensor_names(path: Path) -> set[str]:
    """The names in a safetensors file's header.

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
    return set(header)


def check_memory(model_dir: Path) -> Findings:
    weights = sum(path.stat().st_size for path in model_dir.glob("consolidated*.safetensors"))
    available = _available_memory()
    what = f"{available / GIB:.1f} GiB of memory available, {weights / GIB:.1f} GiB of weights"
    # They are mapped while they are loaded, by encoder and decoder alike; 2 GiB is what the
    # processes take beside them.
    if available < weights + 2 * GIB:
        yield Finding("warn", what, "on a CPU this is too little; on a GPU loading will be slow")
    else:
        yield Finding("ok", what)


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return 0
