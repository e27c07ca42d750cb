"""Networks as backbones: maps and what is said of them, dilation in place of strides, images of any size."""

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from networks import randomised
from torch import Tensor, nn

from res2net import Arch, Stage, create, load, save
from res2net.backbone import Backbone, DensePool
from res2net.errors import UserError
from res2net.levels import levels

SMALL = Arch((Stage(2, 2, 4, 2, 3), Stage(1, 3, 2, 1, 2, 2), Stage(2, 4, 3, 1, 1, 2)), "cifar", 6, num_classes=5)
IMAGENET = Arch((Stage(1, 2, 2), Stage(2, 3, 2, 1, 3, 2), Stage(2, 4, 2, 1, 2, 2), Stage(2, 4, 2, 1, 3, 2)), "deep", 4)
KINDS = ("dla60", "blresnet50")


def images(arch: Arch, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, arch.in_channels, height, width, generator=generator, dtype=torch.float64)


# ---- Strides and dilation ------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(arch=st.from_type(Arch), data=st.data(), height=st.integers(1, 60), width=st.integers(1, 60))
def test_coarse_maps_lie_within_the_dense_ones(arch: Arch, data: st.DataObject, height: int, width: int) -> None:
    """Every layer reads the same pixels as without dilation, at the edges of the map too."""
    assume(not arch.se)  # its mean is over more pixels
    stride = data.draw(st.sampled_from([arch.stem_stride, *create(arch).feature_info.reduction()]))
    coarse = randomised(create(arch))
    dense = randomised(create(arch, output_stride=stride))
    dense.load_state_dict(coarse.state_dict())
    x = images(arch, height, width)
    with torch.no_grad():
        maps = zip(coarse.forward_features(x), dense.forward_features(x), strict=True)
        strides = zip(coarse.feature_info.reduction(), dense.feature_info.reduction(), strict=True)
        for (a, b), (coarse_stride, dense_stride) in zip(maps, strides, strict=True):
            step = coarse_stride // dense_stride
            torch.testing.assert_close(b[:, :, ::step, ::step], a)
            assert b.shape[2:] == (-(-height // dense_stride), -(-width // dense_stride))


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride_changes_no_key_and_no_shape(stride: int) -> None:
    with torch.device("meta"):
        plain, dense = create("res2net50_v1b").state_dict(), create("res2net50_v1b", output_stride=stride).state_dict()
    assert {k: v.shape for k, v in dense.items()} == {k: v.shape for k, v in plain.items()}


def test_dilation_is_torchvision_s() -> None:
    """In a stage that would stride, the first block still has the dilation of the stage before."""
    with torch.device("meta"):
        model = create("res2net50_26w_4s", output_stride=8)
    found = {(c.stride, c.dilation, c.padding) for c in model.layer4[0].convs}
    assert found == {((1, 1), (2, 2), (2, 2))}
    assert {c.dilation for block in model.layer4[1:] for c in block.convs} == {(4, 4)}
    assert model.layer3[0].convs[0].dilation == (1, 1)
    assert model.layer3[5].convs[0].dilation == (2, 2)
    assert model.layer2[0].convs[0].stride == (2, 2)


@pytest.mark.parametrize(
    ("stride", "reductions"), [(None, [4, 8, 16, 32]), (32, [4, 8, 16, 32]), (16, [4, 8, 16, 16]), (8, [4, 8, 8, 8])]
)
def test_strides_are_told(stride: int | None, reductions: list[int]) -> None:
    assert create(IMAGENET, output_stride=stride).feature_info.reduction() == reductions


def test_a_small_network_has_small_strides() -> None:
    assert create(SMALL, output_stride=1).feature_info.reduction() == [1, 1, 1]
    assert levels(SMALL, 2)[2] == (2, 1, 2)


@pytest.mark.parametrize("stride", [0, 3, 64, -8, True, 8.0, "8"])
def test_an_output_stride_that_cannot_be(stride: object) -> None:
    with pytest.raises(UserError, match=r"`output_stride`: .*accepted: 4, 8, 16, 32") as caught:
        create(IMAGENET, output_stride=stride)
    assert repr(stride) in str(caught.value)


def test_output_stride_is_no_part_of_the_architecture(tmp_path: Path) -> None:
    model = create(SMALL, output_stride=1)
    assert model.arch == SMALL
    save(model, tmp_path / "model")
    assert load(tmp_path / "model").feature_info.reduction() == [1, 2, 4]


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("count_padding", [False, True])
def test_dense_pool_without_holes_is_torch_s(kernel: int, count_padding: bool) -> None:
    x = images(Arch((Stage(1, 1, 1),)), 5, 6)
    before = kernel // 2 if count_padding else 0
    ours = DensePool(kernel, 1, before, count_padding)(x)
    if count_padding and kernel == 3:
        torch.testing.assert_close(ours, nn.AvgPool2d(3, 1, 1)(x))
    if not count_padding:
        torch.testing.assert_close(ours[:, :, ::kernel, ::kernel], nn.AvgPool2d(kernel, kernel, 0, True, False)(x))


# ---- Maps as output ------------------------------------------------------------------------------------------------


@given(arch=st.from_type(Arch), data=st.data())
def test_a_backbone_gives_the_maps_that_it_describes(arch: Arch, data: st.DataObject) -> None:
    count = len(arch.stages)
    wanted = data.draw(st.lists(st.integers(-count, count - 1), min_size=1, max_size=4))
    whole, part = randomised(create(arch)), randomised(create(arch, features_only=True, out_indices=wanted))
    part.body.load_state_dict(whole.state_dict(), strict=False)
    x = images(arch, 24, 36)
    with torch.no_grad():
        maps, found = whole.forward_features(x), part(x)
    for i, map_, channels, stride in zip(wanted, found, part.channels, part.strides, strict=True):
        torch.testing.assert_close(map_, maps[i])
        assert map_.shape[1:] == (channels, -(-24 // stride), -(-36 // stride))


@pytest.mark.parametrize("out_indices", [None, (0, 2), [1], (2, -3)])
def test_nothing_in_a_backbone_is_without_use(out_indices: list[int] | None) -> None:
    """As distributed training needs it: no parameter is left without a gradient."""
    model = create(SMALL, features_only=True, out_indices=out_indices)
    sum(m.square().mean() for m in model(torch.randn(4, 3, 16, 16))).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_what_a_backbone_says_of_itself() -> None:
    model = create("res2net50_26w_4s", features_only=True, out_indices=(1, 3), output_stride=16)
    assert isinstance(model, Backbone)
    assert (model.channels, model.strides) == ((512, 2048), (8, 16))
    assert model.feature_info.channels() == [512, 2048]
    assert model.feature_info.reduction() == [8, 16]
    assert model.feature_info.module_name() == ["layer2", "layer4"]
    assert model.feature_info.get_dicts()[0] == {"num_chs": 512, "reduction": 8, "module": "layer2"}
    assert model.feature_info[1]["num_chs"] == 2048


@pytest.mark.parametrize("name", KINDS)
def test_the_other_kinds_have_the_same_face(name: str) -> None:
    with torch.device("meta"):
        model = create(name, features_only=True, out_indices=(0, -2))
        maps = model.eval()(torch.empty(1, 3, 96, 64))
    assert [(m.shape[1], 96 // m.shape[2], 64 // m.shape[3]) for m in maps] == [
        (c, s, s) for c, s in zip(model.channels, model.strides, strict=True)
    ]
    with pytest.raises(UserError, match="output_stride"):
        create(name, output_stride=8)


@pytest.mark.parametrize("wanted", [[], [4], [-5], "01", 2, [1.0], [True]])
def test_out_indices_that_cannot_be(wanted: object) -> None:
    with pytest.raises(UserError, match=r"`out_indices`: .*from -4 to 3"):
        create(IMAGENET, features_only=True, out_indices=wanted)


def test_out_indices_go_with_features_only() -> None:
    with pytest.raises(UserError, match="features_only"):
        create(SMALL, out_indices=(1,))


def test_a_pyramid_can_be_built_on_it() -> None:
    """A head that reads channels and strides alone, over an odd image of four channels."""
    backbone = create(IMAGENET, features_only=True, out_indices=(1, 2, 3), in_channels=4)
    lateral = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in backbone.channels)
    maps = [conv(m) for conv, m in zip(lateral, backbone(torch.randn(2, 4, 75, 101)), strict=True)]
    up = [nn.functional.interpolate(m, maps[0].shape[2:]) for m in maps]
    assert sum(up).shape == (2, 8, 10, 13)


# ---- Exported search results ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(create(SMALL), tmp_path / "model")
    return tmp_path / "model"


def test_a_loaded_backbone(folder: Path) -> None:
    model = load(folder, features_only=True, out_indices=(0, 1), output_stride=1)
    x = torch.randn(1, 3, 9, 11)
    with torch.no_grad():
        maps = load(folder, output_stride=1).forward_features(x)
        for ours, theirs in zip(model(x), maps, strict=False):
            assert torch.equal(ours, theirs)
    assert not any(m.training for m in model.modules())
    assert model.strides == (1, 1)


@pytest.mark.parametrize(("num_classes", "width"), [(9, 9), (0, 16), (5, 5), (None, 5)])
def test_a_loaded_network_with_other_classes(folder: Path, num_classes: int | None, width: int) -> None:
    model, plain = load(folder, num_classes=num_classes), load(folder)
    x = torch.randn(2, 3, 8, 8)
    assert model(x).shape == (2, width)
    assert model.arch.num_classes == (5 if num_classes is None else num_classes)
    assert torch.equal(model.forward_features(x)[-1], plain.forward_features(x)[-1])
    if width == 5:
        assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("option", [{"num_classes": -1}, {"output_stride": 16}, {"out_indices": (0,)}])
def test_options_of_load_that_cannot_be(folder: Path, option: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(option))):
        load(folder, **option)


# ---- Images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 3, 0, 8), (1, 3, 8, 0), (3, 8, 8), (1, 1, 8, 8), (8, 3)])
@pytest.mark.parametrize("features_only", [False, True])
def test_images_that_cannot_be(shape: tuple[int, ...], features_only: bool) -> None:
    with pytest.raises(UserError, match=r"images have shape .*accepted: \[N, 3, H, W\]") as caught:
        create(SMALL, features_only=features_only)(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)


@pytest.mark.parametrize("name", ["res2net50_26w_4s", "res2net50_v1b", *KINDS])
def test_one_pixel_is_an_image(name: str) -> None:
    with torch.device("meta"):
        assert create(name).eval()(torch.empty(1, 3, 1, 1)).shape == (1, 1000)


def test_the_network_can_be_traced_symbolically() -> None:
    model = create(SMALL, output_stride=1).eval()
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(traced(x), model(x))
