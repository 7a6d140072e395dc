"""Every list that mistral_common takes is taken and encoded to the same tokens; others are not."""

import base64
import random
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from pydantic import ValidationError

from pixtral_core.errors import InvalidRequest
from pixtral_core.model.vision_spec import VisionSpec, read_params
from pixtral_gateway.api.openai.errors import param_of
from pixtral_gateway.api.openai.messages import to_conversation
from pixtral_gateway.api.openai.request_schema import Message
from pixtral_gateway.checks.conversation import NO_TOOLS
from pixtral_gateway.prompt.prompt_encoder import Prompt, PromptEncoder
from tests.support.gateway_pictures import ARGUMENTS, RESULTS, WORDS, picture

LISTS = 500
VERSIONS = {"v3": "model_dir", "v7": "merging_model_dir", "v11": "v11_model_dir"}
VERSIONS |= {"v13": "v13_model_dir", "thinking": "thinking_model_dir", "v15": "v15_model_dir"}
THINKING = ("thinking", "v15")
SIZES = [(8, 8), (40, 20), (17, 33), (70, 10)]
IMAGES = {
    "data:image/png;base64," + base64.b64encode(picture(*size)).decode(): size for size in SIZES
}
# Most lists go on as some template allows it; the others in any order.
FOLLOWERS = {
    "system": ["system", "user", "user", "user", "assistant"],
    "user": ["user", "assistant", "assistant", "assistant", "system"],
    "assistant": ["user", "user", "user", "assistant"],
    "tool": ["assistant", "assistant", "user", "tool"],
}
ROLES = sorted(FOLLOWERS)


class Model:
    """mistral_common's encoding of a request of OpenAI's, and the gateway's."""

    def __init__(self, directory: Path) -> None:
        self.spec = VisionSpec.from_params(read_params(directory))
        self.prompts = PromptEncoder.load(directory, self.spec)
        self.tokenizer: MistralTokenizer[Any, Any, Any, Any, Any] = MistralTokenizer.from_file(
            directory / "tekken.json"
        )

    def reference(self, messages: list[dict[str, Any]], *, goes_on: bool = False) -> list[int]:
        request = ChatCompletionRequest.from_openai(
            [dict(message) for message in messages], continue_final_message=goes_on
        )
        tokens: list[int] = self.tokenizer.encode_chat_completion(request).tokens
        return tokens

    def encoded(self, messages: list[dict[str, Any]], *, goes_on: bool = False) -> list[int]:
        return list(self.prompt(messages, goes_on=goes_on).token_ids)

    def images(self, messages: list[dict[str, Any]]) -> list[int]:
        """Which of the request's images the prompt has, in its order."""
        return [placed.index for placed in self.prompt(messages).images]

    def prompt(self, messages: list[dict[str, Any]], *, goes_on: bool = False) -> Prompt:
        conversation = to_conversation(
            [Message.model_validate(message) for message in messages],
            NO_TOOLS,
            max_images=100,
            context_length=10_000,
            goes_on=goes_on,
        )
        self.prompts.check_now(conversation)
        sizes = [IMAGES[image.url or ""] for image in conversation.images]
        grids = [self.spec.grid(*size) for size in sizes]
        prompt = self.prompts.encode_now(conversation, grids)
        assert sorted(placed.index for placed in prompt.images) == [*range(len(grids))]
        for placed in prompt.images:
            placeholder = self.spec.placeholder(grids[placed.index])
            end = placed.offset + placed.length
            assert list(prompt.token_ids[placed.offset : end]) == placeholder
        return prompt


@pytest.fixture(scope="module", params=list(VERSIONS))
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, version: str) -> Model:
    return Model(request.getfixturevalue(VERSIONS[version]))


def words(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(0, 3)))


def content(rng: random.Random, *, with_images: bool = False) -> Any:
    if rng.random() < 0.5:
        return words(rng)
    parts: list[dict[str, Any]] = []
    for _ in range(rng.randint(0, 3)):
        if with_images and rng.random() < 0.5:
            url = rng.choice(list(IMAGES))
            image_url = rng.choice([url, {"url": url}])
            parts.append({"type": "image_url", "image_url": image_url})
        else:
            parts.append({"type": "text", "text": words(rng)})
    return parts


def random_list(rng: random.Random, *, shows_results: bool = False) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    waiting: list[str] = []
    is_wild = rng.random() < 0.3
    for _ in range(rng.randint(1, 8)):
        role = rng.choice(FOLLOWERS[made[-1]["role"]] if made and not is_wild else ROLES)
        if waiting and rng.random() < 0.8:
            role = "tool"
        message: dict[str, Any] = {"role": role, "content": content(rng)}
        if role == "user":
            message["content"] = content(rng, with_images=True)
        elif role == "assistant" and rng.random() < 0.4:
            waiting = ["".join(rng.choices("abcXYZ019", k=9)) for _ in range(rng.choice((1, 1, 2)))]
            message["tool_calls"] = [
                {"id": each, "function": {"name": "look", "arguments": rng.choice(ARGUMENTS)}}
                for each in waiting
            ]
            message["content"] = rng.choice(["", None, words(rng)])
        elif role == "assistant" and rng.random() < 0.1:
            message["content"] = None
        elif role == "tool":
            rng.shuffle(waiting)
            message["tool_call_id"] = waiting.pop() if waiting else "none00000"
            shown = content(rng, with_images=shows_results)
            message["content"] = rng.choice([shown, rng.choice(RESULTS)])
        made.append(message)
    return made


