"""Heads that find objects, against torchvision's own detectors."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import randomised
from torch import Tensor, nn

from res2net import Arch, Stage, UserError, cost, create, export_onnx, load, named, optimize, save
from res2net.elastic import ElasticRes2Net
from res2net.grow import grow
from res2net.heads import FasterRcnn, KeypointRcnn, MaskRcnn
from res2net.heads.value import DETECTIONS
from res2net.heads.vision_private import load_torchvision, nms, roi_align
from space import Skeleton, Space

load_torchvision()  # before the tests import torchvision themselves
SMALL = Arch((Stage(2, 2, 8, 2, 3, 2), Stage(1, 3, 12, 1, 2, 2), Stage(1, 4, 16, 1, 1, 2)), "strided", 4, num_classes=4)
HEADS = {
    "faster_rcnn": FasterRcnn(8, 16, 4, 20),
    "mask_rcnn": MaskRcnn(8, 16, 4, 20),
    "keypoint_rcnn": KeypointRcnn(8, 16, 4, 20, points=3),
}
PUBLISHED = {"faster_rcnn": FasterRcnn(), "mask_rcnn": MaskRcnn(), "keypoint_rcnn": KeypointRcnn(points=3)}
SIZE = 64
every_kind = pytest.mark.parametrize("kind", HEADS)


def with_head(kind: str, arch: Arch = SMALL, **changes: object) -> Arch:
    return replace(arch, head=replace(HEADS[kind], **changes))


def images(n: int = 2, size: int = SIZE) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def targets(n: int = 2) -> list[dict[str, Tensor]]:
    """Two objects in the first image, one in each other."""
    masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    masks[0, 8:30, 10:40] = masks[1, 20:60, 30:50] = True
    boxes = torch.tensor([[10.0, 8, 40, 30], [30, 20, 50, 60]])
    points = torch.tensor([[[15.0, 12, 1], [30, 20, 1], [12, 9, 0]], [[35, 30, 1], [45, 50, 1], [40, 25, 1]]])
    both = {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks, "keypoints": points}
    return [both, *({name: values[:1] for name, values in both.items()} for _ in range(n - 1))]


@pytest.mark.slow
class TestAgainstTorchvision:
    """`resnet50` with a pyramid: torchvision's detector with the same weights."""

    @pytest.fixture(params=HEADS)
    def pair(self, request: pytest.FixtureRequest) -> Iterator[tuple[nn.Module, nn.Module]]:
        from torchvision.models import detection

        options: dict[str, object] = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "weights": None}
        options |= {"weights_backbone": None, "min_size": SIZE, "max_size": SIZE, "num_classes": 5}
        if request.param == "keypoint_rcnn":
            options["num_keypoints"] = 3
        name = request.param.replace("_", "", 1)
        torch.manual_seed(0)
        theirs = getattr(detection, f"{name}_resnet50_fpn")(**options)
        theirs.transform.torch_choice = lambda sizes: sizes[0]  # it would draw a random number
        ours = create(replace(named("resnet50"), num_classes=5, head=PUBLISHED[request.param]))
        keys = {name: name.removeprefix("head.") for name in ours.state_dict()}
        found = theirs.state_dict()
        own = {
            name: found[key.replace("fpn.", "backbone.fpn.", 1) if name.startswith("head.") else f"backbone.body.{key}"]
            for name, key in keys.items()
        }
        ours.load_state_dict(own)
        return ours, theirs

    def test_has_as_many_parameters(self, pair: tuple[nn.Module, nn.Module]) -> None:
        ours, theirs = pair
        counts = [sum(p.numel() for p in net.parameters()) for net in pair]
        assert counts[0] == counts[1]
        assert ours.state_dict().keys().__len__() == len(theirs.state_dict())

    def test_has_its_losses(self, pair: tuple[nn.Module, nn.Module]) -> None:
        found = []
        for net, call in ((pair[0], lambda n, x: n(x, targets())), (pair[1], lambda n, x: n(list(x), targets()))):
            torch.manual_seed(5)  # draws the proposals that are trained
            found.append(call(net.train(), images()))
        assert found[0].keys() == found[1].keys()
        for name, loss in found[0].items():
            assert torch.allclose(loss, found[1][name], rtol=1e-4), name

    def test_finds_its_objects(self, pair: tuple[nn.Module, nn.Module]) -> None:
        for net in pair:
            net.eval()
        with torch.no_grad():
            found, wanted = pair[0](images()), pair[1](list(images()))
        assert sum(len(image["boxes"]) for image in wanted) > 0
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.keys() == theirs.keys()
            for name in ours:
                torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-3)


