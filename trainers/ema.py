"""An exponential moving average of a network's weights and batch-norm statistics."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """Moving averages of a network's weights and batch-norm statistics, held in a copy of the network (`model`).

    `torch.optim.swa_utils.AveragedModel` keeps the number of updates in a tensor. Each update copies this tensor to or
    from the device, and the copy would make every step wait for the device. So this class takes the step's number from
    the trainer, and uses only torch's averaging function.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.model = decay, copy.deepcopy(model).requires_grad_(False)
        # Batch-norm statistics are averaged too: they must suit the averaged weights, not the latest weights.
        self.source = _floats(model)
        self.averages = _floats(self.model)

    def update(self, step: int) -> None:
        """Update the averages with the network's values after a step. step: counts from 0."""
        # Ramp the decay up over the first steps so that the initial weights are forgotten: a constant decay of 0.999
        # would still give them a share of 37 % after 1,000 steps.
        decay = min(self.decay, (1 + step) / (10 + step))
        # Update all tensors in one call: a loop over them would launch hundreds of small kernels per step.
        get_ema_multi_avg_fn(decay)(self.averages, self.source, step)


def _floats(model: nn.Module) -> list[Tensor]:
    """Return the network's floating-point weights and statistics, in the state dict's order.

    The tensors share memory with the network. Integer counters are left out.
    """
    tensors = model.state_dict(keep_vars=True).values()
    return [t.detach() for t in tensors if t.is_floating_point()]
