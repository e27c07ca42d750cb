"""Networks for other programs: ONNX and `torch.export` files, with a dynamic batch, checked against the network."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from res2net.backbone import Backbone
from res2net.errors import UserError
from res2net.files import write_atomic

TOLERANCE = 1e-3  # of the largest output; fp32 rounding has come to 3e-5 in the deepest networks
BATCHES = (1, 3)  # that the check runs; neither is the one that is traced
TRACED = 2  # a batch of 1 would be taken for a constant
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Run = Callable[[Tensor], Sequence[Tensor]]


def export_onnx(
    model: nn.Module, path: str | Path, *, image_size: int | tuple[int, int] | None = None, check: bool = True
) -> float | None:
    """Write an ONNX file for a batch of any size: `images` -> `logits`, or `map0`, `map1`, ... of a backbone.

    image_size: pixels along a side, or (height, width); None is 224, and 32 for networks with a CIFAR stem.
    Returns the largest difference between onnxruntime and the network, relative to the largest output; None
    unchecked. Nothing is written where it is over 1e-3. The model is left as it is; the file has it in eval mode.
    """
    need_onnx(check)
    frozen, images = _frozen(model), _images(model, image_size)
    with _quiet():
        program = torch.onnx.export(
            frozen,
            (images(TRACED),),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=["images"],
            output_names=_output_names(model),
            verbose=False,
        )
    data = program.model_proto.SerializeToString()  # type: ignore[union-attr]
    difference = _checked(frozen, _onnx_run(data), images, path) if check else None
    write_atomic(Path(path), data)
    return difference


def export_program(
    model: nn.Module, path: str | Path, *, image_size: int | tuple[int, int] | None = None, check: bool = True
) -> float | None:
    """Write what `torch.export.load` reads (`.pt2`), for a batch of any size; the rest is as with `export_onnx`."""
    frozen, images = _frozen(model), _images(model, image_size)
    with _quiet(), torch.no_grad():
        program = torch.export.export(frozen, (images(TRACED),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        run = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    difference = _checked(frozen, lambda x: _tuple(run(x)), images, path) if check else None
    write_atomic(Path(path), buffer.getvalue())
    return difference


def need_onnx(check: bool = True) -> None:
    """`UserError` if a package of the extra is missing."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None and (check or name != "onnxruntime")]
    if missing:
        raise UserError(f"ONNX: not installed: {', '.join(missing)}; run pip install 'res2net-search[onnx]'")


def _frozen(model: nn.Module) -> nn.Module:
    """A copy to export: in eval mode, fp32, on the CPU, in the plain memory layout."""
    return copy.deepcopy(model).to("cpu", torch.float32, memory_format=torch.contiguous_format).eval()


def _images(model: nn.Module, image_size: int | tuple[int, int] | None) -> Callable[[int], Tensor]:
    """Random batches of the size that the network is exported for."""
    arch = (model.body if isinstance(model, Backbone) else model).arch  # type: ignore[union-attr]
    if image_size is None:
        image_size = 32 if getattr(arch, "stem", "") == "cifar" else 224
    sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2 or any(type(n) is not int or n < 1 for n in sides):
        raise UserError(f"image_size is {image_size!r}; accepted: a whole number of at least 1, or (height, width)")
    generator = torch.Generator().manual_seed(0)
    return lambda batch: torch.randn(batch, arch.in_channels, *sides, generator=generator)


def _output_names(model: nn.Module) -> list[str]:
    return [f"map{i}" for i in range(len(model.out_indices))] if isinstance(model, Backbone) else ["logits"]


def _onnx_run(data: bytes) -> Run:
    import onnxruntime  # of the extra

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {"images": x.numpy()})]


def _checked(model: nn.Module, run: Run, images: Callable[[int], Tensor], path: str | Path) -> float:
    """The largest relative difference over the batches; `RuntimeError` if it is no rounding."""
    worst = 0.0
    for batch in BATCHES:
        x = images(batch)
        with torch.no_grad():
            expected, got = _tuple(model(x)), run(x)
        for a, b in zip(expected, got, strict=True):
            worst = max(worst, ((a - b).abs().max() / a.abs().max().clamp_min(1e-30)).item())
    if not worst <= TOLERANCE:  # NaN is over it as well
        raise RuntimeError(f"{path}: not written: the export differs from the network by {worst:.1e} of its output")
    return worst


def _tuple(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on itself (torchvision is not there, what it deprecates) from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
