"""Measures the processor time that each structured output takes between steps of the engine.

Library: vLLM
Changes: the computing methods of XgrammarGrammar add their time to the grammar.
Why: vLLM computes the allowed tokens of structured outputs one after the other, while every request
    waits. A grammar that becomes ambiguous takes longer with each token, and vLLM neither measures
    nor bounds it. The decoder's scheduler ends a request whose tenant has spent its budget.
Upstream: none known
Versions: vLLM 0.32.0 (of 0.25.1 and 0.33.0, the names alone)
"""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

from pixtral_core.hooks import Touch, check_touches

_BACKEND = "vllm.v1.structured_output.backend_xgrammar"
_METHODS = ("accept_tokens", "fill_bitmask", "validate_tokens")
TOUCHES = (
    *(Touch(_BACKEND, f"XgrammarGrammar.{method}", mentions=("matcher",)) for method in _METHODS),
    Touch(
        "vllm.v1.structured_output",
        "StructuredOutputManager._fill_bitmasks",
        mentions=("fill_bitmask",),
    ),
    Touch("vllm.v1.request", "Request.__init__", mentions=("structured_output_request",)),
    Touch("vllm.v1.structured_output.request", "StructuredOutputRequest.grammar"),
)

# The hook stores the time in this attribute of the grammar. Each request has a grammar of its own.
_SECONDS = "pixtral_seconds"


class Structured(Protocol):
    """The part of vLLM's Request that this hook touches."""

    @property
    def structured_output_request(self) -> Any: ...


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


def measure() -> None:
    """Starts to measure in this process. A second call changes nothing."""
    from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

    for name in _METHODS:
        method = getattr(XgrammarGrammar, name)
        if method.__module__ != __name__:
            setattr(XgrammarGrammar, name, _timed(method))


def take_seconds(request: Structured) -> float:
    """The time that a request's structured output has taken since the last call."""
    structured = request.structured_output_request
    grammar = None if structured is None else structured.grammar
    # The grammar has no time if it is of another library than xgrammar.
    seconds: float = getattr(grammar, _SECONDS, 0.0)
    if seconds:
        setattr(grammar, _SECONDS, 0.0)
    return seconds


def _timed(method: Callable[..., Any]) -> Callable[..., Any]:
    # `wraps` must not copy __module__, by which `measure` distinguishes this function from vLLM's.
    @wraps(method, assigned=("__name__", "__qualname__", "__doc__"))
    def timed(grammar: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        try:
            return method(grammar, *args, **kwargs)
        finally:
            taken = time.thread_time() - began
            setattr(grammar, _SECONDS, getattr(grammar, _SECONDS, 0.0) + taken)

    return timed
