"""Seeds of requests' own, on a CPU, where a prompt is taken in by more than one step.

vLLM samples after every step, and throws away what comes of a prompt that is not yet whole. It then
sets the request's generator back by an offset, which only a GPU's has: on a CPU the engine dies of
it, for everyone.
"""

from typing import Any

import numpy as np


def leave_generators_alone() -> None:
    """From now on, in this process, no generator is used for a token that is thrown away."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    sample, keep_books = GPUModelRunner._sample, GPUModelRunner._bookkeeping_sync
    if sample.__module__ == __name__:
        return
    set_aside: dict[int, Any] = {}

    def sample_what_is_kept(runner: Any, *args: Any, **kwargs: Any) -> Any:
        batch = runner.input_batch
        for at in np.nonzero(runner.discard_request_mask.np[: batch.num_reqs])[0]:
            if (generator := batch.generators.pop(int(at), None)) is not None:
                set_aside[int(at)] = generator
        return sample(runner, *args, **kwargs)

    def keep_books_and_put_back(runner: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return keep_books(runner, *args, **kwargs)
        finally:
            runner.input_batch.generators.update(set_aside)
            set_aside.clear()

    GPUModelRunner._sample = sample_what_is_kept
    GPUModelRunner._bookkeeping_sync = keep_books_and_put_back
