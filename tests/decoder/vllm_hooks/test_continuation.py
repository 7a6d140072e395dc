"""An answer that is cut anywhere and goes on elsewhere, held against one that was not."""

import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pixtral_core.generation.sampling import Sampling
from pixtral_decoder.request import Prompt
from pixtral_decoder.vllm_hooks import continuation
from pixtral_decoder.vllm_hooks.continuation import OFFLOAD_TOKENS, Continuation, NotContinued
from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.tokenizers.mistral import MistralTokenizer
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    from pixtral_decoder.engine.sampling_params import vllm_sampling

PROMPT = [1, 3, 1005, 4]
WORDS = "Grüße, 你好! Ещё — 🦜🌍 and <s>naïve</s>   spaces\n\n日本"


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    return MistralTokenizer.from_pretrained(str(checkpoint))


def parameters_of(sampling: Sampling, **defaults: Any) -> Any:
    return vllm_sampling(sampling, defaults)


def spoken(tokenizer: Any) -> list[int]:
    """Characters of several tokens, control tokens, spaces; and then anything."""
    rng = random.Random(1)
    text = tokenizer.tokenizer.encode(WORDS, False, False)
    return [*text, 2, 10, *(rng.randrange(131072) for _ in range(60)), *text]


def undisturbed(
    tokenizer: Any, sampling: Sampling, tokens: Sequence[int], prompt: Sequence[int] = PROMPT
) -> list[str]:
    """The text that vLLM streams after each token."""
    request: Any = SimpleNamespace(
        request_id="whole",
        prompt_token_ids=list(prompt),
        prompt_embeds=None,
        sampling_params=parameters_of(sampling),
    )
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
    pieces = []
    for number, token in enumerate(tokens, 1):
        is_stopped = detokenizer.update([token], False) is not None
        is_last = is_stopped or number == len(tokens)
        pieces.append(detokenizer.get_next_output_text(is_last, True))
        if is_stopped:
            break
    return pieces


async def continued(
    tokenizer: Any, sampling: Sampling, tokens: Sequence[int], cut: int, step: int = 1
) -> tuple[str, list[int]]:
    """Text and tokens from the cut on, where the engine gives `step` tokens at once."""
    prompt = Prompt("rest", PROMPT, (), sampling, generated=tokens[:cut])
    continuation = await Continuation.begin(prompt, parameters_of(sampling), tokenizer)
    text = ""
    kept: list[int] = []
    for at in range(cut, len(tokens), step):
        reason = "length" if at + step >= len(tokens) else None
        piece = continuation.add(tokens[at : at + step], reason)
        text += piece.text
        kept += piece.token_ids
        if piece.stop_string is not None:
            break
    return text, kept


def test_still_there() -> None:
    assert_still_there(continuation)


def test_still_needed_while_vllm_does_not_look_for_a_stop_string_in_a_prompt(
    tokenizer: Any,
) -> None:
    """Once this fails, vLLM goes on with an answer itself: `continuation` can go."""
    stop = "🌍 and"
    sampling = Sampling(max_tokens=1000, stop=(stop,))
    tokens = spoken(tokenizer)
    pieces = undisturbed(tokenizer, sampling, tokens)
    cut = len(pieces) - 1
    assert len(pieces) < len(tokens)
    # To vLLM, what was made elsewhere is prompt: the stop string's beginning is not looked at.
    rest = undisturbed(tokenizer, sampling, tokens[cut:], [*PROMPT, *tokens[:cut]])
    assert len(rest) > 1


@pytest.mark.parametrize("step", [1, 3])
async def test_text_of_both_parts_is_that_of_the_whole_wherever_it_is_cut(
    tokenizer: Any, step: int
) -> None:
    sampling = Sampling(max_tokens=1000)
    tokens = spoken(tokenizer)
    pieces = undisturbed(tokenizer, sampling, tokens)
    assert "".join(pieces).startswith("Grüße, 你好! Ещё — 🦜🌍 and <s>naïve</s>   spaces\n\n日本")

    assert len(tokens) > OFFLOAD_TOKENS
    for cut in range(1, len(tokens)):
        text, kept = await continued(tokenizer, sampling, tokens, cut, step)
        assert text == "".join(pieces[cut:])
        assert kept == tokens[cut:]


@pytest.mark.parametrize("stop", ["🌍 and", "naïve</s>   sp", "Grüße, 你", "never comes"])
@pytest.mark.parametrize("step", [1, 3])
async def test_stop_string_across_the_cut_ends_the_answer_where_it_would_have(
    tokenizer: Any, stop: str, step: int
) -> None:
    sampling = Sampling(max_tokens=1000, stop=(stop, "neither does this one"))
    tokens = spoken(tokenizer)
    pieces = undisturbed(tokenizer, sampling, tokens)
    assert stop not in "".join(pieces)

    for cut in range(1, len(pieces)):
        text, kept = await continued(tokenizer, sampling, tokens, cut, step)
        assert text == "".join(pieces[cut:])
        assert kept == tokens[cut : len(pieces)]


async def test_stop_string_within_the_least_tokens_is_text(tokenizer: Any) -> None:
    sampling = Sampling(max_tokens=1000, min_tokens=12, stop=("好",))
    tokens = spoken(tokenizer)
    pieces = undisturbed(tokenizer, sampling, tokens)
    assert 12 < len(pieces) < len(tokens)

    for cut in range(1, len(pieces)):
        assert (await continued(tokenizer, sampling, tokens, cut))[1] == tokens[cut : len(pieces)]


async def test_limits_are_those_of_the_whole_answer(tokenizer: Any) -> None:
    sampling = Sampling(max_tokens=10, min_tokens=5, stop=("x",))
    prompt = Prompt("rest", PROMPT, (), sampling, generated=[1001, 1002])
    parameters = parameters_of(sampling)
    await Continuation.begin(prompt, parameters, tokenizer)
    assert (parameters.max_tokens, parameters.min_tokens) == (8, 3)

    # The model's own, which a request without one takes.
    parameters = parameters_of(Sampling(), max_tokens=7)
    await Continuation.begin(prompt, parameters, tokenizer)
    assert (parameters.max_tokens, parameters.min_tokens) == (5, 0)
    parameters = parameters_of(Sampling())
    await Continuation.begin(prompt, parameters, tokenizer)
    assert parameters.max_tokens is None


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
async def test_model_that_counts_its_own_tokens_is_not_continued(
    tokenizer: Any, penalty: str
) -> None:
    prompt = Prompt("rest", PROMPT, (), Sampling(), generated=[1001])
    with pytest.raises(NotContinued):
        await Continuation.begin(prompt, parameters_of(Sampling(), **{penalty: 0.5}), tokenizer)
