"""The checks of `pixtral-serve doctor` on the directory of a model."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

GIB = 2**30
SENTENCEPIECE = "*.model.v*m*"
# The vocabulary sizes of the two tokenizers with images that mistral_common ships: those of
# Pixtral-12B and Pixtral-Large.
SHIPPED_VOCABULARIES = (131_072, 32_768)
SHIPPED_PATCH_SIZE = 16
# The share of a card's memory that a decoder takes by default (its gpu_memory_fraction). The rest
# is for the encoder. On a small card, the rest would be too little (docs/how-to/co-locate.md).
ENGINE_SHARE = 0.9
SMALL_CARD_SHARE = 0.8
# A card of 48 GB has a little more memory than this, so it is not small.
SMALL_CARD_BYTES = 44 * GIB
# The dtypes that vLLM quantises at load. It quantises only the matrices of the layers, not the
# embeddings and the output.
QUANTISED_AT_LOAD = ("BF16", "F16")
GET_ONE = (
    "download params.json, tekken.json and consolidated*.safetensors of, say, "
    "mistralai/Pixtral-12B-2409"
)
# The dtypes of a vision tower that the encoder can read. With fewer bits, a checkpoint has scales
# as separate tensors, which the encoder does not read.
STORED = ("BF16", "F16", "F32")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact of a checkpoint. `advice` says what to do, unless the level is ok."""

    level: Literal["ok", "warn", "fail"]
    what: str
    advice: str = ""


Findings = Iterator[Finding]


@dataclass(frozen=True, slots=True)
class Form:
    """One of the two forms of a checkpoint.

    Attributes:
        numbers: name of the file that describes the model.
        index: name of the file that lists the file of each tensor.
        weights: pattern of the names of the weight files.
        tower: possible beginnings of the names of the tower's tensors.
        output: possible beginnings of the name of the output matrix.
        is_pixtral: returns whether the description is that of a Pixtral.
        is_tied: returns whether the description says that the output matrix is the embeddings.
        tied: name of the field that says so, for messages.
    """

    numbers: str
    index: str
    weights: str
    tower: tuple[str, ...]
    output: tuple[str, ...]
    is_pixtral: Callable[[Mapping[str, Any]], bool]
    is_tied: Callable[[Mapping[str, Any]], bool]
    tied: str


MISTRALS = Form(
    numbers="params.json",
    index="consolidated.safetensors.index.json",
    weights="consolidated*.safetensors",
    tower=("vision_encoder.",),
    output=("output.",),
    is_pixtral=lambda params: isinstance(params.get("vision_encoder"), dict),
    is_tied=lambda params: bool(params.get("tied_embeddings")),
    tied="tied_embeddings",
)
HUGGING_FACES = Form(
    numbers="config.json",
    index="model.safetensors.index.json",
    weights="model*.safetensors",
    tower=("model.vision_tower.", "vision_tower."),
    output=("lm_head.", "language_model.lm_head."),
    is_pixtral=lambda config: (config.get("vision_config") or {}).get("model_type") == "pixtral",
    is_tied=lambda config: bool(
        config.get("tie_word_embeddings")
        or (config.get("text_config") or {}).get("tie_word_embeddings")
    ),
    tied="tie_word_embeddings",
)


def form_of(model_dir: Path) -> Form:
    """The form of a directory. If it has the descriptions of both forms, the weight files decide,
    as in the tiers."""
    has_theirs = (model_dir / HUGGING_FACES.numbers).is_file()
    if not has_theirs or any(model_dir.glob(MISTRALS.weights)):
        return MISTRALS
    has_weights = any(model_dir.glob(HUGGING_FACES.weights))
    has_weights |= (model_dir / HUGGING_FACES.index).is_file()
    has_numbers = (model_dir / MISTRALS.numbers).is_file()
    return HUGGING_FACES if has_weights or not has_numbers else MISTRALS


