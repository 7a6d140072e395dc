"""Requests for both servers: every form that clients of `vllm serve` send."""

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

PNG = (Path(__file__).parents[2] / "docs" / "demo" / "street.png").read_bytes()
BASE64 = base64.b64encode(PNG).decode()
URL = f"data:image/png;base64,{BASE64}"
SHAPES = "How many shapes are there?"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
MODEL = "pixtral-mini"

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request; `name` is what the page of differences calls it."""

    name: str
    path: str
    body: Body | None = None
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Names what is sent."""
        sent = [self.path, self.body, self.method, self.headers]
        return hashlib.sha256(json.dumps(sent).encode()).hexdigest()


def everything() -> list[Asked]:
    found = [
        *_message_lists(),
        *_contents(),
        *_images(),
        *_fields(),
        *_structures(),
        *_tools(),
        *_completions(),
        *_responses(),
        *_messages(),
        *_others(),
    ]
    names = [each.name for each in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"two requests have one name: {', '.join(sorted(twice))}")
    return found


def _said(role: str, content: Any, **more: Any) -> Body:
    return {"role": role, "content": content, **more}


def _text(text: str) -> Body:
    return {"type": "text", "text": text}


def _image(url: Any = URL, **more: Any) -> Body:
    return {"type": "image_url", "image_url": {"url": url, **more}}


SYSTEM = _said("system", "Be brief.")
USER = _said("user", SHAPES)
SHOWN = _said("user", [_image(), _text(SHAPES)])
GREETING = _said("assistant", "How can I help?")
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = _said("tool", "3", tool_call_id="abcdefghi")


def _chat(name: str, messages: Any, **fields: Any) -> Asked:
    body = {"messages": messages, "temperature": 0, "max_tokens": 12, **fields}
    return Asked(name, CHAT, body)


def _message_lists() -> Iterator[Asked]:
    lists: dict[str, list[Body]] = {
        "user": [USER],
        "system, user": [SYSTEM, USER],
        "developer, user": [_said("developer", "Be brief."), USER],
        "system, system, user": [SYSTEM, SYSTEM, USER],
        "developer, system, user": [_said("developer", "Be brief."), SYSTEM, USER],
        "user, user": [_said("user", "Look."), USER],
        "user, user with an image": [_said("user", "Look."), SHOWN],
        "image alone, then its question": [_said("user", [_image()]), USER],
        "user, assistant, user": [_said("user", "Hi"), GREETING, USER],
        "user, assistant, assistant, user": [_said("user", "Hi"), GREETING, GREETING, USER],
        "assistant, user": [GREETING, USER],
        "system, assistant, user": [SYSTEM, GREETING, USER],
        "user, system": [USER, SYSTEM],
        "system alone": [SYSTEM],
        "user, assistant": [USER, GREETING],
        "user, assistant, system, user": [_said("user", "Hi"), GREETING, SYSTEM, USER],
        "the model card's second example": [
            _said("user", [_text("Describe this image."), _image(), _image()]),
            GREETING,
            USER,
            _said("user", [_image()]),
        ],
        "call, result": [USER, CALLING, RESULT],
        "call, result, user": [USER, CALLING, RESULT, USER],
        "call, result, user, user with an image": [USER, CALLING, RESULT, USER, SHOWN],
        "call without a result": [USER, CALLING, USER],
        "result without a call": [USER, RESULT],
        "no messages": [],
        "a role that nobody knows": [_said("critic", "Bad.")],
        "a message without a role": [{"content": "Hi"}],
        "a function's message": [USER, {"role": "function", "name": "look", "content": "3"}],
    }
    for name, messages in lists.items():
        yield _chat(name, messages)