def test_published_parameters() -> None:
    """Those of torchvision's models for 91 classes, in whose count frozen norms have no part."""
    found = ((FasterRcnn(), 91, 41_755_286), (MaskRcnn(), 91, 44_401_393), (KeypointRcnn(), 2, 59_137_258))
    for head, classes, published in found:
        arch = replace(named("resnet50"), num_classes=classes, head=head)
        norms = 2 * sum(m.num_features for m in create(named("resnet50")).modules() if isinstance(m, nn.BatchNorm2d))
        assert cost(arch, 800).params - norms == published


class TestCost:
    @every_kind
    @pytest.mark.parametrize("size", [32, 50, 64])
    def test_is_what_the_network_does(self, kind: str, size: int) -> None:
        """With as many proposals and objects as there may be at most."""
        arch = with_head(kind)
        model = create(arch).eval()
        macs, activations = 0, 0

        def count(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            nonlocal macs, activations
            if isinstance(module, nn.Linear):
                # The head's linear layers describe proposals.
                macs += arch.head.proposals * module.weight.numel()
                return
            assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            times = DETECTIONS / len(out) if "mask" in names[module] or "keypoint" in names[module] else 1
            pixels = (args[0] if isinstance(module, nn.ConvTranspose2d) else out)[0, 0].numel() * len(out)
            macs += round(times * pixels * module.weight.numel())
            activations += round(times * out.numel())

        names = {module: name for name, module in model.named_modules()}
        for module in names:
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                module.register_forward_hook(count)
        grouped = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
        assert grouped  # a grouped convolution's weights are those of one group, so the count above holds
        # Without trained scores, keep every object, so that there is one at least.
        model.head.roi_heads.score_thresh = 0.0
        model(images(1, size))
        known = cost(arch, size)
        assert known.params == sum(p.numel() for p in model.parameters())
        assert known.macs == macs
        assert known.activations == activations

    def test_without_outputs_there_is_no_head(self) -> None:
        assert cost(replace(with_head("mask_rcnn"), num_classes=0), 32) == cost(replace(SMALL, num_classes=0), 32)


class TestOutputs:
    @every_kind
    def test_are_losses_in_training(self, kind: str) -> None:
        losses = create(with_head(kind)).train()(images(), targets())
        assert len(losses) == (4 if kind == "faster_rcnn" else 5)
        assert all(loss.isfinite() and loss.requires_grad for loss in losses.values())

    @every_kind
    def test_an_image_without_objects_trains_too(self, kind: str) -> None:
        none = {name: values[:0] for name, values in targets()[0].items()}
        losses = create(with_head(kind)).train()(images(), [targets()[0], none])
        assert all(loss.isfinite() for loss in losses.values())

    @every_kind
    def test_gradients_reach_all_weights(self, kind: str) -> None:
        torch.manual_seed(0)
        model = create(with_head(kind)).train()
        torch.stack(list(model(images(4), targets(4)).values())).sum().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []

    @every_kind
    def test_lie_in_the_image(self, kind: str) -> None:
        torch.manual_seed(0)
        model = create(with_head(kind)).eval()
        model.head.roi_heads.score_thresh = 0.0
        for size in (SIZE, 50):
            for found in model(images(2, size)):
                assert 0 < len(found["boxes"]) <= DETECTIONS
                assert found["boxes"].min() >= 0
                assert found["boxes"].max() <= size
                assert found["labels"].unique().tolist() <= [1, 2, 3]
                assert found["scores"].diff().max() <= 0
                if kind == "mask_rcnn":
                    assert found["masks"].shape == (len(found["boxes"]), 1, size, size)
                if kind == "keypoint_rcnn":
                    assert found["keypoints"].shape == (len(found["boxes"]), 3, 3)

    def test_bf16_autocast_keeps_boxes_in_fp32(self) -> None:
        model = create(with_head("faster_rcnn")).eval()
        with torch.autocast("cpu", torch.bfloat16):
            assert all(found["boxes"].dtype == torch.float32 for found in model(images()))


class TestParts:
    @given(data=st.data(), n=st.integers(1, 30), threshold=st.floats(0.1, 0.9))
    @settings(max_examples=25)
    def test_nms_keeps_boxes_without_a_better_neighbour(self, data: st.DataObject, n: int, threshold: float) -> None:
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        corners, sides = rng.uniform(0, 20, (n, 2)), rng.uniform(1, 15, (n, 2))
        boxes = torch.from_numpy(np.concatenate([corners, corners + sides], 1))
        scores = torch.from_numpy(rng.permutation(n) / n)
        kept: list[int] = []
        for i in scores.argsort(descending=True).tolist():
            if all(overlap(boxes[i].tolist(), boxes[j].tolist()) <= threshold for j in kept):
                kept.append(i)
        assert nms(boxes, scores, threshold).tolist() == kept

    @pytest.mark.parametrize("ratio", [2, 1, -1])
    @pytest.mark.parametrize("aligned", [False, True])
    def test_roi_align_is_a_mean_of_samples(self, ratio: int, aligned: bool) -> None:
        rng = np.random.default_rng(1 + ratio + 5 * aligned)
        maps = torch.from_numpy(rng.normal(size=(2, 3, 9, 11)))
        corners = rng.uniform(0, 12, (6, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(0.2, 9, (6, 2))], 1)
        rois = torch.from_numpy(np.concatenate([rng.integers(0, 2, (6, 1)), boxes], 1))
        found = roi_align(maps, rois, 0.5, 3, 4, ratio, aligned)
        for k, (image, *box) in enumerate(rois.tolist()):
            wanted = pooled(maps[int(image)].numpy(), [0.5 * v - 0.5 * aligned for v in box], 3, 4, ratio, aligned)
            np.testing.assert_allclose(found[k].numpy(), wanted, atol=1e-9)


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union of two boxes."""
    wide, high = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    inter = max(wide, 0) * max(high, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return inter / (sum(areas) - inter)


def pooled(maps: np.ndarray, box: list[float], rows: int, columns: int, ratio: int, aligned: bool) -> np.ndarray:
    """RoIAlign of one region, sample by sample."""
    x1, y1, x2, y2 = box
    wide, high = x2 - x1, y2 - y1
    if not aligned:
        wide, high = max(wide, 1), max(high, 1)
    down, across = (ratio, ratio) if ratio > 0 else (math.ceil(high / rows), math.ceil(wide / columns))
    out = np.zeros((len(maps), rows, columns))
    for i in range(rows):
        for j in range(columns):
            for a in range(down):
                for b in range(across):
                    y = y1 + (i + (a + 0.5) / down) * high / rows
                    x = x1 + (j + (b + 0.5) / across) * wide / columns
                    out[:, i, j] += bilinear(maps, y, x) / (down * across)
    return out


def bilinear(maps: np.ndarray, y: float, x: float) -> np.ndarray:
    height, width = maps.shape[1:]
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    v, u = y - top, x - left
    a, b = (maps[:, top + i, left] * (1 - u) + maps[:, top + i, left + 1] * u for i in (0, 1))
    return a * (1 - v) + b * v


class TestUse:
    @every_kind
    def test_a_saved_network_comes_back_bit_by_bit(self, kind: str, tmp_path: Path) -> None:
        model = create(with_head(kind)).eval()
        save(model, tmp_path / "model")
        loaded = load(tmp_path / "model")
        assert loaded.arch == model.arch
        for ours, theirs in zip(loaded(images()), model(images()), strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    @every_kind
    @pytest.mark.parametrize("bf16", [False, True])
    def test_an_optimized_network_finds_the_same(self, kind: str, bf16: bool) -> None:
        torch.manual_seed(0)
        model = create(with_head(kind)).eval()
        model.head.roi_heads.score_thresh = 0.0
        for ours, theirs in zip(optimize(model, bf16=bf16)(images()), model(images()), strict=True):
            assert ours["boxes"].dtype == torch.float32
            if not bf16:
                assert all(torch.allclose(ours[n].float(), theirs[n].float(), atol=1e-3) for n in theirs)

    @every_kind
    def test_a_network_grows_under_its_head(self, kind: str) -> None:
        small = with_head(kind)
        large = replace(small, stages=(Stage(3, 2, 8, 2, 4, 2), *small.stages[1:]))
        model = randomised(create(small)).float().eval()
        grown = grow(model, large, seed=0).eval()
        for ours, theirs in zip(grown(images()), model(images()), strict=True):
            assert all(torch.allclose(ours[n].float(), theirs[n].float(), atol=1e-3) for n in theirs)

    def test_members_of_shared_weights_have_the_head(self) -> None:
        plain = Space(
            "s", "micro", Skeleton((4, 8), (1, 2), (1, 1), 64, 2, stem_channels=4, num_classes=4), {"scale": (1, 2)}
        )
        space = plain.with_head(HEADS["faster_rcnn"])
        assert ElasticRes2Net(space).extract(space.largest()).head is not None

    def test_onnx_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="accepted: "):
            export_onnx(create(with_head("faster_rcnn")), tmp_path / "model.onnx")
        assert not (tmp_path / "model.onnx").exists()

    def test_a_single_class_is_refused(self) -> None:
        with pytest.raises(UserError, match="num_classes is 1; accepted with the head faster_rcnn: at least 2"):
            replace(with_head("faster_rcnn"), num_classes=1)

    @pytest.mark.parametrize("change", [{"hidden": 0}, {"anchor": 1.5}, {"proposals": "8"}, {"channels": True}])
    def test_wrong_values_are_refused(self, change: dict[str, object]) -> None:
        with pytest.raises(UserError, match="accepted: a whole number of at least 1"):
            replace(HEADS["mask_rcnn"], **change)
