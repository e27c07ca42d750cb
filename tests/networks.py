"""Networks for tests, and their measured cost."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from res2net import Cost, create
from res2net.arch import BaseArch


def measure(arch: BaseArch, image_size: int) -> Cost:
    """The cost of one image as hooks and counters on the network see it, on the meta device."""
    elements = []
    with torch.device("meta"):
        model = create(arch).eval()
        image = torch.empty(1, arch.in_channels, image_size, image_size)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(lambda _module, _args, out: elements.append(out.numel()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    macs, odd = divmod(counter.get_total_flops(), 2)
    assert not odd
    return Cost(macs, sum(p.numel() for p in model.parameters()), sum(elements))


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
