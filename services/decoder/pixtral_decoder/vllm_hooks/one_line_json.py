"""Puts the JSON of a request on one line if the request asks for that.

Library: vLLM
Changes: XgrammarBackend compiles a schema that `on_one_line` has marked to JSON with white space
    only after commas and colons.
Why: vLLM's StructuredOutputsParams has `disable_any_whitespace` for a request, but its xgrammar
    backend applies this option only to a whole engine. The grammar that xgrammar prints for a
    schema could replace the schema, but xgrammar misreads a printed character from U+0080 to U+00FF
    before a hexadecimal digit.
Upstream: none known
Versions: vLLM 0.32.0 (of 0.25.1 and 0.33.0, the names alone)
"""

import copy
import json
from functools import wraps
from typing import TYPE_CHECKING, Any

from pixtral_core.hooks import Touch, check_touches

if TYPE_CHECKING:
    from vllm.v1.structured_output.backend_types import StructuredOutputOptions
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

_BACKEND = "vllm.v1.structured_output.backend_xgrammar"
TOUCHES = (
    Touch(
        _BACKEND,
        "XgrammarBackend.compile_grammar",
        parameters=("request_type", "grammar_spec"),
        mentions=("compiler", "compile_json_schema", "JSON"),
    ),
    Touch(_BACKEND, "XgrammarBackend.__post_init__", mentions=("compiler",)),
    Touch("vllm.v1.structured_output.backend_types", "StructuredOutputOptions"),
    Touch("xgrammar", "GrammarCompiler.compile_json_schema", parameters=("any_whitespace",)),
)

# This keyword is an annotation: every schema may have it, and it changes no answer.
_KEYWORD = "$comment"
_MARK = "pixtral: on one line"


def check_upstream() -> None:
    """Raises HookBroken if vLLM or xgrammar has changed."""
    check_touches(__name__, TOUCHES)


def on_one_line(schema: str) -> str:
    """The marked schema. A schema that is not an object, such as `true`, cannot be marked and stays
    as it is."""
    parsed = json.loads(schema)
    return json.dumps({**parsed, _KEYWORD: _MARK}) if isinstance(parsed, dict) else schema


def is_on_one_line(schema: str) -> bool:
    if _MARK not in schema:
        return False
    parsed = json.loads(schema)
    return isinstance(parsed, dict) and parsed.get(_KEYWORD) == _MARK


def compile_marked() -> None:
    """Compiles marked schemas to JSON on one line, in this process from now on."""
    from vllm.v1.structured_output.backend_types import StructuredOutputOptions
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    compile_grammar = XgrammarBackend.compile_grammar
    if compile_grammar.__module__ == __name__:
        return

    # `wraps` must not copy __module__, by which the line above distinguishes this function from
    # vLLM's.
    @wraps(compile_grammar, assigned=("__name__", "__qualname__", "__doc__"))
    def compile_on_one_line(
        backend: "XgrammarBackend",
        request_type: "StructuredOutputOptions",
        grammar_spec: str,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if request_type == StructuredOutputOptions.JSON and is_on_one_line(grammar_spec):
            # The original must not change, because the same backend may compile another request's
            # schema at the same time.
            backend = copy.copy(backend)
            compiler: Any = _OneLine(backend.compiler)
            backend.compiler = compiler
        return compile_grammar(backend, request_type, grammar_spec, *args, **kwargs)

    XgrammarBackend.compile_grammar = compile_on_one_line  # type: ignore[assignment, method-assign]


class _OneLine:
    """Replaces xgrammar's compiler for a marked schema."""

    def __init__(self, compiler: Any) -> None:
        self._compiler = compiler

    def compile_json_schema(self, schema: str, **_: Any) -> Any:
        return self._compiler.compile_json_schema(schema, any_whitespace=False)
