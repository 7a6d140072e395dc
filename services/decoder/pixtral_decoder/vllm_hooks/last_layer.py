"""The last layer's feed-forward, for those tokens of a large step whose logits are asked for.

What it makes of a token goes into that token's logits and nowhere else, and of a prompt only the
last token's are used: for the others, 2% of a prompt's products have no use. vLLM's own model
makes them, since another's hidden states may be asked for, too; here it is known when not.
"""

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.utils.torch_utils import direct_register_custom_op

from pixtral_decoder.engine.engine_args import SCHEDULER
from pixtral_decoder.vllm_hooks.scheduler import awaited_tokens

# By which the operator finds the layer among those that vLLM does not compile.
NAME = "pixtral.last_feed_forward"


def is_sampled_alone(config: VllmConfig) -> bool:
    """Whether nothing but the logits of a large step's last tokens comes of its hidden states."""
    return (
        # Which takes in prompts whose log-probabilities were asked for in small steps.
        config.scheduler_config.scheduler_cls == SCHEDULER
        # Drafts are checked by more logits than the last, and made from hidden states.
        and config.speculative_config is None
        # Which adapter is a token's is known by its place in the step.
        and config.lora_config is None
        # Parts of a model may have parts of a step's tokens, and wait for each other.
        and config.parallel_config.world_size == 1
    )


def narrow(feed_forward: nn.Module, config: VllmConfig) -> None:
    """Has the last layer's feed-forward run for no more than is needed, in steps that are large.

    Its parameters keep their names, which are a checkpoint's.
    """
    kind = type(feed_forward)

    class Narrowed(kind):  # type: ignore[misc, valid-type]
        more_than = awaited_tokens(config.scheduler_config.max_num_seqs)
        whole = kind.forward

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.ops.vllm.pixtral_last_feed_forward(hidden)
            return result

    feed_forward.__class__ = Narrowed
    config.compilation_config.static_forward_context[NAME] = feed_forward


def last_tokens(metadata: Any, more_than: int) -> torch.Tensor | None:
    """Where each request's last token of the step is; None where all tokens are to be run.

    `metadata` is what vLLM has for the step's attention, by layer.
    """
    # None or empty: a trial run, by which memory is set aside. A list: two halves of a step.
    if not metadata or not isinstance(metadata, dict):
        return None
    step = next(iter(metadata.values()))
    # FlashInfer's has no such field, and no other that says the same at no cost.
    starts: torch.Tensor | None = getattr(step, "query_start_loc", None)
    if starts is None or step.num_actual_tokens <= more_than:
        return None
    return starts[1:] - 1


def _run(hidden: torch.Tensor) -> torch.Tensor:
    context = get_forward_context()
    layer = context.no_compile_layers[NAME]
    tokens = None
    # A graph does again what it was recorded with.
    if not (hidden.is_cuda and torch.cuda.is_current_stream_capturing()):
        tokens = last_tokens(context.attn_metadata, layer.more_than)
    result: torch.Tensor
    if tokens is None:
        result = layer.whole(hidden)
    else:
        result = torch.zeros_like(hidden)
        result[tokens] = layer.whole(hidden[tokens])
    return result


# An operator of its own: how many rows there are is decided where a compiled model runs.
direct_register_custom_op("pixtral_last_feed_forward", _run, fake_impl=torch.empty_like)
