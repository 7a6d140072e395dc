"""A structure that no answer can be held to, or only at everybody's cost, stays out of vLLM's
loop."""

import json
import warnings
from typing import Any

import pytest
import xgrammar

from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from pixtral_decoder.engine.sampling_params import vllm_sampling
    from pixtral_decoder.grammar import grammar_check
    from pixtral_decoder.grammar.grammar_check import NotTaken, StructureCheck, compiling

NODE = {
    "type": "object",
    "properties": {
        # Names of keywords, and none here.
        "not": {"type": "string", "maxLength": 2000},
        "if": {"enum": ["$ref", {"not": 1}]},
        "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}},
    },
    "required": ["not", "if", "kids"],
}
TREE = {"$defs": {"node": NODE}, "$ref": "#/$defs/node"}
WIDE = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(300)}}
JSON, REGEX, GRAMMAR = Structure.JSON_SCHEMA, Structure.REGEX, Structure.GRAMMAR


async def check(structure: Structure, *values: Any) -> None:
    texts = tuple(value if isinstance(value, str) else json.dumps(value) for value in values)
    sampling = Sampling(structured_output=StructuredOutput(structure, texts))
    await StructureCheck().check(vllm_sampling(sampling, {}))


@pytest.mark.parametrize(
    ("structure", "value"),
    [
        (JSON, TREE),
        (JSON, WIDE),
        (JSON, {"type": "string", "format": "date-time"}),
        (REGEX, r"[a-z0-9.]{1,64}@([a-z0-9]+\.){1,5}[a-z]{2,10}"),
        (REGEX, r"([^\n]{1,200}\n){1,30}"),
        (REGEX, r"(\w+ ?)+"),
        (GRAMMAR, 'root ::= e\ne ::= e [-+*/] e | [0-9]+ | "(" e ")"'),
        (GRAMMAR, 'start: item ("," item)*\nitem: /[a-z]+/'),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_is_in_use_is_taken(structure: Structure, value: Any) -> None:
    await check(structure, value)


async def checked(structure: Structure, text: str, *, on_one_line: bool = False) -> Any:
    """vLLM's StructuredOutputsParams, as they are sent to the engine."""
    wanted = StructuredOutput(structure, (text,), disable_any_whitespace=on_one_line)
    parameters = vllm_sampling(Sampling(structured_output=wanted), {})
    await StructureCheck().check(parameters)
    return parameters.structured_outputs


def accepts(structure: Any, answer: str) -> bool:
    """Whether an answer is of the structure as vLLM compiles it."""
    vocabulary = xgrammar.TokenizerInfo([bytes([i]) for i in range(256)], stop_token_ids=[0])
    compiled = compiling(structure)(xgrammar.GrammarCompiler(vocabulary))
    matcher = xgrammar.GrammarMatcher(compiled)
    return matcher.accept_string(answer) and matcher.accept_token(0)


async def test_json_on_one_line() -> None:
    structure = await checked(JSON, json.dumps(TREE), on_one_line=True)
    answer = '{"not": "a", "if": "$ref", "kids": []}'
    assert accepts(structure, answer)
    assert not accepts(structure, answer.replace("[]", "[ ]"))
    assert not accepts(structure, answer.replace(": ", ":  "))


@pytest.mark.parametrize(
    ("structure", "text"),
    [
        (JSON, json.dumps({"type": "string", "maxLength": 3})),
        (GRAMMAR, 'start: %json {"type": "string", "maxLength": 3}'),
        (GRAMMAR, 'root ::= "a"'),
        (REGEX, "[a-z]+"),
    ],
)
async def test_what_is_asked_for_gets_to_vllm_as_it_stands(structure: Structure, text: str) -> None:
    sent = await checked(structure, text)
    assert [sent.json, sent.grammar, sent.regex].count(None) == 2
    assert text in (sent.json, sent.grammar, sent.regex)


# In front of a hexadecimal digit, as xgrammar prints it, each reads as another character.
NAMES = ("Größe", "éa", "ß1", "\x80f", "ÿ0", "日a", "naïve", "🙂b")


@pytest.mark.parametrize("name", NAMES)
async def test_an_answer_has_the_characters_that_the_structure_asks_for(name: str) -> None:
    schema = {
        "type": "object",
        "properties": {name: {"const": name}},
        "required": [name],
        "additionalProperties": False,
    }
    answer = json.dumps({name: name}, ensure_ascii=False)
    escaped = json.dumps(schema)
    plain = json.dumps(schema, ensure_ascii=False)
    for text in (escaped, plain):
        assert accepts(await checked(JSON, text), answer)
        assert accepts(await checked(JSON, text, on_one_line=True), answer)
        assert accepts(await checked(GRAMMAR, f"start: %json {text}"), answer)
    assert accepts(await checked(GRAMMAR, f'root ::= "{name}"'), name)
    assert accepts(await checked(GRAMMAR, f'start: "{name}"'), name)
    assert accepts(await checked(REGEX, name), name)
    assert accepts(await checked(Structure.CHOICE, name), name)


@pytest.mark.parametrize(
    ("structure", "text"),
    [
        (JSON, json.dumps({"const": "é" * 10_000})),
        (JSON, json.dumps({"enum": ["x" * 3_000, "x" * 2_999 + "y"]})),
        (GRAMMAR, 'root ::= "a"{5000} [bc]'),
    ],
    ids=["constant", "alternatives", "repetition"],
)
async def test_what_has_only_one_way_to_go_on_is_no_work(structure: Structure, text: str) -> None:
    await check(structure, text)


@pytest.mark.parametrize(
    "grammar",
    ["root ::= root", 'root ::= "a" end\nend ::= end', 'root ::= "a" | "b" end\nend ::= end'],
)
async def test_a_grammar_that_leads_nowhere(grammar: str) -> None:
    with pytest.raises(NotTaken):
        await check(GRAMMAR, grammar)


async def test_a_class_of_a_caret_is_one() -> None:
    pattern = r"[\^é]{1,3}"
    for structure, quote in (
        (await checked(REGEX, pattern), ""),
        (await checked(JSON, json.dumps({"type": "string", "pattern": f"^{pattern}$"})), '"'),
    ):
        assert accepts(structure, f"{quote}^é{quote}")
        assert not accepts(structure, f"{quote}a{quote}")


async def test_many_choices_are_taken() -> None:
    await check(Structure.CHOICE, *(f'choice "{i}"' for i in range(256)))


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"type": "string"}},
        {"type": "object", "properties": {"a": {"if": {}, "then": {}}}},
        {"anyOf": [{"type": "array", "items": {"not": {}}}]},
        {"$defs": {"a": {"$ref": "https://example.com/"}}, "$ref": "#/$defs/a"},
        {"$dynamicRef": "#a"},
        {"type": "array", "uniqueItems": True},
        {"type": "string", "format": []},
        {"type": "what"},
        {"$ref": "#/absent"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/a~1b"}},
            "$defs": {"a/b": {"$ref": "#/$defs/c%20d"}, "c d": {"$ref": "#/$defs/a~1b"}},
        },
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_schema_that_answers_would_not_be_held_to(schema: Any) -> None:
    with pytest.raises(NotTaken):
        await check(JSON, schema)
    with pytest.raises(NotTaken):
        await check(GRAMMAR, f'start: "a" b // %json\nb: %json {json.dumps(schema)}')


