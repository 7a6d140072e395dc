"""Limits the prompt tokens of an engine's step while answers wait, and lets tenants take turns.

Library: vLLM
Changes: before each step it sets the scheduler's limit of tokens, the order of waiting requests,
    and which running requests continue. It ends a request whose structured output takes too long.
    vLLM's official argument `scheduler_cls` loads the hook, by the name of `scheduler`. The classes
    from which the hook derives its own are not public.
Why: vLLM has one limit for all steps. With a large limit, every answer waits for as long as a new
    image takes. With a small limit, vLLM cuts a prompt into pieces even when no answer waits, and
    each piece reduces the GPU's rate. vLLM's long_prefill_token_threshold limits each request, even
    when no answer waits. vLLM also has no tenants: it orders requests by their arrival, or by
    priorities that stay the same while a request waits.
Upstream: https://github.com/vllm-project/vllm/issues/52906
Versions: vLLM 0.25.1 to 0.33.0
"""

import time
from collections.abc import Sequence
from typing import Any, Protocol

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from pixtral_core.hooks import Touch, check_touches
from pixtral_decoder.engine.engine_args import CHUNK_SETTING
from pixtral_decoder.engine.tenant_turns import TenantTurns
from pixtral_decoder.grammar.mask_budget import STRUCTURE_TOO_SLOW, MaskBudget
from pixtral_decoder.vllm_hooks.mask_time import take_seconds

_SCHEDULER = "vllm.v1.core.sched.scheduler"
_REQUEST = "vllm.v1.request"
TOUCHES = (
    Touch(
        _SCHEDULER,
        "Scheduler.__init__",
        mentions=(
            "cache_config",
            "current_step",
            "max_num_running_reqs",
            "max_num_scheduled_tokens",
            "num_gpu_blocks",
            "policy",
            "requests",
            "running",
            "scheduler_config",
            "vllm_config",
            "waiting",
        ),
    ),
    Touch("vllm.config", "VllmConfig.compute_hash", mentions=("additional_config",)),
    Touch(
        _SCHEDULER,
        "Scheduler.schedule",
        mentions=(
            "current_step",
            "max_num_scheduled_tokens",
            "next_decode_eligible_step",
            "num_computed_tokens",
            "num_output_placeholders",
            "reset_preempted_req_ids",
        ),
    ),
    Touch(
        _SCHEDULER,
        "Scheduler._preempt_request",
        parameters=("request", "timestamp"),
        mentions=("waiting", "reset_preempted_req_ids"),
    ),
    Touch("vllm.v1.core.sched.request_queue", "FCFSRequestQueue.remove_request"),
    Touch("vllm.v1.core.sched.request_queue", "FCFSRequestQueue.prepend_request"),
    Touch("vllm.v1.core.sched.request_queue", "SchedulingPolicy"),
    Touch("vllm.v1.structured_output.request", "StructuredOutputRequest.is_grammar_ready"),
    Touch(_REQUEST, "RequestStatus"),
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
            "next_decode_eligible_step",
            "resumable",
            "status",
            "stop_reason",
        ),
    ),
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

CHUNKED_PREFILL_SIZE = 1536
"""The default limit of a step's tokens while answers wait.

Three such steps suffice for an image of 1024x1024 with a question, 4,180 tokens, and the answers.
"""
LOGITS_TOKENS = 1536
"""The most tokens of a step that keeps the logits of all its tokens, which need gigabytes."""


class _Sampling(Protocol):
    @property
    def prompt_logprobs(self) -> int | None: ...


class Running(Protocol):
    """The part of vLLM's Request that this hook touches."""

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
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


def writes_on(request: Running) -> bool:
    """Whether a running request needs the next step for another token of its answer."""
    if request.is_prefill_chunk:
        return False
    # A step may begin before the tokens of the previous step are known. If those are the last
    # requested tokens, the request needs no further step. vLLM uses the same formula.
    placeholders = request.num_output_placeholders
    begun = request.num_computed_tokens + 2 - placeholders
    return not (placeholders and begun >= request.num_prompt_tokens + request.max_tokens)


