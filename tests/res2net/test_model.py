"""The networks compute what section 3.1 of the paper says, and behave as PyTorch modules should."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from networks import randomised
from torch import Tensor, nn

from res2net import Arch, Res2Net, Stage, create, named
from res2net.arch import STEMS
from res2net.model import Block, StridedPointwiseConv2d, conv1x1, zero_init_last

SMALL = Arch((Stage(2, 4, 6, 2, 4, 1), Stage(2, 8, 6, 3, 3, 2)), stem="cifar", stem_channels=8, num_classes=5)


def images(arch: Arch, *size: int, batch: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, arch.in_channels, *size, generator=generator, dtype=torch.float64)


# ---- The oracle: the network written out from the paper over a state dict, sharing no code with the module ---------


class Weights:
    """A state dict, and the two layers that are made of its entries."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        """Group by group, each a plain convolution of its own channels."""
        weight = self.state[f"{name}.weight"]
        padding = weight.shape[-1] // 2
        pairs = zip(x.chunk(groups, 1), weight.chunk(groups, 0), strict=True)
        return torch.cat([F.conv2d(part, w, None, stride, padding) for part, w in pairs], 1)

    def bn(self, name: str, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            self.state[f"{name}.{v}"].view(1, -1, 1, 1) for v in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def pool3x3(x: Tensor, stride: int) -> Tensor:
    """A sum over 3x3 windows of the zero-padded map, always divided by nine."""
    windows = F.unfold(x.flatten(0, 1)[:, None], 3, padding=1, stride=stride)
    size = (-(-x.shape[2] // stride), -(-x.shape[3] // stride))
    return windows.mean(1).view(*x.shape[:2], *size)


def mean_of_cells(x: Tensor, stride: int) -> Tensor:
    """The mean of each `stride` x `stride` cell; cells at the far edges are as large as what is left of the map."""
    rows = [band.split(stride, 3) for band in x.split(stride, 2)]
    return torch.stack([torch.stack([cell.mean((2, 3)) for cell in row], -1) for row in rows], -2)


def oracle_splits(w: Weights, at: str, stage: Stage, first: bool, pooled: bool, x: Tensor) -> Tensor:
    """Section 3.1 in the released order: the last split passes through, or is pooled in a stage's first block."""
    if stage.scale == 1:
        return relu(w.bn(f"{at}.bn2", w.conv(f"{at}.conv2", x, stage.stride if first else 1, stage.cardinality)))
    splits, y = x.split(stage.width, 1), {}
    for i in range(stage.scale):
        if i == stage.scale - 1 and not (first and not pooled):
            y[i] = pool3x3(splits[i], stage.stride) if first else splits[i]
        else:
            stride = stage.stride if first else 1
            into = splits[i] if first or i == 0 else splits[i] + y[i - 1]
            y[i] = relu(w.bn(f"{at}.bns.{i}", w.conv(f"{at}.convs.{i}", into, stride, stage.cardinality)))
    return torch.cat([y[i] for i in range(stage.scale)], 1)


def oracle_block(w: Weights, at: str, arch: Arch, stage: Stage, first: bool, x: Tensor) -> Tensor:
    y = relu(w.bn(f"{at}.bn1", w.conv(f"{at}.conv1", x)))
    y = oracle_splits(w, at, stage, first, arch.first_block == "pool", y)
    y = w.bn(f"{at}.bn3", w.conv(f"{at}.conv3", y))
    if arch.se:
        gate = y.mean((2, 3))
        for fc, activation in (("fc1", relu), ("fc2", torch.sigmoid)):
            gate = activation(gate @ w.state[f"{at}.se.{fc}.weight"].flatten(1).T + w.state[f"{at}.se.{fc}.bias"])
        y = y * gate[:, :, None, None]
    if first and (stage.stride > 1 or x.shape[1] != y.shape[1]):
        if arch.shortcut == "avgpool":
            x = w.bn(f"{at}.downsample.2", w.conv(f"{at}.downsample.1", mean_of_cells(x, stage.stride)))
        else:
            x = w.bn(f"{at}.downsample.1", w.conv(f"{at}.downsample.0", x, stage.stride))
    return relu(x + y)