async def test_what_is_at_fault_is_told_with_its_place() -> None:
    tags = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    schema = {"type": "object", "properties": {"tags": tags}}
    told = "the engine cannot enforce uniqueItems at #/properties/tags"
    with pytest.raises(NotTaken, match=f"^{told}"):
        await check(JSON, schema)
    fine, wrong = json.dumps({"type": "integer"}), json.dumps(schema)
    with pytest.raises(NotTaken, match=f"^schema 2 of the grammar: {told}"):
        await check(GRAMMAR, f"start: a | b\na: %json {fine}\nb: %json {wrong}")
    # Where the type is not given, too.
    del tags["type"]
    with pytest.raises(NotTaken, match=f"^{told}"):
        await check(JSON, schema)
    with pytest.raises(NotTaken, match="takes too long"):
        await check(REGEX, "(a{1,1000}){1,1000}")


@pytest.mark.parametrize(
    ("structure", "value", "told"),
    [
        (JSON, {"items": {"type": "smell"}}, "^type at #/items must be of string, number"),
        (JSON, {"items": {"$ref": "#/$defs/a"}}, r"^\$ref at #/items names nothing"),
        (JSON, {"enum": []}, "^is not a JSON Schema"),
        (REGEX, "(", "^is not a regular expression"),
        (GRAMMAR, 'root ::= "a" b', "^is not a grammar"),
        (GRAMMAR, 'start: "a" b', "^is not a grammar"),
    ],
)
async def test_a_malformed_structure_is_told_as_such(
    structure: Structure, value: Any, told: str
) -> None:
    with pytest.raises(NotTaken, match=told):
        await check(structure, value)