def with_thoughts(
    messages: list[dict[str, Any]], rng: random.Random, version: str
) -> list[dict[str, Any]]:
    """Assistants that have thought, in a field or in parts, and systems that show it."""
    if version not in THINKING:
        return messages
    for message in messages:
        thought = {"type": "thinking", "thinking": words(rng)}
        parts = message["content"]
        shows = message["role"] == "assistant" or (message["role"], version) == (
            "system",
            "thinking",
        )
        if not shows or rng.random() < 0.5:
            continue
        if isinstance(parts, list):
            parts.insert(0, thought)
        elif message["role"] == "assistant" and thought["thinking"]:
            message[rng.choice(["reasoning", "reasoning_content"])] = thought["thinking"]
    return messages


def has_text(message: dict[str, Any]) -> bool:
    said = message["content"] or ""
    return bool(said) if isinstance(said, str) else any(part.get("text") for part in said)


def holds_an_answer_of_ours(messages: list[dict[str, Any]], version: str) -> bool:
    """Whether an assistant says nothing, or, before version 7, something beside its calls."""
    for role, run in groupby(messages, key=lambda message: message["role"]):
        turns = list(run)
        if role != "assistant":
            continue
        if any(not has_text(turn) and not turn.get("tool_calls") for turn in turns):
            return True
        calls = any(turn.get("tool_calls") for turn in turns)
        if version == "v3" and calls and any(map(has_text, turns)):
            return True
    return False


def test_random_lists_are_taken_and_encoded_as_mistral_common_does(
    model: Model, version: str
) -> None:
    rng = random.Random(f"lists-{version}")
    taken = refused = 0
    for _ in range(LISTS):
        shows_results = version == "v15" or rng.random() < 0.1
        made = random_list(rng, shows_results=shows_results)
        messages = with_thoughts(made, rng, version)
        goes_on = messages[-1]["role"] == "assistant" and rng.random() < 0.7
        try:
            expected = model.reference(messages, goes_on=goes_on)
        except (MistralCommonException, ValidationError, ValueError):
            refused += 1
            if holds_an_answer_of_ours(messages, version):
                continue
            with pytest.raises(InvalidRequest) as ours:
                model.encoded(messages, goes_on=goes_on)
            ((path, what),) = ours.value.violations
            assert path.startswith("messages["), messages
            assert what
        else:
            taken += 1
            assert model.encoded(messages, goes_on=goes_on) == expected, messages
    assert min(taken, refused) > LISTS // 10


HI: dict[str, Any] = {"role": "user", "content": "Hi"}
YES: dict[str, Any] = {"role": "assistant", "content": "Yes."}
RULE: dict[str, Any] = {"role": "system", "content": "Be brief."}
CALLS: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "abcdefgh1", "function": {"name": "look", "arguments": "{}"}}],
}
RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": "abcdefgh1", "content": "a cat"}
OTHER_RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": "abcdefgh2", "content": "a dog"}


