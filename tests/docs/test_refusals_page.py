"""docs/refusals.md knows every refusal of the gateway's code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pixtral_gateway.api.anthropic.request import MessagesRequest
from pixtral_gateway.api.openai.completions.request import CompletionRequest
from pixtral_gateway.api.openai.request_schema import NOTHING
from pixtral_gateway.api.openai.responses.request import ResponsesRequest

ROOT = Path(__file__).parents[2]
GATEWAY = ROOT / "gateway" / "pixtral_gateway"
PAGE = (ROOT / "docs" / "refusals.md").read_text("utf-8")
FIELDS = (ROOT / "docs" / "vllm_fields.md").read_text("utf-8")
# Where each exception has its message, and its reason.
PLACES = {
    "InvalidRequest": (1, 2),
    "Refused": (2, 1),
    "NotFound": (0, 1),
    "Overloaded": (0, 1),
    "Unauthenticated": (0, 1),
}
# A status with which the client's request is refused, and not the service's own failure.
REFUSED = re.compile(r"// (INVALID_ARGUMENT|NOT_FOUND|UNAUTHENTICATED|RESOURCE_EXHAUSTED)\.")
# Found between tiers, or of gRPC alone, which vLLM has not.
NOT_OF_HTTP = {
    *("MALFORMED_MESSAGE", "RESOURCE_EXHAUSTED", "EMBEDDING_NOT_FOUND", "KEY_MISMATCH"),
}

# Messages of refusals by the row of the page's first table that has them; `{}` is a value.
OURS: dict[str, tuple[str, ...]] = {
    "a field that vLLM acts on": ("is not supported: leave it out",),
    "`suffix`, `prompt_embeds`": (
        "cannot be combined with logprobs in a stream: leave stream out",
    ),
    "`previous_response_id`": (
        "this gateway stores no items: send each item itself",
        "is needed: this gateway stores no files that file_id could name",
        "must be message, function_call, function_call_output or reasoning",
    ),
    "`mcp_servers`": (
        "must be text, image, tool_use or tool_result, in a message that may have it",
        "this gateway stores no files: send the image as base64",
    ),
    "`thinking` of type": ("this model does not think: leave it out, or set disabled",),
    "two different thoughts": (
        "must be equal to reasoning_content",
        "cannot have thinking parts beside reasoning: send one of the two",
    ),
    "`disable_any_whitespace` without": (
        "needs a JSON Schema: leave it out",
        "cannot be combined with {}",
        "must have one of json, regex, choice, grammar and json_object, and no more",
    ),
    "an image by a URL": (
        "only data: URLs are accepted: send the image in one, or ask the operator to allow its "
        "host in PIXTRAL_IMAGE_URL_HOSTS",
    ),
    "an image in TIFF": (
        "the image is larger than {} bytes",
        "the image has {}x{} pixels, more than {} in all",
    ),
    "a `detail`": ("must be auto, low or high",),
    "more images than": (
        "there are {} images, and a request may have {}: leave some out",
        "the body is larger than {} bytes",
        "a request must have {}",
        "the body arrives too slowly or not at all",
    ),
    "`logit_bias` or": (
        "must be at most {} on this gateway",
        "must be at most {}, your limit of concurrent choices",
    ),
    "`prompt_logprobs` of more": (
        "the prompt's {} tokens have {} log-probabilities: they must have {}",
        "an answer that is not streamed must have {}: ask for fewer, or stream it",
    ),
    "`min_tokens`, `ignore_eos`": ("cannot be combined with a structured output: leave it out",),
    "a structure beside a call": ("cannot be combined with a tool choice that forces a tool call",),
    "a schema, expression": ("the grammar of the tools' parameters must have {}",),
    "a schema with a keyword that xgrammar": ("the parameters of {}: {}",),
    "more than 128 tools": (
        "JSON must have {}, and no very long number",
        "the schema must have {}: a longer list must have only texts or only numbers",
    ),
    "two tools of one name": ("another tool has this name", "must be the schema of an object"),
    "a `priority` below": ("must be {} or more, which is your highest priority",),
    "a body that is not `application/json`": (
        "the content type must be application/json",
        "the host must be localhost or an address of this machine: set PIXTRAL_API_KEYS or "
        "PIXTRAL_ALLOW_ANONYMOUS to allow other hosts",
    ),
}
# In the text below the table.
LIMITS_OF_ALL = (
    "the gateway is at its limit of concurrent requests",
    "the limit of your {} is reached",
    "no memory is left for images and long texts: try again later",
)
OWN = (
    "the gateway does not have an image that the request names: send it",
    "is not supported",
    "must be on an assistant message",
    "must be on the last message only",
)
VLLM_TOO = (
    "a token id must be below {}",
    "an API key is needed, as authorization: Bearer KEY",
    "at least one message is needed",
    "the context has room for {} tokens after the prompt: ask for no more",
    "is needed",
    "is needed: text, image_url or thinking",
    "is not JSON",
    "is not a JSON Schema (draft 7)",
    "messages or a prompt is needed",
    "must be a JSON object",
    "must be a URL or an object with a url, not {}",
    "must be a text",
    "must be a text or a list of blocks",
    "must be a text or a list of parts, not {}",
    "must be a text or a list of text parts",
    "must be a text, not {}",
    "must be a type such as image/png",
    "must be an object",
    "must be an object with a function that has a name",
    "must be an object with a type",
    "must be an object with a type or a role",
    "must be an object with a type, not {}",
    "must be base64 with data, or url with a url",
    "must be custom: this gateway has no tools of its own",
    "must be function",
    "must be input_text, input_image or output_text",
    "must be none, auto, required, a function with its name, or allowed_tools",
    "must be none, auto, required, or a function with its name",
    "must be system, developer, user, assistant or tool",
    "must be text",
    "must be text or a list of parts",
    "must be text, image_url or thinking",
    "must be user, assistant, system or developer",
    "must be {} for this model",
    "must not have a NUL character",
    "must have {}: {}",
    "must not be above max_tokens",
    "must not be empty",
    "must not be only white space",
    "needs logprobs to be true",
    "needs the last message to be an assistant message",
    "needs {} in include",
    "no image could be fetched from the URL",
    "no tool has this name",
    "is not supported in a stream",
    "is not in the vocabulary",
    "cannot be combined with add_generation_prompt: leave that out, or set it to false",
    "a token id is not in the vocabulary",
    "only assistant messages may have tool calls",
    "only system and assistant messages may have thinking",
    "only user and tool messages may have images",
    "only user messages and results of tool calls may have images",
    "only user messages may have images",
    "the API key is not valid",
    "the API key was revoked",
    "the base64 is malformed",
    "the body is not a JSON object",
    "the body is not valid JSON",
    "the data: URL is not base64: it must begin as data:image/png;base64,",
    "the image is empty",
    "the image is malformed: {}",
    "the image's header and content disagree",
    "the prompt has {} tokens and leaves no room for an answer in the context of {}: "
    "leave out messages",
    "the text is longer than the context of {} tokens: shorten it",
    "the tokenizer does not take this text: it has too much white space in a row",
    "the messages have more parts than the context has tokens ({}): leave out messages",
    "there are no tools to choose from",
    "no such model: use {}",
    "this model's template has no images in a tool message: send the image in a user message "
    "after it",
    "this model's template has no thinking in a system message: {}",
)


def calls() -> Iterator[tuple[ast.Call, int, int]]:
    """Every refusal of the gateway's code over HTTP, with the places of message and reason."""
    for file in GATEWAY.rglob("*.py"):
        if "grpc" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                message, reason = PLACES.get(node.func.id, (99, 99))
                if len(node.args) > message:
                    yield node, message, reason


