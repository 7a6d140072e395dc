"""Writes docs/vllm_fields.md: how the gateway treats vLLM's routes and the fields of its requests.

python -m tools.vllm_fields_page [--check]: with --check, fails if the page is out of date. It also
fails if the installed vLLM has a route or a field that no table here covers, and if a table names
one that vLLM lacks.
"""

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from pixtral_gateway.api.anthropic.request import CountTokensRequest, MessagesRequest
from pixtral_gateway.api.openai.completions.request import CompletionRequest
from pixtral_gateway.api.openai.openapi import OPERATIONS
from pixtral_gateway.api.openai.request_schema import (
    INSTEAD,
    ChatRequest,
    DetokenizeRequest,
    RequestBody,
    ResponseFormat,
    StreamOptions,
    StructuredOutputs,
    TokenizeRequest,
)
from pixtral_gateway.api.openai.responses.request import ResponsesRequest
from tools.generated_page import write_or_check

PAGE = Path(__file__).resolve().parents[1] / "docs" / "vllm_fields.md"
ENTRYPOINTS = "entrypoints"
CHAT = "entrypoints/openai/chat_completion/protocol.py", "ChatCompletionRequest"
_ANTHROPIC = "entrypoints/anthropic/protocol.py"
_BASE = "entrypoints/generate/base/protocol.py"
_TOKENIZE = "entrypoints/serve/tokenize/protocol.py"

# For each request: vLLM's classes, and the gateway's.
REQUESTS: Mapping[str, tuple[tuple[tuple[str, str], ...], type[BaseModel]]] = {
    "/v1/chat/completions": ((CHAT,), ChatRequest),
    "/v1/completions": (
        (("entrypoints/openai/completion/protocol.py", "CompletionRequest"),),
        CompletionRequest,
    ),
    "/v1/responses": (
        (("entrypoints/openai/responses/protocol.py", "ResponsesRequest"),),
        ResponsesRequest,
    ),
    "/v1/messages": (((_ANTHROPIC, "AnthropicMessagesRequest"),), MessagesRequest),
    "/v1/messages/count_tokens": (
        ((_ANTHROPIC, "AnthropicCountTokensRequest"),),
        CountTokensRequest,
    ),
    "/tokenize": (
        ((_TOKENIZE, "TokenizeChatRequest"), (_TOKENIZE, "TokenizeCompletionRequest")),
        TokenizeRequest,
    ),
    "/detokenize": (((_TOKENIZE, "DetokenizeRequest"),), DetokenizeRequest),
    "stream_options": (((_BASE, "StreamOptions"),), StreamOptions),
    "response_format": (((_BASE, "ResponseFormat"),), ResponseFormat),
    "structured_outputs": ((("sampling_params.py", "StructuredOutputsParams"),), StructuredOutputs),
}
# The decorators that add a route to a router.
_METHODS = ("get", "post", "put", "delete", "head", "api_route", "add_api_route", "websocket")

