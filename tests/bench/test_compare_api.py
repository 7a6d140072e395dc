"""docs/api_differences.md is in step with the requests and the arguments of `make compare-api`."""

import json
import re
from typing import Any

import httpx2
import pytest

from bench.compare_api.asked import CHAT, Asked, everything
from bench.compare_api.differences import DIFFERENCES, by_request
from bench.compare_api.heard import Heard, ask
from bench.compare_api.page import PAGE, page

ROW = re.compile(r"^\| (?P<name>.*?) \| (?P<theirs>.*) \| (?P<ours>.*) \|$", re.MULTILINE)


def test_the_page_has_every_request_that_an_argument_is_for() -> None:
    text = PAGE.read_text("utf-8")
    _, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    assert [section.partition("\n")[0] for section in sections] == [d.title for d in DIFFERENCES]
    for difference, section in zip(DIFFERENCES, sections, strict=True):
        assert difference.argument in " ".join(section.split())
        rows = [row["name"] for row in ROW.finditer(section)]
        assert rows == ["request", *(name.replace("|", "\\|") for name in difference.requests)]


def test_the_page_counts_the_requests() -> None:
    text = " ".join(PAGE.read_text("utf-8").split())
    assert f"this service {len(everything())} requests" in text
    assert f"{len(by_request())} differ, each for a reason" in text


def test_an_argument_is_for_requests_that_there_are() -> None:
    assert by_request().keys() - {each.name for each in everything()} == set()


def test_a_refusal_is_one_whatever_its_status() -> None:
    assert Heard(400, message="no").same(Heard(501))
    assert not Heard(400).same(Heard(200, ["yes"]))
    assert not Heard(200, ["no"]).same(Heard(200, ["yes"]))
    assert not Heard(0, message="it broke").is_taken


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_comes_to_its_choices(is_streamed: bool) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}

    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.url.path == CHAT
        if not is_streamed:
            made = {**choice, "message": {"content": "yes", "tool_calls": []}}
            return httpx2.Response(200, json={"choices": [made], "usage": usage})
        events = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("y", "es")]
        lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return httpx2.Response(200, text=lines, headers={"content-type": "text/event-stream"})

    transport = httpx2.MockTransport(answer)
    with httpx2.Client(base_url="http://stock", transport=transport) as http:
        heard = ask(http, Asked("one", CHAT, {"messages": []}))
    whole = [{"text": "yes", "finish": "stop"}, [3, 2]]
    assert heard == Heard(200, [{"0": "yes"}, "", 0] if is_streamed else whole)


def test_a_request_that_differs_stands_below_its_argument() -> None:
    difference = DIFFERENCES[0]
    pairs = [
        (Asked(name, CHAT), Heard(400), Heard(200, "a|b"))
        for name in (*difference.requests, "another")
    ]
    text = page(pairs, "0.0.1")
    assert "vLLM 0.0.1" in text
    assert rf'| {difference.requests[0]} | 400 | 200 `"a\|b"` |' in text
