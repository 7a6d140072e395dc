"""torch's Muon, which updates all matrices of one shape together.

The model is so small that a separate update of each matrix would take longer than the rest of a
step, only to start the kernels.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn

MOMENTUM: Final = 0.95
NEWTON_SCHULZ_STEPS: Final = 5
COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
EPSILON: Final = 1e-7


class StackedMuon(torch.optim.Optimizer):
    """Has the same results as `torch.optim.Muon(params, lr, weight_decay=...,
    adjust_lr_fn="match_rms_adamw")`."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all matrices that have a gradient."""
        for group in self.param_groups:
            stacks: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stacks[parameter.shape].append(parameter)
            for stack in stacks.values():
                self._update(stack, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        rate, (rows, columns) = group["lr"], parameters[0].shape
        gradients = [p.grad for p in parameters if p.grad is not None]
        momenta = [self._momentum(parameter) for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        update = torch.stack(gradients).lerp_(torch.stack(momenta), MOMENTUM)
        steps = orthogonalise(update).to(parameters[0].dtype).unbind()
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_add_(parameters, steps, alpha=-rate * 0.2 * max(rows, columns) ** 0.5)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def orthogonalise(matrices: Tensor) -> Tensor:
    """Maps each matrix of (count, rows, columns) to the nearest matrix whose singular values are
    all near 1, in bfloat16. Source: the Newton-Schulz iteration of K. Jordan's Muon."""
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
