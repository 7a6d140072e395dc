import torch
from torch import nn

from training.muon import StackedMuon


def test_it_takes_the_steps_of_torchs_own() -> None:
    torch.manual_seed(0)
    shapes = [(24, 24), (24, 24), (40, 24), (24, 40), (40, 24)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    before = [parameter.detach().clone() for parameter in ours]
    stacked = StackedMuon(ours, 0.01, weight_decay=0.1)
    single = torch.optim.Muon(theirs, 0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for a, b in zip(ours, theirs, strict=True):
            # The last has none at first, as the text model has none where only the tower learns.
            a.grad = torch.randn(a.shape) if step or a is not ours[-1] else None
            b.grad = None if a.grad is None else a.grad.clone()
        stacked.step()
        single.step()  # type: ignore[no-untyped-call]
    for a, b, start in zip(ours, theirs, before, strict=True):
        moved = (b - start).norm()
        assert moved > 0
        assert (a - b).norm() < 0.02 * moved
