"""Refuse spaces with members that are too large to build or train. The members of a space are its networks."""

from __future__ import annotations

from collections.abc import Mapping

from res2net.arch import Arch
from res2net.cost import cost
from res2net.errors import UserError
from space.dimensions import DIMENSIONS
from space.skeleton import Skeleton

# The limit of parameters, and also the limit of activations for one image. This many float32 numbers fill 8 GiB.
# Gradients and optimizer state need additional memory.
MOST_ELEMENTS = 2**31
# Each convolution is a Python module. More modules take minutes to build, and gigabytes of memory even with few
# parameters.
MOST_CONVOLUTIONS = 2**16
ACCEPTED = (
    f"members of at most {MOST_CONVOLUTIONS:,} convolutions, {MOST_ELEMENTS:,} parameters "
    f"and {MOST_ELEMENTS:,} activations of one image"
)


def check_buildable(skeleton: Skeleton, choices: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `UserError` if the largest member is too large. The error names the values that make it too large.

    The check is fast for any number of members, because it computes the cost of a few networks and builds none.
    The check also holds for per-stage spaces: with the same choices, the largest member is the same.
    """
    largest = {name: DIMENSIONS[name].container(values) for name, values in choices.items()}
    if "cardinality" in choices:
        largest["cardinality"] = choices["cardinality"][0]  # `container` gives 1, which may not be a choice
    # The message gives no count: Python refuses to print integers of more than 4300 digits.
    if unit := _excess(skeleton.network(largest), skeleton.image_size):
        raise UserError(f"{_culprit(skeleton, largest)} gives a network of too many {unit}; accepted: {ACCEPTED}")


def _culprit(skeleton: Skeleton, largest: Mapping[str, int]) -> str:
    """Return the start of the error: the names and values that make a network too large.

    It names as few values as possible: fields of the skeleton, else one dimension, else all searched dimensions.
    """
    least = {name: dimension.least for name, dimension in DIMENSIONS.items()}
    if _excess(skeleton.network(least), skeleton.image_size):
        names = ("planes", "stem_channels", "num_classes", "image_size")
        return ", ".join(f"{name} {getattr(skeleton, name)}" for name in names)
    for name, value in {**skeleton.fixed, **largest}.items():
        if _excess(skeleton.network(least | {name: value}), skeleton.image_size):
            return f"{'choices' if name in largest else 'defaults'}: {name} {value}"
    return "choices: " + " with ".join(f"{name} {value}" for name, value in largest.items())


def _excess(arch: Arch, image_size: int) -> str | None:
    """Return the name of the first quantity that exceeds its limit, or None."""
    if sum(s.depth * (s.convs_per_block + 2) for s in arch.stages) > MOST_CONVOLUTIONS:
        return "convolutions"
    price = cost(arch, image_size)
    if price.params > MOST_ELEMENTS:
        return "parameters"
    return "activations" if price.activations > MOST_ELEMENTS else None
