"""An exponential moving average of a network's weights and batch-norm statistics."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """Averages of a network's values, as a network of its own (`model`)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.model = decay, copy.deepcopy(model).requires_grad_(False)
        self.source = _floats(model)
        self.averages = _floats(self.model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network after a step; the first steps count for more, or the start would never be forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, self.source, 1 - decay)


def _floats(model: nn.Module) -> list[Tensor]:
    return [t for t in model.state_dict(keep_vars=True).values() if t.is_floating_point()]
