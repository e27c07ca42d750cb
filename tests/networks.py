"""Networks for tests."""

import torch
from torch import nn


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and eval mode, with no weight, bias or running statistic left at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.double().eval().state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
            elif value.is_floating_point():
                value.normal_(0, 0.5, generator=generator)
    return model
