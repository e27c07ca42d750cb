"""Weights from files: read `.pth` and `.safetensors` files, and load a state dict into a network."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import NamedTuple, TypeVar, overload

import safetensors.torch
import torch
from torch import Tensor, nn

from res2net.arch import BaseArch
from res2net.backbone import Backbone, Network
from res2net.cost import cost
from res2net.errors import UserError
from res2net.kinds import build
from res2net.named import named, names

NESTED = ("state_dict", "model")  # keys under which training programs store the state dict
PREFIXES = ("module.", "_orig_mod.")  # prefixes that DataParallel and torch.compile add to keys
HEADS = ("fc.", "head.")  # prefixes of the keys of a classifier, and of a head for another task
State = dict[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)


@overload
def load_checkpoint(model: BaseArch | str, path: str | Path, *, num_classes: int | None = None) -> Network: ...


@overload
def load_checkpoint(model: Model, path: str | Path, *, num_classes: int | None = None) -> Model: ...


def load_checkpoint(
    model: nn.Module | BaseArch | str, path: str | Path, *, num_classes: int | None = None
) -> nn.Module:
    """Load a file's weights into a network and return the network. Raise `UserError` if the weights do not fit.

    model: the network to fill.
        A name or an architecture: build a new network in eval mode.
        A network or a `Backbone`: fill it in place and keep its mode. If the weights do not fit, nothing changes.
    num_classes: number of classes of the network's head (its classifier). If the file's head has another number, the
        network keeps its own head: a newly initialised one, or the head of the network that was passed.
    """
    if isinstance(model, str | BaseArch):
        arch = named(model) if isinstance(model, str) else model
        if num_classes is not None:
            arch = replace(arch, num_classes=num_classes)
        built = on_meta(arch)
        _load(built, without(read_weights(path), unused_keys(built)), path, str(model), num_classes is not None)
        return built.eval()
    body: Network = model.body if isinstance(model, Backbone) else model  # type: ignore[assignment]  # as documented
    own = body.arch.num_classes
    if num_classes not in (None, own):
        accepted = f"{own}, the classes of this network; to change them, pass the network's name"
        raise UserError(f"`num_classes`: {num_classes!r}; accepted: {accepted}")
    may_keep_head = isinstance(model, Backbone) or num_classes is not None
    _load(body, without(read_weights(path), unused_keys(model)), path, str(body.arch), may_keep_head)
    return model


def on_meta(arch: BaseArch, output_stride: int | None = None) -> Network:
    """Return a network without allocated weights (on the meta device). The caller replaces all weights."""
    with torch.device("meta"):
        return build(arch, output_stride)


# ---- Reading a file ------------------------------------------------------------------------------------------------


def read_weights(path: str | Path, only_safetensors: bool = False) -> State:
    """Return the state dict of a `.pth` or `.safetensors` file. Reading runs no code from the file.

    only_safetensors: whether to refuse `.pth` files.
    Raise `UserError` for an unreadable file, a file without a state dict, and weights that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {str(path)!r}: no such file; accepted: a .pth or .safetensors file")
    # Recognise the format by the content, because names may mislead. A safetensors file starts with eight bytes for
    # the length of a JSON object, then the object.
    with open(path, "rb") as file:
        is_safetensors = only_safetensors or file.read(9)[8:] == b"{"
    state = _state_dict(_read_safetensors(path) if is_safetensors else _read_torch(path), path)
    broken = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise UserError(f"{path}: {_some(map(repr, broken))} of {len(state)} weights hold values that are not finite")
    return state


def _read_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # for damaged files, safetensors raises undocumented exceptions of its own
        raise UserError(f"{path}: not a readable safetensors file, truncated or damaged ({error})") from None


def _read_torch(path: Path) -> object:
    try:
        with open(path, "rb") as file:  # given a path, torch.load chooses a reader by the file name's ending
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise UserError(
                f"{path}: holds a Python object ({found[1]}), and reading it would run code from the file; "
                "accepted: a file of weights only"
            ) from None
        raise UserError(f"{path}: not a PyTorch or safetensors file, or damaged") from None
    except Exception as error:  # EOFError, RuntimeError, OSError or struct.error, depending on the damage
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise UserError(f"{path}: not a readable PyTorch file, truncated or damaged ({reason})") from None


def _state_dict(content: object, path: Path) -> State:
    """Return the state dict in a file's content, without the prefixes that wrappers add to keys."""
    for _ in NESTED:
        nested = [content[k] for k in NESTED if isinstance(content, Mapping) and isinstance(content.get(k), Mapping)]
        content = nested[0] if nested else content
    if not isinstance(content, Mapping) or not content or not all(_is_weight(k, v) for k, v in content.items()):
        raise UserError(f"{path}: holds no state dict; accepted: a state dict, or one under {' or '.join(NESTED)}")
    state = dict(content)
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), ""):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _is_weight(key: object, value: object) -> bool:
    """Return whether an entry has a string as key and a dense CPU tensor. (Meta tensors hold no values.)"""
    if not isinstance(key, str) or not isinstance(value, Tensor):
        return False
    return value.layout is torch.strided and value.device.type == "cpu"


# ---- Loading a state dict into a network ---------------------------------------------------------------------------


class Problem(NamedTuple):
    """A weight that does not fit the network.

    kind: the kind of mismatch.
    key: the weight's key in the state dict.
    text: the description in the error.
    """

    kind: str
    key: str
    text: str

    @property
    def of_head(self) -> bool:
        return self.key.startswith(HEADS)


