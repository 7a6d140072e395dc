"""Thoughts are parted from answers, and stand in prompts as mistral_common has them."""

from pathlib import Path
from typing import Any

import pytest
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from pixtral_core.errors import InvalidRequest
from pixtral_core.model.vision_spec import VisionSpec, read_params
from pixtral_gateway.api.openai.messages import to_conversation
from pixtral_gateway.api.openai.request_schema import Message
from pixtral_gateway.checks.conversation import NO_TOOLS, Tool, Tools
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from tests.gateway.prompt.thoughts import (
    ANSWERS,
    ARGS,
    CALLS,
    END_THINK,
    THINK,
    control,
    deltas,
    letter,
    read,
    words,
)

LOOK = Tools((Tool("look", "", {"type": "object", "properties": {}}),))

USER = {"role": "user", "content": "How many?"}
THOUGHT = {"type": "thinking", "thinking": "One and one."}
SAID = {"type": "text", "text": "Two."}
LISTS: list[list[dict[str, Any]]] = [
    [USER],
    [USER, {"role": "assistant", "content": [THOUGHT, SAID]}, USER],
    [USER, {"role": "assistant", "content": [THOUGHT, THOUGHT, SAID]}, USER],
    [USER, {"role": "assistant", "content": "Two.", "reasoning": "One and one."}, USER],
    [USER, {"role": "assistant", "content": "Two.", "reasoning_content": "One and one."}, USER],
    [USER, {"role": "assistant", "content": None, "reasoning": "One and one."}, USER],
    [USER, {"role": "assistant", "content": "", "reasoning": "One."}, USER],
    [
        USER,
        {
            "role": "assistant",
            "content": "",
            "reasoning": "Look.",
            "tool_calls": [{"id": "abcdefghi", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "2"},
    ],
]
SHOWN: list[list[dict[str, Any]]] = [
    [{"role": "system", "content": [SAID, THOUGHT, SAID]}, USER],
    [{"role": "system", "content": [THOUGHT]}, USER],
]


class Model:
    def __init__(self, directory: Path) -> None:
        spec = VisionSpec.from_params(read_params(directory))
        self.prompts = PromptEncoder.load(directory, spec)
        self._tokenizer: MistralTokenizer[Any, Any, Any, Any, Any] = MistralTokenizer.from_file(
            directory / "tekken.json"
        )

    def reference(self, messages: list[dict[str, Any]], **fields: Any) -> list[int]:
        request = ChatCompletionRequest.from_openai([dict(each) for each in messages], **fields)
        return list(self._tokenizer.encode_chat_completion(request).tokens)

    def encoded(
        self, messages: list[dict[str, Any]], *, goes_on: bool = False, effort: str = ""
    ) -> list[int]:
        conversation = to_conversation(
            [Message.model_validate(each) for each in messages],
            NO_TOOLS,
            max_images=4,
            context_length=10_000,
            goes_on=goes_on,
            reasoning_effort=effort,
        )
        self.prompts.check_now(conversation)
        return list(self.prompts.encode_now(conversation, []).token_ids)


@pytest.fixture(scope="module")
def magistral(thinking_model_dir: Path) -> Model:
    return Model(thinking_model_dir)


@pytest.fixture(scope="module")
def small_4(v15_model_dir: Path) -> Model:
    return Model(v15_model_dir)


@pytest.mark.parametrize("messages", [*LISTS, *SHOWN])
def test_prompts_are_mistral_commons(magistral: Model, messages: list[dict[str, Any]]) -> None:
    assert magistral.encoded(messages) == magistral.reference(messages)


@pytest.mark.parametrize("effort", ["", "none", "high"])
@pytest.mark.parametrize("messages", LISTS)
def test_prompts_of_version_15_say_how_much_to_think(
    small_4: Model, messages: list[dict[str, Any]], effort: str
) -> None:
    fields = {"reasoning_effort": effort} if effort else {}
    assert small_4.encoded(messages, effort=effort) == small_4.reference(messages, **fields)
    assert (small_4.encoded(messages, effort="high") == small_4.encoded(messages)) is False


def test_an_effort_that_the_model_does_not_know_is_refused(
    small_4: Model, magistral: Model
) -> None:
    with pytest.raises(InvalidRequest, match="must be none or high for this model") as refused:
        small_4.encoded([USER], effort="low")
    assert refused.value.violations[0][0] == "reasoning_effort"
    # Clients send it to every model.
    assert magistral.encoded([USER], effort="low") == magistral.encoded([USER])


@pytest.mark.parametrize("messages", SHOWN)
def test_version_15_has_no_thinking_in_a_system_message(
    small_4: Model, messages: list[dict[str, Any]]
) -> None:
    with pytest.raises(MistralCommonException):
        small_4.reference(messages)
    with pytest.raises(InvalidRequest, match="set reasoning_effort"):
        small_4.encoded(messages)


def test_a_thought_that_is_open_is_gone_on_from(magistral: Model) -> None:
    thought = {"type": "thinking", "thinking": "One and", "closed": False}
    messages: list[dict[str, Any]] = [USER, {"role": "assistant", "content": [thought]}]
    made = magistral.encoded(messages, goes_on=True)
    assert made == magistral.reference(messages, continue_final_message=True)
    assert magistral.prompts.tools.ends_within_thought(made)
    assert not magistral.prompts.tools.ends_within_thought(magistral.encoded(LISTS[1]))


def test_a_model_that_does_not_think_is_not_shown_what_another_thought(
    v11_model_dir: Path, magistral: Model
) -> None:
    model = Model(v11_model_dir)
    plain: list[dict[str, Any]] = [USER, {"role": "assistant", "content": "Two."}, USER]
    for messages in (LISTS[1], LISTS[3]):
        assert model.encoded(messages) == model.encoded(plain)
    with pytest.raises(InvalidRequest, match="no thinking in a system message"):
        model.encoded(SHOWN[0])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "in a user's message": ({"role": "user", "content": [THOUGHT]}, ".content.0"),
    "no text": (
        {"role": "assistant", "content": [{"type": "thinking", "thinking": 3}]},
        ".content.0.thinking",
    ),
    "two that differ": (
        {"role": "assistant", "content": "a", "reasoning": "a", "reasoning_content": "b"},
        ".reasoning",
    ),
    "in a part and a field": (
        {"role": "assistant", "content": [THOUGHT, SAID], "reasoning": "a"},
        ".content",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_thinking_that_is_wrong_is_refused(magistral: Model, name: str) -> None:
    message, path = WRONG[name]
    with pytest.raises(InvalidRequest) as refused:
        magistral.encoded([USER, message, USER])
    assert refused.value.violations[0][0] == f"messages.1{path}"


def test_mistrals_own_form_of_a_thought_is_taken(magistral: Model) -> None:
    own = {"type": "thinking", "thinking": [{"type": "text", "text": "One and one."}]}
    messages: list[dict[str, Any]] = [USER, {"role": "assistant", "content": [own, SAID]}, USER]
    assert magistral.encoded(messages) == magistral.encoded(LISTS[1])


@pytest.fixture
def prompts(magistral: Model, monkeypatch: pytest.MonkeyPatch) -> PromptEncoder:
    """Its tokens from WORD on are letters."""
    monkeypatch.setattr(magistral.prompts.tools, "_bytes_of", letter)
    return magistral.prompts


@pytest.mark.parametrize("tools", [NO_TOOLS, LOOK], ids=["no tools", "tools"])
@pytest.mark.parametrize(("name", "is_spelled"), ANSWERS)
def test_thought_and_said_are_told_apart_wherever_they_are_cut(
    prompts: PromptEncoder, name: str, is_spelled: bool, tools: Tools
) -> None:
    tokens, thought, said = ANSWERS[name, is_spelled]
    assert read(prompts, deltas(tokens, []), tools) == (thought, said, [])
    for at in range(1, len(tokens)):
        assert read(prompts, deltas(tokens, [at]), tools) == (thought, said, [])
    assert read(prompts, deltas(tokens, range(1, len(tokens))), tools) == (thought, said, [])


@pytest.mark.parametrize("is_spelled", [False, True])
def test_a_call_ends_a_thought(prompts: PromptEncoder, is_spelled: bool) -> None:
    tokens = [
        *control(THINK, "[THINK]", is_spelled=is_spelled),
        *words("a "),
        *control(CALLS, "[TOOL_CALLS]", is_spelled=is_spelled),
        *words("look"),
        *control(ARGS, "[ARGS]", is_spelled=False),
        *words("{}"),
    ]
    for cuts in ([], list(range(1, len(tokens)))):
        assert read(prompts, deltas(tokens, cuts), LOOK) == ("a", "", ["look"])


def test_an_answer_may_begin_within_a_thought(prompts: PromptEncoder) -> None:
    tokens = [*words("b"), *control(END_THINK, "[/THINK]", is_spelled=True), *words("c")]
    assert read(prompts, deltas(tokens, []), is_thinking=True) == ("b", "c", [])


def test_tokens_of_thoughts_are_counted(prompts: PromptEncoder) -> None:
    tokens, _, _ = ANSWERS["both", True]
    reader = prompts.tools.reader(NO_TOOLS)
    for piece in deltas(tokens, range(1, len(tokens))):
        reader.read(piece)
    assert reader.reasoning_tokens == len("a b")
