"""Prompts that must not reach the engine, and prompts that must."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixtral_core.errors import InvalidRequest
from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput
from pixtral_core.limits import PROMPT_LOGPROBS_IN_ALL
from pixtral_core.model.vision_spec import Grid
from pixtral_decoder.checks import Limits, check_fits, check_prompt
from pixtral_decoder.request import ImagePlace, Prompt
from tests.decoder.prompts import SPEC, key_of, prompt_of

LIMITS = Limits(SPEC, vocab_size=131072, context_length=8192, max_images=3)
SMALL = Grid(2, 3)
IMG, BREAK, END = 10, 12, 13


def refused(prompt: Prompt) -> str:
    """The path of the field that is refused."""
    with pytest.raises(InvalidRequest) as refusal:
        check_prompt(prompt, LIMITS)
    ((path, description),) = refusal.value.violations
    assert description
    return path


def sampled(**fields: Any) -> Prompt:
    return prompt_of(1, 2, sampling=Sampling(**fields))


@given(
    grids=st.lists(st.builds(Grid, st.integers(1, 20), st.integers(1, 20)), max_size=3),
    gap=st.integers(0, 3),
)
def test_what_a_gateway_sends_passes(grids: list[Grid], gap: int) -> None:
    parts: list[Any] = [1]
    for grid in grids:
        parts += [*[1000] * gap, (key_of("a"), grid)]
    check_prompt(prompt_of(*parts, 4), LIMITS)


def test_the_largest_image_passes_and_a_larger_one_does_not() -> None:
    check_prompt(prompt_of(1, (key_of("a"), Grid(64, 64))), LIMITS)
    assert refused(prompt_of(1, (key_of("a"), Grid(65, 1)))) == "images[0].rows"
    assert refused(prompt_of(1, (key_of("a"), Grid(1, 65)))) == "images[0].cols"


@pytest.mark.parametrize(
    ("grid", "path"), [(Grid(0, 3), "images[0].rows"), (Grid(3, 0), "images[0].cols")]
)
def test_an_image_without_tokens(grid: Grid, path: str) -> None:
    assert refused(Prompt("r", [1], (ImagePlace(key_of("a"), 0, grid),), Sampling())) == path


def test_token_ids() -> None:
    assert refused(prompt_of()) == "prompt_token_ids"
    assert refused(prompt_of(1, 131072)) == "prompt_token_ids"
    assert refused(prompt_of(*[7] * 8192)) == "prompt_token_ids"
    check_prompt(prompt_of(*[7] * 8191), LIMITS)
    check_prompt(prompt_of(131071), LIMITS)


def continued(generated: list[int], **fields: Any) -> Prompt:
    return replace(sampled(**fields), generated=generated)


def test_what_was_generated_elsewhere() -> None:
    check_prompt(continued([7, 10, 131071], max_tokens=4), LIMITS)
    check_prompt(continued([7] * 8189), LIMITS)
    for refusable in (
        continued([7] * 8190),
        continued([7] * 4, max_tokens=4),
        continued([131072]),
        continued([7], n=2),
        continued([7], logprobs=0),
        continued([7], structured_output=StructuredOutput(Structure.JSON_OBJECT)),
    ):
        assert refused(refusable) == "generated_token_ids"


def test_a_prompt_that_is_too_long_is_told_apart() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_prompt(prompt_of(*[7] * 8192), LIMITS)
    assert refusal.value.reason == "PROMPT_TOO_LONG"


@pytest.mark.parametrize("token_id", [IMG, BREAK, END])
def test_image_tokens_that_no_image_claims(token_id: int) -> None:
    assert refused(prompt_of(1, token_id, 2)) == "prompt_token_ids"
    assert refused(prompt_of(1, (key_of("a"), SMALL), 2, token_id)) == "prompt_token_ids"


@pytest.mark.parametrize("shift", [-1, 1])
def test_an_image_beside_its_tokens(shift: int) -> None:
    prompt = prompt_of(1, 2, (key_of("a"), SMALL), 3, 4)
    moved = replace(prompt.images[0], offset=prompt.images[0].offset + shift)
    assert refused(replace(prompt, images=(moved,))) == "images[0].offset"


def test_an_image_of_as_many_tokens_in_another_grid() -> None:
    prompt = prompt_of(1, (key_of("a"), Grid(2, 5)))
    turned = replace(prompt.images[0], grid=Grid(3, 3))
    assert turned.grid.placeholder_length == prompt.images[0].grid.placeholder_length
    assert refused(replace(prompt, images=(turned,))) == "images[0].offset"


def test_an_image_that_ends_outside_the_prompt() -> None:
    prompt = prompt_of(1, (key_of("a"), SMALL))
    assert refused(replace(prompt, token_ids=prompt.token_ids[:-1])) == "images[0].offset"
    far = replace(prompt.images[0], offset=2**32 - 1)
    assert refused(replace(prompt, images=(far,))) == "images[0].offset"


def test_two_images_in_one_place() -> None:
    prompt = prompt_of(1, (key_of("a"), SMALL), 2)
    twice = replace(prompt, images=(prompt.images[0], replace(prompt.images[0], key=key_of("b"))))
    assert refused(twice) == "images[1].offset"


def test_images_out_of_order() -> None:
    prompt = prompt_of(1, (key_of("a"), SMALL), 2, (key_of("b"), SMALL))
    assert refused(replace(prompt, images=prompt.images[::-1])) == "images[1].offset"


def test_too_many_images() -> None:
    assert refused(prompt_of(*[(key_of("a"), SMALL)] * 4)) == "images"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**32 - 1}, "max_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"min_tokens": 8191}, "min_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 2**32}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"stop": ("",)}, "stop[0]"),
        ({"stop": ("a", "b" * 1025)}, "stop[1]"),
        ({"stop": ("a",) * 65}, "stop"),
        ({"stop_token_ids": (3, 131072)}, "stop_token_ids[1]"),
        ({"temperature": 2.1}, "temperature"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"logit_bias": {131072: 1.0}}, "logit_bias"),
        ({"logit_bias": {7: float("nan")}}, "logit_bias"),
        ({"logit_bias": dict.fromkeys(range(1025), 0.0)}, "logit_bias"),
        ({"bad_words": ("a", "")}, "bad_words[1]"),
        ({"bad_words": ("a",) * 65}, "bad_words"),
        ({"allowed_token_ids": (131072,)}, "allowed_token_ids[0]"),
        ({"allowed_token_ids": (7,) * 1025}, "allowed_token_ids"),
        ({"structured_output": StructuredOutput(Structure.CHOICE)}, "structured_output.choice"),
        (
            {"structured_output": StructuredOutput(Structure.REGEX, ("",))},
            "structured_output.regex",
        ),
        (
            {"structured_output": StructuredOutput(Structure.GRAMMAR, ("a" * 200_000,))},
            "structured_output.grammar",
        ),
    ],
)
def test_sampling(fields: dict[str, Any], name: str) -> None:
    assert refused(sampled(**fields)) == f"sampling.{name}"


def test_sampling_at_its_bounds_passes() -> None:
    sampling = Sampling(
        max_tokens=1,
        min_tokens=1,
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        seed=-1,
        stop_token_ids=(131071,),
    )
    check_prompt(prompt_of(1, sampling=sampling), LIMITS)


def test_prompt_logprobs_are_bounded_together() -> None:
    words = [1] * (PROMPT_LOGPROBS_IN_ALL.most // 21 + 1)
    check_prompt(prompt_of(*words, sampling=Sampling(prompt_logprobs=19)), LIMITS)
    told = prompt_of(*words, sampling=Sampling(prompt_logprobs=20))
    assert refused(told) == "sampling.prompt_logprobs"


def test_a_priority_needs_an_engine_that_has_them() -> None:
    urgent = replace(prompt_of(1), priority=-1)
    assert refused(urgent) == "priority"
    check_prompt(urgent, replace(LIMITS, has_priorities=True))


def test_prompt_logprobs_are_not_continued() -> None:
    prompt = prompt_of(1, sampling=Sampling(prompt_logprobs=0, max_tokens=4))
    assert refused(replace(prompt, generated=(7,))) == "generated_token_ids"


@pytest.mark.parametrize("request_id", ["", "x" * 129])
def test_request_id(request_id: str) -> None:
    assert refused(prompt_of(1, request_id=request_id)) == "request_id"


def test_cache_salt() -> None:
    assert refused(prompt_of(1, cache_salt="x" * 257)) == "cache_salt"


def test_an_embedding_of_another_size() -> None:
    check_fits(1, SMALL, SMALL)
    with pytest.raises(InvalidRequest) as refusal:
        check_fits(1, SMALL, Grid(3, 2))
    assert refusal.value.violations[0][0] == "images[1].rows"
