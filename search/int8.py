"""Quantize networks of a search to int8, and score them beside fp32 on the validation split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from res2net.deploy.int8 import quantize
from res2net.errors import UserError
from search.groups import Scope
from trainers.datasets.data import Data
from trainers.evaluate import evaluate
from trainers.images import source

CALIBRATION = 256  # training images that set the ranges of the activations


@dataclass(frozen=True, slots=True)
class Int8:
    """A network in int8.

    data: the content of its ONNX file.
    fp32_top1, top1: validation accuracy (%) of the network in fp32 and in int8, on the same `images` images.
    """

    data: bytes
    fp32_top1: float
    top1: float
    images: int

    @property
    def text(self) -> str:
        """The accuracy in int8 and in fp32, in words."""
        return f"{self.top1:.2f} % in int8, {self.fp32_top1:.2f} % in fp32, on {self.images:,} validation images"

    def to_dict(self) -> dict[str, float]:
        """Return the scores as plain values for JSON."""
        return {"val_top1": self.top1, "fp32_val_top1": self.fp32_top1, "images": self.images}


def check_int8(scope: Scope, what: str) -> None:
    """Raise `UserError` for a task whose networks are not quantized. what: the start of the error."""
    if scope.task != "classification":
        raise UserError(f"{what}: not for `task` {scope.task}; accepted: classification")


def int8_of(model: nn.Module, data: Data) -> Int8:
    """Return a trained network in int8, calibrated on training images of its search."""
    cpu = torch.device("cpu")
    chosen = data.train.take(np.arange(min(CALIBRATION, len(data.train))))
    images = torch.cat([x for x, _ in source(chosen, data, cpu).batches(CALIBRATION)])
    small = quantize(model, images.contiguous())
    val = source(data.val, data, cpu)
    fp32, int8 = (evaluate(network, val).top1 for network in (model.eval(), small))
    return Int8(small.data, fp32, int8, len(val))
