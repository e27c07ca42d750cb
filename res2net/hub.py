"""Networks with timm's weights from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from res2net.arch import BaseArch
from res2net.backbone import Network
from res2net.errors import UserError
from res2net.named import named
from res2net.weights import load_checkpoint, on_meta

HUB_FILE = "model.safetensors"
# timm's repositories. For resnet50 and resnext50_32x4d, take torchvision's first weights, the paper's baselines.
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


def load_pretrained(name: BaseArch | str, arch: BaseArch, output_stride: int | None = None) -> Network:
    """Return a network with timm's weights, in training mode.

    name: the name of the published network.
    arch: the architecture to build. It may differ from the published architecture only in `num_classes`.
    """
    model = on_meta(arch, output_stride)
    load_checkpoint(model, fetch(name), num_classes=arch.num_classes)
    return model


def fetch(name: BaseArch | str) -> Path:
    """Return the path of the file with timm's weights. If the hub's local cache lacks the file, download it."""
    repo = next((repo for known, repo in HUB.items() if isinstance(name, str) and named(name) == named(known)), None)
    if repo is None:
        raise UserError(f"`pretrained`: no weights are published for {str(name)!r}; accepted: {', '.join(HUB)}")
    by_hand = (
        f"offline: download https://huggingface.co/{repo}/resolve/main/{HUB_FILE} by hand, then "
        f"res2net.load_checkpoint({name!r}, {HUB_FILE!r})"
    )
    try:
        from huggingface_hub import hf_hub_download  # type: ignore[import-not-found]  # in the `hub` extra
    except ImportError:
        raise UserError(f"`pretrained`: needs huggingface_hub: pip install 'res2net-search[hub]'; {by_hand}") from None
    try:
        return Path(hf_hub_download(repo_id=repo, filename=HUB_FILE))
    except Exception as error:  # a missing network, a proxy, a full disk and a moved repository raise different types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"`pretrained`: {repo} could not be fetched ({reason}); {by_hand}") from None
