"""Answers that end within a character, against the bytes of their tokens."""

import codecs
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pixtral_core.generation.sampling import Sampling
from pixtral_decoder.engine.engine import Delta, FinishReason, _ended
from pixtral_decoder.vllm_hooks import last_characters
from pixtral_decoder.vllm_hooks.last_characters import RECENT, LastCharacters
from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.tokenizers.mistral import MistralTokenizer
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    from pixtral_decoder.engine.sampling_params import vllm_sampling

PROMPT = [1, 3, 1005, 4]
WORDS = "Grüße, 你好! Ещё — 🦜🌍 naïve   spaces\n\n日本 𒀀𒀁"


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    return MistralTokenizer.from_pretrained(str(checkpoint))


def bytes_of(tokenizer: Any, tokens: Sequence[int]) -> bytes:
    return b"".join(tokenizer.tokenizer.id_to_byte_piece(token) for token in tokens)


@pytest.fixture(scope="module")
def within(tokenizer: Any) -> list[int]:
    """Tokens that have a whole character and end within the next."""
    found = []
    for token in range(1000, 20_000):
        piece = tokenizer.tokenizer.id_to_byte_piece(token)
        characters = codecs.getincrementaldecoder("utf-8")("strict")
        try:
            text = characters.decode(piece)
        except UnicodeDecodeError:
            continue
        if text and characters.getstate()[0]:
            found.append(token)
    return found


def streamed(tokenizer: Any, tokens: Sequence[int], stop: tuple[str, ...] = ()) -> list[str]:
    """The text that vLLM streams after each token."""
    request: Any = SimpleNamespace(
        request_id="one",
        prompt_token_ids=PROMPT,
        prompt_embeds=None,
        sampling_params=vllm_sampling(Sampling(max_tokens=1000, stop=stop), {}),
    )
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
    pieces = []
    for number, token in enumerate(tokens, 1):
        detokenizer.update([token], False)
        pieces.append(detokenizer.get_next_output_text(number == len(tokens), True))
    return pieces


def kept_back(tokenizer: Any, tokens: Sequence[int], *, behind_stop_token: bool = False) -> str:
    characters = LastCharacters(tokenizer)
    for token in tokens:
        characters.add([token])
    return characters.kept_back(behind_stop_token=behind_stop_token)


def test_still_there() -> None:
    assert_still_there(last_characters)


def test_still_needed_while_vllm_loses_what_it_keeps_back(
    tokenizer: Any, within: list[int]
) -> None:
    """Once this fails, vLLM sends them itself: `last_characters` can go."""
    token = within[0]
    assert "".join(streamed(tokenizer, [token])) == ""


def test_the_whole_characters_of_a_last_token_are_sent(tokenizer: Any, within: list[int]) -> None:
    assert within
    for token in within[:200]:
        expected = bytes_of(tokenizer, [token]).decode("utf-8", "ignore")
        assert expected
        assert kept_back(tokenizer, [token]) == expected


def test_wherever_an_answer_ends_its_text_is_its_bytes(tokenizer: Any, within: list[int]) -> None:
    rng = random.Random(2)
    words = tokenizer.tokenizer.encode(WORDS, False, False)
    # A token whose bytes would not go on with another's character is not any answer's.
    tokens = [*words, *words[:8]]
    assert len(tokens) > RECENT
    for end in range(1, len(tokens) + 1):
        answer = [*tokens[:end]]
        characters = codecs.getincrementaldecoder("utf-8")("replace")
        expected = characters.decode(bytes_of(tokenizer, answer))
        if not characters.getstate()[0]:
            answer.append(rng.choice(within))
            expected += bytes_of(tokenizer, answer[-1:]).decode("utf-8", "ignore")
        text = "".join(streamed(tokenizer, answer))
        assert text + kept_back(tokenizer, answer) == expected


def test_an_answer_that_goes_on_elsewhere_ends_alike(tokenizer: Any, within: list[int]) -> None:
    token = within[0]
    words = tokenizer.tokenizer.encode(WORDS, False, False)
    parts = LastCharacters(tokenizer, words)
    parts.add([token])
    whole = kept_back(tokenizer, [*words, token])
    assert parts.kept_back(behind_stop_token=False) == whole != ""


def test_a_stop_token_is_no_part_of_the_text(tokenizer: Any, within: list[int]) -> None:
    token = within[0]
    assert kept_back(tokenizer, [token, 2], behind_stop_token=True) == kept_back(tokenizer, [token])
    assert kept_back(tokenizer, [1005, token], behind_stop_token=True) == ""


@pytest.mark.parametrize(
    ("reason", "stop_reason", "is_sent"),
    [("length", None, True), ("stop", None, True), ("stop", 7, True), ("stop", "never", False)],
)
def test_the_last_delta_has_them(
    tokenizer: Any, within: list[int], reason: str, stop_reason: int | str | None, is_sent: bool
) -> None:
    token = within[0]
    expected = kept_back(tokenizer, [token])
    ending = LastCharacters(tokenizer, [token])
    if reason == "stop":
        ending.add([2])
    completion: Any = SimpleNamespace(finish_reason=reason, stop_reason=stop_reason)
    delta = Delta("before", (token,), FinishReason(reason), 0, 0.0)
    ended = _ended(delta, ending, completion, Sampling(stop=("never",)))
    assert ended.text == "before" + (expected if is_sent else "")
    assert ended.finish_reason is FinishReason(reason)


def test_a_stop_string_that_they_complete_counts(tokenizer: Any, within: list[int]) -> None:
    token = within[0]
    stop = "e" + kept_back(tokenizer, [token])
    completion: Any = SimpleNamespace(finish_reason="length", stop_reason=None)
    delta = Delta("before", (token,), FinishReason.LENGTH, 0, 0.0)
    ended = _ended(delta, LastCharacters(tokenizer, [token]), completion, Sampling(stop=(stop,)))
    assert (ended.text, ended.finish_reason) == ("befor", FinishReason.STOP)
