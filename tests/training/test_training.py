import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mistral_common.protocol.instruct.chunk import ContentChunk, ImageChunk, TextChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from PIL import Image

from tests.support.reference import Reference
from training import scenes
from training.answer import OfflineModel
from training.batches import (
    BatchPlan,
    conversation,
    draw_batch,
    normalise,
    patchify,
    sample_scenes,
)
from training.export import read_checkpoint, write_checkpoint
from training.held_out import held_out
from training.model import ModelSpec, Pixtral
from training.scenes import CATEGORIES, HELD_OUT, TRAINING, Question
from training.tokenizer import SPECIAL_TOKENS, WHOLE_WORDS, write_tokenizer
from training.train import Preset, train
from training.words import HELD_OUT_WORDS, TRAINING_WORDS

SMALL = ModelSpec(
    dim=64,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    hidden_dim=96,
    vision_dim=64,
    vision_layers=2,
    vision_heads=2,
    vision_hidden_dim=96,
    vocab_size=2048,
    max_image_size=256,
)
PLAN = BatchPlan(tokens=400, largest_grid=8, most_patches=40, turns=3, tower_steps=2)
QUICK = Preset(SMALL, PLAN, steps=6, learning_rate=3e-3, workers=0, save_every=3, questions=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("small")
    model = Pixtral(SMALL)
    with torch.no_grad():
        model.output.weight[:SPECIAL_TOKENS] = 0  # no [IMG] in an answer that means nothing
    write_checkpoint(directory, model)
    return directory


@pytest.fixture(scope="module")
def tekken(checkpoint: Path) -> Path:
    return checkpoint / "tekken.json"


def test_the_tokenizer_spells_printed_words_and_keeps_the_words_of_its_sentences(
    tmp_path: Path,
) -> None:
    write_tokenizer(tmp_path / "tekken.json", vocab_size=4096, max_image_size=256)
    tokenizer = Tekkenizer.from_file(tmp_path / "tekken.json")
    assert tokenizer.n_words == 4096
    assert tokenizer.get_special_token("[IMG]") == 10
    assert all(len(tokenizer.encode(word, bos=False, eos=False)) == 1 for word in WHOLE_WORDS)
    for text, spelled in (("It says STREET.", list("STREET")), ("It is 4071.", list("4071"))):
        ids = tokenizer.encode(text, bos=False, eos=False)
        assert [tokenizer.id_to_piece(token) for token in ids][3:-1] == spelled
        assert tokenizer.decode(ids) == text


def test_a_conversation_is_encoded_as_mistral_common_does(tekken: Path) -> None:
    turns = [Question("shape", "What shape is red?", "It is a ring."), Question("c", "Why?", "So.")]
    grids = [(2, 3), (4, 5)]
    chunks: list[ContentChunk] = [
        ImageChunk(image=Image.new("RGB", (columns * 16 - 3, rows * 16))) for rows, columns in grids
    ]
    request: ChatCompletionRequest[Any] = ChatCompletionRequest(
        messages=[
            UserMessage(content=[*chunks, TextChunk(text=turns[0].text)]),
            AssistantMessage(content=turns[0].answer),
            UserMessage(content=[TextChunk(text=turns[1].text)]),
        ]
    )
    expected = MistralTokenizer.from_file(tekken).encode_chat_completion(request).tokens
    tokenizer = Tekkenizer.from_file(tekken)
    ids, targets = conversation(tokenizer, grids, turns)
    assert ids[: len(expected)] == expected
    learnt = [target for target in targets if target >= 0]
    assert tokenizer.decode(learnt) == "It is a ring.So."
    assert all(ids[at + 1] == target for at, target in enumerate(targets) if target >= 0)


def test_pixels_reach_training_as_mistral_common_prepares_them(tekken: Path) -> None:
    rng = np.random.default_rng(0)
    (scene,) = sample_scenes(rng, [(6, 7)], 1, TRAINING)
    encoder = MistralTokenizer.from_file(tekken).instruct_tokenizer.image_encoder
    assert encoder is not None
    prepared = encoder(ImageChunk(image=scene.pictures[0].image)).image
    cut = prepared.reshape(3, 6, 16, 7, 16).transpose(1, 3, 0, 2, 4).reshape(42, -1)
    ours = normalise(torch.from_numpy(patchify(scene.pictures[0].resized)))
    # Rounded to whole values, and cut off where the resize overshoots.
    inside = (cut > -1.6) & (cut < 1.8)
    assert np.abs(ours.numpy() - cut)[inside].max() < 0.01


def test_the_trained_model_is_the_architecture_that_is_served(checkpoint: Path) -> None:
    offline, reference = OfflineModel.from_checkpoint(checkpoint), Reference(checkpoint)
    tokenizer = MistralTokenizer.from_file(checkpoint / "tekken.json")
    encoder = tokenizer.instruct_tokenizer.image_encoder
    assert encoder is not None
    for item in held_out(8)[:4]:
        images = [
            encoder(ImageChunk(image=Image.open(io.BytesIO(picture)))).image
            for picture in item.pictures
        ]
        ids, embeddings = offline.prompt(item.pictures, item.question.text)
        for image, embedding in zip(images, embeddings, strict=True):
            expected = reference.embed_image(image)
            torch.testing.assert_close(embedding[0], expected, rtol=1e-4, atol=1e-4)
        generated = [
            token for token in reference.generate(ids[0].tolist(), images, 24) if token > 2
        ]
        assert offline.complete(ids, embeddings) == tokenizer.decode(generated)


def test_a_checkpoint_is_read_back_as_it_was_written(checkpoint: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, read_checkpoint(checkpoint))
    names = ("params.json", "generation_config.json", "consolidated.safetensors", "tekken.json")
    for name in names:
        assert (tmp_path / name).read_bytes() == (checkpoint / name).read_bytes()


def test_a_batch_is_the_same_wherever_it_is_drawn(tekken: Path) -> None:
    tokenizer = Tekkenizer.from_file(tekken)
    for step in (0, 3, 4):
        first, again = (draw_batch(1, step, PLAN, tokenizer) for _ in range(2))
        torch.testing.assert_close(first.token_ids, again.token_ids)
        torch.testing.assert_close(first.patches, again.patches)
        other = draw_batch(2, step, PLAN, tokenizer)
        assert other.grids != first.grids or not torch.equal(other.patches[0], first.patches[0])


def test_held_out_questions_are_even_and_share_no_word_with_training() -> None:
    items = held_out(64)
    counts = {
        category: sum(item.question.category == category for item in items)
        for category in CATEGORIES
    }
    assert set(counts.values()) == {8}
    assert [item.question for item in items] == [item.question for item in held_out(64)]
    assert not set(HELD_OUT_WORDS) & set(TRAINING_WORDS)
    assert not set(scenes.HELD_OUT.fonts) & set(scenes.TRAINING.fonts)


@pytest.mark.parametrize("source", [TRAINING, HELD_OUT])
def test_every_grid_has_something_to_ask_about(source: scenes.Source) -> None:
    rng = np.random.default_rng(0)
    for grids in ([(2, 3)], [(3, 12)], [(8, 5)], [(12, 6)], [(2, 3), (5, 7)]):
        for scene in sample_scenes(rng, grids, 6, source):
            assert scene.questions
            for picture, grid in zip(scene.pictures, grids, strict=True):
                assert picture.labels.shape[:2] == grid
                assert picture.resized.shape == (grid[0] * 16, grid[1] * 16, 3)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    assert train(QUICK, tmp_path / "whole", tmp_path / "model", seed=0, minutes=9)
    assert not train(QUICK, tmp_path / "parts", tmp_path / "resumed", seed=0, minutes=0)
    assert train(QUICK, tmp_path / "parts", tmp_path / "resumed", seed=0, minutes=9)
    whole, resumed = (read_checkpoint(tmp_path / name) for name in ("model", "resumed"))
    torch.testing.assert_close(whole.state_dict(), resumed.state_dict(), rtol=0.1, atol=0.02)
    assert (tmp_path / "whole" / "loss.png").stat().st_size > 0
