"""Released weights: the authors' `.pth` files, timm's `.safetensors`, and timm's models on the Hugging Face hub."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from res2net.arch import BaseArch
from res2net.backbone import Backbone
from res2net.cost import cost
from res2net.errors import UserError
from res2net.kinds import AnyArch
from res2net.model import create
from res2net.named import named, names

NESTED = ("state_dict", "model")  # where training programs put the weights
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
HEAD = "fc."
HUB_FILE = "model.safetensors"
# timm's repositories on the hub; for resnet50 and resnext50_32x4d torchvision's first weights, the paper's baselines.
HUB = {
    "resnet50": "timm/resnet50.tv_in1k",
    "resnext50_32x4d": "timm/resnext50_32x4d.tv_in1k",
    "seresnet50": "timm/seresnet50.a1_in1k",
    "res2net50_48w_2s": "timm/res2net50_48w_2s.in1k",
    "res2net50_26w_4s": "timm/res2net50_26w_4s.in1k",
    "res2net50_14w_8s": "timm/res2net50_14w_8s.in1k",
    "res2net50_26w_6s": "timm/res2net50_26w_6s.in1k",
    "res2net50_26w_8s": "timm/res2net50_26w_8s.in1k",
    "res2net101_26w_4s": "timm/res2net101_26w_4s.in1k",
    "res2next50": "timm/res2next50.in1k",
    "res2net50_v1b": "timm/res2net50d.in1k",
    "res2net101_v1b": "timm/res2net101d.in1k",
    "dla60": "timm/dla60.in1k",
    "dla60x": "timm/dla60x.in1k",
    "res2net_dla60": "timm/dla60_res2net.in1k",
    "res2next_dla60": "timm/dla60_res2next.in1k",
}


def load_checkpoint(model: nn.Module | AnyArch | str, path: str | Path, *, num_classes: int | None = None) -> nn.Module:
    """Put a file's weights into a network; `UserError` with the reason if they do not fit.

    A name or an `Arch` gives a new network in eval mode; a network is filled in place and stays in its mode.
    num_classes: asks for a head of so many classes. Where the file's head has others, the network keeps its own:
    newly initialised, or as it was in a network that was passed.
    """
    if isinstance(model, str | BaseArch):
        built = on_meta(model, num_classes)
        return _fill(built, without(read_weights(path), dropped(built)), path, num_classes, str(model)).eval()
    body = model.body if isinstance(model, Backbone) else model
    own = body.arch.num_classes
    if num_classes not in (None, own):
        raise UserError(f"num_classes is {num_classes!r}; accepted: {own}, as the network has, or a network's name")
    state = read_weights(path)
    num_classes = 0 if isinstance(model, Backbone) else num_classes
    _fill(body, without(state, dropped(model)), path, num_classes, str(body.arch))
    return model


def on_meta(arch: AnyArch | str, num_classes: int | None = None, output_stride: int | None = None) -> nn.Module:
    """A network on the meta device: nothing is allocated or drawn at random for weights that are replaced."""
    overrides = {} if num_classes is None else {"num_classes": num_classes}
    with torch.device("meta"):
        return create(arch, output_stride=output_stride, **overrides)


# ---- Reading a file ------------------------------------------------------------------------------------------------


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.pth` or `.safetensors` file; no code that a file may hold is run."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {str(path)!r}: no such file; accepted: a .pth or .safetensors file")
    with open(path, "rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # eight bytes of length, then a JSON table
    content = _read_safetensors(path) if is_safetensors else _read_torch(path)
    state = _state_dict(content, path)
    broken = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise UserError(f"{path}: {_some(broken)} of {len(state)} weights hold values that are not finite")
    return state


def _read_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # safetensors raises its own, undocumented kinds for truncated and foreign files
        raise UserError(f"{path}: not a readable safetensors file, truncated or damaged ({error})") from None


def _read_torch(path: Path) -> object:
    try:
        with open(path, "rb") as file:  # not the path, whose ending would be believed
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise UserError(
                f"{path}: holds a Python object ({found[1]}) that only running code from the file could read; "
                "accepted: weights alone"
            ) from None
        raise UserError(f"{path}: neither a PyTorch nor a safetensors file, or damaged") from None
    except Exception as error:  # depends on where the file was cut off: EOFError, RuntimeError, OSError, struct.error
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise UserError(f"{path}: not a readable PyTorch file, truncated or damaged ({reason})") from None


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The weights in what a file holds, by the names that a network of one device has for them."""
    for _ in NESTED:
        nested = [content[k] for k in NESTED if isinstance(content, Mapping) and isinstance(content.get(k), Mapping)]
        content = nested[0] if nested else content
    if not isinstance(content, Mapping) or not content or not all(_is_weight(k, v) for k, v in content.items()):
        raise UserError(f"{path}: holds no state dict; accepted: weights by name, alone or under {' or '.join(NESTED)}")
    state = dict(content)
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), ""):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _is_weight(key: object, value: object) -> bool:
    dense = isinstance(value, Tensor) and value.layout is torch.strided
    return isinstance(key, str) and dense and value.device.type == "cpu"


# ---- Fitting it to a network ---------------------------------------------------------------------------------------