@pytest.mark.parametrize(
    ("schema", "taken", "refused"),
    [
        ({"minLength": 3}, ['"abc"'], ['"ab"', "12"]),
        ({"pattern": "^a+$"}, ['"aa"'], ['"ab"']),
        ({"minimum": 3}, ["3", "3.5"], ["2", '"a"']),
        ({"maxItems": 1}, ["[1]", "[]"], ["[1, 2]"]),
        ({"maximum": 3, "maxLength": 1}, ["3", '"a"'], ["4", '"ab"']),
        (
            {"type": "object", "properties": {"a": {"maxLength": 1}}},
            ['{"a": "b"}'],
            ['{"a": "bc"}'],
        ),
        ({"type": "object", "required": ["a"]}, ['{"a": 1}'], ["{}", '{"b": 1}']),
        ({"type": "object", "minProperties": 1}, ['{"a": 1}', '{"a": 1, "b": []}'], ["{}"]),
        (
            {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["a"]},
            ['{"b": null, "a": [1]}', '{"a": 1}'],
            ["{}", '{"b": null}'],
        ),
    ],
)
async def test_what_a_schema_means_and_does_not_say_is_held_to(
    schema: Any, taken: list[str], refused: list[str]
) -> None:
    structure = await checked(JSON, json.dumps(schema))
    assert [answer for answer in (*taken, *refused) if accepts(structure, answer)] == taken


async def test_a_pattern_is_held_to_in_a_string_of_json() -> None:
    schema = json.dumps({"type": "string", "pattern": "^[O-ß]?.ß{0,1}$"})
    for structure in (
        await checked(JSON, schema),
        await checked(JSON, schema, on_one_line=True),
        await checked(GRAMMAR, f"start: /%json\\// %json {schema}"),
    ):
        before = "%json/" if structure.grammar else ""
        for answer in ("ß", "P", "éß", "🙂"):
            assert accepts(structure, f'{before}"{answer}"')
        for answer in ("\\", '"', "\t", "\\ß"):
            assert not accepts(structure, f'{before}"{answer}"')
    with pytest.raises(NotTaken):
        await check(JSON, {"items": {"type": "string", "pattern": r"^C:\\"}})


@pytest.mark.parametrize(
    ("structure", "value"),
    [
        (REGEX, "(a{1,1000}){1,1000}"),
        (REGEX, "((((a*)*)*)*b?)*"),
        (REGEX, "((((b*)*)*)*a?)*"),
        (GRAMMAR, 'root ::= (s s s)*\ns ::= "a" | s s | ""'),
        (GRAMMAR, 'root ::= s\ns ::= s s s | s s | "a"'),
        # Bytes that must come are not steps of the trial.
        (GRAMMAR, 'root ::= "a"{300} s\ns ::= "b" | s s | s s s'),
        (GRAMMAR, 'root ::= "é"{1500} s\ns ::= "b" | s s | s s s'),
        (JSON, {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_grammar_that_slows_every_step_of_the_engine(
    structure: Structure, value: Any
) -> None:
    with pytest.raises(NotTaken):
        await check(structure, value)


TEXT = "a text that may quote a schema"


@pytest.mark.parametrize(("error", "level"), [(ValueError, "DEBUG"), (AttributeError, "WARNING")])
async def test_an_error_of_ours_is_logged_with_its_place(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[Exception],
    level: str,
) -> None:
    def broken(_: Any) -> None:
        raise error(TEXT)

    monkeypatch.setattr(grammar_check, "validate", broken)
    caplog.set_level("DEBUG", logger="pixtral_core.errors")
    with pytest.raises(NotTaken):
        await check(REGEX, "[a-z]+")
    (record,) = caplog.records
    assert record.levelname == level
    assert error.__name__ in record.message
    assert "in broken" in record.message
    assert TEXT not in record.message


async def test_a_structure_that_is_wrong_logs_nothing_that_an_operator_would_see(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="pixtral_core.errors")
    for structure, text in (
        (JSON, "{"),
        (JSON, {"type": "nothing"}),
        (REGEX, "("),
        (REGEX, "(?<!a)b"),
        (GRAMMAR, "root ::= ("),
        (GRAMMAR, "start: ("),
    ):
        with pytest.raises(NotTaken):
            await check(structure, text)
    assert not caplog.records
