"""Model folders: `arch.json`, `model.safetensors` and the files beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import safetensors.torch
import torch
from torch import nn

from res2net.backbone import Backbone, as_backbone
from res2net.errors import UserError
from res2net.files import write_atomic, write_folder
from res2net.kinds import AnyArch, from_json
from res2net.networks import AnyNetwork, build

ARCH_FILE, WEIGHTS_FILE = "arch.json", "model.safetensors"
TRAINING_FILE, CARD_FILE, ONNX_FILE = "training.json", "README.md", "model.onnx"
LOG_FILE, BOARD_FOLDER, CHECKPOINT_FILE = "log.csv", "tensorboard", "checkpoint.pt"
MODEL_FILES = (ARCH_FILE, WEIGHTS_FILE, TRAINING_FILE, CARD_FILE, ONNX_FILE, LOG_FILE, BOARD_FOLDER)


def check_replaceable(folder: Path, field: str) -> None:
    """`UserError` unless the folder is new, empty, or a model folder with nothing of the user's own in it."""
    if not folder.exists():
        return
    foreign = (
        sorted(p.name for p in folder.iterdir() if p.name not in MODEL_FILES) if folder.is_dir() else [folder.name]
    )
    if foreign:
        raise UserError(
            f"`{field}`: {str(folder)!r} holds {foreign[0]!r}, which is no part of a model folder; "
            "accepted: a new folder, an empty one, or a model folder"
        )


def weights_bytes(model: nn.Module) -> bytes:
    """The state dict as the content of a safetensors file."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    return safetensors.torch.save(state, metadata={"format": "pt"})


def save(model: AnyNetwork, folder: str | Path) -> None:
    """Write the model folder as a whole, in place of a model folder that is there; `UserError` for any other."""
    if not isinstance(model, AnyNetwork):
        accepted = ", ".join(kind.__name__ for kind in get_args(AnyNetwork))
        raise UserError(f"model is a {type(model).__name__}, which cannot be saved; accepted: {accepted}")
    check_replaceable(Path(folder), "folder")
    arch, weights = model.arch.to_json(), weights_bytes(model)

    def fill(temporary: Path) -> None:
        write_atomic(temporary / ARCH_FILE, arch)
        write_atomic(temporary / WEIGHTS_FILE, weights)

    write_folder(Path(folder), fill)


def load_arch(folder: str | Path) -> AnyArch:
    """The architecture of a model folder, or of an `arch.json`."""
    path = Path(folder)
    path = path / ARCH_FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"model folder {str(folder)!r}: {path.name} is missing; accepted: a folder with {ARCH_FILE}")
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def load(
    folder: str | Path,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
    num_classes: int | None = None,
) -> AnyNetwork | Backbone:
    """The network of a model folder, in eval mode; `UserError` for a missing file or weights that do not fit.

    The options are those of `create`; a head of other `num_classes` is initialised.
    """
    arch = load_arch(folder)
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"model folder {str(folder)!r}: {WEIGHTS_FILE} is missing; accepted: a folder with both files")
    try:
        state = safetensors.torch.load_file(path)
    except Exception as error:  # safetensors raises its own, undocumented kinds for truncated and foreign files
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    try:
        with torch.device("meta"):  # nothing is allocated or drawn at random for weights that are replaced
            model = build(arch, output_stride)
    except RuntimeError as error:
        raise UserError(f"{path.with_name(ARCH_FILE)}: a network that cannot be built ({error})") from None
    _load_state(model, state, path)
    if num_classes is not None and num_classes != arch.num_classes:
        model.reset_classifier(num_classes)
    return as_backbone(model, features_only, out_indices).eval()


def _load_state(model: AnyNetwork, state: dict[str, torch.Tensor], path: Path) -> None:
    expected = model.state_dict()
    for key in (k for k in expected if k not in state):
        raise UserError(f"{path}: weight {key!r} is missing; {ARCH_FILE} asks for {list(expected[key].shape)}")
    for key in (k for k in state if k not in expected):
        raise UserError(f"{path}: weight {key!r} is not one of {ARCH_FILE}'s network")
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            wanted = list(expected[key].shape)
            raise UserError(f"{path}: weight {key!r} has shape {list(tensor.shape)}; {ARCH_FILE} asks for {wanted}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: weight {key!r} holds values that are not finite")
    # Copies: a file's tensors are not aligned, and some processors' kernels round otherwise then.
    model.load_state_dict({k: v.to(expected[k].dtype, copy=True) for k, v in state.items()}, assign=True)
