"""Networks on the meta device, whose tensors have shapes and no values: nothing is read back, and no device is mixed.

The losses of all tasks are in tests/trainers/test_meta_device.py, with a list of what the meta device does not reach.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from res2net import Arch, Stage, create, optimize
from res2net.arch import FIRST_BLOCKS, SHORTCUTS, STEMS, BaseArch
from res2net.elastic import ElasticRes2Net
from res2net.grow import embed, grow
from res2net.hosts.biglittle.value import BigLittleArch
from res2net.hosts.dla.value import DlaArch
from space import Skeleton, Space

META = torch.device("meta")
STAGES = (Stage(1, 4, 8, 4, 2, 1), Stage(2, 8, 8, 8, 3, 2))
ARCH = Arch(STAGES, stem="cifar", stem_channels=8, se=4, num_classes=5)
LARGER = replace(ARCH, stages=(Stage(2, 4, 12, 2, 3, 1), Stage(3, 8, 16, 2, 5, 2)), se=2)
ARCHS: list[BaseArch] = [
    *(replace(ARCH, stem=stem) for stem in STEMS),
    *(replace(ARCH, shortcut=shortcut, first_block=first) for shortcut in SHORTCUTS for first in FIRST_BLOCKS),
    replace(ARCH, stages=tuple(replace(stage, scale=1) for stage in STAGES)),
    DlaArch(STAGES, base_channels=4, stem_channels=8, num_classes=5, in_channels=3),
    BigLittleArch((Stage(3, 4, 8, 2, 3, 2), STAGES[1]), alpha=2, beta=2, stem_channels=8, num_classes=5, in_channels=3),
]


def on_meta(arch: BaseArch) -> nn.Module:
    return create(arch).to(META, memory_format=torch.channels_last)


def images(size: int = 32) -> torch.Tensor:
    return torch.zeros(2, 3, size, size, device=META)


@pytest.mark.parametrize("arch", ARCHS, ids=str)
class TestNetworks:
    def test_a_pass_and_its_gradients_read_nothing(self, arch: BaseArch) -> None:
        model = on_meta(arch)
        model(images()).sum().backward()
        for name, weight in model.named_parameters():
            assert weight.grad is not None, name
            assert (weight.grad.device, weight.grad.shape) == (META, weight.shape), name
        outputs = model.eval()(images())
        assert (outputs.device, outputs.shape) == (META, (2, 5))

    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "half"])
    def test_an_optimized_network_takes_the_way_of_a_gpu(self, arch: BaseArch, dtype: str) -> None:
        """The way without oneDNN's packed weights."""
        model = on_meta(arch).eval()
        model = model.half() if dtype == "half" else model
        fast = optimize(model, bf16=dtype == "bf16")
        outputs = fast(images())
        expected = torch.float16 if dtype == "half" else torch.float32
        assert (outputs.device, outputs.shape, outputs.dtype) == (META, (2, 5), expected)


class TestGrowth:
    def test_a_grown_network_stays_on_the_device(self) -> None:
        grown = grow(on_meta(ARCH), LARGER, 0)
        assert grown.arch == LARGER
        assert {value.device for value in grown.state_dict().values()} == {META}
        outputs = grown(images())
        outputs.sum().backward()
        assert (outputs.device, outputs.shape) == (META, (2, 5))

    def test_momentum_buffers_grow_on_the_device(self) -> None:
        small, base = on_meta(ARCH).state_dict(), on_meta(LARGER).state_dict()
        found = embed(ARCH, LARGER, small, base)
        assert {key: (v.device, v.shape) for key, v in found.items()} == {k: (META, v.shape) for k, v in base.items()}


def test_members_of_a_supernet_are_sliced_on_the_device() -> None:
    choices = {"scale": (1, 2, 3), "cardinality": (1, 2), "depth": (1, 2), "se": (0, 4)}
    space = Space("small", "micro", Skeleton((4, 8), (2, 2), (1, 1), 64, 2, stem_channels=4, num_classes=3), choices)
    model = ElasticRes2Net(space).to(META)
    for params in space.all_params():
        arch = space.arch(params)
        outputs = model.train()(images(), arch)
        outputs.sum().backward()
        assert (outputs.device, outputs.shape) == (META, (2, 3))
        member = model.eval().extract(arch)
        assert {value.device for value in member.state_dict().values()} == {META}
        assert member(images()).shape == (2, 3)
