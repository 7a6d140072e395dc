"""Tool calls in what a model says, however it comes in pieces."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixtral_gateway.prompt.tool_parser import CallReader, Marker, Reading
from pixtral_gateway.request import ToolCallDelta

Said = str | Marker
Form = Callable[[CallReader], Reading]

LISTED, NAMED, SPELLED = CallReader.listed, CallReader.named, CallReader.spelled
CALLS, ARGS, CALL_ID = Marker.CALLS, Marker.ARGS, Marker.CALL_ID


@dataclass
class Answer:
    text: str
    calls: list[tuple[str, str]]
    ids: list[str]


def read(form: Form, said: Iterable[Said], *, has_begun: bool = False) -> Answer:
    reader = CallReader(form, has_begun=has_begun)
    told = [each for part in said for each in reader.add(part)] + reader.end()
    assert not reader.end()
    answer = Answer("", [], [])
    for piece in told:
        if isinstance(piece, str):
            answer.text += piece
        elif piece.id:
            assert piece.index == len(answer.calls)
            answer.calls.append((piece.name, piece.arguments))
            answer.ids.append(piece.id)
        else:
            assert not piece.name
            name, arguments = answer.calls[piece.index]
            answer.calls[piece.index] = (name, arguments + piece.arguments)
    return answer


def either(said: list[Said]) -> tuple[list[Said], list[Said]]:
    return said, letters(said)


def letters(said: Iterable[Said]) -> list[Said]:
    return [letter for part in said for letter in (part if isinstance(part, str) else [part])]


LOOK = '{"at": "a {cat}, \\"[x]\\"", "n": [1, {"é": null}]}'
LISTS = [
    (f'[{{"name": "look", "arguments": {LOOK}}}]', [("look", LOOK)]),
    (
        f'[{{"name":"look","arguments":{LOOK}}} ,\n{{"name": "b-2_C", "arguments": {{}}}}] ',
        [("look", LOOK), ("b-2_C", "{}")],
    ),
    (f'[{{"arguments": {LOOK}, "name": "look"}}]', [("look", LOOK)]),
    (f'[{{"id": "x", "n": -1.5e3, "name": "look", "arguments": {LOOK}}}]', [("look", LOOK)]),
    (f'[{{"name": "look", "arguments": {LOOK}, "id": [1, "]"]}}]', [("look", LOOK)]),
    ('[{"name": "look"}]', [("look", "{}")]),
    (f'[{{"name": "look", "arguments": {json.dumps(LOOK)}}}]', [("look", LOOK)]),
    ('[{"name": "l\\u006fok", "arguments": {}}]', [("look", "{}")]),
]


@pytest.mark.parametrize(("text", "calls"), LISTS)
@pytest.mark.parametrize("before", ["", "Let me see. "])
def test_a_list_of_calls(text: str, calls: list[tuple[str, str]], before: str) -> None:
    for said in either([before, CALLS, text]):
        answer = read(LISTED, said)
        assert (answer.text, answer.calls) == (before, calls)
    assert read(LISTED, letters([text]), has_begun=True).calls == calls


NAMES: list[tuple[list[Said], list[tuple[str, str]]]] = [
    ([CALLS, "look", ARGS, LOOK], [("look", LOOK)]),
    ([CALLS, "look", ARGS, LOOK, CALLS, "b-2", ARGS, "{}"], [("look", LOOK), ("b-2", "{}")]),
    ([CALLS, " look", ARGS, " ", LOOK, " \n"], [("look", LOOK)]),
    ([CALLS, "look", CALL_ID, "abcdef123", ARGS, LOOK], [("look", LOOK)]),
    ([CALLS, "look", LOOK], [("look", LOOK)]),
]


@pytest.mark.parametrize(("said", "calls"), NAMES)
@pytest.mark.parametrize("before", ["", "Let me see. "])
def test_calls_by_name(said: list[Said], calls: list[tuple[str, str]], before: str) -> None:
    for pieces in ([before, *said], letters([before, *said])):
        answer = read(NAMED, pieces)
        assert (answer.text, answer.calls) == (before, calls)


def test_control_tokens_are_text_where_an_answer_is_held_to_spell_them() -> None:
    text = f"look[ARGS]{LOOK}[TOOL_CALLS]b[ARGS]{{}}"
    for said in ([text], letters([text])):
        answer = read(SPELLED, said, has_begun=True)
        assert (answer.text, answer.calls) == ("", [("look", LOOK), ("b", "{}")])
    named = read(lambda reader: reader.called("look"), letters([LOOK]), has_begun=True)
    assert (named.text, named.calls) == ("", [("look", LOOK)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I do not know.",
        "[]",
        "[1]",
        "[{}]",
        '{"name": "look", "arguments": {}}',
        '[{"name": "look", "arguments": [1]}]',
        '[{"name": "look", "arguments": null}]',
        '[{"name": "no such name", "arguments": {}}]',
        '[{"name": "", "arguments": {}}]',
        '[{"name": 5, "arguments": {}}]',
        '[{"arguments": {"a": 1}}]',
        '[{"name" "look"}]',
        '[{"name": "look", arguments: {}}]',
        '[{"name": "\\x", "arguments": {}}]',
        '[{"name": "look"',
        '[{"arguments": {"a": "b',
        f'[{{"name": "{"a" * 5000}',
        f'[{{"n": {"1" * 5000}',
        f'[{" " * 5000}{{"name": "look"}}]x',
    ],
)
def test_what_is_no_list_of_calls_is_text(text: str) -> None:
    for said in either([CALLS, text]):
        answer = read(LISTED, said)
        assert (answer.text, answer.calls) == (text, [])


@pytest.mark.parametrize(
    "said",
    [
        ["I do not know."],
        ["look", ARGS, "[1]"],
        ["look", ARGS],
        ["look", CALL_ID, "abc"],
        ["no such name", ARGS, "{}"],
        [ARGS, "{}"],
        ["a" * 5000],
        ["look", CALL_ID, "a" * 5000],
    ],
)
def test_what_is_no_call_by_name_is_text(said: list[Said]) -> None:
    text = "".join(part for part in said if isinstance(part, str))
    for pieces in ([CALLS, *said], letters([CALLS, *said])):
        answer = read(NAMED, pieces)
        assert (answer.text, answer.calls) == (text, [])


@pytest.mark.parametrize(
    ("text", "call", "rest"),
    [
        ('[{"name": "look", "arguments": {"at": "c', ("look", '{"at": "c'), ""),
        ('[{"name": "look", "arguments": {}}] So.', ("look", "{}"), "So."),
        ('[{"name": "look", "arguments": {}} no', ("look", "{}"), "} no"),
        ('[{"name": "look", "arguments": {}}, {"name"', ("look", "{}"), '}, {"name"'),
        (
            '[{"name": "look", "arguments": {}, "arguments": {"a": 1}}]',
            ("look", "{}"),
            ', "arguments": {"a": 1}}]',
        ),
    ],
)
def test_a_call_that_was_begun_stays_one(text: str, call: tuple[str, str], rest: str) -> None:
    for said in either([CALLS, text]):
        answer = read(LISTED, said)
        assert (answer.text, answer.calls) == (rest, [call])


def test_a_second_marker_begins_anew() -> None:
    answer = read(LISTED, [CALLS, '[{"na', CALLS, '[{"name": "look", "arguments": {}}]'])
    assert (answer.text, answer.calls) == ('[{"na', [("look", "{}")])


def test_what_spells_the_marker_is_text() -> None:
    text = '[TOOL_CALLS][{"name": "look", "arguments": {}}]'
    for form in (LISTED, NAMED):
        answer = read(form, letters([text]))
        assert (answer.text, answer.calls) == (text, [])


def test_a_call_is_told_as_it_comes() -> None:
    reader = CallReader(LISTED)
    told: list[list[str | ToolCallDelta]] = [
        reader.add(said)
        for said in (CALLS, '[{"name": "look"', ', "arguments": ', '{"at": ', '"cat"}', "}]")
    ]
    assert [[type(each) for each in part] for part in told] == [
        [], [], [], [ToolCallDelta, ToolCallDelta], [ToolCallDelta], []
    ]  # fmt: skip
    pieces = [piece for part in told for piece in part if isinstance(piece, ToolCallDelta)]
    assert [piece.arguments for piece in pieces] == ["", '{"at": ', '"cat"}']


def test_ids_are_mistrals_and_no_two_alike() -> None:
    text = ", ".join(['{"name": "look", "arguments": {}}'] * 50)
    ids = read(LISTED, [CALLS, f"[{text}]"]).ids
    assert len(set(ids)) == 50
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", each) for each in ids)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MADE = st.lists(
    st.tuples(
        st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True),
        st.dictionaries(st.text(), VALUES, max_size=3),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=150)
@given(MADE, st.booleans(), st.text(max_size=5), st.lists(st.integers(1, 9)))
def test_any_calls_in_any_pieces(
    made: Sequence[tuple[str, dict[str, object]]], ascii_: bool, before: str, cuts: list[int]
) -> None:
    calls = [(name, json.dumps(arguments, ensure_ascii=ascii_)) for name, arguments in made]
    objects = [f'{{"name": "{name}", "arguments": {arguments}}}' for name, arguments in calls]
    listed: list[Said] = [before, CALLS, f"[{', '.join(objects)}]"]
    named: list[Said] = [before]
    for name, arguments in calls:
        named += [CALLS, name, ARGS, arguments]
    for form, said in ((LISTED, listed), (NAMED, named)):
        answer = read(form, in_pieces(said, cuts))
        assert (answer.text, answer.calls) == (before, calls)


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(list(Marker))
        | st.text(alphabet='[]{}":,\\ \nab1', max_size=12)
        | st.sampled_from(['[{"name": "a", ', '"arguments": {', "}}]", "}", '"'])
    ),
    st.lists(st.integers(1, 9)),
)
def test_nothing_is_lost_and_pieces_make_no_difference(said: list[Said], cuts: list[int]) -> None:
    for form in (LISTED, NAMED):
        at_once, in_parts = read(form, said), read(form, in_pieces(said, cuts))
        assert (at_once.text, at_once.calls) == (in_parts.text, in_parts.calls)
        if not at_once.calls:
            given_text = "".join(part for part in said if isinstance(part, str))
            assert re.sub(r"\s", "", at_once.text) == re.sub(r"\s", "", given_text)


def in_pieces(said: Iterable[Said], cuts: Sequence[int]) -> list[Said]:
    pieces: list[Said] = []
    lengths = iter(cuts)
    for part in said:
        if isinstance(part, Marker):
            pieces.append(part)
            continue
        while part:
            length = next(lengths, len(part))
            pieces.append(part[:length])
            part = part[length:]
    return pieces