def check_model(model_dir: Path) -> Findings:
    """Checks that a directory has a complete checkpoint with a vision tower, in either form."""
    if not model_dir.is_dir():
        yield Finding("fail", f"{model_dir} is not a directory", GET_ONE)
        return
    form = form_of(model_dir)
    try:
        numbers = json.loads((model_dir / form.numbers).read_text())
        has_vision = form.is_pixtral(numbers)
    except (OSError, ValueError, AttributeError):
        numbers = dict[str, Any]()
        yield Finding("fail", f"{model_dir}/{form.numbers} is missing or not JSON", GET_ONE)
    else:
        if has_vision:
            yield Finding("ok", f"{form.numbers} describes a vision tower")
        else:
            what = "no vision_encoder" if form is MISTRALS else "no vision_config of a Pixtral"
            yield Finding("fail", f"{form.numbers} has {what}: another model", GET_ONE)
    text = numbers.get("text_config") if form is HUGGING_FACES else numbers
    vision = numbers.get("vision_config" if form is HUGGING_FACES else "vision_encoder")
    vocab_size = text.get("vocab_size") if isinstance(text, dict) else None
    yield _check_tokenizer(model_dir, vision, vocab_size)
    weights = sorted(model_dir.glob(form.weights))
    if not weights:
        yield Finding("fail", f"{model_dir} has no {form.weights}", GET_ONE)
        return
    yield from _check_weights(model_dir, form, weights, numbers)


def _check_tokenizer(model_dir: Path, vision: Any, vocab_size: Any) -> Finding:
    own = [path.name for path in model_dir.glob(SENTENCEPIECE)]
    if (model_dir / "tekken.json").is_file():
        own = ["tekken.json"]
    if own:
        return Finding("ok", f"{max(own)} is there")
    lacks = f"{model_dir}/tekken.json is missing"
    patch_size = vision.get("patch_size", 16) if isinstance(vision, dict) and vision else None
    if patch_size == SHIPPED_PATCH_SIZE and vocab_size in SHIPPED_VOCABULARIES:
        return Finding("ok", f"{lacks}: mistral_common ships a tokenizer of its size")
    return Finding(
        "fail",
        lacks,
        "copy the tokenizer of Mistral's published model of this shape into the directory",
    )


def _check_weights(
    model_dir: Path, form: Form, weights: list[Path], numbers: Mapping[str, Any]
) -> Findings:
    again = "download it again"
    tensors: dict[str, str] = {}
    for path in weights:
        try:
            tensors |= tensor_dtypes(path)
        except (OSError, ValueError, struct.error) as error:
            yield Finding("fail", f"{path.name}: {error}", again)
            return
    try:
        named = _indexed(model_dir / form.index)
        missing = [name for name in named if not (model_dir / name).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError):
        yield Finding("fail", f"{form.index} has no weight_map", again)
        return
    if missing:
        yield Finding("fail", f"{missing[0]} is missing, which {form.index} names", again)
        return
    vision = {name: tensors[name] for name in tensors if name.startswith(form.tower)}
    if not vision:
        yield Finding(
            "fail", f"the weights have no {form.tower[-1][:-1]}", "take a checkpoint of a Pixtral"
        )
    elif quantised := sorted(name for name in vision if vision[name] not in STORED):
        yield Finding(
            "fail",
            f"{quantised[0]} is {vision[quantised[0]]}: the vision tower is quantised",
            f"take a checkpoint whose vision tower is one of {', '.join(STORED)}",
        )
    elif not form.is_tied(numbers) and not any(name.startswith(form.output) for name in tensors):
        yield Finding(
            "fail",
            f"the weights have no {form.output[0]}weight, and {form.numbers} does not set "
            f"{form.tied}",
            "download its files again",
        )
    else:
        yield Finding("ok", f"{len(tensors)} tensors in {len(weights)} files, all there")


def _indexed(index: Path) -> list[str]:
    """The files that an index lists, or none if there is no index."""
    if not index.is_file():
        return []
    return sorted(set(json.loads(index.read_text())["weight_map"].values()))


def tensor_dtypes(path: Path) -> dict[str, str]:
    """The names of the tensors of a safetensors file, with their dtypes in the format's own names.

    Raises:
        ValueError: the file is not a safetensors file, or is shorter than its header says.
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
    files = model_dir.glob(form_of(model_dir).weights)
    weights = sum(path.stat().st_size for path in files)
    available = available_memory()
    what = f"{available / GIB:.1f} GiB of memory available, {weights / GIB:.1f} GiB of weights"
    # Encoder and decoder map the weights while they load them. The processes need 2 GiB more.
    if available < weights + 2 * GIB:
        yield Finding("warn", what, "on a CPU this is too little; on a GPU loading will be slow")
    else:
        yield Finding("ok", what)


@dataclass(frozen=True, slots=True)
class CardFit:
    """A checkpoint on one card.

    Attributes:
        tower: bytes of the vision tower.
        language: bytes of the language model.
        tokens: the most tokens whose keys and values fit beside the weights. If it is below 1,
            the checkpoint does not fit on the card.
    """

    tower: int
    language: int
    tokens: int


def engine_share(card_bytes: int) -> float:
    """The share of a card's memory that the decoder may use if an encoder is on the same card."""
    return SMALL_CARD_SHARE if card_bytes < SMALL_CARD_BYTES else ENGINE_SHARE


