"""Grammars of characters that are several tokens."""

import warnings
from inspect import unwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pixtral_core.model.tokenizer_file import SHIPPED
from pixtral_decoder.vllm_hooks import grammar_vocabulary
from pixtral_decoder.vllm_hooks.grammar_vocabulary import compile_json_apart, spell_in_bytes
from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.tokenizers.mistral import MistralTokenizer
    from vllm.v1.structured_output.backend_types import StructuredOutputOptions
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

# vLLM's own.
pytestmark = pytest.mark.filterwarnings("ignore:max_rollback_tokens:DeprecationWarning")

CONFIG: Any = SimpleNamespace(
    structured_outputs_config=SimpleNamespace(disable_any_whitespace=False),
    model_config=None,
    speculative_config=None,
)


@pytest.fixture
def tokenizer(checkpoint: Path) -> Any:
    return MistralTokenizer.from_pretrained(str(checkpoint))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM has it, though an engine may have been started in this process before."""
    for name in ("__post_init__", "compile_grammar"):
        monkeypatch.setattr(XgrammarBackend, name, unwrap(getattr(XgrammarBackend, name)))


@pytest.fixture
def spelt(plain: None) -> None:
    spell_in_bytes()
    compile_json_apart()


BOUNDED = '{"type": "string", "maxLength": 3}'


def holds(tokenizer: Any, kind: StructuredOutputOptions, held_to: str, answer: str) -> bool:
    """Whether vLLM's backend lets an answer through."""
    backend = XgrammarBackend(
        vllm_config=CONFIG, tokenizer=tokenizer, vocab_size=tokenizer.vocab_size
    )
    tokens = tokenizer.encode(answer, add_special_tokens=False)
    grammar = backend.compile_grammar(kind, held_to)
    return bool(grammar.accept_tokens("request", [*tokens, tokenizer.eos_token_id]))


@pytest.mark.usefixtures("spelt")
@pytest.mark.parametrize("text", ["cat", "é🙂", "日本語", "👩‍🚀", "\u2028"])
def test_an_answer_may_have_any_character(tokenizer: Any, text: str) -> None:
    grammar = f'root ::= "{text}"'
    assert holds(tokenizer, StructuredOutputOptions.GRAMMAR, grammar, text)
    assert not holds(tokenizer, StructuredOutputOptions.GRAMMAR, grammar, text[:-1])
    assert holds(tokenizer, StructuredOutputOptions.JSON, '{"type": "string"}', f'"{text}"')


@pytest.mark.usefixtures("spelt")
def test_the_tokenizer_itself_stays_as_it_is(tokenizer: Any) -> None:
    assert holds(tokenizer, StructuredOutputOptions.GRAMMAR, 'root ::= "a"', "a")
    assert all(isinstance(token, str) for token in tokenizer.vocab)


@pytest.mark.usefixtures("spelt")
@pytest.mark.parametrize("character", ["\t", "\x00", "\x1f"])
def test_no_string_of_json_has_a_control_character(tokenizer: Any, character: str) -> None:
    json, grammar = StructuredOutputOptions.JSON, StructuredOutputOptions.GRAMMAR
    assert holds(tokenizer, json, BOUNDED, '"aé"')
    assert not holds(tokenizer, json, BOUNDED, f'"a{character}"')
    assert not holds(tokenizer, grammar, f"start: %json {BOUNDED}", f'"a{character}"')
    # Other texts may have them.
    assert holds(tokenizer, StructuredOutputOptions.REGEX, "a.", f"a{character}")


@pytest.mark.usefixtures("plain")
def test_still_needed_while_a_bounded_string_of_json_may_have_control_characters(
    tokenizer: Any,
) -> None:
    """Once this fails, `compile_json_apart` can go."""
    assert holds(tokenizer, StructuredOutputOptions.JSON, BOUNDED, '"a\tb"')


@pytest.fixture
def sentencepiece(tmp_path: Path) -> Any:
    """Pixtral-Large's."""
    (tmp_path / "tokenizer.model.v7m1").symlink_to(SHIPPED[1].path)
    return MistralTokenizer.from_pretrained(str(tmp_path))


@pytest.mark.usefixtures("spelt")
def test_an_answer_of_sentencepiece_may_have_any_character_too(sentencepiece: Any) -> None:
    grammar = StructuredOutputOptions.GRAMMAR
    for text in ("cat", "é🙂", "日本語", "👩‍🚀"):
        assert holds(sentencepiece, grammar, f'root ::= " "? "{text}"', text)
        assert not holds(sentencepiece, grammar, f'root ::= " "? "{text}"', text[:-1])


@pytest.mark.usefixtures("spelt")
def test_a_control_token_of_sentencepiece_is_no_text(sentencepiece: Any) -> None:
    backend = XgrammarBackend(
        vllm_config=CONFIG, tokenizer=sentencepiece, vocab_size=sentencepiece.vocab_size
    )
    inst = sentencepiece.tokenizer.get_special_token("[INST]")
    grammar = backend.compile_grammar(StructuredOutputOptions.REGEX, r"\[INST\]")
    assert not grammar.accept_tokens("request", [inst])


def test_still_there() -> None:
    assert_still_there(grammar_vocabulary)


@pytest.mark.usefixtures("plain")
def test_still_needed_while_a_part_of_a_character_is_no_token(tokenizer: Any) -> None:
    """Once this fails, `pixtral_decoder.vllm_hooks.grammar_vocabulary` can go."""
    assert not holds(tokenizer, StructuredOutputOptions.GRAMMAR, 'root ::= "é🙂"', "é🙂")
