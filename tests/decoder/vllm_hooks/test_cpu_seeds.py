"""Seeds of requests' own on a CPU; `test_scheduler.py` has a whole engine keep them."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pixtral_decoder.vllm_hooks import cpu_seeds
from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


def runner_of(*discarded: bool) -> Any:
    """A runner whose batch has a generator a request, and whose other parts nobody reaches."""
    generators = {at: torch.Generator().manual_seed(at) for at in range(len(discarded))}
    mask = torch.tensor(discarded).numpy()
    return SimpleNamespace(
        input_batch=SimpleNamespace(num_reqs=len(discarded), generators=generators),
        discard_request_mask=SimpleNamespace(np=mask),
        use_async_scheduling=False,
    )


def test_still_there() -> None:
    assert_still_there(cpu_seeds)


def test_still_needed_while_vllm_sets_a_cpus_generator_back() -> None:
    """Once this fails, `pixtral_decoder.vllm_hooks.cpu_seeds` can go."""
    bookkeeping: Any = GPUModelRunner._bookkeeping_sync
    with pytest.raises(RuntimeError, match="CPU Generator does not use offset"):
        bookkeeping(runner_of(True), *[None] * 5)


def test_a_generator_is_not_drawn_from_for_a_token_that_is_discarded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[set[int]] = []

    def note(runner: Any, *_: Any) -> None:
        seen.append(set(runner.input_batch.generators))

    for name in ("_sample", "_bookkeeping_sync"):
        # The test's own in vLLM's place, so that what the hook puts in is taken out again.
        monkeypatch.setattr(GPUModelRunner, name, note)
    monkeypatch.setattr(cpu_seeds, "check_upstream", lambda: None)
    cpu_seeds.leave_generators_alone()
    runner = runner_of(False, True, False)
    patched: Any = GPUModelRunner
    patched._sample(runner, None, None)
    patched._bookkeeping_sync(runner)
    assert seen == [{0, 2}, {0, 2}]
    assert set(runner.input_batch.generators) == {0, 1, 2}
