"""The Mistral models with this tower, in the shapes and the forms in which they are published, in a
real engine each, against transformers' own classes."""

import gc
import json
import random
import shutil
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput
from pixtral_core.model.checkpoint import read_spec
from pixtral_core.model.hugging_face import is_hugging_face
from pixtral_decoder.engine.engine import DecoderEngine
from pixtral_decoder.engine.engine_args import EngineOptions
from pixtral_decoder.request import ImagePlace, Prompt
from pixtral_gateway.checks.conversation import Conversation, Role, Tool, Tools, Turn
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from pixtral_gateway.request import Delta, FinishReason
from tests.decoder.asked import LONG, Answer, Asked, apart, ask, expected, questions
from tests.decoder.memory import in_a_file
from tests.support.hf_reference import hf_generate, load_hf, write_hf
from tests.support.published_shapes import ministral_3, mistral_small, pixtral_large
from tests.support.quantised import W8A8, plain, write_quantised
from tests.support.reference import Reference

# A layer whose scales are four times as large in a second checkpoint.
SCALED = "layers.0.feed_forward.w2.weight"
SCALES = "language_model.model.layers.0.mlp.down_proj.weight_scale"
# INT8 rounds each activation to a multiple of 1/127 of its token's largest one, and the plain model
# does not. That changes a layer's inputs by about a hundredth, and the log-probabilities of this
# model by about a seventh of their distance from the second checkpoint's.
SHARE = 0.3
# A processor without VNNI adds pairs of 8-bit products in 16 bits, and cuts off what does not fit
# (oneDNN, "Nuances of int8 Computations"). Its answers are less exact, but nearer to the right
# checkpoint than to the second one.
SHARE_WITHOUT_VNNI = 0.5

# An emoji has several tokens, and a SentencePiece text may lose its first space.
ODD = " é🙂 ß"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"at": {"const": ODD}},
    "required": ["at"],
    "additionalProperties": False,
}


def as_it_is(original: Path, _: Path) -> Path:
    return original


def in_hugging_faces_form(original: Path, to: Path) -> Path:
    """With the tokenizer's file, as the repositories of these models have it."""
    published = write_hf(original, to)
    shutil.copy(original / "tekken.json", published)
    return published


@pytest.mark.parametrize(
    ("make", "publish", "tensor_parallel"),
    [
        (pixtral_large, as_it_is, 1),
        (mistral_small, in_hugging_faces_form, 2),
        (ministral_3, in_hugging_faces_form, 1),
    ],
)
async def test_greedy_tokens_are_those_of_transformers(
    make: Callable[[Path], Path],
    publish: Callable[[Path, Path], Path],
    tensor_parallel: int,
    tmp_path: Path,
) -> None:
    original = make(tmp_path / "original")
    model_dir = publish(original, tmp_path / "published")
    assert is_hugging_face(model_dir) is (publish is in_hugging_faces_form)
    spec = read_spec(model_dir)
    cols, rows = 8, 12
    size = (rows * spec.patch_size, cols * spec.patch_size)
    pixels = np.random.default_rng(1).standard_normal((3, *size)).astype(np.float32)
    grid = spec.grid(size[1], size[0])
    image = ImagePlace(EmbeddingKey(bytes(32), "f", "tenant"), 2, grid)
    words = random.Random(0)
    question = [words.randrange(1100, 32768) for _ in range(40)]
    token_ids = [1, 3, *spec.placeholder(grid), *question, 4]
    expected = hf_generate(load_hf(original), token_ids, [pixels], 16)
    embedding = Reference(original).embed_image(pixels)
    assert embedding.shape == (grid.tokens, spec.width)

    options = EngineOptions(
        model_dir, dtype="float32", context_length=2048, tensor_parallel=tensor_parallel
    )
    sampling = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True)
    prompt = Prompt("family", token_ids, (image,), sampling)
    with warnings.catch_warnings():
        # vLLM's own: at import, while it loads, and of sockets that it leaves open.
        warnings.simplefilter("ignore")
        async with started(options) as engine:
            answer = await answered(engine, prompt, embedding)
            structured = await held_to_schema(engine)
            arguments = await called(engine, PromptEncoder.load(model_dir, spec))
        gc.collect()

    assert answer == expected
    assert json.loads(structured) == json.loads(arguments) == {"at": ODD}


