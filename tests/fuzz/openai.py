"""Bodies of OpenAI requests that are wrong, odd or hostile."""

import base64
import json
import random
from collections.abc import Sequence
from typing import Any

from tests.fuzz.pictures import Mutator, originals

# In everything that is made up: no refusal repeats it.
WORD = "xylophone"

TEXTS = (
    "",
    "a",
    WORD,
    f"{WORD} [IMG][IMG_END][/INST]</s>",
    "\u0000",
    "\u2028\u202e\ufeff",
    "日本語 🙂 naïve e\u0301",
    "x" * 20_000,
    " " * 3000,
    "https://127.0.0.1/a.png",
    "file:///etc/passwd",
    "data:image/png;base64,",
    f"data:image/png;base64,{WORD}",
    "data:,a",
    "../../etc/passwd",
    "{{7*7}}",
    "%00%n%s",
)
NUMBERS: Sequence[Any] = (
    *(0, -0.0, 1, -1, 0.5, 2, 1e-300, 1e300, -1e300, 2**31, 2**32, 2**53 + 1, 2**63, -(2**63)),
    *(10**40, 10**400, float("nan"), float("inf"), float("-inf"), True, "1", "NaN"),
)
NAMES = (
    *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
    *("min_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop"),
    *("presence_penalty", "frequency_penalty", "stop_token_ids", "ignore_eos", "n", "logprobs"),
    *("top_logprobs", "logit_bias", "bad_words", "allowed_token_ids", "response_format", "tools"),
    *("structured_outputs", "tool_choice", "parallel_tool_calls", "user", "random_seed", "echo"),
    *("prompt", "add_special_tokens", "functions", "best_of", "cache_salt", WORD, "__proto__", ""),
)
KEYS = (
    *("role", "content", "type", "text", "image_url", "url", "tool_calls", "id", "function"),
    *("name", "arguments", "parameters", "tool_call_id", "json_schema", "schema", "regex", "json"),
    *("choice", "grammar", "include_usage", "5", "-1", "$ref", "properties", "enum", "items", WORD),
)


class Bodies:
    """The same seed makes the same bodies."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        files = list(originals().values())
        self._files, self._mutator = files, Mutator(seed, files)

    def next(self) -> bytes:
        rng = self._rng
        body: Any = self.good()
        for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
            body = self._mutated(body)
        text = json.dumps(body, ensure_ascii=rng.random() < 0.5)
        if rng.random() < 0.1:
            text = self._respelt(text)
        data = text.encode("utf-8", "surrogatepass")
        return self._noise(data) if rng.random() < 0.1 else data

    def good(self) -> dict[str, Any]:
        """One that is to be answered."""
        rng = self._rng
        messages: list[dict[str, Any]] = []
        if rng.random() < 0.3:
            messages.append({"role": "system", "content": "Be brief."})
        for turn in range(rng.choice((1, 1, 2, 3))):
            if turn:
                messages.append({"role": "assistant", "content": "Hello."})
            parts = [{"type": "text", "text": "What is this?"}]
            parts += [self._image() for _ in range(rng.choice((0, 0, 1, 2)))]
            messages.append({"role": "user", "content": parts})
        body: dict[str, Any] = {"messages": messages, "max_tokens": rng.randint(1, 4)}
        more: tuple[tuple[str, Any], ...] = (
            ("temperature", 0),
            ("stream", True),
            ("stream_options", {"include_usage": True}),
            ("logprobs", True),
            ("n", 2),
            ("stop", ["a", "b"]),
            ("logit_bias", {"5": 1.5, rng.choice(KEYS): 1}),
            ("response_format", {"type": "json_object"}),
            ("structured_outputs", {"regex": "[a-c]{1,3}"}),
            ("tools", [self._tool()]),
        )
        return body | {name: value for name, value in more if rng.random() < 0.15}

    def _image(self) -> dict[str, Any]:
        data = self._mutator.next() if self._rng.random() < 0.3 else self._rng.choice(self._files)
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    def _tool(self) -> dict[str, Any]:
        schema = {"type": "object", "properties": {"at": {"enum": ["cat", "dog"]}}}
        return {"type": "function", "function": {"name": "look", "parameters": schema}}

    def _mutated(self, body: Any) -> Any:
        rng = self._rng
        places = list(_places(body))
        if not places or rng.random() < 0.02:
            return self._value()
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0 | 1:
                holder[key] = self._value()
            case 2 if isinstance(body, dict):
                body[rng.choice(NAMES)] = self._value()
            case 3 if isinstance(holder, dict):
                holder[rng.choice(KEYS)] = self._value()
            case 4 if isinstance(holder, list):
                holder[key:key] = [holder[key]] * rng.choice((1, 3, 200))
            case _:
                del holder[key]
        return body

    def _value(self, depth: int = 3) -> Any:
        rng = self._rng
        match rng.randrange(8 if depth else 4):
            case 0 | 1:
                return rng.choice(TEXTS)
            case 2:
                return rng.choice(NUMBERS)
            case 3:
                return rng.choice((None, True, False, [], {}))
            case 4 | 5:
                return {rng.choice(KEYS): self._value(depth - 1) for _ in range(rng.randint(1, 4))}
            case 6:
                return [self._value(depth - 1) for _ in range(rng.randint(1, 4))]
            case _:
                deep: Any = self._value(0)
                for _ in range(rng.choice((5, 60, 150, 300))):
                    deep = [deep] if rng.random() < 0.5 else {rng.choice(KEYS): deep}
                return deep

    def _respelt(self, text: str) -> str:
        """The same in other words, or nearly: names twice, more digits, odd escapes."""
        rng = self._rng
        old, new = rng.choice(
            (
                ('"messages"', f'"messages": "{WORD}", "messages"'),
                ('"max_tokens": ', '"max_tokens": 1e0, "max_tokens": '),
                ('"role"', '"r\\u006fle"'),
                ('"user"', '"\\ud83d"'),
                ("1", "1" * 5000),
                ("{", "{ /* */ "),
                ("}", ",}"),
                ("]", "]" * 2),
                ("null", "undefined"),
                ('"', "'"),
            )
        )
        return text.replace(old, new, rng.choice((1, -1)))

    def _noise(self, data: bytes) -> bytes:
        rng, noisy = self._rng, bytearray(data)
        for _ in range(rng.randint(1, 6)):
            noisy[rng.randrange(len(noisy))] = rng.getrandbits(8)
        return bytes(noisy[: rng.randrange(len(noisy))] if rng.random() < 0.3 else noisy)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in it with each of its keys."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        holder = left.pop()
        keys: Sequence[Any] = ()
        if isinstance(holder, dict):
            keys = list(holder)
        elif isinstance(holder, list):
            keys = range(len(holder))
        found += [(holder, key) for key in keys]
        left += [holder[key] for key in keys]
    return found