@pytest.mark.parametrize(
    ("messages", "path", "what"),
    [
        ([YES], "messages.0.role", "only message must be a user or system"),
        ([HI, YES], "messages.1.role", "set continue_final_message"),
        ([HI, YES, RULE, HI], "messages.2.role", "a system message must come first"),
        ([HI, RESULT], "messages.1.role", "after an assistant message with tool_calls"),
        ([HI, CALLS, YES, HI], "messages.1.tool_calls", "each call must have its result"),
        ([HI, CALLS, CALLS, RESULT], "messages.1.tool_calls", "each call must have its result"),
    ],
)
def test_a_refusal_says_what_is_wrong_where(
    model: Model, messages: list[dict[str, Any]], path: str, what: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        model.encoded(messages)

    ((field, description),) = refused.value.violations
    assert param_of(field) == path
    assert what in description


def test_results_that_belong_to_no_call_are_refused(model: Model, version: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        model.encoded([HI, CALLS, RESULT, OTHER_RESULT, YES, HI])

    by_id = version not in ("v3", "v7")
    assert refused.value.violations[0][0] == f"messages[3].{'tool_call_id' if by_id else 'role'}"


def test_calls_of_one_message_with_one_id_are_refused_from_version_11(
    model: Model, version: str
) -> None:
    twice = {**CALLS, "tool_calls": CALLS["tool_calls"] * 2}
    messages = [HI, twice, RESULT, RESULT, HI]
    if version in ("v3", "v7"):
        assert model.encoded(messages) == model.reference(messages)
        return
    with pytest.raises(InvalidRequest) as refused:
        model.encoded(messages)
    assert refused.value.violations[0][0] == "messages[1].tool_calls[1].id"


def test_text_after_calls_that_nothing_answers_is_refused_before_version_7(
    model: Model, version: str
) -> None:
    """mistral_common's validator lets it pass where it begins the conversation."""
    messages = [CALLS, YES, HI]
    if version != "v3":
        assert model.encoded(messages) == model.reference(messages)
        return
    with pytest.raises(InvalidRequest) as refused:
        model.encoded(messages)
    assert refused.value.violations[0][0] == "messages[1].content"


def shown(call_id: str, number: int) -> dict[str, Any]:
    """A tool's result: a text and the image of this number."""
    image = {"type": "image_url", "image_url": {"url": list(IMAGES)[number]}}
    content = [{"type": "text", "text": "It looks so:"}, image]
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def test_results_have_images_from_version_15(model: Model, version: str) -> None:
    messages = [HI, CALLS, shown("abcdefgh1", 2)]
    if version == "v15":
        assert model.encoded(messages) == model.reference(messages)
        return
    with pytest.raises(InvalidRequest) as refused:
        model.encoded(messages)
    ((field, description),) = refused.value.violations
    assert param_of(field) == "messages.2.content.1"
    assert "send the image in a user message after it" in description


def test_images_of_results_follow_the_order_of_the_calls(v15_model_dir: Path) -> None:
    """The template puts results in the calls' order, and each keeps its own image."""
    model = Model(v15_model_dir)
    ids = ["abcdefgh1", "abcdefgh2"]
    calls = [{**CALLS["tool_calls"][0], "id": call_id} for call_id in ids]
    messages = [HI, {**CALLS, "tool_calls": calls}, shown(ids[1], 1), shown(ids[0], 2)]

    assert model.encoded(messages) == model.reference(messages)
    assert model.images(messages) == [1, 0]


def test_an_empty_answer_can_be_sent_back(model: Model) -> None:
    """It stands in the prompt as the model made it: as an end of sequence and nothing else."""
    full = model.reference([HI, {"role": "assistant", "content": "x"}, HI])
    (x,) = model.tokenizer.instruct_tokenizer.tokenizer.encode("x", False, False)
    full.remove(x)
    for nothing in ("", None, [], [{"type": "text", "text": ""}]):
        assert model.encoded([HI, {"role": "assistant", "content": nothing}, HI]) == full


def test_text_beside_calls_can_be_sent_back(model: Model, version: str) -> None:
    said = {**CALLS, "content": "Let me look."}
    encoded = model.encoded([HI, said, RESULT])
    if version == "v3":
        # Its template has no place for the text.
        assert encoded == model.reference([HI, CALLS, RESULT])
        apart = [HI, {"role": "assistant", "content": "Let me look."}, CALLS, RESULT]
        assert model.encoded(apart) == encoded
    else:
        assert encoded == model.reference([HI, said, RESULT])


def test_ids_of_another_form_are_cut_as_vllm_cuts_them(model: Model) -> None:
    def exchange(call_id: str) -> list[dict[str, Any]]:
        call = {**CALLS["tool_calls"][0], "id": call_id}
        return [HI, {**CALLS, "tool_calls": [call]}, {**RESULT, "tool_call_id": call_id}]

    assert model.encoded(exchange("call_0123456789abcdefgh1")) == model.encoded(
        exchange("abcdefgh1")
    )
    assert model.encoded(exchange("call-1")) == model.encoded(exchange("call-1"))


def test_ids_that_end_alike_stay_apart(model: Model) -> None:
    ids = ["call_1_abcdefgh1", "call_2_abcdefgh1", "abcdefgh1", "a", "b"]
    calls = [{"id": each, "function": {"name": "look", "arguments": "{}"}} for each in ids]
    results = [{"role": "tool", "tool_call_id": each, "content": "a cat"} for each in ids]
    # Versions from 11 on refuse two calls with one id.
    assert model.encoded([HI, {**CALLS, "tool_calls": calls}, *results])


def test_the_beginning_of_an_answer_ends_the_prompt(model: Model) -> None:
    begun = [HI, {"role": "assistant", "content": "There are"}]
    expected = model.reference(begun, goes_on=True)

    assert model.encoded(begun, goes_on=True) == expected
    assert model.encoded([HI, {**begun[1], "prefix": True}]) == expected
    assert expected[-1] != model.tokenizer.instruct_tokenizer.tokenizer.eos_id


@pytest.mark.parametrize(
    ("messages", "path"),
    [
        ([HI, {**YES, "prefix": True}, HI], "messages.1.prefix"),
        ([{**HI, "prefix": True}], "messages.0.prefix"),
    ],
)
def test_a_prefix_is_the_last_assistant_messages(
    model: Model, messages: list[dict[str, Any]], path: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        model.encoded(messages)
    assert refused.value.violations[0][0] == path


def test_there_must_be_an_answer_to_go_on_from(model: Model) -> None:
    with pytest.raises(InvalidRequest) as refused:
        model.encoded([HI], goes_on=True)
    assert refused.value.violations[0][0] == "continue_final_message"
