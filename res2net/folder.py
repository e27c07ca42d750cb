"""Write and read model folders: `arch.json`, `model.safetensors` and optional further files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

import safetensors.torch
from torch import nn

from res2net.arch import BaseArch
from res2net.backbone import Backbone, Network, as_backbone
from res2net.errors import UserError
from res2net.files import write_atomic, write_folder
from res2net.kinds import from_json, network_names
from res2net.weights import fit, on_meta, read_weights

ARCH_FILE, WEIGHTS_FILE = "arch.json", "model.safetensors"
TRAINING_FILE, CARD_FILE, ONNX_FILE, INT8_FILE = "training.json", "README.md", "model.onnx", "model.int8.onnx"
LOG_FILE, BOARD_FOLDER, CHECKPOINT_FILE = "log.csv", "tensorboard", "checkpoint.pt"
MODEL_FILES = (ARCH_FILE, WEIGHTS_FILE, TRAINING_FILE, CARD_FILE, ONNX_FILE, INT8_FILE, LOG_FILE, BOARD_FOLDER)


def check_replaceable(folder: Path, what: str) -> None:
    """Raise `UserError` unless a folder is new, is empty, or holds only files of a model folder.

    what: the name of the folder in errors.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{what}: {str(folder)!r} is a file; accepted: a folder")
    if os.path.ismount(folder):  # a rename cannot replace it
        raise UserError(f"{what}: {str(folder)!r} is a mount point, which cannot be replaced; accepted: a folder in it")
    foreign = sorted(p.name for p in folder.iterdir() if p.name == CHECKPOINT_FILE or is_foreign(p.name))
    if foreign:
        raise UserError(
            f"{what}: {str(folder)!r} holds {foreign[0]!r}, which does not belong to a model folder; "
            "accepted: a new folder, an empty one, or a model folder"
        )


def check_creatable(folder: Path, what: str) -> None:
    """Raise `UserError` unless the user may create or replace a folder in its parent folder.

    what: the name of the folder in errors.
    """
    above = next(p for p in folder.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(
            f"{what}: {str(folder)!r} cannot be created in {str(above)!r}; accepted: a folder you may write to"
        )


def is_foreign(name: str) -> bool:
    """Return whether a file of a model folder is the user's: neither a training nor `save` writes files of its name."""
    files = (*MODEL_FILES, CHECKPOINT_FILE)
    # A killed process may leave a temporary file of `write_atomic` behind.
    half_written = name.endswith(".tmp") and any(name.startswith(f".{own}.") for own in files)
    return name not in files and not half_written


def weights_bytes(model: nn.Module) -> bytes:
    """Return a network's state dict as the content of a safetensors file."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    # transformers and timm refuse a file that does not name its format.
    return safetensors.torch.save(state, metadata={"format": "pt"})


def save(model: Network, folder: str | Path) -> None:
    """Write a model folder. It replaces an existing model folder. A crash leaves no partial folder.

    Raise `UserError` for a folder with other content, and for a module that is not a network of this package.
    """
    if not isinstance(model, Network):
        raise UserError(f"`model`: a {type(model).__name__}, which cannot be saved; accepted: {network_names()}")
    check_replaceable(Path(folder), "model folder")
    arch, weights = model.arch.to_json(), weights_bytes(model)

    def fill(temporary: Path) -> None:
        write_atomic(temporary / ARCH_FILE, arch)
        write_atomic(temporary / WEIGHTS_FILE, weights)

    write_folder(Path(folder), fill)


def load_arch(folder: str | Path) -> BaseArch:
    """Return the architecture of a model folder or of an `arch.json` file."""
    path = Path(folder)
    path = path / ARCH_FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"model folder {str(folder)!r}: {path.name} is missing; accepted: a folder with {ARCH_FILE}")
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


@overload
def load(
    folder: str | Path,
    *,
    features_only: Literal[False] = False,
    output_stride: int | None = None,
    num_classes: int | None = None,
) -> Network: ...


@overload
def load(
    folder: str | Path,
    *,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
    num_classes: int | None = None,
) -> Backbone: ...


def load(
    folder: str | Path,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
    num_classes: int | None = None,
) -> Network | Backbone:
    """Return the network of a model folder, in eval mode.

    The options are those of `res2net.create`. If `num_classes` differs from the number in the folder, the classifier is
    newly initialised.
    Raise `UserError` for a missing file, and for weights that do not fit the architecture.
    """
    arch = load_arch(folder)
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"model folder {str(folder)!r}: {WEIGHTS_FILE} is missing; accepted: a folder with both files")
    state = read_weights(path, only_safetensors=True)
    try:
        model = on_meta(arch, output_stride)
    except RuntimeError as error:  # raised if a product of sizes overflows PyTorch's counters
        raise UserError(f"{path.with_name(ARCH_FILE)}: the network cannot be built ({error})") from None
    fit(model, state, path, f"the network of {ARCH_FILE}")
    if num_classes is not None and num_classes != arch.num_classes:
        model.reset_classifier(num_classes)
    return as_backbone(model, features_only, out_indices).eval()
