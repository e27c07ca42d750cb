"""Quantize networks to int8 with ONNX Runtime's static quantization: QDQ format, one weight scale per channel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from res2net.backbone import check_images
from res2net.deploy.export import export_onnx, need_onnx
from res2net.errors import UserError
from res2net.files import write_atomic
from res2net.quiet import quiet

if TYPE_CHECKING:  # in the `onnx` extra
    from onnxruntime.quantization import CalibrationDataReader

BATCH = 32  # calibration images in one run


class Quantized(nn.Module):
    """A network in int8, computed by ONNX Runtime on the CPU. It cannot be trained.

    data: the content of the ONNX file. Its input is `images` `[N, C, H, W]`, for batches of any size.
    threads: number of ONNX Runtime's threads. None: one for each core.
    """

    def __init__(self, data: bytes, threads: int | None = None) -> None:
        super().__init__()
        import onnxruntime  # in the `onnx` extra

        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        self.data = data
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[N, num_classes]` of images, normalized as in training."""
        return torch.from_numpy(self._session.run(None, {"images": images.cpu().numpy()})[0])

    def save(self, path: str | Path) -> None:
        """Write the ONNX file."""
        write_atomic(Path(path), self.data)


def quantize(model: nn.Module, images: Tensor, *, reduce_range: bool = False) -> Quantized:
    """Return the network in int8. The model is unchanged.

    images: calibration images `[N, C, H, W]`, normalized as in training. They set the range of each activation. A
        few hundred images suffice. The result accepts only images of their size.
    reduce_range: whether weights use 7 bits. CPUs without VNNI instructions may overflow with 8 bits.
    """
    need_onnx()
    arch = getattr(model, "arch", None)
    if arch is None or not len(images):
        raise UserError(f"`images`: {len(images)} calibration images for {type(model).__name__}; accepted: at least 1")
    check_images(images, arch.in_channels)
    from onnxruntime.quantization.shape_inference import quant_pre_process  # takes a second to import

    with tempfile.TemporaryDirectory() as folder:
        whole, prepared = (Path(folder) / name for name in ("model.onnx", "prepared.onnx"))
        height, width = images.shape[2:]
        export_onnx(model, whole, image_size=(int(height), int(width)), check=False)
        quant_pre_process(whole, prepared, skip_symbolic_shape=True)  # this also fuses batch norms
        return Quantized(quantized_file(prepared, images, reduce_range))


def quantized_file(path: Path, images: Tensor, reduce_range: bool = False) -> bytes:
    """Quantize an ONNX file. Return the content of the int8 file. images, reduce_range: see `quantize`."""
    from onnxruntime import quantization  # in the `onnx` extra

    small = path.with_name("int8.onnx")
    with quiet():  # hides the advice to prepare the file, which our files do not need
        quantization.quantize_static(
            path,
            small,
            _reader(images),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    return small.read_bytes()


def _reader(images: Tensor) -> CalibrationDataReader:
    """Return ONNX Runtime's reader of the calibration images."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.float().cpu().split(BATCH))

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    return Reader()
