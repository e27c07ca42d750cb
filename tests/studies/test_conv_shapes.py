"""The study of convolution shapes: it observes the networks' shapes, and finds crashes and wrong results."""

import dataclasses
import sys

import pytest
import torch
from torch import nn

from res2net import Arch, Stage
from res2net.model import conv1x1, conv3x3
from studies import conv_shapes
from studies.conv_shapes import AVX2, Findings, Runner, Shape, shapes_of, thin_shapes

ARCH = Arch((Stage(1, 4, 8, 2, 2, 2),), stem="cifar", stem_channels=4, num_classes=10)
FEW = [Shape.of(conv1x1(4, 16, 2), 8), Shape.of(conv3x3(8, 8, 3, 4), 1), Shape.of(conv3x3(2, 4, 1, dilation=2), 2)]


def test_shapes_are_those_of_the_network_s_convolutions() -> None:
    expected = {
        Shape("Conv2d", 3, 4, 3, 1, 1, 1, 1, 8),
        Shape("Conv2d", 4, 16, 1, 1, 0, 1, 1, 8),
        Shape("GroupedConv2d", 8, 8, 3, 2, 1, 1, 2, 8),
        Shape("Conv2d", 16, 16, 1, 1, 0, 1, 1, 4),
        Shape("StridedPointwiseConv2d", 4, 16, 1, 2, 0, 1, 1, 8),
    }
    assert shapes_of(ARCH, [8]) == expected


@pytest.mark.parametrize("shape", sorted(thin_shapes())[::100])
def test_a_shape_builds_the_convolution_that_it_describes(shape: Shape) -> None:
    assert Shape.of(shape.build(plain=False), shape.size) == shape
    assert type(shape.build(plain=True)) is nn.Conv2d


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, AVX2], ids=["as it is", "AVX2"])
def test_a_handful_of_shapes_is_right(variables: dict[str, str]) -> None:
    findings = Findings()
    Runner(variables).run(FEW, findings)
    assert (findings.runs, findings.crashes, findings.wrong, findings.unexplained) == (6, [], [], 0)


def test_a_wrong_result_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = FEW[0]
    assert conv_shapes.difference(shape, 2, 1, plain=False) < 1e-5
    forward = nn.Conv2d.forward
    # Wrong by a half in channels-last alone.
    monkeypatch.setattr(
        nn.Conv2d,
        "forward",
        lambda self, x: forward(self, x) * (1.5 if self.weight.is_contiguous(memory_format=torch.channels_last) else 1),
    )
    wrong = dataclasses.replace(FEW[2], c_in=3)
    assert conv_shapes.difference(wrong, 2, 1, plain=False) > 0.4


class Fragile(Runner):
    """A runner whose subprocesses die at, or after, certain shapes."""

    __slots__ = ()
    GUILTY = (FEW[1],)

    def chunk(self, shapes: list[Shape], repeats: int) -> tuple[list[dict[str, float]], bool]:
        lines = []
        for shape in shapes:
            if shape in self.GUILTY:
                return lines, False
            lines.append({"difference": 0.0, "runs": 2})
        return lines, True


def test_a_crash_is_traced_to_its_shape_and_the_others_run() -> None:
    findings = Findings()
    Fragile({}).run(FEW, findings)
    assert (findings.crashes, findings.runs, findings.unexplained) == ([FEW[1]], 4, 0)


def test_a_crash_that_comes_later_is_bisected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heap that one shape corrupts may end the process in a later shape."""

    def chunk(self: Runner, shapes: list[Shape], repeats: int) -> tuple[list[dict[str, float]], bool]:
        late = FEW[0] in shapes and (len(shapes) > 2 or repeats > 2)
        done = shapes[:2] if late else shapes
        return [{"difference": 0.0, "runs": 2} for _ in done], not late

    monkeypatch.setattr(Runner, "chunk", chunk)
    findings = Findings()
    Runner({}).run(FEW, findings)
    assert findings.crashes == [FEW[0]]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the variables limit oneDNN on x86 alone")
def test_onednn_s_known_crash_is_found_in_pytorch_s_own_class() -> None:
    """uxlfoundation/oneDNN#6035; once PyTorch ships the fix, `StridedPointwiseConv2d` can go."""
    findings = Findings()
    Runner(AVX2, plain=True).run(FEW, findings)
    assert findings.crashes == FEW[:1]
    assert (findings.runs, findings.wrong) == (4, [])


@pytest.mark.parametrize(("option", "word"), [("--threads", "threads"), ("--chunk-size", "chunk-size")])
def test_mistakes_are_one_line(option: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert conv_shapes.main([option, "0"]) == 2
    assert word in capsys.readouterr().err
