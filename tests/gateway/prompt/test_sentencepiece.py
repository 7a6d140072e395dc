"""Pixtral-Large's tokenizer, whose texts and control tokens are not as Tekken's."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pixtral_core.errors import InvalidRequest
from pixtral_core.model.checkpoint import read_spec
from pixtral_gateway.checks.conversation import Tool, Tools
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from pixtral_gateway.request import Delta, FinishReason

CALLS = 5
TOOLS = Tools((Tool("look", "", {"type": "object", "properties": {"at": {"type": "string"}}}),))
LIST = '[{"name": "look", "arguments": {"at": "[TOOL_CALLS] é🦜"}}]'


@pytest.fixture(scope="module")
def prompts(sentencepiece_model_dir: Path) -> PromptEncoder:
    return PromptEncoder.load(sentencepiece_model_dir, read_spec(sentencepiece_model_dir))


@pytest.mark.parametrize("text", ["Grüße, 你好! 🦜 naïve", " two  spaces\n\n日本"])
async def test_a_text_comes_back_with_the_names_of_its_control_tokens(
    prompts: PromptEncoder, text: str
) -> None:
    ids = await prompts.tokenize(text, bos=True)
    assert await prompts.detokenize([*ids, 3, 2]) == f"<s>{text}[INST]</s>"
    with pytest.raises(InvalidRequest):
        await prompts.detokenize([prompts.vocabulary_size])


# vLLM leaves out the space with which an answer begins where nothing but control tokens is before.
@pytest.mark.parametrize("first", ["Well é🦜.", " Well é🦜."])
@pytest.mark.parametrize("at_once", [False, True])
async def test_a_call_is_known_by_its_token(
    prompts: PromptEncoder, first: str, at_once: bool
) -> None:
    words = list(await prompts.tokenize("Well é🦜.", bos=False))
    called = list(await prompts.tokenize(LIST, bos=False))
    deltas = [
        Delta(0, first, words, None),
        Delta(0, "[TOOL_CALLS]", [CALLS], None),
        Delta(0, LIST, called, None),
        Delta(0, "", [2], FinishReason.STOP),
    ]
    if at_once:
        whole = f"{first}[TOOL_CALLS]{LIST}"
        deltas = [Delta(0, whole, [*words, CALLS, *called, 2], FinishReason.STOP)]
    reader = prompts.tools.reader(TOOLS)
    text, arguments = said([reader.read(delta) for delta in deltas])
    assert text == first
    assert arguments == '{"at": "[TOOL_CALLS] é🦜"}'


def said(deltas: Sequence[Delta]) -> tuple[str, str]:
    assert deltas[-1].finish_reason is FinishReason.TOOL_CALLS
    pieces = [call for delta in deltas for call in delta.tool_calls]
    assert pieces[0].name == "look"
    return "".join(each.text for each in deltas), "".join(each.arguments for each in pieces)


async def test_a_forced_call_is_begun_by_its_token(prompts: PromptEncoder) -> None:
    assert prompts.tools.opening(Tools(TOOLS.offered, forced=TOOLS.offered)) == [CALLS]
    assert not prompts.tools.thinks