def fit(model: nn.Module, state: State, path: str | Path, name: str, keep_head: bool = False) -> None:
    """Load a state dict into a network, all weights or none. Raise `UserError` if they do not fit.

    path: the name of the file in errors.
    name: the name of the network in errors.
    keep_head: whether to keep the network's own head and ignore the file's head.
    """
    own = model.state_dict()
    expected = {k: v for k, v in own.items() if not (keep_head and k.startswith(HEADS))}
    state = {k: _shaped(v, own.get(k)) for k, v in state.items() if not (keep_head and k.startswith(HEADS))}
    problems = list(_problems(expected, state))
    if problems:
        raise _mismatch(problems, state, path, name)
    # Files from PyTorch before 0.4.1 lack the counters of batches (`num_batches_tracked`).
    for key in (k for k in expected if k.endswith("num_batches_tracked") and k not in state):
        state[key] = torch.zeros((), dtype=torch.long)
    is_meta = any(v.is_meta for v in own.values())
    # With `assign`, the tensors themselves become the parameters of a meta network, so copy them. A file's tensors may
    # share memory. They may also be unaligned, and some processors' kernels round differently on unaligned tensors.
    state = {k: v.to(expected[k].dtype, copy=is_meta, memory_format=torch.contiguous_format) for k, v in state.items()}
    model.load_state_dict(state, strict=False, assign=is_meta)


def _load(model: Network, state: State, path: str | Path, name: str, may_keep_head: bool) -> None:
    """Load a checkpoint. If its head does not fit and `may_keep_head` is set, keep the network's own head.

    If only the head does not fit and `may_keep_head` is not set, raise an error about the head alone.
    """
    expected = model.state_dict()
    problems = list(_problems(expected, {k: _shaped(v, expected.get(k)) for k, v in state.items()}))
    keep_head = may_keep_head and any(p.of_head for p in problems)
    if problems and not keep_head and all(p.of_head for p in problems):
        own, wanted = _classes(state), model.arch.num_classes
        raise UserError(
            f"{path}: its head has {own} classes, {name} has {wanted}; accepted: num_classes={wanted} "
            f"to load all but the head, or a network of {own} classes"
        )
    fit(model, state, path, name, keep_head)
    if keep_head and any(p.is_meta for p in model.parameters()):
        model.build_head()


def unused_keys(model: nn.Module) -> tuple[str, ...]:
    """Return regular expressions for the keys that released files have and the network does not use."""
    return getattr(model, "unused_keys", ())


def without(state: State, patterns: tuple[str, ...]) -> State:
    """Return the state dict without the keys that match a pattern."""
    return {k: v for k, v in state.items() if not any(re.fullmatch(p, k) for p in patterns)}


def _shaped(value: Tensor, wanted: Tensor | None) -> Tensor:
    """Return a classifier's weight in the network's shape. Return any other value unchanged.

    A classifier's weight is `[classes, channels]` in a linear layer, `[classes, channels, 1, 1]` in a 1x1 convolution.
    """
    if wanted is not None and value.shape != wanted.shape and _flat(value) == _flat(wanted):
        return value.reshape(wanted.shape)
    return value


def _flat(value: Tensor) -> tuple[int, ...]:
    shape = tuple(value.shape)
    return shape[:2] if shape[2:] == (1, 1) else shape


def _problems(expected: State, state: State) -> Iterator[Problem]:
    """Yield a problem for each weight that is missing, unexpected or of another shape."""
    for key, value in expected.items():
        if key not in state:
            if not key.endswith("num_batches_tracked"):
                yield Problem("missing", key, repr(key))
        elif state[key].shape != value.shape:
            shapes = f"{list(state[key].shape)}, not {list(value.shape)}"
            yield Problem("of another shape", key, f"{key!r} {shapes}")
    yield from (Problem("unexpected", key, repr(key)) for key in state if key not in expected)


def _mismatch(problems: list[Problem], state: State, path: str | Path, name: str) -> UserError:
    """Return the error that lists the mismatched weights. The error also names published networks that fit."""
    kinds = {kind: [p.text for p in problems if p.kind == kind] for kind, *_ in problems}
    listed = "; ".join(f"{kind}: {_some(texts)}" for kind, texts in kinds.items())
    fitting = _fitting(state)
    hint = f"; these are weights of {' or '.join(fitting)}" if fitting else ""
    return UserError(f"{path}: these weights do not fit {name}{hint}; {listed}")


def _fitting(state: State) -> list[str]:
    """Return the names of the published networks that the weights fit, apart from the head."""
    shapes = _shapes(state)
    size = sum(prod(shape) for key, shape in shapes.items() if ".running_" not in key)
    # Build only networks with the right number of weights: counting is cheap, building is not.
    candidates = [a for a in ((n, replace(named(n), num_classes=0)) for n in names()) if cost(a[1], 1).params == size]
    return [name for name, arch in candidates if _shapes(on_meta(arch).state_dict()) == shapes]


def _classes(state: Mapping[str, Tensor]) -> int:
    """Return the number of classes of a state dict's head. Return 0 without a head."""
    return len(state[f"{HEADS[0]}weight"]) if f"{HEADS[0]}weight" in state else 0


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights outside the head, without the counters `num_batches_tracked`."""
    wanted = (k for k in state if not k.startswith(HEADS) and not k.endswith("num_batches_tracked"))
    return {k: tuple(state[k].shape) for k in wanted}


def _some(texts: Iterator[str] | list[str]) -> str:
    """Return the number of texts and the first three of them."""
    texts = list(texts)
    return f"{len(texts)} ({', '.join(texts[:3])}{', ...' if len(texts) > 3 else ''})"
