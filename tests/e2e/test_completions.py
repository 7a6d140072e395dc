"""Completions of a prompt as it stands, through every process, by OpenAI's own client."""

from typing import Any

import openai
import pytest

from tests.support.fixture_types import Tokenizer
from tests.support.reference import Reference
from tests.support.stack.openai_question import MODEL

PROMPT = "Once upon a time"
TOKENS = 6
GREEDY: dict[str, Any] = {
    "model": MODEL,
    "temperature": 0,
    "max_tokens": TOKENS,
    "extra_body": {"ignore_eos": True, "return_token_ids": True},
}


@pytest.fixture(scope="module")
def ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens of `PROMPT`, without a template."""
    return tokenizer.instruct_tokenizer.tokenizer.encode(PROMPT, bos=True, eos=False)


@pytest.fixture(scope="module")
def following(reference: Reference, ids: list[int]) -> list[int]:
    """The tokens that the plain model makes after it."""
    return reference.generate(ids, [], TOKENS, ignore_eos=True)


def test_text_and_token_ids_are_the_same_prompt(
    client: openai.OpenAI, ids: list[int], following: list[int]
) -> None:
    texts = []
    for prompt in (PROMPT, ids):
        answer = client.completions.create(prompt=prompt, **GREEDY)
        (choice,) = answer.choices
        assert choice.model_extra is not None
        assert choice.model_extra["prompt_token_ids"] == ids
        assert choice.model_extra["token_ids"] == following
        assert choice.finish_reason == "length"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), TOKENS)
        stream = client.completions.create(prompt=prompt, stream=True, **GREEDY)
        texts += [choice.text, "".join(chunk.choices[0].text for chunk in stream)]
    assert len(set(texts)) == 1


def test_several_prompts_are_answered_in_their_order(client: openai.OpenAI) -> None:
    alone = [
        client.completions.create(prompt=prompt, **GREEDY).choices[0].text
        for prompt in (PROMPT, "The end")
    ]
    together = client.completions.create(prompt=[PROMPT, "The end"], n=2, **GREEDY)
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in together.choices] == [alone[0]] * 2 + [alone[1]] * 2


def test_the_prompt_comes_first_where_an_echo_is_asked_for(client: openai.OpenAI) -> None:
    plain = client.completions.create(prompt=PROMPT, **GREEDY).choices[0].text
    echoed = client.completions.create(prompt=PROMPT, echo=True, **GREEDY).choices[0].text
    alone = client.completions.create(prompt=PROMPT, echo=True, **GREEDY | {"max_tokens": 0})
    stream = client.completions.create(prompt=PROMPT, echo=True, stream=True, **GREEDY)
    assert echoed == PROMPT + plain
    assert "".join(chunk.choices[0].text for chunk in stream) == echoed
    assert alone.choices[0].text == PROMPT


def test_log_probabilities_are_the_models_own(
    client: openai.OpenAI, reference: Reference, ids: list[int], following: list[int]
) -> None:
    answer = client.completions.create(prompt=PROMPT, echo=True, logprobs=2, **GREEDY)
    (choice,) = answer.choices
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.text_offset is not None
    # As lm-eval reads them: the prompt's and the answer's, the first without any.
    expected = [
        *(row[token].item() for row, token in zip(
            reference.prompt_logprobs(ids, []), ids[1:], strict=True
        )),
        *(row[token].item() for row, token in zip(
            reference.logprobs(ids, [], following), following, strict=True
        )),
    ]  # fmt: skip
    assert len(logprobs.tokens) == len(ids) + TOKENS
    assert logprobs.token_logprobs[0] is None
    assert logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-3)
    # The first token, <s>, is none of the text.
    assert logprobs.text_offset[-1] == len("".join(logprobs.tokens[:-1]))


def test_what_a_gap_needs_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(prompt=PROMPT, suffix="the end", **GREEDY)
    assert refused.value.param == "suffix"