def _contents() -> Iterator[Asked]:
    contents: dict[str, Any] = {
        "an empty text": "",
        "no parts": [],
        "an empty text before an image": [_text(""), _image()],
        "an empty text beside another": [_text(""), _text(SHAPES)],
        "two texts": [_text("Look."), _text(SHAPES)],
        "content of null": None,
        "a bare string among parts": [SHAPES],
        "a part without a type": [{"text": SHAPES}],
        "a part that nobody knows": [{"type": "smell", "smell": "roses"}],
        "input_text in chat": [{"type": "input_text", "text": SHAPES}],
        "audio": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}],
        "a file": [{"type": "file", "file": {"file_data": "AAAA"}}],
        "a text that spells a control token": "[INST] Hi [/INST]</s>",
        "a number as content": 7,
    }
    for name, content in contents.items():
        yield _chat(f"user: {name}", [_said("user", content)])
    yield _chat("system: an empty text", [_said("system", ""), USER])
    yield _chat("system: parts", [_said("system", [_text("Be"), _text("brief.")]), USER])
    yield _chat("system: an image", [_said("system", [_image()]), USER])
    yield _chat("assistant: an empty text", [USER, _said("assistant", ""), USER])
    yield _chat("assistant: null", [USER, _said("assistant", None), USER])
    yield _chat("assistant: parts", [USER, _said("assistant", [_text("3")]), USER])
    yield _chat("assistant: an image", [USER, _said("assistant", [_image()]), USER])
    yield _chat(
        "assistant: text beside a call",
        [USER, {**CALLING, "content": "Hm."}, RESULT],
    )
    yield _chat(
        "assistant: an empty text beside a call", [USER, {**CALLING, "content": ""}, RESULT]
    )
    yield _chat(
        "assistant: a call's id of another form",
        [
            USER,
            {**CALLING, "tool_calls": [{**CALL, "id": "call_1"}]},
            {**RESULT, "tool_call_id": "call_1"},
        ],
    )
    yield _chat(
        "assistant: reasoning_content", [USER, {**GREETING, "reasoning_content": "Hm."}, USER]
    )
    yield _chat("tool: an image", [USER, CALLING, {**RESULT, "content": [_image()]}])
    yield _chat("tool: parts", [USER, CALLING, {**RESULT, "content": [_text("3")]}])


def _encoded(form: str, mode: str = "RGB") -> str:
    out = io.BytesIO()
    Image.open(io.BytesIO(PNG)).convert(mode).save(out, form)
    return base64.b64encode(out.getvalue()).decode()


def _images() -> Iterator[Asked]:
    urls: dict[str, Any] = {
        "PNG": URL,
        "JPEG": f"data:image/jpeg;base64,{_encoded('JPEG')}",
        "JPEG as image/jpg": f"data:image/jpg;base64,{_encoded('JPEG')}",
        "WebP": f"data:image/webp;base64,{_encoded('WEBP')}",
        "GIF": f"data:image/gif;base64,{_encoded('GIF')}",
        "BMP": f"data:image/bmp;base64,{_encoded('BMP')}",
        "TIFF": f"data:image/tiff;base64,{_encoded('TIFF')}",
        "grey": f"data:image/png;base64,{_encoded('PNG', 'L')}",
        "with an alpha channel": f"data:image/png;base64,{_encoded('PNG', 'RGBA')}",
        "no media type": f"data:;base64,{BASE64}",
        "another media type": f"data:text/plain;base64,{BASE64}",
        "a parameter": f"data:image/png;charset=utf-8;base64,{BASE64}",
        "no padding": f"data:image/png;base64,{BASE64.rstrip('=')}",
        "line breaks": f"data:image/png;base64,{base64.encodebytes(PNG).decode()}",
        "a space after the comma": f"data:image/png;base64, {BASE64}",
        "DATA:IMAGE/PNG;BASE64": f"DATA:IMAGE/PNG;BASE64,{BASE64}",
        "base64 alone": BASE64,
        "no base64": "data:image/png;base64,!!!!",
        "half a file": f"data:image/png;base64,{BASE64[: len(BASE64) // 8 * 4]}",
        "an empty file": "data:image/png;base64,",
        "no URL": "",
        "file:": "file:///etc/passwd",
        "ftp:": "ftp://127.0.0.1/a.png",
    }
    for name, url in urls.items():
        content = [_image(url), _text(SHAPES)]
        yield _chat(f"image: {name}", [_said("user", content)])
    for detail in ("auto", "low", "high", "medium"):
        yield _chat(
            f"image: detail {detail}", [_said("user", [_image(detail=detail), _text(SHAPES)])]
        )
    plain = {"type": "image_url", "image_url": URL}
    yield _chat("image: a URL as the part's value", [_said("user", [plain, _text(SHAPES)])])
    yield _chat("image: none", [_said("user", [{"type": "image_url"}])])
    yield _chat("image: two", [_said("user", [_image(), _image(), _text(SHAPES)])])
    yield _chat("image: behind the text", [_said("user", [_text(SHAPES), _image()])])
    yield _chat("image: three in three turns", [SHOWN, GREETING, SHOWN, GREETING, SHOWN])


