"""Reads the type and the tensors of a checkpoint, in Mistral's format or Hugging Face's."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixtral_core.model import hugging_face
from pixtral_core.model.language_spec import LanguageSpec
from pixtral_core.model.safetensors_header import read_header
from pixtral_core.model.tokenizer_file import row_end_ids
from pixtral_core.model.vision_spec import BadCheckpoint, VisionSpec, read_params

INDEX = "consolidated.safetensors.index.json"
VISION_PREFIXES = ("vision_encoder.", "patch_merger.", "pre_mm_projector_norm.")
ADAPTER_PARTS = ("vision_language_adapter.w_in.", "vision_language_adapter.w_out.")
# Tower and adapter compute in these dtypes. A tensor with fewer bits has scales beside it, without
# which its values mean nothing.
STORED_DTYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A vision tensor in a safetensors file.

    Attributes:
        name: its name in Mistral's format.
        stored_name: its name in the file.
        dtype: the file's name of its dtype.
        begin: offset of its first byte in the file.
        end: offset after its last byte in the file.
        has_halves: whether all first rows of a head's rotary pairs precede all second rows; if
            not, the two rows of each pair are adjacent.
    """

    name: str
    path: Path
    stored_name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    has_halves: bool


def read_spec(model_dir: Path) -> VisionSpec:
    """Raises BadCheckpoint if the directory has no Pixtral in either format."""
    if hugging_face.is_hugging_face(model_dir):
        return hugging_face.read_spec(model_dir)
    params = read_params(model_dir)
    row_ends = row_end_ids(model_dir, params.get("vocab_size"))
    return VisionSpec.from_params(params, row_ends=row_ends)


def vision_tensors(model_dir: Path) -> list[StoredTensor]:
    """All tensors of the vision tower, sorted by name. Reads only the headers of the files.

    Raises:
        BadCheckpoint: if files are missing or malformed, or have no vision tensor.
    """
    is_theirs = hugging_face.is_hugging_face(model_dir)
    files = hugging_face.weight_files(model_dir) if is_theirs else _weight_files(model_dir)
    found = [tensor for path in files for tensor in _tensors(path, is_theirs)]
    if not found:
        raise BadCheckpoint(f"{model_dir}: its safetensors have no vision weights")
    return sorted(found, key=lambda tensor: tensor.name)


def read_language(model_dir: Path) -> LanguageSpec:
    """Raises BadCheckpoint if the numbers of the language model are wrong."""
    if hugging_face.is_hugging_face(model_dir):
        return hugging_face.read_language(model_dir)
    return LanguageSpec.from_params(read_params(model_dir))


def check_language_model(model_dir: Path, language: LanguageSpec) -> None:
    """Checks that the files have every part of the language model, and the adapter unquantised.

    An engine may leave the memory of a missing part as it was allocated, and answer requests all
    the same. This check reads only the headers, and looks for one tensor of each part.

    Raises:
        BadCheckpoint: names the part, or the file of the index that is missing.
    """
    is_theirs = hugging_face.is_hugging_face(model_dir)
    if is_theirs:
        files = hugging_face.weight_files(model_dir, is_all=True)
        parts = hugging_face.parts(language)
        mend = "tie_word_embeddings in config.json"
    else:
        files = _weight_files(model_dir)
        parts = _parts(language)
        mend = "tied_embeddings in params.json"
    dtypes = {
        hugging_face.unwrapped(name) if is_theirs else name: entry["dtype"]
        for path in files
        for name, entry in read_header(path)[1].items()
    }
    for part in parts:
        found = [dtype for name, dtype in dtypes.items() if name.startswith(part)]
        if not found:
            advice = "download its files again"
            if part in ("output.", "lm_head."):
                advice += f", or set {mend} if the model has its embeddings tied"
            raise BadCheckpoint(f"{model_dir}: no file has {part}weight or the like; {advice}")
        if part in parts[-len(ADAPTER_PARTS) :] and not set(found) <= {*STORED_DTYPES}:
            raise BadCheckpoint(
                f"{model_dir}: {part}weight is quantised, and the adapter must be one of "
                f"{', '.join(STORED_DTYPES)}: use a checkpoint whose adapter is not quantised, as "
                "nearly all published ones are"
            )


def weight_bytes(model_dir: Path) -> int:
    """The bytes of all tensors. Reads only the headers of the files. Raises BadCheckpoint."""
    is_theirs = hugging_face.is_hugging_face(model_dir)
    files = (
        hugging_face.weight_files(model_dir, is_all=True) if is_theirs else _weight_files(model_dir)
    )
    return sum(path.stat().st_size - read_header(path)[0] for path in files)


def _parts(language: LanguageSpec) -> list[str]:
    layers = [f"layers.{number}." for number in range(language.layers)]
    output = [] if language.is_tied else ["output."]
    return ["tok_embeddings.", "norm.", *layers, *output, *ADAPTER_PARTS]


def _weight_files(model_dir: Path) -> list[Path]:
    files = sorted(model_dir.glob("consolidated*.safetensors"))
    if not files:
        raise BadCheckpoint(f"{model_dir} has no consolidated*.safetensors")
    for name in _indexed(model_dir / INDEX):
        if model_dir / name not in files:
            raise BadCheckpoint(f"{model_dir / name} is missing, which {INDEX} names")
    return files


def _indexed(index: Path) -> list[str]:
    """The names of the files that an index lists; empty if there is no index."""
    if not index.is_file():
        return []
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted({str(file) for file in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadCheckpoint(f"{index} has no weight_map") from None


def _tensors(path: Path, is_theirs: bool) -> Iterator[StoredTensor]:
    offset, header = read_header(path)
    for stored_name, entry in header.items():
        name = hugging_face.mistral_name(stored_name) if is_theirs else stored_name
        if name is None or not name.startswith(VISION_PREFIXES):
            continue
        begin, end = entry["data_offsets"]
        yield StoredTensor(
            name=name,
            path=path,
            stored_name=stored_name,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            begin=offset + begin,
            end=offset + end,
            has_halves=is_theirs and hugging_face.has_halves(name),
        )
