"""Every way of picking tokens, through all processes, held against the plain model."""

import json
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
import torch
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from torch import Tensor

from pixtral_client import Completion, InvalidRequest
from tests.support.fixture_types import Tokenizer
from tests.support.reference import Reference
from tests.support.stack.new_picture import new_picture
from tests.support.stack.random_conversation import conversation
from tests.support.stack.service import Service, wait_until

TOKENS = 12
ASK = [{"role": "user", "content": "What do you see?"}]
EOS = 2
ROOMY = {"max_tokens": 400, "ignore_eos": False}


class Model:
    """The service, and the plain model that its answers are held against."""

    def __init__(self, service: Service, reference: Reference, tokenizer: Tokenizer) -> None:
        self._client = service.client
        self._reference = reference
        self._tokenizer = tokenizer

    def ask(self, **sampling: Any) -> Completion:
        sampling = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True} | sampling
        return self._client.chat(ASK, **sampling)

    def answer(self, messages: list[dict[str, Any]], **options: Any) -> Completion:
        completion: Completion = self._client.chat(
            messages, max_tokens=TOKENS, temperature=0, ignore_eos=True, **options
        )
        return completion

    def tokens(self, request: ChatCompletionRequest[Any]) -> list[int]:
        return list(self._tokenizer.encode_chat_completion(request).tokens)

    def plain(self, prompt: list[int]) -> list[int]:
        """The plain model's greedy answer."""
        return self._reference.generate(prompt, [], TOKENS, lambda logits, _: logits)

    def prompt(self, messages: list[dict[str, Any]] = ASK) -> Any:
        return self._tokenizer.encode_chat_completion(ChatCompletionRequest.from_openai(messages))

    def expected(self, adjust: Callable[[Tensor, list[int]], Tensor]) -> list[int]:
        """The plain model's greedy answer, of logits that `adjust` changes."""
        return self._reference.generate(self.prompt().tokens, [], TOKENS, adjust)

    def token(self, text: str) -> int:
        """The one token that spells it."""
        (token,) = self._tokenizer.instruct_tokenizer.tokenizer.encode(text, bos=False, eos=False)
        return int(token)

    def is_spelled_by(self, text: str, token: int) -> bool:
        ids = self._tokenizer.instruct_tokenizer.tokenizer.encode(text, bos=False, eos=False)
        return list(ids) == [token]

    def refused(self, **sampling: Any) -> str:
        """The path of the field that is refused."""
        with pytest.raises(InvalidRequest) as refusal:
            self.ask(**sampling)
        (violation,) = refusal.value.violations
        return violation.field


@pytest.fixture(scope="session")
def model(service: Service, reference: Reference, tokenizer: Tokenizer) -> Model:
    return Model(service, reference, tokenizer)


@pytest.fixture(scope="session")
def greedy(model: Model) -> Completion:
    return model.ask()


@pytest.mark.parametrize("images", [0, 2])
def test_logprobs_are_the_plain_models(
    service: Service, reference: Reference, model: Model, images: int
) -> None:
    messages = conversation(random.Random(images), images)
    prompt = model.prompt(messages)
    with service.client.stream(
        messages, max_tokens=TOKENS, temperature=0, ignore_eos=True, logprobs=5
    ) as stream:
        deltas = list(stream)
    answer = stream.completion

    assert answer is not None
    expected = reference.logprobs(prompt.tokens, prompt.images, list(answer.token_ids))
    for token, row, told in zip(answer.token_ids, expected, answer.logprobs, strict=True):
        assert told.chosen.token_id == token
        assert told.chosen.logprob == pytest.approx(float(row[token]), abs=1e-3)
        likeliest = row.topk(5)
        assert [each.token_id for each in told.top] == likeliest.indices.tolist()
        assert [each.logprob for each in told.top] == pytest.approx(
            likeliest.values.tolist(), abs=1e-3
        )
    assert [len(delta.logprobs) for delta in deltas] == [len(delta.token_ids) for delta in deltas]