def oracle(state: dict[str, Tensor], arch: Arch, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Each stage's feature maps, and the logits."""
    w = Weights(state)
    if arch.stem == "deep":
        x = relu(w.bn("conv1.1", w.conv("conv1.0", x, 2)))
        x = relu(w.bn("conv1.4", w.conv("conv1.3", x)))
        x = w.conv("conv1.6", x)
    else:
        x = w.conv("conv1", x, 1 if arch.stem == "cifar" else 2)
    x = relu(w.bn("bn1", x))
    if arch.stem in ("imagenet", "deep"):
        x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for i, stage in enumerate(arch.stages, 1):
        for j in range(stage.depth):
            x = oracle_block(w, f"layer{i}.{j}", arch, stage, j == 0, x)
        maps.append(x)
    features = x.mean((2, 3))
    return maps, features @ state["fc.weight"].T + state["fc.bias"] if arch.num_classes else features


@given(arch=st.from_type(Arch), height=st.integers(1, 40), width=st.integers(1, 40))
@example(arch=SMALL, height=9, width=10)
def test_network_is_the_paper_s(arch: Arch, height: int, width: int) -> None:
    model, x = randomised(create(arch)), images(arch, height, width)
    before = x.clone()
    with torch.no_grad():
        maps, logits = oracle(model.state_dict(), arch, x)
        torch.testing.assert_close(model.forward_features(x), maps)
        torch.testing.assert_close(model(x), logits)
    assert torch.equal(x, before)


def test_named_network_is_the_paper_s_to_rounding() -> None:
    torch.manual_seed(0)
    arch = named("res2net50_26w_4s")
    model = create(arch).double().eval()  # how fp32 rounds over 50 layers differs between processors
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), oracle(model.state_dict(), arch, x)[1], rtol=1e-8, atol=1e-10)


# ---- The paper's order of splits -----------------------------------------------------------------------------------


def middle_blocks(width: int, cardinality: int, scale: int, stride: int = 1) -> tuple[Block, Block]:
    """The first and a later block of a stage, with random weights."""
    arch = Arch((Stage(2, 3, width, cardinality, scale, stride),), stem="cifar", stem_channels=5, num_classes=0)
    first, later = randomised(create(arch)).layer1
    return first, later


def paper_order(scale: int) -> list[int]:
    """Where equation (1)'s splits x_1, x_2, ... x_s lie among the released ones: the last one comes first."""
    return [scale - 1, *range(scale - 1)]


def equation_1(block: Block, x: list[Tensor]) -> list[Tensor]:
    """y_1 = x_1, y_2 = K_2(x_2), y_i = K_i(x_i + y_(i-1)); K_i is the block's convolution number i - 2."""
    y = [x[0]]
    for i in range(1, len(x)):
        y.append(relu(block.bns[i - 1](block.convs[i - 1](x[i] if i == 1 else x[i] + y[-1]))))
    return y


@pytest.mark.parametrize(("scale", "cardinality"), [(2, 1), (3, 2), (4, 1), (6, 3)])
def test_released_order_is_equation_1_with_channels_permuted(scale: int, cardinality: int) -> None:
    width = 2 * cardinality
    _, block = middle_blocks(width, cardinality, scale)
    channels = torch.arange(width * scale).view(scale, width)[paper_order(scale)].flatten()
    x = images(Arch((Stage(1, 1, 1),), in_channels=12), 7, 6)
    with torch.no_grad():
        inner = relu(block.bn1(block.conv1(x)))[:, channels]
        y = torch.cat(equation_1(block, list(inner.split(width, 1))), 1)
        out = F.conv2d(y, block.conv3.weight[:, channels])
        torch.testing.assert_close(relu(block.bn3(out) + x), block(x))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("fewer", [2, 3, 4])
def test_first_splits_of_the_paper_s_order_are_a_block_of_fewer_splits(fewer: int, first: bool) -> None:
    """What weight sharing across scale rests on."""
    width, scale = 4, 5
    large = middle_blocks(width, 2, scale, stride=2)[not first]
    small = middle_blocks(width, 2, fewer, stride=2)[not first]
    small.convs.load_state_dict(large.convs[: fewer - 1].state_dict())
    small.bns.load_state_dict(large.bns[: fewer - 1].state_dict())
    x = list(images(Arch((Stage(1, 1, 1),), in_channels=width * scale), 7, 6).split(width, 1))
    with torch.no_grad():
        of_large = large.middle(torch.cat(x[1:] + x[:1], 1)).split(width, 1)
        of_small = small.middle(torch.cat(x[1:fewer] + x[:1], 1)).split(width, 1)
    for i in range(fewer):
        assert torch.equal(of_large[paper_order(scale)[i]], of_small[paper_order(fewer)[i]])


