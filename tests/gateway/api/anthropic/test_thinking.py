"""Anthropic's `thinking` and `effort` are what the model's template has for them."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from pixtral_core.errors import InvalidRequest
from pixtral_core.generation.sampling import Sampling
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_gateway.api.anthropic.thinking import SentThinking, effort_of, without_thought
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder, ThinkingFormat
from tests.support.fake_tiers import FakeDecoder
from tests.support.http_chat import CHAT, HELLO
from tests.support.http_messages import MESSAGES, ask
from tests.support.tekken_version import EFFORTS, THINKING

THINK, _ = THINKING[0]
ENABLED = {"type": "enabled", "budget_tokens": 1024}
ADAPTIVE = {"type": "adaptive"}
DISABLED = {"type": "disabled"}

NEVER = ThinkingFormat(None, ())
ALWAYS = ThinkingFormat(THINK, ())
AS_ASKED = ThinkingFormat(THINK, EFFORTS)
BY_DEGREES = ThinkingFormat(THINK, ("none", "low", "high"))


@pytest.fixture(scope="session")
def prompts(v15_model_dir: Path, spec: VisionSpec) -> PromptEncoder:
    return PromptEncoder.load(v15_model_dir, spec)


def test_the_tokenizer_says_how_its_models_think(
    prompts: PromptEncoder, thinking_model_dir: Path, model_dir: Path, spec: VisionSpec
) -> None:
    assert prompts.thinking == AS_ASKED
    assert PromptEncoder.load(thinking_model_dir, spec).thinking == ALWAYS
    assert PromptEncoder.load(model_dir, spec).thinking == NEVER


@pytest.mark.parametrize(
    ("thinking", "effort", "form", "expected"),
    [
        (None, None, AS_ASKED, ""),
        (ENABLED, None, AS_ASKED, "high"),
        (ADAPTIVE, None, AS_ASKED, "high"),
        (DISABLED, None, AS_ASKED, "none"),
        (DISABLED, "max", AS_ASKED, "none"),
        (None, "low", AS_ASKED, "high"),
        (ENABLED, "max", AS_ASKED, "high"),
        (ENABLED, "low", BY_DEGREES, "low"),
        (ENABLED, "medium", BY_DEGREES, "high"),
        (ENABLED, "max", ALWAYS, ""),
        (DISABLED, None, ALWAYS, ""),
        (ADAPTIVE, "max", NEVER, ""),
        (DISABLED, None, NEVER, ""),
    ],
)
def test_the_effort_is_the_next_that_the_template_has(
    thinking: dict[str, Any] | None, effort: Any, form: ThinkingFormat, expected: str
) -> None:
    sent = SentThinking.model_validate(thinking) if thinking else None
    assert effort_of(sent, effort, form) == expected


def test_a_model_that_cannot_think_is_not_made_to() -> None:
    with pytest.raises(InvalidRequest) as caught:
        effort_of(SentThinking.model_validate(ENABLED), None, NEVER)
    assert caught.value.violations[0][0] == "thinking.type"


def test_a_thought_that_is_unwanted_cannot_begin_where_the_template_has_no_word_for_it() -> None:
    disabled, enabled = map(SentThinking.model_validate, (DISABLED, ENABLED))
    plain = Sampling(logit_bias={5: 1.0})
    assert without_thought(plain, disabled, ALWAYS).logit_bias == {5: 1.0, THINK: -100}
    for thinking, form in (
        (None, ALWAYS),
        (enabled, ALWAYS),
        (disabled, NEVER),
        (disabled, AS_ASKED),
    ):
        assert without_thought(plain, thinking, form) == plain


async def test_the_prompt_says_how_much_to_think(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    def prompt() -> list[int]:
        (call,) = [decoder.calls.pop() for decoder in decoders if decoder.calls]
        return list(call.prompt_token_ids)

    expected = {}
    for effort in EFFORTS:
        (await http.post(CHAT, json={"messages": HELLO, "reasoning_effort": effort})).json()
        expected[effort] = prompt()
    assert expected["none"] != expected["high"]
    for fields, effort in (
        ({"thinking": ENABLED}, "high"),
        ({"thinking": ADAPTIVE}, "high"),
        ({"thinking": DISABLED}, "none"),
        ({"output_config": {"effort": "medium"}}, "high"),
    ):
        await ask(http, HELLO, **fields)
        assert prompt() == expected[effort]
        body = {"model": "pixtral-small", "messages": HELLO, **fields}
        counted = (await http.post(f"{MESSAGES}/count_tokens", json=body)).json()
        assert counted["input_tokens"] == len(expected[effort])