@asynccontextmanager
async def started(options: EngineOptions) -> AsyncIterator[DecoderEngine]:
    engine = DecoderEngine(options)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.shutdown()


async def answered(engine: DecoderEngine, prompt: Prompt, embedding: Tensor) -> list[int]:
    # Handed over as a large one is, and from there on to each part of the model.
    async with aclosing(engine.generate(prompt, [in_a_file(embedding)])) as deltas:
        return [token async for delta in deltas for token in delta.token_ids]


async def held_to_schema(engine: DecoderEngine) -> str:
    held = StructuredOutput(Structure.JSON_SCHEMA, (json.dumps(SCHEMA),), True)
    sampling = Sampling(max_tokens=100, temperature=0.0, structured_output=held)
    prompt = Prompt("schema", [1, 3, 5000, 4], (), sampling)
    async with aclosing(engine.generate(prompt, ())) as deltas:
        return "".join([delta.text async for delta in deltas])


async def called(engine: DecoderEngine, prompts: PromptEncoder) -> str:
    """The arguments of a call that the request forces, as the gateway asks for it and reads it."""
    offered = (Tool("look", "Looks.", SCHEMA),)
    tools = Tools(offered, forced=offered, is_single=True)
    asked = prompts.encode_now(Conversation((Turn(Role.USER, ("Hello?",)),), tools), ())
    sampling = prompts.tools.constrain(tools, Sampling(max_tokens=100, temperature=0.0))
    prompt = Prompt("call", list(asked.token_ids), (), sampling)
    reader, said, arguments = prompts.tools.reader(tools), "", ""
    async with aclosing(engine.generate(prompt, ())) as deltas:
        async for delta in deltas:
            finish = FinishReason.STOP if delta.finish_reason else None
            read = reader.read(Delta(0, delta.text, delta.token_ids, finish))
            said += read.text
            arguments += "".join(call.arguments for call in read.tool_calls)
    assert said == ""
    return arguments


def has_vnni() -> bool:
    return "vnni" in Path("/proc/cpuinfo").read_text("utf-8")


async def test_int8_of_compressed_tensors_is_served_on_a_cpu(tmp_path: Path) -> None:
    original = write_random_checkpoint(tmp_path / "original", RandomSpec(dtype="bfloat16"))
    published, wrong = tmp_path / "published", tmp_path / "wrong"
    weights = {
        name: each.meant for name, each in write_quantised(W8A8, original, published).items()
    }
    with_wrong_scales(published, wrong)
    right = plain(original, weights)
    other = plain(original, weights | {SCALED: 4 * weights[SCALED]})

    answers = await asked_of(published, original, right)
    of_wrong = await asked_of(wrong, original, right)

    share = SHARE if has_vnni() else SHARE_WITHOUT_VNNI
    asks = short_questions(original, right)
    for each, answer, of_other in zip(asks, answers, of_wrong, strict=True):
        wanted, others = expected(right, each), expected(other, each)
        between = apart(wanted, others)
        assert apart(answer, wanted) < share * between
        assert apart(of_other, others) < share * between


def with_wrong_scales(published: Path, to: Path) -> None:
    shutil.copytree(published, to)
    tensors = load_file(published / "model.safetensors")
    tensors[SCALES] *= 4
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})


def short_questions(original: Path, reference: Reference) -> list[Asked]:
    return [each for each in questions(original, reference) if len(each.token_ids) < LONG]


async def asked_of(model_dir: Path, original: Path, reference: Reference) -> list[Answer]:
    with warnings.catch_warnings():
        # vLLM's own, as above.
        warnings.simplefilter("ignore")
        async with started(EngineOptions(model_dir, context_length=2048)) as engine:
            answers = [await ask(engine, each) for each in short_questions(original, reference)]
        gc.collect()
    return answers