_RENDER = "not meant: vLLM runs prompt and answer on separate servers by it; here the tiers do"
_ADMIN = "not meant: it changes the engine for all tenants; here an operator restarts a replica"
_TRAINING = "not meant: for reinforcement learning, which changes the weights while it serves"
_OTHERS = "not meant: for models that embed, rank, classify or listen; no Pixtral does"
_COHERE = "not meant: Cohere's API, which vLLM has for Cohere's models"
# Routes that this service lacks, and why.
ROUTES: Mapping[str, str] = {
    "/docs": "not meant: this service has `/openapi.json`, and a page at `/`",
    "/kv_event_sources": "not meant: every answer tells the gateway what its decoder has cached",
    "/tokenizer_info": "not meant: a Mistral tokenizer has no such configuration",
    "/invocations": "not meant: SageMaker's single route for everything; use each route itself",
    "/v1/systemone": "not meant: decisions among classes; use `structured_outputs.choice`",
    "/generative_scoring": "not meant: use `logprobs` and `allowed_token_ids` for scores",
    "/v1/chat/completions/batch": "refused (404): send each conversation as a request; the "
    "engine batches them",
    "/v1/responses/{response_id}": "refused (404): the service stores no responses",
    "/v1/responses/{response_id}/cancel": "refused (404): close the connection instead",
    "/scale_elastic_ep": _ADMIN,
    "/is_scaling_elastic_ep": _ADMIN,
    "/v1/chat/completions/render": _RENDER,
    "/v1/messages/render": _RENDER,
    "/v1/completions/render": _RENDER,
    "/v1/responses/render": _RENDER,
    "/v1/chat/completions/derender": _RENDER,
    "/v1/completions/derender": _RENDER,
    "/inference/v1/generate": _RENDER,
    "/inference/v1/abort_requests": _RENDER,
    "/v1/load_lora_adapter": "not meant: the decoder's settings name the adapters",
    "/v1/unload_lora_adapter": "not meant: the decoder's settings name the adapters",
    "/server_info": _ADMIN,
    "/reset_prefix_cache": _ADMIN,
    "/reset_mm_cache": _ADMIN,
    "/reset_encoder_cache": _ADMIN,
    "/collective_rpc": _ADMIN,
    "/sleep": _ADMIN,
    "/release_kv_cache_memory": _ADMIN,
    "/wake_up": _ADMIN,
    "/is_sleeping": _ADMIN,
    "/pause": _TRAINING,
    "/resume": _TRAINING,
    "/abort_requests": _TRAINING,
    "/is_paused": _TRAINING,
    "/init_weight_transfer_engine": _TRAINING,
    "/shutdown_weight_transfer_engine": _TRAINING,
    "/start_weight_update": _TRAINING,
    "/start_draft_weight_update": _TRAINING,
    "/update_weights": _TRAINING,
    "/finish_weight_update": _TRAINING,
    "/update_weight_version": _TRAINING,
    "/weight_info": _TRAINING,
    "/weight_checker": _TRAINING,
    "/get_world_size": _TRAINING,
    "/start_profile": _ADMIN,
    "/stop_profile": _ADMIN,
    "/fault_tolerance/apply": _ADMIN,
    "/fault_tolerance/status": _ADMIN,
    "/classify": _OTHERS,
    "/pooling": _OTHERS,
    "/rerank": _OTHERS,
    "/v1/rerank": _OTHERS,
    "/v2/rerank": _OTHERS,
    "/score": _OTHERS,
    "/v1/score": _OTHERS,
    "/v1/embeddings": _OTHERS,
    "/v2/embed": _OTHERS,
    "/v1/audio/transcriptions": _OTHERS,
    "/v1/audio/translations": _OTHERS,
    "/v1/realtime": _OTHERS,
    "/cohere/v2/chat": _COHERE,
    "/cohere/v2/chat/render": _COHERE,
    "/ready": "not meant: for vLLM's supervisor of several servers; use `/health`",
    "/readyz": "not meant: for vLLM's supervisor of several servers; use `/health`",
}

# Why an ignored field changes no answer, by its name or by route and name.
PASSED_OVER: Mapping[str, str] = {
    "include_reasoning": "the reasoning is a separate item, which clients may skip",
    "reasoning_effort": "the text of a raw prompt contains its effort already",
    "length_penalty": "only beam search uses it, which is refused",
    "metadata": "a note for the client itself",
    "mm_payload": "only vLLM's render routes use it",
    "return_mm_kwargs": "only vLLM's render routes use it",
    "return_token_offsets": "only vLLM's render routes use it",
    "prompt_cache_key": "vLLM ignores it, too",
    "service_tier": "there is one tier",
    "session_id": "placement follows the prompt's beginning",
    "skip_special_tokens": "it changes nothing in vLLM with a Mistral tokenizer",
    "spaces_between_special_tokens": "it changes nothing in vLLM with a Mistral tokenizer",
    "store": "the service stores nothing",
    "stream_interval": "tokens are sent as soon as they arrive",
    "truncation_side": "it applies to truncated prompts, and truncation is refused",
    "user": "a note for the client itself",
}