class PlainBottleneck(nn.Module):
    """ResNeXt's bottleneck as torchvision has it."""

    def __init__(self, c_in: int, width: int, c_out: int, groups: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU()
        self.downsample = nn.Identity()
        if project:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + self.downsample(x))


@pytest.mark.parametrize("training", [False, True])
def test_one_split_is_the_plain_bottleneck(training: bool) -> None:
    first, later = middle_blocks(width=6, cardinality=3, scale=1, stride=2)
    plain = nn.Sequential(PlainBottleneck(5, 6, 12, 3, 2, True), PlainBottleneck(12, 6, 12, 3, 1, False)).double()
    ours = nn.Sequential(first, later).train(training)
    plain.load_state_dict(ours.state_dict())
    plain.train(training)
    x = torch.randn(3, 5, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours(x), plain(x))


# ---- Shapes --------------------------------------------------------------------------------------------------------


def map_sizes(model: Res2Net, height: int, width: int) -> list[tuple[int, ...]]:
    x = torch.empty(1, model.arch.in_channels, height, width, device="meta")
    return [tuple(m.shape[1:]) for m in model.eval().to("meta").forward_features(x)]


@pytest.mark.parametrize("name", ["res2net50_26w_4s", "res2net50_v1b", "resnet50"])
def test_feature_maps_of_imagenet_networks_have_strides_4_to_32(name: str) -> None:
    with torch.device("meta"):
        model = create(name)
    assert map_sizes(model, 96, 64) == [(256, 24, 16), (512, 12, 8), (1024, 6, 4), (2048, 3, 2)]


def test_feature_maps_of_cifar_networks_have_strides_1_to_4() -> None:
    with torch.device("meta"):
        model = create("res2next29_6c24w_4s")
    assert map_sizes(model, 32, 32) == [(256, 32, 32), (512, 16, 16), (1024, 8, 8)]


@pytest.mark.slow
@given(arch=st.from_type(Arch), height=st.integers(1, 70), width=st.integers(1, 70))
def test_any_image_size_is_taken_and_rounded_up(arch: Arch, height: int, width: int) -> None:
    with torch.device("meta"):
        model = create(arch)
    stride, expected = arch.stem_stride, []
    for stage in arch.stages:
        stride *= stage.stride
        expected.append((4 * stage.planes, -(-height // stride), -(-width // stride)))
    assert map_sizes(model, height, width) == expected


def test_without_classes_the_model_gives_the_mean_of_the_last_maps() -> None:
    model = randomised(create(SMALL, num_classes=0))
    x = images(SMALL, 8, 8)
    with torch.no_grad():
        out = model(x)
        torch.testing.assert_close(out, model.forward_features(x)[-1].mean((2, 3)))
    assert out.shape == (2, SMALL.num_features)
    assert not [key for key in model.state_dict() if key.startswith("fc.")]


def test_channels_last_gives_the_same_logits() -> None:
    model, x = randomised(create(SMALL)), images(SMALL, 9, 9)
    with torch.no_grad():
        plain = model(x)
        model = model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), plain)


def test_an_image_s_logits_do_not_depend_on_its_batch() -> None:
    model, x = randomised(create(SMALL)), images(SMALL, 9, 9, batch=3)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([model(x[i : i + 1]) for i in range(3)]), model(x))


# ---- Training and creation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_block", ["pool", "conv"])
@pytest.mark.parametrize("stem", STEMS)
def test_gradient_reaches_every_parameter(stem: str, first_block: str) -> None:
    torch.manual_seed(0)
    stages = (Stage(2, 4, 6, 3, 4, 1), Stage(2, 4, 8, 2, 1, 2))
    model = create(Arch(stages, stem, 8, first_block, "avgpool", se=4, num_classes=5)).train()
    loss = F.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8) % 5)
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_gradients_are_the_numerical_ones() -> None:
    """No in-place operation spoils a value that the backward pass needs."""
    arch = Arch((Stage(2, 1, 2, 1, 3, 2),), stem="cifar", stem_channels=2, se=4, num_classes=2, in_channels=1)
    model = randomised(create(arch)).train()
    x = images(arch, 4, 4, batch=3).requires_grad_()
    assert torch.autograd.gradcheck(model, x)