def test_logprobs_do_not_depend_on_how_tokens_are_picked(model: Model, greedy: Completion) -> None:
    told = model.ask(logprobs=0, temperature=1, seed=3)
    assert all(not each.top for each in told.logprobs)
    assert [each.chosen.token_id for each in told.logprobs] == list(told.token_ids)
    as_likely = model.ask(logprobs=1, temperature=1, top_k=1)
    assert as_likely.token_ids == greedy.token_ids
    assert all(each.chosen == each.top[0] for each in as_likely.logprobs)
    assert greedy.logprobs == ()


@pytest.mark.parametrize("images", [0, 2])
def test_prompt_logprobs_are_the_plain_models(
    service: Service, reference: Reference, model: Model, images: int
) -> None:
    messages = conversation(random.Random(images), images)
    prompt = model.prompt(messages)
    # The part of the prompt that is held by now has none.
    service.client.chat(messages, max_tokens=1)
    answer = service.client.chat(messages, max_tokens=1, prompt_logprobs=3)

    expected = reference.prompt_logprobs(prompt.tokens, prompt.images)
    first, *told_of_rest = answer.prompt_logprobs
    assert first is None
    for token, row, told in zip(prompt.tokens[1:], expected, told_of_rest, strict=True):
        assert told is not None
        assert told.chosen.token_id == token
        assert told.chosen.logprob == pytest.approx(float(row[token]), abs=1e-3)
        assert [each.logprob for each in told.top] == pytest.approx(
            row.topk(3).values.tolist(), abs=1e-3
        )
        assert [each.rank for each in told.top] == [1, 2, 3]
        assert row[told.top[0].token_id] == pytest.approx(float(row.max()), abs=1e-3)
    assert answer.usage.cached_tokens == 0


def test_prompt_logprobs_come_with_a_stream_and_with_several_answers(
    service: Service, model: Model
) -> None:
    tokens = model.prompt().tokens
    with service.client.stream(ASK, max_tokens=3, prompt_logprobs=0, n=2, seed=1) as stream:
        assert all(delta.token_ids for delta in stream)
    answer = stream.completion
    assert answer is not None
    told = [each.chosen.token_id for each in answer.prompt_logprobs if each is not None]
    assert told == tokens[1:]


@pytest.mark.parametrize(
    "narrow",
    [{"top_k": 1}, {"top_p": 1e-6}, {"top_p": 5e-324}, {"min_p": 1.0}],
    ids=["top_k", "top_p", "least top_p", "min_p"],
)
def test_where_one_token_is_left_it_is_the_likeliest(
    model: Model, greedy: Completion, narrow: dict[str, float]
) -> None:
    assert model.ask(temperature=1.5, **narrow).token_ids == greedy.token_ids


def test_a_seed_repeats_an_answer_and_another_does_not(model: Model) -> None:
    first, again, other = [model.ask(temperature=1, seed=seed).token_ids for seed in (7, 7, 8)]
    assert first == again != other


def penalized(presence: float, frequency: float) -> Callable[[Tensor, list[int]], Tensor]:
    def adjust(logits: Tensor, generated: list[int]) -> Tensor:
        counts = torch.bincount(torch.tensor(generated, dtype=torch.long), minlength=len(logits))
        return logits - presence * (counts > 0) - frequency * counts

    return adjust


@pytest.mark.parametrize(("presence", "frequency"), [(2.0, 0.0), (-2.0, 0.0), (0.0, 2.0)])
def test_penalties_on_what_was_said(model: Model, presence: float, frequency: float) -> None:
    answer = model.ask(presence_penalty=presence, frequency_penalty=frequency)
    assert list(answer.token_ids) == model.expected(penalized(presence, frequency))


@pytest.mark.parametrize("penalty", [0.05, 3.0])
def test_a_penalty_on_repetition(model: Model, penalty: float) -> None:
    prompt = model.prompt().tokens

    def adjust(logits: Tensor, generated: list[int]) -> Tensor:
        seen = torch.tensor([*prompt, *generated])
        adjusted = logits.clone()
        adjusted[seen] = torch.where(
            logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty
        )
        return adjusted

    answer = model.ask(repetition_penalty=penalty)
    assert list(answer.token_ids) == model.expected(adjust)


