"""Patterns within JSON."""

import pytest

from pixtral_decoder.grammar.patterns import mended, needs_escapes, patterns


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("^[O-ß]$", r"^[O-\u00df]$"),
        ("🙂é+", r"\u{1f642}\u00e9+"),
        (r"\é\\é\\\éa\d", r"\u00e9\\\u00e9\\\u00e9a\d"),
        (r"[\^a]\[\^[^\^]", r"[a\^]\[\^[^\^]"),
        (r"[\^]+[\^-z][\^^][\^-]", r"\^+[_-z\^]\^[-\^]"),
        (r"[!-~]\\\]", r"[!-~]\\\]"),
    ],
)
def test_characters_beyond_ascii_are_spelled_by_their_codes(given: str, made: str) -> None:
    schema = {"properties": {"pattern": {"type": "string", "pattern": given}}, "const": "[O-ß]"}
    assert mended(schema) == {
        "properties": {"pattern": {"type": "string", "pattern": made}},
        "const": "[O-ß]",
    }
    assert mended({"patternProperties": {given: True}}) == {"patternProperties": {made: True}}
    assert list(patterns(schema)) == [("#/properties/pattern", given)]


@pytest.mark.parametrize(
    "pattern", [r"^\\s$", '^"$', '^a"b$', r"^\\+$", r"^[\x5c]{2}x$", r"^(ß|\^!\\)$"]
)
def test_what_always_has_a_character_that_json_escapes(pattern: str) -> None:
    assert needs_escapes(pattern)


@pytest.mark.parametrize(
    "pattern", [r"^\d{3}$", r"^[\\a]$", '^("|a)$', r"^.*$", r"^\\?$", "^[ -~]+$", "^$", "a"]
)
def test_what_can_do_without_them(pattern: str) -> None:
    assert not needs_escapes(pattern)
