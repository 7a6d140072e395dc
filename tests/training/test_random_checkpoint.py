import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk
from mistral_common.protocol.instruct.messages import UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from tests.support.hf_reference import hf_embed, hf_generate, load_hf, load_hf_vision
from tests.support.reference import Reference

NARROW = RandomSpec(dim=32, n_layers=1, hidden_dim=64, n_heads=1, n_kv_heads=1, vision_layers=1)
MERGED = RandomSpec(patch_size=14, max_image_size=1540, spatial_merge_size=2)

Tokenizer = MistralTokenizer[Any, Any, Any, Any, Any]
Encoded = tuple[list[int], list[NDArray[np.float32]]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("merged"), MERGED)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (1 + height // 40, 1 + width // 40, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@cache
def tokenizer_of(directory: Path) -> Tokenizer:
    return MistralTokenizer.from_file(str(directory / "tekken.json"))


def encode(directory: Path, *parts: str | Image.Image) -> Encoded:
    content = [
        TextChunk(text=part) if isinstance(part, str) else ImageChunk(image=part) for part in parts
    ]
    tokenizer = tokenizer_of(directory)
    request: ChatCompletionRequest[Any] = ChatCompletionRequest(
        messages=[UserMessage(content=content)]
    )
    encoded = tokenizer.encode_chat_completion(request)
    return encoded.tokens, [np.asarray(image, dtype=np.float32) for image in encoded.images]


def digests(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


def test_same_seed_gives_the_same_bytes_and_another_seed_other_weights(tmp_path: Path) -> None:
    first = digests(write_random_checkpoint(tmp_path / "first", NARROW, seed=1))
    again = digests(write_random_checkpoint(tmp_path / "again", NARROW, seed=1))
    other = digests(write_random_checkpoint(tmp_path / "other", NARROW, seed=2))

    assert set(first) == {"params.json", "consolidated.safetensors", "tekken.json"}
    assert again == first
    assert {name for name in first if other[name] != first[name]} == {"consolidated.safetensors"}


def test_bfloat16_weights_are_the_float32_ones_rounded(tmp_path: Path) -> None:
    weights = {}
    for dtype in ("float32", "bfloat16"):
        spec = RandomSpec(dim=32, n_layers=1, n_heads=1, n_kv_heads=1, dtype=dtype)
        directory = write_random_checkpoint(tmp_path / dtype, spec)
        with safe_open(directory / "consolidated.safetensors", framework="pt") as shard:
            weights[dtype] = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118

    assert weights["bfloat16"].keys() == weights["float32"].keys()
    for name, rounded in weights["bfloat16"].items():
        assert torch.equal(rounded, weights["float32"][name].to(torch.bfloat16))


def test_params_and_tensors_of_a_plain_pixtral(plain: Path) -> None:
    vision = json.loads((plain / "params.json").read_text())["vision_encoder"]
    with safe_open(plain / "consolidated.safetensors", framework="pt") as shard:
        names = set(shard.keys())
        shape = shard.get_slice("vision_encoder.patch_conv.weight").get_shape()

    assert vision["adapter_bias"] is True
    assert not {"mm_projector_id", "spatial_merge_size"} & vision.keys()
    assert shape == [vision["hidden_size"], 3, vision["patch_size"], vision["patch_size"]]
    assert {"vision_language_adapter.w_in.bias", "vision_language_adapter.w_out.bias"} <= names
    assert not any(name.startswith(("patch_merger.", "pre_mm_projector_norm.")) for name in names)


@pytest.mark.parametrize("checkpoint", ["plain", "merged"])
def test_tokenizer_and_params_agree(checkpoint: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(checkpoint)
    params = json.loads((directory / "params.json").read_text())
    vision = params["vision_encoder"]
    tokenizer = tokenizer_of(directory).instruct_tokenizer
    encoder = tokenizer.image_encoder
    assert encoder is not None

    assert tokenizer.tokenizer.n_words == params["vocab_size"]
    assert encoder.special_ids.img == vision["image_token_id"]
    assert encoder.special_ids.img_break == vision["image_break_token_id"]
    assert encoder.special_ids.img_end == vision["image_end_token_id"]
    assert encoder.image_config.image_patch_size == vision["patch_size"]
    assert encoder.image_config.max_image_size == vision["max_image_size"]
    assert encoder.image_config.spatial_merge_size == vision.get("spatial_merge_size", 1)


@pytest.mark.parametrize(
    "wrong", [{"n_heads": 3}, {"vision_hidden_size": 66}, {"patch_size": 15}, {"dtype": "int8"}]
)
def test_a_spec_that_is_no_model_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        RandomSpec(**wrong)  # type: ignore[arg-type]


def test_reference_tower_equals_transformers(plain: Path) -> None:
    sizes = [(1, 1), (16, 1024), (1024, 16), (333, 777), (1024, 1024)]
    _, images = encode(plain, *(picture(*size) for size in sizes), "?")
    reference = Reference(plain)

    for image, theirs in zip(images, hf_embed(load_hf_vision(plain), images), strict=True):
        ours = reference.embed_image(image)
        assert ours.shape == (image.shape[1] // 16 * (image.shape[2] // 16), 64)
        assert (ours - theirs).norm() / theirs.norm() < 1e-5


@pytest.mark.parametrize("checkpoint", ["plain", "merged"])
def test_reference_generates_what_transformers_does(
    checkpoint: str, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(checkpoint)
    reference, theirs = Reference(directory), load_hf(directory)
    prompts: list[tuple[str | Image.Image, ...]] = [
        ("Who are you?",),
        (picture(333, 777, seed=1), "and", picture(500, 100, seed=2), "compare them"),
    ]

    for parts in prompts:
        tokens, images = encode(directory, *parts)
        ours = reference.generate(tokens, images, 16)
        assert ours == hf_generate(theirs, tokens, images, 16)


def test_answers_depend_on_the_picture(plain: Path) -> None:
    reference = Reference(plain)
    whole = picture(512, 512, seed=3)
    patched = whole.copy()
    patched.paste((255, 255, 255), (100, 100, 150, 150))
    pictures = [
        Image.new("RGB", (64, 64), (255, 0, 0)),
        Image.new("RGB", (64, 64), (0, 0, 255)),
        picture(640, 480, seed=1),
        picture(640, 480, seed=2),
        whole,
        patched,
    ]

    answers = [
        tuple(reference.generate(*encode(plain, shown, "Describe."), 16)) for shown in pictures
    ]

    assert len(set(answers)) == len(pictures)


def test_an_answer_runs_to_its_length_in_many_words(plain: Path) -> None:
    answer = Reference(plain).generate(*encode(plain, picture(640, 480), "Describe."), 64)

    assert len(answer) == 64
    assert len(set(answer)) > 32
    assert min(answer) >= 1000  # the control tokens, </s> and [IMG] among them, are below


def test_images_that_do_not_fit_the_tokens_are_refused(plain: Path) -> None:
    tokens, images = encode(plain, picture(64, 64), "?")
    with pytest.raises(ValueError, match=r"0 image embeddings"):
        Reference(plain).generate(tokens, [], 1)
    with pytest.raises(ValueError, match=r"32 image embeddings"):
        Reference(plain).generate(tokens, images * 2, 1)