def test_a_bias_forces_and_forbids_tokens(model: Model, greedy: Completion) -> None:
    assert set(model.ask(logit_bias={4242: 100}).token_ids) == {4242}

    forbidden = sorted(set(greedy.token_ids))

    def adjust(logits: Tensor, generated: list[int]) -> Tensor:
        adjusted = logits.clone()
        adjusted[forbidden] -= 100
        return adjusted

    answer = model.ask(logit_bias=dict.fromkeys(forbidden, -100))
    assert list(answer.token_ids) == model.expected(adjust)
    assert not set(answer.token_ids) & set(forbidden)


def test_only_allowed_tokens_are_picked(model: Model) -> None:
    allowed = [1500, 2500, 3500]
    answer = model.ask(temperature=2, seed=1, allowed_token_ids=allowed, max_tokens=40)
    assert set(answer.token_ids) == set(allowed)


def test_bad_words_are_not_said(model: Model) -> None:
    said = [each.chosen for each in model.ask(logprobs=0).logprobs]
    word = next(each for each in said if model.is_spelled_by(each.text.strip(), each.token_id))
    answer = model.ask(bad_words=[word.text])
    assert word.token_id not in answer.token_ids
    assert word.text not in answer.text


def test_a_stop_string_ends_an_answer_and_is_not_in_it(model: Model, greedy: Completion) -> None:
    middle = len(greedy.text) // 2
    stop = greedy.text[middle : middle + 3]
    answer = model.ask(stop=["never said", stop], logprobs=0)
    assert answer.text == greedy.text[: greedy.text.index(stop)]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert len(answer.logprobs) == len(answer.token_ids)
    assert (greedy.finish_reason, greedy.stop_reason) == ("length", None)


def test_a_stop_string_can_be_part_of_the_answer(model: Model, greedy: Completion) -> None:
    middle = len(greedy.text) // 2
    stop = greedy.text[middle : middle + 3]
    answer = model.ask(stop=[stop], include_stop_str_in_output=True)
    assert answer.text == greedy.text[: greedy.text.index(stop) + len(stop)]
    assert answer.stop_reason == stop


def test_a_stop_token_ends_an_answer_once_it_may(model: Model, greedy: Completion) -> None:
    stop = greedy.token_ids[0]
    at_once = model.ask(stop_token_ids=[stop])
    assert (at_once.token_ids, at_once.finish_reason) == ((stop,), "stop")
    assert at_once.stop_reason == stop
    later = model.ask(stop_token_ids=[stop], min_tokens=4)
    assert stop not in later.token_ids[:4]


def test_the_end_of_sequence_ends_an_answer_unless_it_is_ignored(model: Model) -> None:
    ended = model.ask(ignore_eos=False, logit_bias={EOS: 100})
    assert (ended.text, ended.finish_reason, ended.stop_reason) == ("", "stop", None)
    longer = model.ask(ignore_eos=False, logit_bias={EOS: 100}, min_tokens=3)
    assert (len(longer.token_ids), longer.token_ids[-1]) == (4, EOS)
    ignored = model.ask(logit_bias={EOS: 100})
    assert (len(ignored.token_ids), ignored.finish_reason) == (TOKENS, "length")


def test_an_answer_goes_on_from_its_beginning(model: Model, greedy: Completion) -> None:
    """The prompt ends with the beginning, without an end of sequence."""
    begun: list[dict[str, Any]] = [*ASK, {"role": "assistant", "content": "There are"}]
    request = ChatCompletionRequest.from_openai(begun, continue_final_message=True)
    prompt = model.tokens(request)
    for messages, options in (
        (begun, {"continue_final_message": True}),
        ([*ASK, {**begun[1], "prefix": True}], {}),
    ):
        answer = model.answer(messages, **options)
        assert answer.usage.prompt_tokens == len(prompt)
        assert list(answer.token_ids) == model.plain(prompt)