def _fields() -> Iterator[Asked]:
    given: dict[str, tuple[Any, ...]] = {
        "max_tokens": (1, 0, -1, 2000, 100_000),
        "max_completion_tokens": (3, 2000),
        "temperature": (0.7, 2, 2.5, -1, "0"),
        "top_p": (0.5, 1, 0, 1.5),
        "top_k": (5, -1, 0, -2),
        "min_p": (0.1, 2),
        "frequency_penalty": (1, 3),
        "presence_penalty": (1, -3),
        "repetition_penalty": (1.2, 0),
        "n": (2, 0),
        "seed": (1, -1, None),
        "stop": (None, "shapes", ["3", "5"], [], ["a", "b", "c", "d", "e"]),
        "stop_token_ids": ([10], [], [10_000_000]),
        "min_tokens": (3, 20),
        "ignore_eos": (True,),
        "logit_bias": ({"100": 5}, {"a": 5}, {"100": 200}),
        "logprobs": (True,),
        "prompt_logprobs": (1,),
        "bad_words": (["shapes"], [" "]),
        "allowed_token_ids": ([1000, 1001], []),
        "include_stop_str_in_output": (True,),
        "skip_special_tokens": (False,),
        "spaces_between_special_tokens": (False,),
        "return_token_ids": (True,),
        "echo": (True,),
        "add_generation_prompt": (False,),
        "continue_final_message": (True,),
        "truncate_prompt_tokens": (4,),
        "use_beam_search": (True,),
        "cache_salt": ("salt",),
        "priority": (0, 1),
        "request_id": ("one",),
        "best_of": (2,),
        "functions": ([{"name": "look"}],),
        "modalities": (["text"], ["audio"]),
        "prediction": ({"type": "content", "content": "3"},),
        "safe_prompt": (True,),
        "guided_json": ({"type": "object"},),
        "chat_template": ("{{ messages }}",),
        "chat_template_kwargs": ({"a": 1},),
        "mm_processor_kwargs": ({"a": 1},),
        "documents": ([{"text": "a"}],),
        "logprob_token_ids": ([1],),
        "return_tokens_as_token_ids": (True,),
        "repetition_detection": ({"max_pattern_size": 2, "min_count": 2},),
        "vllm_xargs": ({"a": "b"},),
        "thinking_token_budget": (10,),
        "reasoning_effort": ("low",),
        "user": ("ada",),
        "store": (True,),
        "metadata": ({"a": "b"},),
        "service_tier": ("auto",),
        "stream_options": ({"include_usage": True},),
        "a_field_that_nobody_knows": (1,),
        "random_seed": (1,),
    }
    for name, values in given.items():
        for value in values:
            sampled = {"temperature": 0.7, "seed": 1} if name in ("top_k", "min_p") else {}
            yield _chat(f"{name}: {value!r}", [USER], **{**sampled, name: value})
    yield _chat("logprobs with top_logprobs", [USER], logprobs=True, top_logprobs=3)
    by_id: Body = {"logprobs": True, "return_tokens_as_token_ids": True}
    yield _chat("logprobs of tokens by their ids", [USER], **by_id)
    yield _chat("top_logprobs without logprobs", [USER], top_logprobs=3)
    yield _chat("more top_logprobs than there may be", [USER], logprobs=True, top_logprobs=21)
    for choices in (1, 2):
        sampled = {"temperature": 0.7, "seed": 1, "n": choices}
        yield _chat(f"a temperature, a seed and n of {choices}", [USER], **sampled)
    yield _chat("a stream", [SHOWN], stream=True)
    usage = {"include_usage": True}
    yield _chat("a stream with its usage", [SHOWN], stream=True, stream_options=usage)
    yield _chat("a stream of two choices", [SHOWN], stream=True, n=2)
    begun = [SHOWN, _said("assistant", "There are")]
    on: Body = {"continue_final_message": True, "add_generation_prompt": False}
    yield _chat("an answer that goes on", begun, **on)
    yield _chat("an answer that goes on, with echo", begun, **on, echo=True)
    yield _chat("a prefix", [SHOWN, _said("assistant", "There are", prefix=True)])
    yield _chat("a model that is not there", [USER], model="gpt-4o")
    yield _chat("an empty model", [USER], model="")
    yield _chat("a prompt longer than the context", [_said("user", "word " * 9000)])


LARGE: Body = {"type": "object", "properties": {"large": {"type": "boolean"}}}
LARGE |= {"required": ["large"], "additionalProperties": False}


