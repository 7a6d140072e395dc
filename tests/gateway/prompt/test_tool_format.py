"""Calls in an answer's deltas, and answers that must make one."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pixtral_core.errors import InvalidRequest
from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput
from pixtral_core.model.vision_spec import VisionSpec, read_params
from pixtral_gateway.checks.conversation import Tool, Tools
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from pixtral_gateway.prompt.tool_format import MarkedText, ToolFormat
from pixtral_gateway.prompt.tool_parser import Marker
from pixtral_gateway.request import Delta, FinishReason

TREE = {
    "type": "object",
    "properties": {
        "node": {"$ref": "#/$defs/node"},
        "$ref": {"const": {"$ref": "#/no"}},
        "default": {"$ref": "#"},
    },
    "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}},
    "required": ["node"],
    "additionalProperties": False,
}
LOOK = Tool("look", "", {"type": "object", "properties": {"at": {"type": "string"}}})
GO = Tool("go", "", {})
WALK = Tool("walk", "", TREE)
ALL = (LOOK, GO, WALK)

STOP, LENGTH, CALLED = FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS
CALLS, ARGS = 9, 32


def choice(text: str, *token_ids: int, finish: FinishReason | None = None, index: int = 0) -> Delta:
    return Delta(index, text, token_ids, finish)


def told(prompts: PromptEncoder, tools: Tools, *deltas: Delta) -> list[Delta]:
    reader = prompts.tools.reader(tools)
    return [reader.read(delta) for delta in deltas]


def said(choices: Sequence[Delta]) -> tuple[str, list[tuple[str, str]]]:
    calls: list[tuple[str, str]] = []
    for each in choices:
        for call in each.tool_calls:
            if call.id:
                calls.append((call.name, ""))
            name, arguments = calls[call.index]
            calls[call.index] = (name, arguments + call.arguments)
    return "".join(each.text for each in choices), calls


async def test_a_call_is_known_by_its_token(prompts: PromptEncoder) -> None:
    words = list(await prompts.tokenize("Well.", bos=False))
    text = '[{"name": "look", "arguments": {"at": "[TOOL_CALLS]"}}]'
    called = list(await prompts.tokenize(text, bos=False))
    tools = Tools(ALL)

    deltas = told(
        prompts, tools, choice("Well.", *words), choice("", CALLS), choice(text, *called),
        choice("", 2, finish=STOP),
    )  # fmt: skip
    assert said(deltas) == ("Well.", [("look", '{"at": "[TOOL_CALLS]"}')])
    assert [list(each.token_ids) for each in deltas] == [words, [CALLS], called, [2]]
    assert [each.finish_reason for each in deltas] == [None, None, None, CALLED]

    # All at once, and the text behind its tokens.
    at_once = told(prompts, tools, choice(f"Well.{text}", *words, CALLS, *called, 2, finish=STOP))
    assert said(at_once) == said(deltas)
    late = told(
        prompts, tools, choice("We", *words), choice("ll.[{", CALLS, *called),
        choice(text[2:], 2, finish=STOP),
    )  # fmt: skip
    assert said(late) == said(deltas)

    spelled = told(prompts, tools, choice(f"[TOOL_CALLS]{text}", *called, finish=STOP))
    assert said(spelled) == (f"[TOOL_CALLS]{text}", [])
    assert spelled[-1].finish_reason == STOP


async def test_calls_by_name_are_known_by_their_tokens(v11_model_dir: Path) -> None:
    prompts = load(v11_model_dir)
    name, arguments = "[ARGS]", '{"at": "é"}'
    first = list(await prompts.tokenize("look", bos=False))
    then = list(await prompts.tokenize(arguments, bos=False))
    ids = [CALLS, *first, ARGS, *then]
    deltas = told(
        prompts, Tools(ALL), choice(f"look{arguments}", *ids),
        choice(f"look{arguments}", *ids, finish=STOP),
    )  # fmt: skip
    assert said(deltas) == ("", [("look", arguments), ("look", arguments)])
    assert deltas[-1].finish_reason == CALLED
    assert name not in deltas[0].text


def test_answers_are_read_apart(prompts: PromptEncoder) -> None:
    text = '[{"name": "go", "arguments": {}}]'
    deltas = told(
        prompts, Tools(ALL), choice("", CALLS), choice("", CALLS, index=1), choice(text[:9]),
        choice("no", index=1), choice(text[9:], finish=STOP), choice("", index=1, finish=STOP),
    )  # fmt: skip
    assert said([each for each in deltas if each.index == 0]) == ("", [("go", "{}")])
    assert said([each for each in deltas if each.index == 1]) == ("no", [])
    assert [each.finish_reason for each in deltas[-2:]] == [CALLED, STOP]


def test_an_answer_that_is_cut_off_says_so(prompts: PromptEncoder) -> None:
    text = '[{"name": "look", "arguments": {"at": "c'
    deltas = told(prompts, Tools(ALL), choice(text, CALLS, 1001, finish=LENGTH))
    assert said(deltas) == ("", [("look", '{"at": "c')])
    assert deltas[-1].finish_reason == LENGTH
    # One for each call, with all that is new of it.
    assert len(deltas[0].tool_calls) == 1


def test_only_the_first_call_is_told_where_one_is_wanted(prompts: PromptEncoder) -> None:
    text = '[{"name": "look", "arguments": {"at": "a"}}, {"name": "go", "arguments": {}}]'
    deltas = told(prompts, Tools(ALL, is_single=True), choice(text, CALLS, 1001, finish=STOP))
    assert said(deltas) == ("", [("look", '{"at": "a"}')])


@pytest.mark.parametrize("forced", [ALL, (GO,)], ids=["required", "named"])
def test_a_list_that_was_asked_for_is_read_without_its_token(
    prompts: PromptEncoder, forced: tuple[Tool, ...]
) -> None:
    text = '[{"name": "go", "arguments": {}}]'
    tools = Tools(ALL, forced, is_single=len(forced) == 1)
    deltas = told(prompts, tools, choice(text[:20], 1001), choice(text[20:], finish=STOP))
    assert said(deltas) == ("", [("go", "{}")])
    assert deltas[-1].finish_reason == CALLED


def test_calls_by_name_that_were_asked_for(v11_model_dir: Path) -> None:
    prompts = load(v11_model_dir)
    named = told(prompts, Tools(ALL, (GO,), is_single=True), choice("{}", finish=STOP))
    assert said(named) == ("", [("go", "{}")])
    text = 'go[ARGS]{}[TOOL_CALLS]look[ARGS]{"at": "a"}'
    required = told(prompts, Tools(ALL, ALL), choice(text, finish=STOP))
    assert said(required) == ("", [("go", "{}"), ("look", '{"at": "a"}')])


def test_a_schema_that_nothing_can_follow_is_an_error_of_the_tools(prompts: PromptEncoder) -> None:
    refused = InvalidRequest("sampling.structured_output.json_schema", "no")
    other = InvalidRequest("sampling.n", "no")

    forced, offered = (prompts.tools.reader(Tools(ALL, tools)) for tools in (ALL, ()))
    assert forced.error(refused).violations[0][0] == "tools"
    assert forced.error(other) is other
    slow = InvalidRequest("sampling.structured_output.grammar", "slow", "STRUCTURE_TOO_SLOW")
    told_of_slow = forced.error(slow)
    assert told_of_slow.reason == slow.reason
    assert told_of_slow.violations == (("tools", "the parameters of all tools: slow"),)
    assert offered.error(refused) is refused


def test_of_several_tools_the_one_is_named_whose_parameters_nothing_can_follow(
    v11_model_dir: Path,
) -> None:
    told = "schema 2 of the grammar: the engine cannot enforce not at #"
    refused = InvalidRequest("sampling.structured_output.grammar", told)
    reader = load(v11_model_dir).tools.reader(Tools(ALL, (LOOK, GO)))
    assert reader.error(refused).violations == (
        ("tools", "the parameters of go: the engine cannot enforce not at #"),
    )


GOOD: list[list[Any]] = [
    [{"name": "look", "arguments": {"at": "cat"}}],
    [{"name": "go", "arguments": {}}, {"name": "look", "arguments": {}}],
    [{"name": "walk", "arguments": {"node": [[], [[]]], "default": {"node": []}}}],
    [{"name": "walk", "arguments": {"node": [], "$ref": {"$ref": "#/no"}}}],
]
BAD: list[list[Any]] = [
    [],
    [{"name": "other", "arguments": {}}],
    [{"name": "look", "arguments": {"at": 1}}],
    [{"name": "go", "arguments": {"a": 1}}],
    [{"name": "go"}],
    [{"name": "walk", "arguments": {"node": [[], [], []]}}],
    [{"name": "walk", "arguments": {"node": [], "default": {}}}],
]


def constraint(sampling: Sampling, structure: Structure) -> str:
    assert sampling.structured_output is not None
    assert sampling.structured_output.structure is structure
    (text,) = sampling.structured_output.values
    return text


def test_a_list_is_held_to_every_tools_schema(prompts: PromptEncoder) -> None:
    given = Sampling(temperature=0, n=2)
    held = prompts.tools.constrain(Tools(ALL, ALL), given)
    assert (held.temperature, held.n) == (0, 2)
    schema = json.loads(constraint(held, Structure.JSON_SCHEMA))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert [validator.is_valid(calls) for calls in GOOD] == [True] * len(GOOD)
    assert [validator.is_valid(calls) for calls in BAD] == [False] * len(BAD)

    single = prompts.tools.constrain(Tools(ALL, ALL, is_single=True), given)
    one = jsonschema.Draft202012Validator(json.loads(constraint(single, Structure.JSON_SCHEMA)))
    assert [one.is_valid(calls) for calls in GOOD] == [True, False, True, True]


def test_arguments_of_a_name_are_held_to_its_schema(v11_model_dir: Path) -> None:
    tools, given = load(v11_model_dir).tools, Sampling()
    named = tools.constrain(Tools(ALL, (WALK,), is_single=True), given)
    assert json.loads(constraint(named, Structure.JSON_SCHEMA)) == TREE
    nothing = tools.constrain(Tools(ALL, (GO,), is_single=True), given)
    assert json.loads(constraint(nothing, Structure.JSON_SCHEMA))["additionalProperties"] is False
    any_of_them = tools.constrain(Tools(ALL, ALL), given)
    assert constraint(any_of_them, Structure.GRAMMAR).startswith("start:")


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (
            Sampling(structured_output=StructuredOutput(Structure.REGEX, ("a",))),
            "sampling.structured_output",
        ),
        (Sampling(min_tokens=3), "sampling.min_tokens"),
        (Sampling(ignore_eos=True), "sampling.ignore_eos"),
        (Sampling(bad_words=("a",)), "sampling.bad_words"),
        (Sampling(allowed_token_ids=(1,)), "sampling.allowed_token_ids"),
    ],
)
def test_what_could_forbid_a_call_is_refused(
    prompts: PromptEncoder, sampling: Sampling, field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        prompts.tools.constrain(Tools(ALL, ALL), sampling)
    assert refused.value.violations[0][0] == field
    assert prompts.tools.constrain(Tools(ALL), sampling) == sampling


def test_spelled_tokens_are_taken_away_where_they_stood() -> None:
    for cuts in (range(1, 30), [4, 9, 17], []):
        marked = MarkedText({9: Marker.CALLS, 8: Marker.ARGS}, lambda _: b"[")
        text = "[[TOOL_CALLS][[ARGS][["
        said = marked.add("", [1, 9, 1, 8, 1, 1])
        for start, end in itertools.pairwise([0, *cuts, len(text)]):
            said += marked.add(text[start:end], [])
        said += marked.end()
        joined = "".join(f"<{each.name}>" if isinstance(each, Marker) else each for each in said)
        assert joined == "[<CALLS>[<ARGS>[["


def test_what_only_began_like_a_token_is_text() -> None:
    marked = MarkedText({9: Marker.CALLS}, lambda _: b"x")
    assert marked.add("", [9]) == [Marker.CALLS]
    assert marked.add("[", [1]) == []
    assert marked.add("T", [1]) == []
    assert marked.add("{", [1]) == ["[T{"]
    assert marked.add("", [9]) == [Marker.CALLS]
    cut_off = MarkedText({9: Marker.CALLS}, lambda _: b"x")
    assert cut_off.add("[T", [9, 1]) == [Marker.CALLS]
    assert cut_off.end() == ["[T"]


def test_tokens_stand_where_their_bytes_are() -> None:
    pieces = {1: b"a", 2: b"\xc3", 3: b"\xa9", 4: b"", 9: b"?"}
    marked = MarkedText({9: Marker.CALLS}, pieces.__getitem__)
    assert marked.add("", [2]) == []
    assert marked.add("éa", [3, 1, 4]) == ["éa"]
    # A stop string may begin with what is held back.
    assert marked.add("", [1, 9, 1]) == []
    assert marked.add("aa", [9]) == ["a", Marker.CALLS, "a", Marker.CALLS]
    assert marked.add("", []) == []
    assert marked.add("tail", []) == ["tail"]


def load(directory: Path) -> PromptEncoder:
    return PromptEncoder.load(directory, VisionSpec.from_params(read_params(directory)))


def test_another_versions_form(v11_model_dir: Path, prompts: PromptEncoder) -> None:
    assert isinstance(prompts.tools, ToolFormat)
    named = load(v11_model_dir).tools.opening(Tools(ALL, ALL, is_single=True))
    assert named == prompts.tools.opening(Tools(ALL, (GO,), is_single=True)) == [CALLS]
