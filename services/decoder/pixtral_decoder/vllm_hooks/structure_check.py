"""Lets the decoder check a structured output as vLLM does, but outside the event loop.

Library: vLLM
Changes: nothing; it runs vLLM's own check of a structured output before vLLM does.
Why: vLLM checks a structured output on the event loop when it takes the request, so a slow schema
    or expression would delay every stream. vLLM also accepts every structure that compiles, even if
    it makes the engine slow.
Upstream: https://github.com/vllm-project/vllm/pull/47312
Versions: vLLM 0.25.1 to 0.33.0
"""

from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.structured_output.backend_xgrammar import (
    has_xgrammar_unsupported_json_features,
    validate_xgrammar_grammar,
)
from vllm.v1.structured_output.utils import grammar_is_likely_lark

from pixtral_core.hooks import Touch, check_touches

_PACKAGE = "vllm.v1.structured_output"
TOUCHES = (
    Touch(
        f"{_PACKAGE}.backend_xgrammar",
        "validate_xgrammar_grammar",
        parameters=("sampling_params",),
    ),
    Touch(
        f"{_PACKAGE}.backend_xgrammar",
        "has_xgrammar_unsupported_json_features",
        parameters=("schema",),
    ),
    Touch(f"{_PACKAGE}.utils", "grammar_is_likely_lark", parameters=("grammar_str",)),
)


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


def validate(parameters: SamplingParams) -> None:
    """Raises vLLM's exception if vLLM does not take the structure.

    Changes a choice in `parameters` into a grammar, as vLLM does.
    """
    validate_xgrammar_grammar(parameters)


def is_beyond_xgrammar(schema: dict[str, Any]) -> bool:
    """Whether vLLM knows a keyword of the schema that xgrammar does not enforce."""
    return bool(has_xgrammar_unsupported_json_features(schema))


def is_lark(grammar: str) -> bool:
    """Whether vLLM reads the grammar as Lark, and not as EBNF."""
    return bool(grammar_is_likely_lark(grammar))