def needs_prompt_logits(request: Running) -> bool:
    """Whether a step keeps the logits of all prompt tokens for this request."""
    sampling = request.sampling_params
    return sampling is not None and sampling.prompt_logprobs is not None


def may_pause(request: Running) -> bool:
    """Whether a running request may give its slot to another tenant's request, and continue
    later."""
    if request.is_prefill_chunk:
        # After a pause, the engine would compute the logits of the prompt again.
        return not needs_prompt_logits(request)
    return writes_on(request)


def can_start(request: Any) -> bool:
    """Whether a waiting request could start if there were a free slot and memory."""
    if request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
        structured = request.structured_output_request
        return structured is not None and bool(structured.is_grammar_ready)
    return request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)


class _Steps(Scheduler):
    max_num_scheduled_tokens: int
    """The most tokens of the next step. vLLM reads this when it begins the step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.most_tokens = self.max_num_scheduled_tokens
        additional = self.vllm_config.additional_config
        asked = CHUNKED_PREFILL_SIZE
        if isinstance(additional, dict):
            asked = additional.get(CHUNK_SETTING, asked)
        self.awaited_tokens = self._bounded(asked)
        self.logits_tokens = self._bounded(LOGITS_TOKENS)
        self.masks = MaskBudget()
        blocks = self.cache_config.num_gpu_blocks or 0
        self.turns = TenantTurns[Any](
            self.max_num_running_reqs, blocks * self.cache_config.block_size, may_pause
        )
        # If requests have priorities, the priorities decide, and tenants take no turns.
        self.takes_turns = self.policy is SchedulingPolicy.FCFS

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        is_contended, paused = self._take_turns() if self.takes_turns else (False, ())
        self.max_num_scheduled_tokens = self._limit(is_contended)
        output = super().schedule(*args, **kwargs)
        for request in paused:
            self.waiting.prepend_request(request)
        self.turns.took(
            (self.requests[name], count) for name, count in output.num_scheduled_tokens.items()
        )
        return output

    def _bounded(self, tokens: int) -> int:
        # With less than one token for each answer, every step would leave some answers out.
        return min(max(tokens, self.scheduler_config.max_num_seqs), self.most_tokens)

    def _limit(self, is_contended: bool) -> int:
        """The most tokens of the next step."""
        limit = self.most_tokens
        if is_contended or any(map(writes_on, self.running)):
            limit = self.awaited_tokens
        if any(map(needs_prompt_logits, self.requests.values())):
            limit = min(limit, self.logits_tokens)
        return limit

    def _take_turns(self) -> tuple[bool, Sequence[Any]]:
        """Applies the turn of the next step.

        Returns whether prompts of several tenants wait, and the requests that gave up their slots.
        """
        waiting: Any = self.waiting
        turn = self.turns.next(self.running, [each for each in waiting if can_start(each)])
        for request in turn.victims:
            self.running.remove(request)
            self._preempt_request(request, time.monotonic())
            # `schedule` adds the request to the queue again after the step. The request must not
            # start in this step, because vLLM may not yet have processed its last token.
            waiting.remove_request(request)
        if turn.order:
            others = [each for each in waiting if not can_start(each)]
            waiting.clear()
            waiting.extend([*others, *turn.order])
        # vLLM distributes a step's tokens in this order. Answers come first, because each needs a
        # token.
        self.running.sort(key=lambda each: each.is_prefill_chunk)
        for request in turn.held:
            # vLLM increases `current_step` at the beginning of the step, and leaves out requests
            # that are eligible only in a later step.
            request.next_decode_eligible_step = self.current_step + 2
        return turn.is_contended, turn.victims

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
    """The scheduler of an engine. It replaces the scheduler that vLLM would choose."""
    # The engine's argument cannot name a class, because the choice between vLLM's two schedulers
    # depends on a value that vLLM sets later.
    chosen = _AsyncSteps if vllm_config.scheduler_config.async_scheduling else _Steps
    return chosen(vllm_config=vllm_config, **others)