def _structures() -> Iterator[Asked]:
    def of(schema: Body) -> Body:
        named = {"name": "a", "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": named}}

    yield _chat("response_format: text", [USER], response_format={"type": "text"})
    yield _chat("response_format: nothing known", [USER], response_format={"type": "xml"})
    yield _chat("response_format: no schema", [USER], response_format={"type": "json_schema"})
    # These come first: vLLM keeps to the library of its first structured request, which is
    # xgrammar where it can be.
    outputs: dict[str, Body] = {
        "choice": {"choice": ["yes", "no"]},
        "regex": {"regex": "[0-9]{3}"},
        "grammar": {"grammar": 'root ::= "yes" | "no"'},
        "json on one line": {"json": LARGE, "disable_any_whitespace": True},
        "two at once": {"choice": ["yes"], "regex": "[0-9]"},
        "none": {},
        "a malformed regex": {"regex": "("},
        "a malformed grammar": {"grammar": "root ::="},
        "whitespace_pattern": {"json": LARGE, "whitespace_pattern": " "},
        "structural_tag": {"structural_tag": "{}"},
    }
    for name, value in outputs.items():
        yield _chat(f"structured_outputs: {name}", [USER], structured_outputs=value)
    beside: Body = {"structured_outputs": {"choice": ["yes", "no"]}}
    yield _chat(
        "structured_outputs: a regex on one line",
        [USER],
        structured_outputs={"regex": "[0-9]", "disable_any_whitespace": True},
    )
    yield _chat("structured_outputs beside response_format", [USER], **of(LARGE), **beside)
    for field_name, other in (("min_tokens", 2), ("bad_words", ["yes"])):
        both: Body = {"structured_outputs": {"choice": ["yes", "no"]}, field_name: other}
        yield _chat(f"structured_outputs beside {field_name}", [USER], **both)
    values: dict[str, Body] = {
        "multipleOf": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 9},
        "allOf": {"allOf": [{"type": "string"}, {"enum": ["a", "b"]}]},
        "not": {"not": {"type": "string"}},
        "if": {"if": {"type": "string"}, "then": {"enum": ["a"]}},
        "uniqueItems": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True},
        "contains": {"type": "array", "contains": {"const": 1}},
        "minProperties": {"type": "object", "minProperties": 1},
        "a $ref to nothing": {"$ref": "#/$defs/nothing"},
        "a type that nobody knows": {"type": "smell"},
    }
    for name, value in values.items():
        schema = {"type": "object", "properties": {"a": value}, "required": ["a"]}
        yield _chat(f"response_format: {name}", [USER], **of(schema))


def _tools() -> Iterator[Asked]:
    look: Body = {"type": "function", "function": {"name": "look", "parameters": LARGE}}
    rest: Body = {"type": "function", "function": {"name": "rest"}}
    named = {"type": "function", "function": {"name": "look"}}
    one: Body = {"max_tokens": 60, "parallel_tool_calls": False}
    yield _chat("tools: no choice", [USER], tools=[look])
    yield _chat("tools: auto", [USER], tools=[look, rest], tool_choice="auto")
    yield _chat("tools: none", [USER], tools=[look], tool_choice="none")
    yield _chat("tools: required", [USER], tools=[look], tool_choice="required", **one)
    yield _chat("tools: named", [USER], tools=[look, rest], tool_choice=named, **one)
    yield _chat(
        "tools: required, as a stream",
        [USER],
        tools=[look],
        tool_choice="required",
        stream=True,
        **one,
    )
    yield _chat("tools: any", [USER], tools=[look], tool_choice="any", **one)
    yield _chat("tools: a name that is not there", [USER], tools=[rest], tool_choice=named)
    yield _chat("tools: two of one name", [USER], tools=[look, look])
    listed = {"name": "look", "parameters": {"type": "array"}}
    yield _chat(
        "tools: arguments of a list", [USER], tools=[{"type": "function", "function": listed}]
    )
    many = [{"type": "function", "function": {"name": f"look{i}"}} for i in range(129)]
    yield _chat("tools: 129", [USER], tools=many)
    yield _chat(
        "tools: required, beside structured_outputs",
        [USER],
        tools=[look],
        tool_choice="required",
        structured_outputs={"choice": ["yes", "no"]},
        **one,
    )
    yield _chat("tools: an empty list", [USER], tools=[])
    yield _chat("tool_choice auto without tools", [USER], tool_choice="auto")
    yield _chat("tool_choice none without tools", [USER], tool_choice="none")
    yield _chat("tool_choice required without tools", [USER], tool_choice="required")
    yield _chat("tools: custom", [USER], tools=[{"type": "custom", "custom": {"name": "a"}}])
    yield _chat("tools: without a name", [USER], tools=[{"type": "function", "function": {}}])
    strict = {**look, "function": {**look["function"], "strict": True}}
    yield _chat("tools: strict", [USER], tools=[strict], tool_choice="required", **one)
    yield _chat("tools beside an image", [SHOWN], tools=[look], tool_choice="required", **one)
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    yield _chat("tool_choice allowed_tools", [USER], tools=[look], tool_choice=allowed)


