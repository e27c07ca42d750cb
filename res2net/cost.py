"""The cost of a network of any kind, computed from integers.

This module allocates no weights and does not import torch.
"""

from __future__ import annotations

from res2net.arch import BaseArch
from res2net.errors import UserError
from res2net.heads.cost import head_cost
from res2net.kinds import kind_of
from res2net.layer_cost import Cost


def cost(arch: BaseArch, image_size: int = 224) -> Cost:
    """Return the cost of the network, with its head, for one image of `image_size` x `image_size` pixels."""
    if not isinstance(image_size, int) or image_size < 1:
        raise UserError(f"`image_size`: {image_size!r}; accepted: a whole number of at least 1")
    kind = kind_of(arch)
    body = kind.cost(arch, image_size)
    if arch.head is None or not arch.num_classes:
        return body
    return body + head_cost(arch.head, arch.num_classes, kind.maps(arch), image_size)
