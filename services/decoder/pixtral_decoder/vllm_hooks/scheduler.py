"""Chooses how many tokens a step of the engine takes: fewer where an answer waits for it.

Library: vLLM
Changes: the scheduler's limit of tokens, before each step; it goes in through vLLM's official
    `scheduler_cls`, by the name of `scheduler`. The classes that it derives from are not public.
Why: vLLM has one number for all steps. A large one delays every answer for as long as a new image
    takes; a small one cuts a prompt beside which no answer waits into pieces, each of which costs
    the GPU some of its rate. vLLM's long_prefill_token_threshold cuts one request's share, also
    where no answer waits.
Upstream: https://github.com/vllm-project/vllm/issues/52906
Versions: vLLM 0.25.1 to 0.33.0
"""

from collections.abc import Iterable
from typing import Any, Protocol

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from pixtral_core.hooks import Touch, check_touches
from pixtral_decoder.grammar.mask_budget import STRUCTURE_TOO_SLOW, MaskBudget
from pixtral_decoder.vllm_hooks.mask_time import take_seconds

_SCHEDULER = "vllm.v1.core.sched.scheduler"
_REQUEST = "vllm.v1.request"
TOUCHES = (
    Touch(
        _SCHEDULER,
        "Scheduler.__init__",
        mentions=("max_num_scheduled_tokens", "scheduler_config", "running", "requests"),
    ),
    Touch(
        _SCHEDULER,
        "Scheduler.schedule",
        mentions=("max_num_scheduled_tokens", "num_output_placeholders", "num_computed_tokens"),
    ),
    Touch("vllm.v1.core.sched.async_scheduler", "AsyncScheduler"),
    Touch(
        _REQUEST,
        "Request.__init__",
        mentions=(
            "is_prefill_chunk",
            "max_tokens",
            "num_computed_tokens",
            "num_output_placeholders",
            "num_prompt_tokens",
            "sampling_params",
            "cache_salt",
            "resumable",
            "status",
            "stop_reason",
        ),
    ),
    Touch(_REQUEST, "RequestStatus.FINISHED_ERROR"),
    Touch(
        _SCHEDULER,
        "Scheduler._update_request_with_output",
        parameters=("request", "new_token_ids"),
    ),
    Touch(
        _SCHEDULER,
        "Scheduler.update_from_output",
        mentions=("_update_request_with_output", "get_finished_reason", "stop_reason"),
    ),
    Touch("vllm.config", "SchedulerConfig.get_scheduler_cls", mentions=("scheduler_cls",)),
)

AWAITED_TOKENS = 1536
"""Three such steps take in an image of 1024x1024 and a question, 4,180 tokens, beside answers."""


class _Sampling(Protocol):
    @property
    def prompt_logprobs(self) -> int | None: ...


class Running(Protocol):
    """What is touched of vLLM's Request."""

    @property
    def is_prefill_chunk(self) -> bool: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def num_computed_tokens(self) -> int: ...

    @property
    def num_output_placeholders(self) -> int: ...

    @property
    def num_prompt_tokens(self) -> int: ...

    @property
    def sampling_params(self) -> _Sampling | None: ...


def check_upstream() -> None:
    """Raises HookBroken where vLLM has moved."""
    check_touches(__name__, TOUCHES)


def writes_on(request: Running) -> bool:
    """Whether a running request needs the next step for another token of its answer."""
    if request.is_prefill_chunk:
        return False
    # As vLLM counts: steps are begun before the last one's tokens are known, and where those are
    # the last that were asked for, the request waits for no step any more.
    placeholders = request.num_output_placeholders
    begun = request.num_computed_tokens + 2 - placeholders
    return not (placeholders and begun >= request.num_prompt_tokens + request.max_tokens)


def needs_prompt_logits(request: Running) -> bool:
    """Whether a step holds the logits of all its tokens for it, if it takes its prompt in."""
    sampling = request.sampling_params
    return sampling is not None and sampling.prompt_logprobs is not None


def is_awaited(running: Iterable[Running], requests: Iterable[Running]) -> bool:
    """Whether the next step is to be a small one; `requests` are those running and those waiting.

    For prompts' log-probabilities it is not time but memory: a large step's logits are gigabytes.
    """
    return any(map(writes_on, running)) or any(map(needs_prompt_logits, requests))


class _Steps(Scheduler):
    max_num_scheduled_tokens: int
    """The most that the next step takes, which vLLM looks up as it begins one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.most_tokens = self.max_num_scheduled_tokens
        # Below one for each answer, some would be left out of every step.
        awaited = max(AWAITED_TOKENS, self.scheduler_config.max_num_seqs)
        self.awaited_tokens = min(awaited, self.most_tokens)
        self.masks = MaskBudget()

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        awaited = is_awaited(self.running, self.requests.values())
        self.max_num_scheduled_tokens = self.awaited_tokens if awaited else self.most_tokens
        return super().schedule(*args, **kwargs)

    def _update_request_with_output(
        self, request: Any, new_token_ids: list[int], *args: Any, **kwargs: Any
    ) -> tuple[list[int], bool]:
        tokens, is_stopped = super()._update_request_with_output(
            request, new_token_ids, *args, **kwargs
        )
        seconds = take_seconds(request)
        if not self.masks.charge(request.cache_salt or "", seconds) and not is_stopped:
            request.status = RequestStatus.FINISHED_ERROR
            request.stop_reason = STRUCTURE_TOO_SLOW
            request.resumable = False
            is_stopped = True
        return tokens, is_stopped


class _AsyncSteps(_Steps, AsyncScheduler):
    pass


def scheduler(*, vllm_config: Any, **others: Any) -> Any:
    """The scheduler of an engine, in place of the one of vLLM's that it would have chosen."""
    # A class cannot be named: vLLM decides between its two only after it is given a name.
    chosen = _AsyncSteps if vllm_config.scheduler_config.async_scheduling else _Steps
    return chosen(vllm_config=vllm_config, **others)
