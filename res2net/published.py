"""Published test errors, sizes and complexities of the named networks, with their sources.

"The paper" is Res2Net (arXiv 1904.01169). This module does not import torch.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A row of the paper's Tables 1 to 4.

    top1: top-1 test error in %. "-": not in the paper.
    top5: top-5 test error in %. "-": not in the paper.
    image_size: side length of the input in pixels.
    data: the name of the data set.
    """

    top1: str = "-"
    top5: str = "-"
    image_size: int = 224
    data: str = "ImageNet"


class Figure(NamedTuple):
    """A published size or complexity, with all printed digits.

    name: the name of the network.
    params: number of parameters, exact ("25,557,032") or in millions ("34.43"). Empty: not published.
    gmacs: complexity in GMACs. Empty: not published.
    source: the publication.
    classes: number of classes of the counted classifier. None: as in the named network.
    as_released: whether the figure counts projections that the released code defines but does not use.
    differs: the reason why our figure differs. Empty: our figure must be equal.
    """

    name: str
    params: str = ""
    gmacs: str = ""
    source: str = ""
    classes: int | None = None
    as_released: bool = False
    differs: str = ""


def _cifar(top1: str = "-") -> Entry:
    """Return a row of Table 4, whose networks classify CIFAR-100."""
    return Entry(top1, "-", 32, "CIFAR-100")


# The paper's test errors (arXiv 1904.01169, TPAMI version).
PUBLISHED = {
    "resnet50": Entry("23.85", "7.13"),
    "resnet101": Entry("22.63", "6.44"),
    "res2net50_48w_2s": Entry("22.68", "6.47"),
    "res2net50_26w_4s": Entry("22.01", "6.15"),
    "res2net50_14w_8s": Entry("21.86", "6.14"),
    "res2net50_26w_6s": Entry("21.42", "5.87"),
    "res2net50_26w_8s": Entry("20.80", "5.63"),
    "res2net50_18w_4s": Entry("22.92", "6.67"),
    "res2net50_299": Entry("21.41", "5.88", 299),
    "res2net101_26w_4s": Entry("20.81", "5.57"),
    "resnext50_32x4d": Entry("22.61", "6.50"),
    "res2next50": Entry("21.76", "6.09"),
    "seresnet50": Entry("23.24", "6.69"),
    "se_res2net50_26w_4s": Entry("21.56", "5.94"),
    "res2net50_v1b": Entry("19.73", "4.96"),
    "res2net101_v1b": Entry("18.77", "4.64"),
    "dla60": Entry("23.32", "6.60"),
    "res2net_dla60": Entry("21.53", "5.80"),
    "dla60x": Entry("22.19", "6.13"),
    "res2next_dla60": Entry("21.55", "5.86"),
    "blresnet50": Entry("22.41"),
    "blres2net50": Entry("21.68", "6.00"),
    "resnext29_8c64w": _cifar("17.90"),
    "resnext29_16c64w": _cifar("17.31"),
    "res2next29_6c24w_4s": _cifar("16.98"),
    "res2next29_8c25w_4s": _cifar("16.93"),
    "res2next29_6c24w_6s": _cifar("16.79"),
    "se_resnext29_8c64w": _cifar("16.77"),
    "se_resnext29_16c64w": _cifar(),
    "se_res2next29_6c24w_4s": _cifar("16.68"),
    "se_res2next29_8c25w_4s": _cifar("16.64"),
    "se_res2next29_6c24w_6s": _cifar("16.56"),
}


def _exact(
    name: str, params: str, gmacs: str, source: str = "released definition", as_released: bool = False
) -> Figure:
    """Return the size and the complexity of a released definition."""
    return Figure(name, params, gmacs, source, as_released=as_released)


def _table3(name: str, gmacs: str, differs: str = "") -> Figure:
    """Return a complexity from Table 3."""
    return Figure(name, "", gmacs, "paper, Table 3", differs=differs)


def _table4(name: str, millions: str, differs: str = "") -> Figure:
    """Return a size from Table 4, which counts a classifier of 10 classes."""
    return Figure(name, millions, "", "paper, Table 4", 10, differs=differs)


