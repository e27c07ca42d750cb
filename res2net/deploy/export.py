"""Export networks to ONNX and `torch.export` files with a dynamic batch size, and check them against the network."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from res2net.backbone import Backbone
from res2net.errors import UserError
from res2net.files import write_atomic
from res2net.quiet import quiet

TOLERANCE = 1e-3  # limit of the difference, relative to the largest output; fp32 rounding alone reached 3e-5
BATCHES = (1, 3)  # batch sizes of the check; both differ from `TRACED`
TRACED = 2  # batch size of the trace; the exporters would treat 1 as a constant
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Run = Callable[[Tensor], Sequence[Tensor]]


def export_onnx(
    model: nn.Module, path: str | Path, *, image_size: int | tuple[int, int] | None = None, check: bool = True
) -> float | None:
    """Write an ONNX file of the network in eval mode, for batches of any size. The model is unchanged.

    The file's input is `images` `[N, C, H, W]`. The output is `logits` `[N, num_classes]`. For a backbone, the outputs
    are the feature maps `map0`, `map1`, ...

    image_size: side length of the images in pixels, or (height, width). None: 224, or 32 for a CIFAR stem.
    check: whether to run the file with onnxruntime and compare its outputs with the network's.

    Return the largest difference relative to the largest output, or None without the check. If the difference exceeds
    1e-3, raise `RuntimeError` and write nothing.
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
    assert program is not None  # only the old exporter (`dynamo=False`) returns None
    data = program.model_proto.SerializeToString()
    difference = _checked(frozen, _onnx_run(data), images, path) if check else None
    write_atomic(Path(path), data)
    return difference


def export_program(
    model: nn.Module, path: str | Path, *, image_size: int | tuple[int, int] | None = None, check: bool = True
) -> float | None:
    """Write a file for `torch.export.load` (`.pt2`), for batches of any size. The model is unchanged.

    The arguments and the result are those of `export_onnx`.
    """
    frozen, images = _frozen(model), _images(model, image_size)
    with _quiet(), torch.no_grad():
        program = torch.export.export(frozen, (images(TRACED),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        run = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    difference = _checked(frozen, lambda x: _tuple(run(x)), images, path) if check else None
    write_atomic(Path(path), buffer.getvalue())
    return difference


def need_onnx(check: bool = True, what: str = "ONNX") -> None:
    """Raise `UserError` if a package of the `onnx` extra is missing. Without `check`, onnxruntime may be missing.

    what: the start of the error.
    """
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None and (check or name != "onnxruntime")]
    if missing:
        raise UserError(f"{what}: not installed: {', '.join(missing)}; run pip install 'res2net-search[onnx]'")


def _frozen(model: nn.Module) -> nn.Module:
    """Return a copy of the model for the export: on the CPU, in fp32, eval mode and the default memory layout.

    Raise `UserError` for a detector, whose number of outputs varies.
    """
    head = None if isinstance(model, Backbone) else getattr(getattr(model, "arch", None), "head", None)
    if head is not None and head.detects:
        raise UserError(
            f"`model`: its head, {head.kind}, finds a varying number of objects; accepted: another head, or the "
            "backbone alone (`features_only`)"
        )
    frozen = copy.deepcopy(model).to("cpu", torch.float32)
    return frozen.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]  # not in stubs


def _images(model: nn.Module, image_size: int | tuple[int, int] | None) -> Callable[[int], Tensor]:
    """Return a function that takes a batch size and returns random images of the exported size."""
    arch: Any = (model.body if isinstance(model, Backbone) else model).arch
    if image_size is None:
        image_size = 32 if getattr(arch, "stem", "") in ("cifar", "strided") else 224
    sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2 or any(type(n) is not int or n < 1 for n in sides):
        raise UserError(f"`image_size`: {image_size!r}; accepted: a whole number of at least 1, or (height, width)")
    generator = torch.Generator().manual_seed(0)
    return lambda batch: torch.randn(batch, arch.in_channels, *sides, generator=generator)


def _output_names(model: nn.Module) -> list[str]:
    """Return the names of the ONNX file's outputs."""
    return [f"map{i}" for i in range(len(model.out_indices))] if isinstance(model, Backbone) else ["logits"]


def _onnx_run(data: bytes) -> Run:
    """Return a function that takes images and returns the ONNX file's outputs. `data` is the file's content."""
    import onnxruntime  # in the `onnx` extra

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {"images": x.numpy()})]


def _checked(model: nn.Module, run: Run, images: Callable[[int], Tensor], path: str | Path) -> float:
    """Compare the outputs of the network and of the exported file, at all batch sizes of `BATCHES`.

    Return the largest relative difference. Raise `RuntimeError` if the difference exceeds `TOLERANCE`.
    """
    worst = 0.0
    for batch in BATCHES:
        x = images(batch)
        with torch.no_grad():
            expected, got = _tuple(model(x)), run(x)
        for a, b in zip(expected, got, strict=True):
            worst = max(worst, ((a - b).abs().max() / a.abs().max().clamp_min(1e-30)).item())
    if not worst <= TOLERANCE:  # true for NaN too
        raise RuntimeError(f"{path}: not written: the export differs from the network by {worst:.1e} of its output")
    return worst


def _tuple(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the outputs as a tuple: networks return one tensor, backbones a list."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """A context in which the exporters show no warnings.

    Users cannot act on these warnings: they concern a missing torchvision and deprecated functions in PyTorch.
    """
    with quiet("torch.onnx"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