def _completions() -> Iterator[Asked]:
    given: dict[str, Body] = {
        "a text": {"prompt": "There are"},
        "token ids": {"prompt": [1, 3, 4]},
        "two texts": {"prompt": ["There are", "It is"]},
        "lists of token ids": {"prompt": [[1, 3], [1, 4]]},
        "an empty text": {"prompt": ""},
        "no tokens": {"prompt": []},
        "no prompt": {},
        "a token id past the vocabulary": {"prompt": [10_000_000]},
        "echo": {"prompt": "There are", "echo": True},
        "echo alone": {"prompt": "There are", "echo": True, "max_tokens": 0},
        "logprobs": {"prompt": "There are", "logprobs": 2},
        "logprobs of tokens by their ids": {
            "prompt": "There are",
            "logprobs": 2,
            "return_tokens_as_token_ids": True,
        },
        "echo and logprobs": {"prompt": "There are", "echo": True, "logprobs": 1},
        "echo and logprobs in a stream": {
            "prompt": "There are",
            "echo": True,
            "logprobs": 1,
            "stream": True,
        },
        "prompt_logprobs": {"prompt": "There are", "prompt_logprobs": 1},
        "n": {"prompt": "There are", "n": 2},
        "a stream": {"prompt": "There are", "stream": True},
        "suffix": {"prompt": "There are", "suffix": "."},
        "best_of": {"prompt": "There are", "best_of": 2},
        "return_token_ids": {"prompt": "There are", "return_token_ids": True},
        "add_special_tokens": {"prompt": "There are", "add_special_tokens": False},
        "stop": {"prompt": "There are", "stop": ["s"]},
        "structured_outputs": {
            "prompt": "There are",
            "structured_outputs": {"choice": ["yes", "no"]},
        },
        "prompt_embeds": {"prompt_embeds": "AAAA"},
    }
    for name, body in given.items():
        yield Asked(f"completions: {name}", COMPLETIONS, {"temperature": 0, "max_tokens": 6} | body)


def _responses() -> Iterator[Asked]:
    image = {"type": "input_image", "image_url": URL, "detail": "auto"}
    text = {"type": "input_text", "text": SHAPES}
    shown = [_said("user", [image, text])]
    flat = {"type": "function", "name": "look", "parameters": LARGE}
    format_ = {"format": {"type": "json_schema", "name": "a", "schema": LARGE}}
    called = {"type": "function_call", "call_id": "abcdefghi", "name": "look", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "abcdefghi", "output": "3"}
    given: dict[str, Body] = {
        "a text": {"input": SHAPES},
        "a message": {"input": [USER]},
        "instructions": {"input": SHAPES, "instructions": "Be brief."},
        "input_text": {"input": [_said("user", [text])]},
        "an image": {"input": shown},
        "a stream": {"input": SHAPES, "stream": True},
        "a forced tool": {
            "input": SHAPES,
            "tools": [flat],
            "tool_choice": "required",
            "max_output_tokens": 60,
        },
        "a call and its result": {"input": [USER, called, output]},
        "text.format": {"input": SHAPES, "text": format_, "max_output_tokens": 40},
        "previous_response_id": {"input": SHAPES, "previous_response_id": "resp_1"},
        "store": {"input": SHAPES, "store": True},
        "background": {"input": SHAPES, "background": True},
        "truncation auto": {"input": SHAPES, "truncation": "auto"},
        "conversation": {"input": SHAPES, "conversation": "conv_1"},
        "an item by its id": {"input": [{"type": "item_reference", "id": "msg_1"}, USER]},
        "an image by file_id": {
            "input": [_said("user", [{"type": "input_image", "file_id": "file-1"}, text])]
        },
        "no input": {},
        "web_search": {"input": SHAPES, "tools": [{"type": "web_search"}]},
        "a custom tool": {"input": SHAPES, "tools": [{"type": "custom", "name": "a"}]},
    }
    for name, body in given.items():
        asked = {"temperature": 0, "max_output_tokens": 12} | body
        yield Asked(f"responses: {name}", RESPONSES, asked)


