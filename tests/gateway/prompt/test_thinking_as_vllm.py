"""The gateway parts thought from answer as vLLM's own reasoning parser does."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from pixtral_core.model.vision_spec import VisionSpec
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from tests.gateway.prompt.thoughts import ANSWERS, deltas, letter, read

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.reasoning import ReasoningParserManager
    from vllm.tokenizers.mistral import MistralTokenizer


@pytest.fixture(scope="module")
def parser_of(thinking_model_dir: Path) -> Any:
    tokenizer = MistralTokenizer.from_pretrained(thinking_model_dir)
    parser = ReasoningParserManager.get_reasoning_parser("mistral")
    return lambda: parser(tokenizer)


# Not those spelled out in a text, which vLLM takes for control tokens, too.
@pytest.mark.parametrize(
    "name", [name for name, spelled in ANSWERS if spelled and "out" not in name]
)
def test_thought_and_answer_are_vllms(
    name: str,
    parser_of: Any,
    thinking_model_dir: Path,
    spec: VisionSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens, _, _ = ANSWERS[name, True]
    prompts = PromptEncoder.load(thinking_model_dir, spec)
    monkeypatch.setattr(prompts.tools, "_bytes_of", letter)
    thought, said, _ = read(prompts, deltas(tokens, []))
    request: Any = None
    theirs = parser_of().extract_reasoning("".join(text for _, text in tokens), request)
    assert (thought or None, said or None) == tuple(each or None for each in theirs)
