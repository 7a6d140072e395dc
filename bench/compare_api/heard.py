"""Answers of a server, without what may differ from one try to the next."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

from bench.compare_api.asked import Asked

SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Heard:
    """`essence` is what an answer comes to, and None if the request was refused.

    `status` is 0 if the connection broke, or nothing came in time.
    """

    status: int
    essence: Any = None
    message: str = ""

    @property
    def is_taken(self) -> bool:
        return 0 < self.status < 400

    def same(self, other: "Heard") -> bool:
        """Which status a refusal has makes no difference to a client that has asked wrongly."""
        return (self.is_taken, self.essence) == (other.is_taken, other.essence)

    def __str__(self) -> str:
        if not self.is_taken:
            return str(self.status) if self.status else "no answer"
        text = json.dumps(self.essence, ensure_ascii=False)
        return f"{self.status} `{text[:90]}`" if self.essence is not None else str(self.status)


def client(url: str) -> httpx2.Client:
    """A connection for each request, since vLLM closes one on which it fails unexpectedly."""
    return httpx2.Client(base_url=url, limits=httpx2.Limits(max_keepalive_connections=0))


def write_answers(path: Path, version: str, answers: dict[str, Heard]) -> None:
    heard = {name: asdict(answer) for name, answer in answers.items()}
    path.write_text(json.dumps({"version": version, "answers": heard}), "utf-8")


def read_answers(path: Path) -> tuple[str, dict[str, Heard]]:
    """A server's version, and its answers as `write_answers` wrote them."""
    found = json.loads(path.read_text("utf-8"))
    return found["version"], {name: Heard(**each) for name, each in found["answers"].items()}


def ask(http: httpx2.Client, asked: Asked) -> Heard:
    try:
        response = http.request(
            asked.method, asked.path, json=asked.body, headers=asked.headers, timeout=SECONDS
        )
    except httpx2.TransportError as error:
        return Heard(0, message=repr(error))
    text = response.text
    if response.status_code >= 400:
        return Heard(response.status_code, message=text[:300])
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        events = [
            json.loads(line.removeprefix("data: "))
            for line in text.splitlines()
            if line.startswith("data: ") and line != "data: [DONE]"
        ]
        failed = [event for event in events if event.get("error")]
        if failed:
            return Heard(int(failed[0]["error"].get("code") or 400), message=str(failed[0])[:300])
        return Heard(response.status_code, _of_stream(asked.path, events))
    try:
        found = json.loads(text)
    except ValueError:
        return Heard(response.status_code)
    return Heard(response.status_code, _of_answer(asked.path, found))


def _of_answer(path: str, answer: dict[str, Any]) -> Any:
    match path:
        case "/v1/chat/completions":
            choices = [_choice(each, each["message"]) for each in answer["choices"]]
            return [*choices, _tokens(answer["usage"], "prompt_tokens", "completion_tokens")]
        case "/v1/completions":
            choices = [_choice(each, {"content": each["text"]}) for each in answer["choices"]]
            return [*choices, _tokens(answer["usage"], "prompt_tokens", "completion_tokens")]
        case "/v1/responses":
            items = [_item(each) for each in answer["output"]]
            tokens = _tokens(answer["usage"], "input_tokens", "output_tokens")
            return [answer["status"], *items, tokens]
        case "/v1/messages":
            blocks = [each.get("text") or each.get("input") for each in answer["content"]]
            return [answer["stop_reason"], *blocks, answer["usage"]["output_tokens"]]
        case "/v1/messages/count_tokens":
            return answer["input_tokens"]
        case "/tokenize":
            return [answer["count"], answer["tokens"]]
        case "/detokenize":
            return answer["prompt"]
        case _:
            # Whether there is such a route is the question.
            return None


def _tokens(usage: dict[str, Any], *names: str) -> list[int]:
    return [usage[name] for name in names]


def _choice(choice: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    """Not the ids of calls, and not numbers that depend on how the work was batched."""
    calls = [
        [call["function"]["name"], json.loads(call["function"]["arguments"])]
        for call in message.get("tool_calls") or ()
    ]
    made = {"text": message.get("content") or "", "finish": choice["finish_reason"]}
    if calls:
        made["calls"] = calls
    if found := choice.get("logprobs"):
        made["tokens"] = found.get("tokens") or [each["token"] for each in found["content"]]
    for name in ("prompt_logprobs", "token_ids"):
        if choice.get(name) is not None:
            made[name] = True
    return made


def _item(item: dict[str, Any]) -> Any:
    if item["type"] == "function_call":
        return [item["name"], json.loads(item["arguments"])]
    return "".join(part.get("text", "") for part in item.get("content") or ())


def _of_stream(path: str, events: list[dict[str, Any]]) -> Any:
    if path == "/v1/responses":
        return _of_answer(path, events[-1]["response"])
    if path == "/v1/messages":
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        return "".join(delta.get("text", "") for delta in deltas)
    texts: dict[str, str] = {}
    calls = ""
    for choice in _choices(events):
        delta = choice.get("delta") or {"content": choice.get("text")}
        index = str(choice["index"])
        texts[index] = texts.get(index, "") + (delta.get("content") or "")
        for call in delta.get("tool_calls") or ():
            calls += call["function"].get("name") or ""
            calls += call["function"].get("arguments") or ""
    usage = [event["usage"] for event in events if event.get("usage") and not event["choices"]]
    # Spaces in JSON are the engine's own.
    return [texts, calls.replace(" ", ""), len(usage)]


def _choices(events: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for event in events:
        yield from event["choices"]
