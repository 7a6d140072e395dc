"""Writes docs/vllm_fields.md: each field of vLLM's chat requests, and what becomes of it here.

python -m tools.vllm_fields_page [--check]: with --check, tells whether it is up to date.
"""

import ast
import importlib.util
import json
import sys
from pathlib import Path

from pixtral_gateway.api.openai.request_schema import (
    HARMLESS,
    INSTEAD,
    NOTHING,
    ChatRequest,
    StructuredOutputs,
)

PAGE = Path(__file__).resolve().parents[1] / "docs" / "vllm_fields.md"
CHAT = "entrypoints/openai/chat_completion/protocol.py", "ChatCompletionRequest"
STRUCTURES = "sampling_params.py", "StructuredOutputsParams"

HEAD = """\
# vLLM's fields

Made by `python -m tools.vllm_fields_page` from the source of the vLLM that is installed and from
the gateway's own request; a test fails where they are no longer as here. *Taken*: as vLLM has it,
within the [limits](limits.md). *Refused*: with status 400 and the field in `param`, unless its
value asks for nothing. *Passed over*: it changes nothing of an answer here.
[openai.md](openai.md) says what the fields do.

## POST /v1/chat/completions

| field | here | |
|---|---|---|
"""
STRUCTURED = """
## Its `structured_outputs`

| field | here | |
|---|---|---|
"""


def fields_of(path: str, name: str) -> list[str]:
    """The fields of a class of the installed vLLM, which is read and not imported."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        sys.exit("vLLM is not installed")
    tree = ast.parse((Path(found.origin).parent / path).read_text())
    (defined,) = (
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name
    )
    names = [
        node.target.id
        for node in defined.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    return [each for each in names if not each.startswith("_")]


def fate_of(field: str) -> tuple[str, str]:
    """What becomes of a field of a chat request, and what to do instead. Raises KeyError."""
    if field in ChatRequest.model_fields:
        return "taken", ""
    if field in HARMLESS:
        return "passed over", ""
    nothing = NOTHING[field]
    asks_for_nothing = ", ".join(f"`{json.dumps(value)}`" for value in nothing)
    instead = INSTEAD.get(field, "leave it out")
    return "refused", instead + (f"; {asks_for_nothing} is taken" if nothing else "")


def page() -> str:
    rows = [_row(field, *fate_of(field)) for field in fields_of(*CHAT)]
    taken = {info.alias or name for name, info in StructuredOutputs.model_fields.items()}
    structured = [
        _row(field, "taken" if field in taken else "refused", "")
        for field in fields_of(*STRUCTURES)
    ]
    return "".join([HEAD, *rows, STRUCTURED, *structured])


def _row(field: str, fate: str, more: str) -> str:
    return f"| `{field}` | {fate} |{f' {more}' if more else ''} |\n"


def main(arguments: list[str]) -> int:
    if "--check" not in arguments:
        PAGE.write_text(page(), "utf-8")
        return 0
    if PAGE.read_text("utf-8") != page():
        print("docs/vllm_fields.md is not up to date: run python -m tools.vllm_fields_page")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
