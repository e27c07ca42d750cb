"""Networks compared at equal MACs: the width is solved for each shape (`match_macs`), as the paper does."""

from __future__ import annotations

import random
from collections.abc import Mapping

from res2net.arch import Arch
from res2net.errors import UserError
from search.objectives import Limits
from search.units import format_count
from space import Space
from space.space import MAX_WIDTH

TRIED = 300  # shapes that are looked at before a number of MACs is refused


def member(space: Space, params: Mapping[str, int], match_macs: int | None) -> Arch:
    """Return the network of the parameters; with `match_macs`, of the width that brings it to that many MACs."""
    return space.at_macs(params, match_macs) if match_macs else space.arch(params)


def check_match(space: Space, match_macs: int, limits: Limits, seed: int) -> None:
    """Raise `UserError` if no shape reaches that many MACs, or none that does is within the limits."""
    (narrow, least), (wide, most) = space.match_range()
    rng, error = random.Random(seed), None
    for params in (narrow, wide, *(space.sample(rng) for _ in range(TRIED))):
        try:
            if limits.allow(space.at_macs(params, match_macs), space.image_size):
                return
            error = "no shape of that many MACs is within the other limits"
        except UserError as problem:
            error = error or str(problem)
    if not least.macs <= match_macs <= most.macs:
        error = f"accepted: {least.macs} (its cheapest shape, 1 channel wide) to {most.macs} (its dearest, {MAX_WIDTH})"
    raise UserError(
        f"`match_macs`: nothing in space {space.name!r} ({space.base}) matches {format_count(match_macs)}: {error}"
    )
