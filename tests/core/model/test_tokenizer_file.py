"""The tokenizer of a checkpoint: its own, or one that mistral_common ships."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from pixtral_core.model import tokenizer_file
from pixtral_core.model.checkpoint import read_spec
from pixtral_core.model.tokenizer_file import SHIPPED, Shipped, find_tokenizer
from pixtral_core.model.vision_spec import BadCheckpoint, VisionSpec

TEKKEN, SENTENCEPIECE = SHIPPED


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> VisionSpec:
    return read_spec(write_random_checkpoint(tmp_path_factory.mktemp("m"), RandomSpec(dim=32)))


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """As transformers writes the tokenizer of Pixtral-12B."""
    letters = tokenizer_file._letters()
    tekken = Tekkenizer.from_file(TEKKEN.path)
    first = tekken.num_special_tokens
    vocab = {
        "".join(letters[byte] for byte in tekken.id_to_byte_piece(at)): at
        for at in range(first, tekken.n_words)
    }
    added = [{"id": at, "content": tekken.id_to_piece(at)} for at in range(first)]
    return {"model": {"vocab": vocab}, "added_tokens": added}


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda each: each.of)
def test_what_is_known_of_a_shipped_one_is_what_mistral_common_reads(shipped: Shipped) -> None:
    tokenizer = MistralTokenizer.from_file(str(shipped.path)).instruct_tokenizer
    assert tokenizer.image_encoder is not None
    ids, config = tokenizer.image_encoder.special_ids, tokenizer.image_encoder.image_config
    assert tokenizer.tokenizer.n_words == shipped.vocab_size
    assert (ids.img, ids.img_break, ids.img_end) == shipped.image_ids
    assert (config.image_patch_size, config.max_image_size, config.spatial_merge_size) == (
        shipped.patch_size,
        shipped.max_image_size,
        1,
    )


def test_a_byte_has_the_letter_that_transformers_gives_it() -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    assert tokenizer_file._letters() == [letters[byte] for byte in range(256)]


def test_the_directorys_own_comes_first(tmp_path: Path, spec: VisionSpec) -> None:
    own = tmp_path / "tokenizer.model.v7m1"
    shutil.copyfile(SENTENCEPIECE.path, own)
    assert find_tokenizer(tmp_path, spec, TEKKEN.vocab_size) == own
    (tmp_path / "tekken.json").write_text("{}")
    assert find_tokenizer(tmp_path, spec, TEKKEN.vocab_size) == tmp_path / "tekken.json"


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda each: each.of)
def test_else_the_shipped_one_of_its_vocabulary_and_images(
    tmp_path: Path, spec: VisionSpec, shipped: Shipped
) -> None:
    assert find_tokenizer(tmp_path, spec, shipped.vocab_size) == shipped.path


@pytest.mark.parametrize(
    ("vocab_size", "changes"),
    [(131_072, {"patch_size": 14}), (131_072, {"merge_size": 2}), (204_800, {})],
)
def test_none_for_another_model_is_taken(
    tmp_path: Path, spec: VisionSpec, vocab_size: int, changes: dict[str, int]
) -> None:
    others: dict[str, Any] = {**changes}
    with pytest.raises(BadCheckpoint, match=r"has no tekken\.json.* put the tekken\.json there"):
        find_tokenizer(tmp_path, replace(spec, **others), vocab_size)


def test_transformers_vocabulary_beside_it_must_be_the_same(
    tmp_path: Path, spec: VisionSpec, theirs: dict[str, Any]
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(theirs))
    assert find_tokenizer(tmp_path, spec, TEKKEN.vocab_size) == TEKKEN.path
    vocab = theirs["model"]["vocab"]
    turned = dict(zip(vocab, reversed(vocab.values()), strict=True))
    added = theirs["added_tokens"]
    for changed in (
        theirs | {"model": {"vocab": turned}},
        theirs | {"added_tokens": [each for each in added if each["content"] != "[IMG_END]"]},
        theirs | {"added_tokens": [*added, {"id": TEKKEN.vocab_size, "content": "more"}]},
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(BadCheckpoint, match=r"tokenizer\.json is not the tokenizer of Pixtral"):
            find_tokenizer(tmp_path, spec, TEKKEN.vocab_size)
    path.write_text("{}")
    with pytest.raises(BadCheckpoint, match="not a tokenizer that transformers has written"):
        find_tokenizer(tmp_path, spec, TEKKEN.vocab_size)


def test_the_ends_of_rows_follow_from_the_tokenizer_where_nothing_names_them(
    tmp_path: Path,
) -> None:
    write_random_checkpoint(tmp_path, RandomSpec(dim=32, tokenizer="sentencepiece"))
    params = json.loads((tmp_path / "params.json").read_text())
    for name in ("image_break_token_id", "image_end_token_id"):
        del params["vision_encoder"][name]
    (tmp_path / "params.json").write_text(json.dumps(params))
    spec = read_spec(tmp_path)
    assert (spec.image_break_token_id, spec.image_end_token_id) == (14, 15)