def _messages() -> Iterator[Asked]:
    source = {"type": "base64", "media_type": "image/png", "data": BASE64}
    shown = [_said("user", [{"type": "image", "source": source}, _text(SHAPES)])]
    look = {"name": "look", "input_schema": LARGE}
    use = {"type": "tool_use", "id": "abcdefghi", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "abcdefghi", "content": "3"}
    given: dict[str, Body] = {
        "a text": {"messages": [USER]},
        "an image": {"messages": shown},
        "system": {"messages": [USER], "system": "Be brief."},
        "system of blocks": {"messages": [USER], "system": [_text("Be"), _text("brief.")]},
        "a stream": {"messages": [USER], "stream": True},
        "stop_sequences": {"messages": shown, "stop_sequences": ["shapes"]},
        "a forced tool": {
            "messages": [USER],
            "tools": [look],
            "tool_choice": {"type": "any"},
            "max_tokens": 60,
        },
        "a call and its result": {
            "messages": [USER, _said("assistant", [use]), _said("user", [result])]
        },
        "an assistant's beginning": {"messages": [*shown, _said("assistant", "There are")]},
        "max_tokens of null": {"messages": shown, "max_tokens": None},
        "an empty model": {"messages": shown, "model": ""},
        "thinking disabled": {"messages": [USER], "thinking": {"type": "disabled"}},
        "thinking adaptive": {"messages": [USER], "thinking": {"type": "adaptive"}},
        "thinking enabled": {
            "messages": [USER],
            "max_tokens": 2000,
            "thinking": {"type": "enabled", "budget_tokens": 1024},
        },
        "effort": {"messages": [USER], "output_config": {"effort": "low"}},
        "mcp_servers": {
            "messages": [USER],
            "mcp_servers": [{"type": "url", "url": "https://a.example", "name": "a"}],
        },
        "container": {"messages": [USER], "container": "container_1"},
        "a tool of Anthropic's": {
            "messages": [USER],
            "tools": [{"type": "bash_20250124", "name": "bash"}],
        },
        "a document": {
            "messages": [
                _said(
                    "user",
                    [
                        {
                            "type": "document",
                            "source": {"type": "text", "media_type": "text/plain", "data": "a"},
                        }
                    ],
                )
            ]
        },
        "a file": {
            "messages": [
                _said("user", [{"type": "image", "source": {"type": "file", "file_id": "file_1"}}])
            ]
        },
    }
    for name, body in given.items():
        asked = {"model": MODEL, "temperature": 0, "max_tokens": 12} | body
        yield Asked(f"messages: {name}", MESSAGES, asked)
    yield Asked("messages: no max_tokens", MESSAGES, {"model": MODEL, "messages": shown})
    yield Asked("count_tokens", f"{MESSAGES}/count_tokens", {"model": MODEL, "messages": shown})


def _others() -> Iterator[Asked]:
    for path in (
        "/health",
        "/version",
        "/ping",
        "/load",
        "/v1/models",
        "/openapi.json",
        "/nothing",
    ):
        yield Asked(f"GET {path}", path, method="GET")
    yield Asked("GET /v1/models/", "/v1/models/", method="GET")
    yield Asked("GET the chat", CHAT, method="GET")
    yield Asked("tokenize: a prompt", "/tokenize", {"prompt": SHAPES})
    yield Asked("tokenize: messages", "/tokenize", {"messages": [SYSTEM, USER]})
    yield Asked("tokenize: an image", "/tokenize", {"messages": [SHOWN]})
    yield Asked(
        "tokenize: no special tokens", "/tokenize", {"prompt": SHAPES, "add_special_tokens": False}
    )
    yield Asked("detokenize", "/detokenize", {"tokens": [1000, 1001]})
    plain = {"Content-Type": "text/plain"}
    elsewhere = {"Host": "example.com"}
    yield Asked("another machine's host", CHAT, {"messages": [USER]}, headers=elsewhere)
    yield Asked("a body of plain text", CHAT, {"messages": [USER]}, headers=plain)
