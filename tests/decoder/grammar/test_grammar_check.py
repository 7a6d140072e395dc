"""What an answer cannot be held to, or only at everybody's cost, does not get to vLLM's loop."""

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
    from pixtral_decoder.grammar.grammar_check import NotTaken, StructureCheck

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


async def test_json_on_one_line_becomes_a_grammar() -> None:
    wanted = StructuredOutput(JSON, (json.dumps(TREE),), disable_any_whitespace=True)
    parameters = vllm_sampling(Sampling(structured_output=wanted), {})
    await StructureCheck().check(parameters)

    structure = parameters.structured_outputs
    assert structure.json is None
    answer = '{"not": "a", "if": "$ref", "kids": []}'
    assert accepts(structure.grammar, answer)
    assert not accepts(structure.grammar, answer.replace("[]", "[ ]"))
    assert not accepts(structure.grammar, answer.replace(": ", ":  "))


@pytest.mark.parametrize("on_one_line", [False, True])
@pytest.mark.parametrize("is_lark", [False, True])
async def test_a_text_with_a_length_is_json(is_lark: bool, on_one_line: bool) -> None:
    schema = json.dumps({"type": "array", "items": {"type": "string", "maxLength": 3}})
    wanted = StructuredOutput(JSON, (schema,), disable_any_whitespace=on_one_line)
    if is_lark:
        wanted = StructuredOutput(GRAMMAR, (f"start: %json {schema}",))
    parameters = vllm_sampling(Sampling(structured_output=wanted), {})
    await StructureCheck().check(parameters)

    grammar = parameters.structured_outputs.grammar
    assert accepts(grammar, '["\U0001f642é/", "", "\x7f {"]')
    assert not accepts(grammar, '["abcd"]')
    taken = [chr(i) for i in range(1, 128) if accepts(grammar, f'["{chr(i)}"]')]
    assert taken == [chr(i) for i in range(0x20, 128) if chr(i) not in '"\\']


def accepts(grammar: str, answer: str) -> bool:
    vocabulary = xgrammar.TokenizerInfo([bytes([i]) for i in range(256)], stop_token_ids=[0])
    compiled = xgrammar.GrammarCompiler(vocabulary).compile_grammar(grammar)
    matcher = xgrammar.GrammarMatcher(compiled)
    return matcher.accept_string(answer) and matcher.accept_token(0)


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
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_schema_that_answers_would_not_be_held_to(schema: Any) -> None:
    with pytest.raises(NotTaken):
        await check(JSON, schema)


@pytest.mark.parametrize(
    ("structure", "value"),
    [
        (REGEX, "(a{1,1000}){1,1000}"),
        (REGEX, "((((a*)*)*)*b?)*"),
        (REGEX, "((((b*)*)*)*a?)*"),
        (GRAMMAR, 'root ::= (s s s)*\ns ::= "a" | s s | ""'),
        (GRAMMAR, 'root ::= s\ns ::= s s s | s s | "a"'),
        (JSON, {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_grammar_that_slows_every_step_of_the_engine(
    structure: Structure, value: Any
) -> None:
    with pytest.raises(NotTaken):
        await check(structure, value)
