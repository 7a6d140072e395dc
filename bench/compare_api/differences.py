"""Why the gateway answers some requests otherwise than stock vLLM."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Difference:
    """An argument, and the names of the requests that it is for."""

    title: str
    argument: str
    requests: tuple[str, ...]


DIFFERENCES = (
    Difference(
        "Answers that are sent back",
        "An answer of the model can always be sent back: an empty one, one with text beside a "
        "call, a thought, which a model that does not think is not shown, and one from another "
        "server, whose ids of calls have another form. The prompt has nine characters of each "
        "id, as the tokenizer asks for. vLLM refuses these with the tokenizer of this "
        "checkpoint.",
        (
            "assistant: an empty text",
            "assistant: null",
            "assistant: text beside a call",
            "assistant: a call's id of another form",
            "assistant: reasoning_content",
        ),
    ),
    Difference(
        "Forms of Mistral's clients",
        "Mistral's own API has these, and its clients send them: `prefix`, a `tool_choice` of "
        "`any`, and a URL as the value of `image_url`.",
        (
            "image: a URL as the part's value",
            "a prefix",
            "tools: any",
        ),
    ),
    Difference(
        "Images in a URL",
        "A `data:` URL is read as a browser reads it: its scheme has no case, and its base64 "
        "may have line breaks and spaces, and no padding. vLLM's decoder is strict.",
        (
            "image: no padding",
            "image: line breaks",
            "image: a space after the comma",
            "image: DATA:IMAGE/PNG;BASE64",
        ),
    ),
    Difference(
        "Formats of images",
        "TIFF needs a setting, `PIXTRAL_IMAGE_FORMATS`: [security.md](security.md) says why.",
        ("image: TIFF",),
    ),
    Difference(
        "Detail",
        "`detail: low` shows an image at half the model's largest size, for fewer tokens "
        "([api.md](api.md#detail)). vLLM passes over it.",
        ("image: detail low",),
    ),
    Difference(
        "Values that ask for nothing, or for more than there is",
        "These requests have one sensible answer, and vLLM refuses them. The gateway "
        "reduces a `max_tokens` above the context to the tokens that are left, as vLLM does with "
        "one just below the context. Two greedy "
        "choices are the same text twice, which OpenAI's API answers, too. More than four texts "
        "may be among `stop`. An empty list of tools or of allowed tokens is as none, "
        "`tool_choice: auto` asks for nothing where there are no tools, and `stream_options` "
        "asks for nothing where there is no stream. `max_tokens` and `model` may be absent on "
        "`/v1/messages`, as in chat.",
        (
            "max_tokens: 100000",
            "n: 2",
            "a stream of two choices",
            "completions: n",
            "stop: ['a', 'b', 'c', 'd', 'e']",
            "allowed_token_ids: []",
            "tools: an empty list",
            "tool_choice auto without tools",
            "stream_options: {'include_usage': True}",
            "messages: max_tokens of null",
            "messages: no max_tokens",
            "messages: an empty model",
        ),
    ),
    Difference(
        "Fields that vLLM passes over",
        "The request asks for something that neither server does. vLLM answers as if it had not "
        "been asked for; the gateway refuses the request, names the field, and says what to do "
        "instead. `priority` is among them where the engine takes requests by their arrival: "
        "vLLM's own description of the field promises an error.",
        (
            "best_of: 2",
            "completions: best_of",
            "functions: [{'name': 'look'}]",
            "modalities: ['audio']",
            "prediction: {'type': 'content', 'content': '3'}",
            "safe_prompt: True",
            "guided_json: {'type': 'object'}",
            "documents: [{'text': 'a'}]",
            "vllm_xargs: {'a': 'b'}",
            "priority: 1",
            "structured_outputs: whitespace_pattern",
            "responses: truncation auto",
            "responses: conversation",
            "responses: a custom tool",
            "messages: mcp_servers",
            "messages: container",
        ),
    ),
    Difference(
        "Fields that vLLM acts on",
        "The gateway does not act on these, and refuses them rather than answer something else. "
        "`truncate_prompt_tokens` cuts the beginning of the prompt off, its template and images "
        "with it. A beam search is one request that costs as many. `cache_salt` keeps the "
        "prefixes of one caller from another, as each tenant's are here already. The "
        "log-probabilities of a prompt come with a whole answer, not in a stream.",
        (
            "truncate_prompt_tokens: 4",
            "use_beam_search: True",
            "cache_salt: 'salt'",
            "repetition_detection: {'max_pattern_size': 2, 'min_count': 2}",
            "completions: echo and logprobs in a stream",
        ),
    ),
    Difference(
        "A value outside OpenAI's range",
        "OpenAI's API has a bias of -100 to 100. vLLM cuts a larger one to 100 without a word.",
        ("logit_bias: {'100': 200}",),
    ),
    Difference(
        "Log-probabilities of a prompt, once",
        "With `echo` and `logprobs`, those of the prompt stand in `logprobs`, as with OpenAI. "
        "vLLM has them once more as `prompt_logprobs`, which the gateway gives to those who ask "
        "for them.",
        ("completions: echo and logprobs",),
    ),
    Difference(
        "JSON on one line",
        "The JSON of a `response_format` comes on one line, so that a small model ends it: with "
        "any white space, it writes white space until `max_tokens`. "
        "`PIXTRAL_DISABLE_ANY_WHITESPACE=false` gives vLLM's answer. vLLM has a field for it, "
        "too, and passes over it.",
        (
            "structured_outputs: json on one line",
            "responses: text.format",
        ),
    ),
    Difference(
        "Schemas that xgrammar does not hold an answer to",
        "The gateway refuses a schema that an answer would not be held to, and names the "
        "keyword and its place: [refusals.md](refusals.md#schemas-beyond-xgrammar) says why it "
        "has no second library. vLLM lets xgrammar pass over `not` and `if`. It checks "
        "`multipleOf` and `allOf` by its second library, and compiles them by that of its first "
        "structured request, xgrammar here, which passes over them.",
        (
            "response_format: multipleOf",
            "response_format: allOf",
            "response_format: not",
            "response_format: if",
        ),
    ),
    Difference(
        "An object of any properties",
        "The decoder writes out that an object without `properties` may have any, and so holds "
        "an answer to its `minProperties`. xgrammar takes it for an empty object, and vLLM "
        "fails with 500.",
        ("response_format: minProperties",),
    ),
    Difference(
        "Structures beside what they contradict",
        "The gateway refuses a request of which two parts could forbid every token, or of which "
        "one could not hold: a structure beside `min_tokens` or beside a call that must be "
        "made, and `disable_any_whitespace` without JSON.",
        (
            "structured_outputs: a regex on one line",
            "structured_outputs beside min_tokens",
            "structured_outputs beside bad_words",
            "tools: required, beside structured_outputs",
        ),
    ),
    Difference(
        "Calls that must be made",
        "With `required` or a tool's name, the answer begins with the model's own token for "
        "calls, which is the one token more of the prompt, and its arguments are on one line. "
        "vLLM has the model write a list in plain JSON, in which a small model writes white "
        "space until `max_tokens`. On `/v1/responses` vLLM passes over `tool_choice`.",
        (
            "tools: required",
            "tools: named",
            "tools: required, as a stream",
            "tools: strict",
            "tools beside an image",
            "responses: a forced tool",
            "messages: a forced tool",
        ),
    ),
    Difference(
        "Tools that may not be called",
        "With `tool_choice: none` the model is not shown the tools, so that it writes no call: "
        "vLLM does the same with `--exclude-tools-when-tool-choice-none`.",
        ("tools: none",),
    ),
    Difference(
        "Tools that are not clear",
        "Which of two tools of one name is called would be open, and a call's arguments are an "
        "object.",
        (
            "tools: two of one name",
            "tools: arguments of a list",
        ),
    ),
    Difference(
        "Parts of the Responses API",
        "`input_text` and `input_image` are the parts that OpenAI's clients send. vLLM hands "
        "them to `mistral_common` as they are, which does not know them.",
        (
            "responses: input_text",
            "responses: an image",
        ),
    ),
    Difference(
        "An assistant's beginning in Anthropic's API",
        "A last message of the assistant is the beginning of the answer, as with Anthropic.",
        ("messages: an assistant's beginning",),
    ),
    Difference(
        "Who may ask",
        "A gateway without keys is asked by this machine's own names alone, or a page from "
        "elsewhere could ask in a visitor's browser ([security.md](security.md)).",
        ("another machine's host",),
    ),
)


def by_request() -> Mapping[str, Difference]:
    """Raises ValueError for a request that has two arguments."""
    found: dict[str, Difference] = {}
    for difference in DIFFERENCES:
        for name in difference.requests:
            if name in found:
                raise ValueError(f"{name} has two arguments")
            found[name] = difference
    return found