def test_what_the_tokenizer_cannot_spell_is_refused_by_its_field(model: Model) -> None:
    assert model.refused(logprobs=21) == "sampling.logprobs"
    assert model.refused(logit_bias={1 << 20: 1}) == "sampling.logit_bias[1048576]"
    assert model.refused(bad_words=[" "]) == "sampling.bad_words[0]"


def test_greedy_choices_are_all_alike(model: Model, greedy: Completion) -> None:
    answer = model.ask(n=3, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.token_ids for choice in answer.choices} == {greedy.token_ids}
    assert {choice.text for choice in answer.choices} == {greedy.text}
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage.completion_tokens == 3 * TOKENS


def test_choices_of_a_seed_are_those_of_the_seeds_that_follow(
    service: Service, model: Model
) -> None:
    content = [new_picture(), "What do you see?"]
    sampling: Any = {"max_tokens": TOKENS, "temperature": 1.0, "ignore_eos": True}
    encoded = service.encoded()
    with service.client.stream(
        [{"role": "user", "content": content}], n=4, seed=50, **sampling
    ) as stream:
        indexes = [delta.index for delta in stream]
    answer = stream.completion

    assert answer is not None
    assert service.encoded() == encoded + 1
    assert len(answer.images) == 1
    assert len({choice.token_ids for choice in answer.choices}) == 4
    assert answer.usage.completion_tokens == sum(len(c.token_ids) for c in answer.choices)
    # They take turns, and not one after the other.
    assert indexes[: len(indexes) // 2].count(0) < indexes.count(0)
    for choice in answer.choices:
        alone = service.client.chat(
            [{"role": "user", "content": content}], seed=50 + choice.index, **sampling
        )
        assert alone.token_ids == choice.token_ids


def test_choices_of_a_structure_are_each_held_to_it(model: Model) -> None:
    wanted = {"regex": "[ab]{6}"}
    answer = model.ask(structured_output=wanted, n=4, temperature=1, seed=9, **ROOMY)
    assert all(re.fullmatch("[ab]{6}", choice.text) for choice in answer.choices)
    assert len(answer.choices) == 4


def test_every_choice_ends_when_its_client_goes(service: Service, model: Model) -> None:
    with service.client.stream(ASK, n=3, temperature=1, ignore_eos=True) as stream:
        next(stream)
        wait_until(lambda: service.running() == 3, "a place for each choice")
    wait_until(service.is_idle, "the engine lets go of all choices")


# Small, and long to read.
PATTERN = "^(a{1,1000}){1,1000}$"
SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["square", "cross"]},
        "sides": {"type": "integer", "minimum": 3, "maximum": 12},
        # With `maxLength`, an answer may have control characters, which are not JSON.
        "label": {"type": "string", "pattern": "^[^\\u0000-\\u001f]{0,8}$"},
        "not": {"type": "boolean"},
    },
    "required": ["shape", "sides", "label", "not"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_is_json_of_its_schema(model: Model, seed: int) -> None:
    wanted = {"json_schema": SCHEMA}
    # Left to itself, the random model would put out white space between the tokens for ever.
    bias = {model.token(mark): 8 for mark in '"{}:,'}
    answer = model.ask(structured_output=wanted, temperature=1, seed=seed, logit_bias=bias, **ROOMY)
    assert answer.finish_reason == "stop"
    jsonschema.validate(json.loads(answer.text), SCHEMA)


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_is_json_on_one_line(model: Model, seed: int) -> None:
    wanted = {"json_schema": SCHEMA, "disable_any_whitespace": True}
    # Without a bias: there is no place for white space without end.
    answer = model.ask(structured_output=wanted, temperature=1, seed=seed, **ROOMY)
    assert answer.finish_reason == "stop"
    made = json.loads(answer.text)
    jsonschema.validate(made, SCHEMA)
    assert re.sub(r'"label": "(\\.|[^"\\])*"', "", answer.text) == re.sub(
        r'"label": "(\\.|[^"\\])*"', "", json.dumps(made)
    )


def test_an_answer_is_a_json_object(model: Model) -> None:
    wanted = {"json_object": True}
    # The random model would hardly ever close it.
    answer = model.ask(structured_output=wanted, logit_bias={model.token("}"): 100}, **ROOMY)
    assert answer.finish_reason == "stop"
    assert isinstance(json.loads(answer.text), dict)


@pytest.mark.parametrize("pattern", [r"(ab|cd){3}-[0-9]{4}", ".{20}", r"\w{1,9}@[a-z]{2,5}\.org"])
def test_an_answer_matches_its_expression(model: Model, pattern: str) -> None:
    for seed in range(3):
        answer = model.ask(structured_output={"regex": pattern}, temperature=1, seed=seed, **ROOMY)
        assert re.fullmatch(pattern, answer.text)


def test_an_answer_is_one_of_the_choices(model: Model) -> None:
    choices = ["yes", "no", 'say "why"\n', "perhaps"]
    answers = {
        model.ask(structured_output={"choice": choices}, temperature=2, seed=seed, **ROOMY).text
        for seed in range(6)
    }
    assert answers <= set(choices)
    assert len(answers) > 1


def test_an_answer_is_held_to_characters_of_several_tokens(model: Model) -> None:
    answer = model.ask(structured_output={"choice": ["é🙂", "é🙂"]}, temperature=0, **ROOMY)
    assert answer.text == "é🙂"


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= term ("+" term){2}\nterm ::= [0-9] | "(" [a-c] ")"',
        'start: term "+" term "+" term\nterm: /[0-9]/ | "(" /[a-c]/ ")"',
    ],
    ids=["ebnf", "lark"],
)
def test_an_answer_is_of_its_grammar(model: Model, grammar: str) -> None:
    term = r"([0-9]|\([a-c]\))"
    answer = model.ask(structured_output={"grammar": grammar}, temperature=1, seed=1, **ROOMY)
    assert re.fullmatch(rf"{term}(\+{term}){{2}}", answer.text)


