"""An answer goes on from what the request gives it as its beginning, on each route alike."""

from typing import Any

import httpx2
import openai

from pixtral_client import Sampling
from tests.support.fixture_types import Tokenizer
from tests.support.stack.new_picture import new_picture
from tests.support.stack.openai_question import MODEL, question
from tests.support.stack.service import Service

BEGINNING = "There are"
OPTIONS: Sampling = {"max_tokens": 5, "temperature": 0, "ignore_eos": True}
GREEDY: dict[str, Any] = {
    "model": MODEL, "max_tokens": 5, "temperature": 0
}  # fmt: skip


def test_continued_messages_and_prefixes_have_one_prompt(
    service: Service, client: openai.OpenAI
) -> None:
    asked = question(new_picture())
    begun: dict[str, Any] = {"role": "assistant", "content": BEGINNING}
    ours = service.client.chat([*asked, begun], continue_final_message=True, **OPTIONS)
    prefixed = service.client.chat([*asked, begun | {"prefix": True}], **OPTIONS)
    body: dict[str, Any] = {"ignore_eos": True}
    create: Any = client.chat.completions.create
    continued = {"continue_final_message": True, "add_generation_prompt": False}
    told = [
        create(messages=messages, extra_body={**body, **more}, **GREEDY)
        for messages, more in (
            ([*asked, begun], continued),
            ([*asked, begun], {**continued, "echo": True}),
            ([*asked, begun | {"prefix": True}], {}),
        )
    ]
    texts = [answer.choices[0].message.content for answer in told]
    assert prefixed.text == ours.text
    # Mistral's answers repeat the beginning, and vLLM's with `echo`.
    assert texts == [ours.text, BEGINNING + ours.text, BEGINNING + ours.text]
    counts = {answer.usage.prompt_tokens for answer in told}
    assert counts == {ours.usage.prompt_tokens, prefixed.usage.prompt_tokens}
    # The beginning is in the prompt.
    assert ours.usage.prompt_tokens > service.client.count_tokens(asked).prompt_tokens
    stream = create(
        messages=[*asked, begun], stream=True, extra_body={**body, **continued}, **GREEDY
    )
    deltas = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(deltas) == ours.text


def test_tokens_go_there_and_back(url: str, tokenizer: Tokenizer) -> None:
    text = "Wie geht's, 世界?"
    with httpx2.Client(base_url=url) as http:

        def post(path: str, **body: Any) -> Any:
            return http.post(path, json=body).raise_for_status().json()

        tokens = post("/tokenize", model=MODEL, prompt=text)["tokens"]
        assert tokens == tokenizer.instruct_tokenizer.tokenizer.encode(text, bos=True, eos=False)
        assert post("/detokenize", model=MODEL, tokens=tokens[1:]) == {"prompt": text}
        messages = post("/tokenize", messages=question())["tokens"]
        assert "[INST]" in post("/detokenize", tokens=messages)["prompt"]