def _fill(
    model: nn.Module, state: dict[str, Tensor], path: str | Path, num_classes: int | None, name: str
) -> nn.Module:
    """Put the weights in, all or none; a head that does not fit stays where `num_classes` asks for it."""
    expected = model.state_dict()
    state = {k: _shaped(v, expected.get(k)) for k, v in state.items()}
    problems = list(_problems(expected, state))
    keep_head = False
    if num_classes is not None and any(key.startswith(HEAD) for _, key, _ in problems):
        keep_head, state = True, {k: v for k, v in state.items() if not k.startswith(HEAD)}
        problems = [p for p in problems if not p[1].startswith(HEAD)]
    if problems:
        raise _mismatch(problems, expected, state, path, name)
    is_meta = any(v.is_meta for v in expected.values())
    for key in (k for k in expected if k.endswith("num_batches_tracked") and k not in state):
        state[key] = torch.zeros((), dtype=torch.long)  # files from before PyTorch 0.4.1 have none
    # Copies, as tensors of a file may share memory, which parameters must not.
    state = {k: v.to(expected[k].dtype, copy=is_meta, memory_format=torch.contiguous_format) for k, v in state.items()}
    model.load_state_dict(state, strict=False, assign=is_meta)
    if keep_head and is_meta and model.fc.state_dict():
        model.fc.to_empty(device="cpu").reset_parameters()
    return model


def dropped(model: nn.Module) -> tuple[str, ...]:
    """Patterns of the keys that released files have and that the network has no use for."""
    return getattr(model, "unused_keys", ())


def without(state: dict[str, Tensor], patterns: tuple[str, ...]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not any(re.fullmatch(p, k) for p in patterns)}


def _shaped(value: Tensor, wanted: Tensor | None) -> Tensor:
    """A classifier's weight as a matrix or as a 1x1 convolution, whichever the network has."""
    if wanted is not None and value.shape != wanted.shape and _flat(value) == _flat(wanted):
        return value.reshape(wanted.shape)
    return value


def _flat(value: Tensor) -> tuple[int, ...]:
    shape = tuple(value.shape)
    return shape[:2] if shape[2:] == (1, 1) else shape


def _problems(expected: dict[str, Tensor], state: dict[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    """What keeps the weights from fitting: its kind, the key, and the key as the user is told of it."""
    for key, value in expected.items():
        if key not in state:
            if not key.endswith("num_batches_tracked"):
                yield "missing", key, repr(key)
        elif state[key].shape != value.shape:
            yield "of another shape", key, f"{key!r} {list(state[key].shape)}, not {list(value.shape)}"
    yield from (("unexpected", key, repr(key)) for key in state if key not in expected)


def _mismatch(
    problems: list[tuple[str, str, str]],
    expected: dict[str, Tensor],
    state: dict[str, Tensor],
    path: str | Path,
    name: str,
) -> UserError:
    if all(key.startswith(HEAD) for _, key, _ in problems):
        own, wanted = _classes(state), _classes(expected)
        return UserError(
            f"{path}: its head has {own} classes, {name} has {wanted}; accepted: num_classes={wanted} "
            f"to load all but the head, or a network of {own} classes"
        )
    kinds = {kind: [shown for k, _, shown in problems if k == kind] for kind, _, _ in problems}
    listed = "; ".join(f"{kind}: {_some(shown)}" for kind, shown in kinds.items())
    fitting = _fitting(state)
    hint = f"; these are weights of {' or '.join(fitting)}" if fitting else ""
    return UserError(f"{path}: does not fit {name}{hint}; {listed}")


def _fitting(state: dict[str, Tensor]) -> list[str]:
    """Names of the networks that the weights are of; built only where the number of weights is right."""
    shapes = _shapes(state)
    size = sum(prod(shape) for key, shape in shapes.items() if ".running_" not in key)
    candidates = [n for n in names() if cost(replace(named(n), num_classes=0), 1).params == size]
    return [n for n in candidates if _shapes(on_meta(n, 0).state_dict()) == shapes]


def _classes(state: dict[str, Tensor]) -> int:
    return len(state[f"{HEAD}weight"]) if f"{HEAD}weight" in state else 0


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights behind the head."""
    wanted = (k for k in state if not k.startswith(HEAD) and not k.endswith("num_batches_tracked"))
    return {k: tuple(state[k].shape) for k in wanted}


def _some(keys: list[str]) -> str:
    """The first few, and how many there are."""
    return f"{len(keys)} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"


# ---- The hub -------------------------------------------------------------------------------------------------------


def load_pretrained(name: AnyArch | str, arch: AnyArch, output_stride: int | None = None) -> nn.Module:
    """The network `arch` (the one called `name`, but for the head) with timm's weights."""
    path = fetch(name)
    return load_checkpoint(on_meta(arch, output_stride=output_stride), path, num_classes=arch.num_classes)


def fetch(name: AnyArch | str) -> Path:
    """The file of timm's weights, from the hub's cache or the network."""
    repo = next((repo for known, repo in HUB.items() if isinstance(name, str) and named(name) == named(known)), None)
    if repo is None:
        raise UserError(f"pretrained: no weights are published for {str(name)!r}; accepted: {', '.join(HUB)}")
    by_hand = (
        f"offline: download https://huggingface.co/{repo}/resolve/main/{HUB_FILE} by hand, then "
        f"res2net.load_checkpoint({name!r}, {HUB_FILE!r})"
    )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(f"pretrained: needs huggingface_hub: pip install 'res2net-search[hub]'; {by_hand}") from None
    try:
        return Path(hf_hub_download(repo_id=repo, filename=HUB_FILE))
    except Exception as error:  # no network, a proxy, a full disk, a repository that has moved: each has its own kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"pretrained: {repo} could not be fetched ({reason}); {by_hand}") from None
