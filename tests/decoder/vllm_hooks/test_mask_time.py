"""The time that structured outputs take in the engine is a request's own."""

import time
import warnings
from collections.abc import Callable
from inspect import unwrap
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

    from pixtral_decoder.vllm_hooks import mask_time


def grammar(takes: Callable[[], None]) -> Any:
    matcher: Any = SimpleNamespace(
        fill_next_token_bitmask=lambda *_: takes(), accept_token=lambda _: True
    )
    context: Any = None
    return XgrammarGrammar(vocab_size=1, matcher=matcher, ctx=context)


def request(of: Any) -> Any:
    return SimpleNamespace(structured_output_request=SimpleNamespace(grammar=of))


def compute() -> None:
    until = time.thread_time() + 0.005
    while time.thread_time() < until:
        pass


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM has it, though an engine may have been started in this process before."""
    for name in mask_time._METHODS:
        monkeypatch.setattr(XgrammarGrammar, name, unwrap(getattr(XgrammarGrammar, name)))


def test_still_there() -> None:
    assert_still_there(mask_time)


@pytest.mark.usefixtures("plain")
def test_still_needed_while_vllm_does_not_measure() -> None:
    """Once this fails, vLLM may bound the time itself: `pixtral_decoder.vllm_hooks.mask_time`."""
    one = grammar(compute)
    before = dict(vars(one))
    one.fill_bitmask(None, 0)
    assert {**vars(one), "num_processed_tokens": 0} == before


@pytest.mark.usefixtures("plain")
def test_time_is_a_requests_own_and_is_told_once() -> None:
    mask_time.measure()
    mask_time.measure()
    busy, idle = request(grammar(compute)), request(grammar(lambda: None))
    busy.structured_output_request.grammar.fill_bitmask(None, 0)
    idle.structured_output_request.grammar.fill_bitmask(None, 0)
    assert mask_time.take_seconds(busy) >= 0.005 > mask_time.take_seconds(idle)
    assert mask_time.take_seconds(busy) == 0.0
    assert mask_time.take_seconds(SimpleNamespace(structured_output_request=None)) == 0.0