def test_model_keeps_its_arch() -> None:
    assert create(SMALL).arch == SMALL
    with torch.device("meta"):
        assert create("resnext29_8c64w").arch == named("resnext29_8c64w")


def test_overrides_are_fields_of_arch() -> None:
    model = create(SMALL, num_classes=7, in_channels=1, se=16)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    assert model.arch == Arch(SMALL.stages, "cifar", 8, se=16, num_classes=7, in_channels=1)
    assert SMALL.num_classes == 5


@pytest.mark.parametrize(("override", "value"), [("num_classes", -1), ("num_classes", "ten"), ("stem", "resnet")])
def test_overrides_are_checked(override: str, value: object) -> None:
    with pytest.raises(ValueError, match=override) as caught:
        create(SMALL, **{override: value})
    assert str(value) in str(caught.value)


def test_the_seed_decides_the_weights() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(create(SMALL).parameters())

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


class TestStridedPointwiseConvolutions:
    """Thin strided 1x1 convolutions crash oneDNN on CPUs without AVX-512 (uxlfoundation/oneDNN#6035)."""

    THIN = Arch((Stage(1, 4, 8, 1, 2, 2), Stage(1, 8, 8, 1, 2, 2)), stem="cifar", stem_channels=4, num_classes=10)

    @pytest.mark.parametrize("stride", [2, 3])
    @pytest.mark.parametrize("size", [1, 7, 8])
    def test_equals_the_plain_convolution(self, size, stride):
        conv = conv1x1(4, 16, stride)
        x = torch.randn(2, 4, size, size, requires_grad=True)
        plain = F.conv2d(x, conv.weight, stride=stride)
        torch.testing.assert_close(conv(x), plain)
        assert conv.state_dict().keys() == nn.Conv2d(4, 16, 1, stride, bias=False).state_dict().keys()

    def test_no_thin_strided_1x1_convolution_reaches_onednn(self):
        model = create(self.THIN)
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        strided = [m for m in convs if m.kernel_size == (1, 1) and m.stride > (1, 1)]
        thin = [m for m in strided if m.in_channels < 8]
        assert thin
        assert all(isinstance(m, StridedPointwiseConv2d) for m in thin)

    @pytest.mark.slow
    @pytest.mark.parametrize("threads", [1, 2])
    def test_training_survives_without_avx512(self, threads):
        program = f"""
import torch, res2net
from res2net import Arch
torch.set_num_threads({threads})
model = res2net.create(Arch.from_json('''{self.THIN.to_json()}''')).to(memory_format=torch.channels_last)
for _ in range(60):
    x = torch.randn(32, 3, 32, 32).to(memory_format=torch.channels_last)
    model(x).square().mean().backward()
"""
        variables = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
        done = subprocess.run([sys.executable, "-c", program], env=os.environ | variables, timeout=120, check=False)
        assert done.returncode == 0


class TestZeroInitLast:
    @pytest.mark.parametrize("name", ["res2net50_26w_4s", "se_resnext29_8c64w", "res2net_dla60", "blres2net50"])
    def test_changes_the_last_norm_of_every_block_alone(self, name: str) -> None:
        model = create(name)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        zero_init_last(model)
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        blocks = [key for key, module in model.named_modules() if isinstance(module, Block)]
        assert changed == {f"{key}.bn3.weight" for key in blocks}

    @pytest.mark.parametrize("se", [0, 4])
    def test_a_block_starts_as_its_shortcut(self, se: int) -> None:
        arch = Arch(SMALL.stages, stem="cifar", stem_channels=8, num_classes=5, se=se)
        model = create(arch).eval()
        zero_init_last(model)
        block = model.layer2[1]
        x = torch.randn(2, arch.stages[1].channels, 4, 4).relu()
        torch.testing.assert_close(block(x), x)

    def test_all_weights_learn_within_a_few_steps(self) -> None:
        torch.manual_seed(0)
        model = create(SMALL)
        zero_init_last(model)
        before = {key: value.clone() for key, value in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(8, 3, 8, 8)), torch.arange(8) % 5).backward()
            optimizer.step()
        assert [key for key, value in model.named_parameters() if torch.equal(value, before[key])] == []
