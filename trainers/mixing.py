"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899): blend a batch with the same batch in reverse order."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from trainers.recipes import Config


def mixed(x: Tensor, y: Tensor, classes: int, config: Config, step: int) -> tuple[Tensor, Tensor]:
    """Return a batch `[B, C, H, W]` and its targets.

    If the recipe enables mixup or CutMix, the images and the targets are blended. Blended targets are probabilities
    `[B, classes]`. Without blending, the targets are the labels `[B]`.
    """
    if not (config.mixup or config.cutmix):
        return x, y
    # The host draws the random numbers from the seed and the step alone. So no step waits for the device, all processes
    # draw the same values, and a resumed training draws the same values as an uninterrupted one.
    rng = np.random.default_rng((config.seed, step))
    cut = config.cutmix > 0 and (config.mixup == 0 or rng.random() < 0.5)
    alpha = config.cutmix if cut else config.mixup
    share = float(rng.beta(alpha, alpha))  # share that each image keeps; a partner image supplies the rest
    # An image's partner is the image at the same place of the reversed batch. The batch is in random order, so the
    # reversed batch is as good as a random permutation. And a reversal, unlike a permutation, needs no index tensor.
    if cut:
        x, share = _paste(x, share, rng)
    else:
        x = x.lerp(x.flip(0), 1 - share)
    target = F.one_hot(y, classes).to(x.dtype)
    return x, target.lerp(target.flip(0), 1 - share)


def _paste(x: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Paste a rectangle of the partner image (see `mixed`) into each image.

    Return the images and the exact share that each image keeps. The rectangle covers about `1 - share` of an image.
    """
    size = np.array(x.shape[2:])
    centre, half = rng.integers(size), size * np.sqrt(1 - share) / 2
    (top, left), (bottom, right) = (np.clip(np.rint(centre + s * half).astype(int), 0, size).tolist() for s in (-1, 1))
    out = x.clone()
    out[:, :, top:bottom, left:right] = x.flip(0)[:, :, top:bottom, left:right]
    # The rectangle is rounded to pixels and cut off at the border. So compute the share from the actual area.
    return out, 1 - (bottom - top) * (right - left) / float(size.prod())
