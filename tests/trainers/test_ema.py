"""Averaged weights against a plain loop."""

import copy

import torch
from torch import nn

from trainers.ema import Ema


def test_equals_the_average_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    ema, expected = Ema(model, 0.9), copy.deepcopy(model.state_dict())
    for step in range(30):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        model(torch.randn(5, 3, 2, 2))  # moves the batch norm's statistics
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                expected[key] = decay * expected[key] + (1 - decay) * value
    averaged = ema.model.state_dict()
    for key, value in expected.items():
        if value.is_floating_point():
            assert torch.allclose(averaged[key], value, atol=1e-5)
    assert not any(p.requires_grad for p in ema.model.parameters())


def test_the_trained_network_is_unchanged() -> None:
    model = nn.Linear(2, 2)
    before = copy.deepcopy(model.state_dict())
    Ema(model, 0.5).update(0)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