def fit_on_card(model_dir: Path, card_bytes: int, *, in_8_bits: bool = False) -> CardFit | None:
    """Computes how tower, language model, and keys and values fit on one card together.

    The result does not include vLLM's working memory, because only the engine can measure it.

    Args:
        in_8_bits: whether the language model is quantised at load, as with --quantization fp8.

    Returns None if the checkpoint cannot be read, or if its keys and values are compressed.
    """
    form = form_of(model_dir)
    try:
        tensors = [each for path in model_dir.glob(form.weights) for each in _tensors(path)]
        numbers = json.loads((model_dir / form.numbers).read_text())
        token_bytes = _key_value_bytes(numbers if form is MISTRALS else numbers["text_config"])
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    tower = sum(each.size for each in tensors if each.name.startswith(form.tower))
    language = sum(
        each.size_in_8_bits if in_8_bits else each.size
        for each in tensors
        if not each.name.startswith(form.tower)
    )
    room = int(card_bytes * engine_share(card_bytes)) - language
    return CardFit(tower, language, room // token_bytes)


def check_card(model_dir: Path, name: str, card_bytes: int) -> Findings:
    """Checks that tower, language model, and keys and values fit on one card together."""
    fit = fit_on_card(model_dir, card_bytes)
    smaller = fit_on_card(model_dir, card_bytes, in_8_bits=True)
    if fit is None or smaller is None:
        # `check_model` reports the problem.
        return
    tower, language = (f"{size / GIB:.1f} GiB" for size in (fit.tower, fit.language))
    what = f"{name}: {tower} of tower, {language} of language model"
    share = engine_share(card_bytes)
    flag = "" if share == ENGINE_SHARE else f" with --gpu-memory-utilization {share}"
    quantised = (
        f"--quantization fp8 makes the language model {smaller.language / GIB:.1f} GiB"
        if smaller.language < fit.language
        else ""
    )
    if fit.tokens >= 1:
        advice = f"{quantised}, for at most {smaller.tokens} tokens" if quantised else ""
        yield Finding("ok", f"{what}, and at most {fit.tokens} tokens{flag}", advice)
        return
    cards = "several cards: --decoder-args '--tensor-parallel N'"
    if quantised and smaller.tokens >= 1:
        advice = f"{quantised}, for at most {smaller.tokens} tokens{flag}; or {cards}"
    elif quantised:
        advice = f"{cards}; {quantised}, which is too much, too"
    else:
        advice = cards
    yield Finding("warn", f"{what}: more than {card_bytes / GIB:.0f} GiB hold together", advice)


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def size_in_8_bits(self) -> int:
        """The bytes of this tensor after vLLM has quantised it at load."""
        is_matrix = len(self.shape) == 2 and ".layers." in f".{self.name}"
        return self.size // 2 if is_matrix and self.dtype in QUANTISED_AT_LOAD else self.size


def _tensors(path: Path) -> list[_Tensor]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return [
        _Tensor(
            name,
            tensor["dtype"],
            tuple(tensor["shape"]),
            tensor["data_offsets"][1] - tensor["data_offsets"][0],
        )
        for name, tensor in header.items()
    ]


def _key_value_bytes(numbers: Mapping[str, Any]) -> int:
    """Bytes of a token's keys and values in all layers. Raises KeyError if they are unknown."""
    if "qk_nope_head_dim" in numbers:
        raise KeyError("keys and values are compressed")
    mistrals = ("n_layers", "n_kv_heads", "n_heads", "dim")
    theirs = ("num_hidden_layers", "num_key_value_heads", "num_attention_heads", "hidden_size")
    names = mistrals if "n_layers" in numbers else theirs
    layers, kv_heads, heads, width = (int(numbers[name]) for name in names)
    head_size = int(numbers.get("head_dim") or width // heads)
    # Keys and values are two tensors, with 2 bytes for each number.
    return 2 * 2 * layers * kv_heads * head_size


def available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return 0
