"""Keeps an engine on a CPU alive when a request with a seed has a prompt of several steps.

Library: vLLM
Changes: while a request's prompt is incomplete, GPUModelRunner draws no token for it from the
    request's generator.
Why: vLLM samples after every step and discards the token of an incomplete prompt. Its model runner
    V1 then resets the offset of the request's generator, and only a GPU's generator has an offset.
    On a CPU the engine dies, and with it every request. Model runner V2, which vLLM runs on a GPU
    with Triton, derives each draw from seed and position and needs no hook.
Upstream: https://github.com/vllm-project/vllm/pull/10097 (brought the offset)
Versions: vLLM 0.25.1 to 0.33.0
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pixtral_core.hooks import Touch, check_touches

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_RUNNER = "vllm.v1.worker.gpu_model_runner"
TOUCHES = (
    Touch(_RUNNER, "GPUModelRunner._sample", mentions=("input_batch",)),
    Touch(
        _RUNNER,
        "GPUModelRunner._bookkeeping_sync",
        mentions=("discard_request_mask", "generators", "input_batch"),
    ),
    Touch(_RUNNER, "GPUModelRunner.__init__", mentions=("discard_request_mask", "input_batch")),
    Touch("vllm.v1.worker.gpu_input_batch", "InputBatch.__init__", mentions=("generators",)),
)


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed. Imports the model runner, which takes seconds."""
    check_touches(__name__, TOUCHES)


def leave_generators_alone() -> None:
    """From now on vLLM uses no generator for a token that it discards, in this process."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    sample, keep_books = GPUModelRunner._sample, GPUModelRunner._bookkeeping_sync
    if sample.__module__ == __name__:
        return
    set_aside: dict[int, torch.Generator] = {}

    def sample_what_is_kept(runner: GPUModelRunner, *args: Any, **kwargs: Any) -> Any:
        set_aside.update(_taken(runner))
        return sample(runner, *args, **kwargs)

    def keep_books_and_put_back(runner: GPUModelRunner, *args: Any, **kwargs: Any) -> Any:
        try:
            return keep_books(runner, *args, **kwargs)
        finally:
            runner.input_batch.generators.update(set_aside)
            set_aside.clear()

    GPUModelRunner._sample = sample_what_is_kept  # type: ignore[assignment, method-assign]
    GPUModelRunner._bookkeeping_sync = (  # type: ignore[method-assign]
        keep_books_and_put_back  # type: ignore[assignment]
    )


def _taken(runner: "GPUModelRunner") -> Mapping[int, torch.Generator]:
    """Takes the generators of some requests out of the batch, and returns them.

    These are the requests whose token vLLM discards.
    """
    generators = runner.input_batch.generators
    discarded = np.nonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs])[0]
    return {int(at): generators.pop(int(at)) for at in discarded if int(at) in generators}