def test_an_answer_of_a_structure_has_its_logprobs(model: Model) -> None:
    wanted = {"choice": ["yes", "no"]}
    answer = model.ask(structured_output=wanted, logprobs=2, **ROOMY)
    assert [each.chosen.token_id for each in answer.logprobs] == list(answer.token_ids)


@pytest.mark.parametrize(
    "wanted",
    [
        {"json_schema": {"type": "no such"}},
        {"json_schema": {"type": "array", "uniqueItems": True}},
        {"json_schema": {"type": "string", "format": []}},
        {"json_schema": {"properties": 7}},
        {"json_schema": {"$ref": "https://example.com/schema"}},
        {"json_schema": {"$ref": "#/$defs/absent"}},
        {"json_schema": {"properties": {"a": {"items": {"not": {"type": "null"}}}}}},
        {"json_schema": {"anyOf": [{"type": "string", "pattern": "(" * 100}]}},
        {"json_schema": {"type": "string", "pattern": PATTERN}},
        {"regex": "("},
        {"regex": "a{2,1}"},
        {"regex": r"(a)\1"},
        {"grammar": "root ::= "},
        {"grammar": "root ::= absent"},
        {"grammar": "?"},
        {"grammar": "(" * 10_000},
        {"grammar": 'root ::= s\ns ::= s s s | s s | "a"'},
    ],
    ids=lambda wanted: str(wanted)[:40],
)
def test_what_the_engine_cannot_hold_an_answer_to_is_refused_by_its_field(
    model: Model, wanted: dict[str, Any]
) -> None:
    (name,) = wanted
    assert model.refused(structured_output=wanted, **ROOMY) == f"sampling.structured_output.{name}"
    assert model.ask().token_ids


def test_what_is_made_to_take_long_keeps_nobody_else_waiting(
    model: Model, greedy: Completion
) -> None:
    wanted = {"anyOf": [{"type": "string", "pattern": PATTERN} for _ in range(60)]}
    with ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(model.refused, structured_output={"json_schema": wanted}, **ROOMY)
            for _ in range(4)
        ]
        assert model.ask(timeout=60).token_ids == greedy.token_ids
        assert {each.result() for each in asked} == {"sampling.structured_output.json_schema"}
    assert model.ask().token_ids == greedy.token_ids