def text_of(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part) for part in parts)
        case ast.BinOp(left=left, right=right):
            return text_of(left) + text_of(right)
    return "{}"


def test_every_message_of_a_refusal_is_on_the_page_or_vllms_too() -> None:
    # One that is made elsewhere is `{}` alone.
    found = {text_of(call.args[message]) for call, message, _ in calls()} - {"{}"}
    ours = {message for messages in OURS.values() for message in messages}
    known = ours.union(LIMITS_OF_ALL, OWN, VLLM_TOO)
    assert found - known == set(), "say on docs/refusals.md whom it protects"
    assert known - found == set(), "the gateway no longer refuses this"


@pytest.mark.parametrize("row", OURS)
def test_the_page_has_a_row_for_it_and_says_whom_it_protects(row: str) -> None:
    (line,) = re.findall(rf"^\| {re.escape(row)}.*\|$", PAGE, re.MULTILINE)
    assert line.strip("| ").rpartition(" | ")[2]


def reasons() -> set[str]:
    """Every reason that a client can be refused for."""
    proto = (ROOT / "protos" / "pixtral" / "v1" / "chat.proto").read_text("utf-8")
    _, _, listed = proto.partition("enum ErrorReason {")
    found = set()
    for comment, name in re.findall(r"((?:  //.*\n)+)  ERROR_REASON_(\w+) = ", listed):
        if REFUSED.search(comment) and "between tiers" not in comment:
            found.add(name)
    for call, _, reason in calls():
        if len(call.args) > reason and isinstance(call.args[reason], ast.Constant):
            found.add(text_of(call.args[reason]))
    return found - NOT_OF_HTTP


def test_every_reason_is_on_the_page() -> None:
    found = reasons()
    assert {"IMAGE_URL_NOT_ALLOWED", "BODY_TOO_LARGE", "UNSUPPORTED_PARAMETER"} <= found
    assert {reason for reason in found if f"`{reason}`" not in PAGE} == set()


def test_every_field_that_is_refused_is_on_a_page() -> None:
    refused = {*NOTHING}
    for body in (CompletionRequest, ResponsesRequest, MessagesRequest):
        refused |= {*body.refused}
    guided = {name for name in refused if name.startswith("guided_")}
    named = {name for name in refused if f"`{name}`" in PAGE or f"`{name}` | refused" in FIELDS}
    assert refused - guided - named == set()