HEAD = """\
# vLLM's routes and fields

`python -m tools.vllm_fields_page` makes this page from the source of the installed vLLM and from
the gateway's own routes and requests. A test fails when it is out of date.
[openai.md](openai.md) and [anthropic.md](anthropic.md) describe the fields.

| word | meaning |
|---|---|
| *taken* | as in vLLM, within the [limits](limits.md) |
| *refused* | status 400 with the field's name, unless the value asks for nothing |
| *ignored* | the field changes no answer here |
| *not meant* | this service does not have the route, and answers 404 |

## Routes

| route | here |
|---|---|
"""


def source(path: str) -> Path:
    """A file or folder of the installed vLLM, which is read without importing it."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        sys.exit("vLLM is not installed")
    return Path(found.origin).parent / path


def routes() -> list[str]:
    """Every route of any vLLM server."""
    found: set[str] = set()
    for file in source(ENTRYPOINTS).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id=owner), attr=method),
                    args=[ast.Constant(value=str(path)), *_],
                ) if method in _METHODS and (owner.endswith("router") or owner == "app"):
                    found.add(path)
                case ast.Call(func=ast.Name(id="Mount"), args=[ast.Constant(value=str(path)), *_]):
                    found.add(path)
    return sorted(found)


def fields_of(path: str, name: str) -> list[str]:
    """The fields of a class of the installed vLLM."""
    tree = ast.parse(source(path).read_text())
    (defined,) = (
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name
    )
    names = [
        node.target.id
        for node in defined.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    return [each for each in names if not each.startswith("_")]


def fate_of_route(route: str) -> str:
    """How the gateway treats a route. Raises KeyError for a route in no table."""
    return "taken" if route in OPERATIONS else ROUTES[route]


def fate_of(field: str, of: str = "/v1/chat/completions") -> tuple[str, str]:
    """How the gateway treats a field, and why or what to use instead. Raises KeyError."""
    body = REQUESTS[of][1]
    if field in {info.alias or name for name, info in body.model_fields.items()}:
        return "taken", ""
    if issubclass(body, StructuredOutputs) and field in body.unsupported:
        return "refused", "leave it out"
    if issubclass(body, RequestBody) and field in body.all_refused():
        nothing = body.all_refused()[field]
        asks_for_nothing = ", ".join(f"`{json.dumps(value)}`" for value in nothing)
        instead = body.reasons.get(field, INSTEAD.get(field, "leave it out"))
        return "refused", instead + (f"; {asks_for_nothing} is taken" if nothing else "")
    return "ignored", PASSED_OVER.get(f"{of} {field}") or PASSED_OVER[field]


def page() -> str:
    """The whole page. Raises KeyError for an unlisted field, ValueError for a route vLLM lacks."""
    found = routes()
    if gone := {*ROUTES} - {*found}:
        raise ValueError(f"vLLM has no {', '.join(sorted(gone))}")
    lines = [HEAD, *(f"| `{route}` | {fate_of_route(route)} |\n" for route in found)]
    for of in REQUESTS:
        lines.append(f"\n## Fields of `{of}`\n\n| field | here | |\n|---|---|---|\n")
        lines += _rows(of)
    return "".join(lines)


def _rows(of: str) -> Iterator[str]:
    names = (name for where in REQUESTS[of][0] for name in fields_of(*where))
    for field in dict.fromkeys(names):
        fate, more = fate_of(field, of)
        yield f"| `{field}` | {fate} |{f' {more}' if more else ''} |\n"


def main(arguments: list[str]) -> int:
    return write_or_check(PAGE, page(), "tools.vllm_fields_page", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
