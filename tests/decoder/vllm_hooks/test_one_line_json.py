"""JSON on one line, as vLLM's backend compiles it."""

import json
import warnings
from inspect import unwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.tokenizers.mistral import MistralTokenizer
    from vllm.v1.structured_output.backend_types import StructuredOutputOptions
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
    from vllm.v1.structured_output.request import get_structured_output_key

    from pixtral_decoder.vllm_hooks import grammar_vocabulary, one_line_json

# vLLM's own.
pytestmark = pytest.mark.filterwarnings("ignore:max_rollback_tokens:DeprecationWarning")

CONFIG: Any = SimpleNamespace(
    structured_outputs_config=SimpleNamespace(disable_any_whitespace=False),
    model_config=None,
    speculative_config=None,
)
# A name that xgrammar prints so that it reads another.
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"Größe": {"type": "integer"}, "b": {"type": "string"}},
        "required": ["Größe", "b"],
        "additionalProperties": False,
    }
)
ON_ONE_LINE = '{"Größe": 1, "b": "é🙂"}'
WITH_SPACE = '{"Größe":  1, "b": "é🙂" }'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Any:
    return MistralTokenizer.from_pretrained(str(checkpoint))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM has it, though an engine may have been started in this process before."""
    for name in ("__post_init__", "compile_grammar"):
        monkeypatch.setattr(XgrammarBackend, name, unwrap(getattr(XgrammarBackend, name)))
    grammar_vocabulary.spell_in_bytes()


@pytest.fixture
def hooked(plain: None) -> None:
    one_line_json.compile_marked()


def accepts(tokenizer: Any, schema: str, answer: str) -> bool:
    backend = XgrammarBackend(
        vllm_config=CONFIG, tokenizer=tokenizer, vocab_size=tokenizer.vocab_size
    )
    grammar = backend.compile_grammar(StructuredOutputOptions.JSON, schema)
    tokens = tokenizer.encode(answer, add_special_tokens=False)
    return bool(grammar.accept_tokens("request", [*tokens, tokenizer.eos_token_id]))


def test_still_there() -> None:
    assert_still_there(one_line_json)


@pytest.mark.usefixtures("plain")
def test_still_needed_while_vllm_knows_white_space_for_a_whole_engine_only(tokenizer: Any) -> None:
    """Once this fails, `pixtral_decoder.vllm_hooks.one_line_json` can go."""
    wanted = StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True)
    kind, schema = get_structured_output_key(wanted)
    assert kind == StructuredOutputOptions.JSON
    assert accepts(tokenizer, schema, WITH_SPACE)


@pytest.mark.usefixtures("hooked")
def test_a_marked_schema_is_answered_on_one_line(tokenizer: Any) -> None:
    marked = one_line_json.on_one_line(SCHEMA)
    assert accepts(tokenizer, marked, ON_ONE_LINE)
    assert not accepts(tokenizer, marked, WITH_SPACE)


@pytest.mark.usefixtures("hooked")
def test_a_schema_that_is_not_marked_is_vllms(tokenizer: Any) -> None:
    assert accepts(tokenizer, SCHEMA, ON_ONE_LINE)
    assert accepts(tokenizer, SCHEMA, WITH_SPACE)


def test_a_mark_is_at_the_top_of_a_schema_alone() -> None:
    marked = one_line_json.on_one_line(SCHEMA)
    assert one_line_json.is_on_one_line(marked)
    assert not one_line_json.is_on_one_line(SCHEMA)
    assert not one_line_json.is_on_one_line(json.dumps({"items": json.loads(marked)}))
    assert one_line_json.on_one_line("true") == "true"