def _layout(name: str, ten: str, hundred: str) -> tuple[Figure, Figure]:
    """Return two sizes of a network in Table 4, with one more digit than the table prints.

    ten: the size with a classifier of 10 classes, as in the table.
    hundred: the size with a classifier of 100 classes.
    """
    return Figure(name, ten, "", "layout of Table 4", 10), Figure(name, hundred, "", "layout of Table 4", 100)


_PLAIN = "without unused projections"
_SE = "Table 4 adds 0.7, 1.7, 0.2 and 0.2 M for SE; no single reduction gives these"
# Figures of released definitions (network code), and of networks built as Table 4 describes. All digits must be equal,
# because a difference in the last digit means that the networks differ.
RELEASED = (
    _exact("resnet50", "25,557,032", "4.0892"),
    _exact("resnet101", "44,549,160", "7.801", "torchvision"),
    _exact("res2net50_48w_2s", "25,287,304", "4.1598"),
    _exact("res2net50_26w_4s", "25,699,120", "4.2552"),
    _exact("res2net50_14w_8s", "25,059,816", "4.1789"),
    _exact("res2net50_26w_6s", "37,051,448", "6.2955"),
    _exact("res2net50_26w_8s", "48,403,776", "8.3359"),
    _exact("res2net101_26w_4s", "45,206,688", "8.0670"),
    _exact("resnext50_32x4d", "25,028,904", "4.2305"),
    _exact("res2next50", "24,671,464", "4.1727"),
    _exact("res2net50_v1b", "25,718,352", "4.4948"),
    _exact("res2net101_v1b", "45,225,920", "8.3066"),
    _exact("seresnet50", "28.1", "4.1", "timm's model card"),
    _exact("dla60", "22,036,632", "4.2359", _PLAIN),
    _exact("dla60x", "17,352,344", "3.5166", _PLAIN),
    _exact("res2net_dla60", "20,848,072", "4.1227", _PLAIN),
    _exact("res2net_dla60", "21,145,544", "4.1998", as_released=True),
    _exact("res2next_dla60", "17,032,984", "3.4588", _PLAIN),
    _exact("res2next_dla60", "17,330,456", "3.5358", as_released=True),
    *_layout("resnext29_8c64w", "34.43", "34.52"),
    *_layout("resnext29_16c64w", "68.16", "68.25"),
    *_layout("res2next29_6c24w_4s", "24.27", "24.36"),
    *_layout("res2next29_8c25w_4s", "33.81", "33.91"),
    *_layout("res2next29_6c24w_6s", "36.71", "36.80"),
)
# Figures that papers print.
PRINTED = (
    _table3("resnet50", "4.2", "4.089 rounds to 4.1; this is torchvision's ResNet-50"),
    _table3("res2net50_48w_2s", "4.2"),
    _table3("res2net50_26w_4s", "4.2", "4.255 rounds to 4.3; truncated, it is 4.2"),
    _table3("res2net50_14w_8s", "4.2"),
    _table3("res2net50_26w_6s", "6.3"),
    _table3("res2net50_26w_8s", "8.3"),
    _table3("res2net50_18w_4s", "2.9"),
    _table4("resnext29_8c64w", "34.4"),
    _table4("resnext29_16c64w", "68.1", "68.155 rounds to 68.2; truncated, it is 68.1"),
    _table4("res2next29_6c24w_4s", "24.3"),
    _table4("res2next29_8c25w_4s", "33.8"),
    _table4("res2next29_6c24w_6s", "36.7"),
    _table4("se_resnext29_8c64w", "35.1", _SE),
    _table4("se_res2next29_6c24w_4s", "26.0", _SE),
    _table4("se_res2next29_8c25w_4s", "34.0", _SE),
    _table4("se_res2next29_6c24w_6s", "36.9", _SE),
    Figure("blresnet50", "26.69", "", "Big-Little Net (arXiv 1807.03848)"),
    Figure("blresnet50", "", "2.85", "Big-Little Net's release", differs="2.856; without the classifier, it is 2.854"),
)
