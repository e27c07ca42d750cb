"""The cost of a network of any kind, computed from integers.

This module allocates no weights and does not import torch.
"""

from __future__ import annotations

from res2net.arch import BaseArch
from res2net.errors import UserError
from res2net.kinds import kind_of
from res2net.layer_cost import Cost


def cost(arch: BaseArch, image_size: int = 224) -> Cost:
    """Return the cost of the network for one image of `image_size` x `image_size` pixels."""
    if not isinstance(image_size, int) or image_size < 1:
        raise UserError(f"`image_size`: {image_size!r}; accepted: a whole number of at least 1")
    return kind_of(arch).cost(arch, image_size)
