"""The dimensions that a space may search, and checks of choices and parameters.

To add a dimension: a line in `DIMENSIONS`; a field in `Stage` (or `Arch`) and in `Skeleton`; a term in `res2net.cost`;
a layer in the blocks of `res2net.model` and `res2net.elastic`.
Every check raises a `UserError` that names the key, the value and the accepted values.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from res2net.errors import UserError, unknown

Params = dict[str, int]


@dataclass(frozen=True, slots=True)
class Dimension:
    """One searchable property of a network.

    name: a field of `Stage`, or of `Arch` for the whole network. `Skeleton` has a field of the same name.
    least: the smallest accepted value.
    whole_network: all stages share one value, even in per-stage spaces.
    repaired: a stage may get another value than the chosen one (see `space.skeleton.stage`).
    container: picks the value whose shared weights contain the weights of all other values.
    """

    name: str
    least: int = 1
    whole_network: bool = False
    repaired: bool = False
    container: Callable[[tuple[int, ...]], int] = max

    def accepts(self, value: object) -> bool:
        """Return whether the value is a whole number of at least `least`."""
        return is_whole(value, self.least)


# The order of the mapping is the order of parameters. Samples, stored studies and CSV columns depend on the order:
# append new dimensions at the end.
DIMENSIONS: Mapping[str, Dimension] = {
    dimension.name: dimension
    for dimension in (
        Dimension("scale"),
        Dimension("cardinality", container=lambda _: 1),  # a dense kernel contains every block-diagonal one
        Dimension("depth"),
        Dimension("width", repaired=True),  # rounded down to a multiple of the cardinality
        # The least reduction has the most hidden channels; 0 is a network without squeeze-and-excitation.
        Dimension("se", least=0, whole_network=True, container=lambda values: min(filter(None, values), default=0)),
    )
}
STAGE_DIMENSIONS = tuple(name for name, dimension in DIMENSIONS.items() if not dimension.whole_network)
NETWORK_DIMENSIONS = tuple(name for name, dimension in DIMENSIONS.items() if dimension.whole_network)


def dimension_of(parameter: str) -> str:
    """Return the dimension of a parameter: `scale` for `scale` and for `scale_2`."""
    return re.sub(r"_\d+$", "", parameter)


def combinations(choices: Mapping[str, tuple[int, ...]]) -> Iterator[Params]:
    """Yield every assignment of one value to each name. The last name varies fastest."""
    return (dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


def is_whole(value: object, least: int) -> bool:
    """Return whether the value is a whole number of at least `least`. A bool is not a number."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def checked_choices(choices: object) -> dict[str, tuple[int, ...]]:
    """Return the choices in the order of `DIMENSIONS`, each with ascending values.

    Raise `UserError` for an unknown dimension, and for an invalid or repeated value.
    """
    choices = checked_keys(choices, tuple(DIMENSIONS), "choices")
    if not choices:
        raise UserError(f"choices is empty; accepted: a table of {', '.join(DIMENSIONS)}, each with a list of values")
    for name, values in choices.items():
        dimension = DIMENSIONS[name]
        if not isinstance(values, list | tuple) or not values or not all(map(dimension.accepts, values)):
            accepted = f"a list of whole numbers of at least {dimension.least}"
            raise UserError(f"choices: {name} is {values!r}; accepted: {accepted}")
        if len(set(values)) < len(values):
            raise UserError(f"choices: {name} is {list(values)!r}; accepted: every value once")
    return {name: tuple(sorted(choices[name])) for name in DIMENSIONS if name in choices}


def checked_params(params: Mapping[str, int], accepted: Mapping[str, tuple[int, ...]], where: str) -> Params:
    """Return the parameters in order, as plain ints.

    Numbers equal to a choice are accepted: NumPy integers, or 4.0 from a table. Raise `UserError` for anything else.
    """
    if params.keys() != accepted.keys():
        checked_keys(params, tuple(accepted), where, required=tuple(accepted))
    try:
        return {name: values[values.index(params[name])] for name, values in accepted.items()}
    except ValueError:  # from `index`; only this slow path searches for the culprit, as valid parameters are the rule
        name, values = next((name, values) for name, values in accepted.items() if params[name] not in values)
        raise UserError(f"{where}: {name} is {params[name]!r}; accepted: {', '.join(map(str, values))}") from None


def checked_keys(data: object, accepted: tuple[str, ...], where: str, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the table as a dictionary. Raise `UserError` for an unknown or missing key, or for another type."""
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: {data!r} is not a table of keys; accepted keys: {', '.join(accepted)}")
    for key in data:
        if key not in accepted:
            raise unknown(f"{where}: key", key, accepted)
    for key in required:
        if key not in data:
            raise UserError(f"{where}: key {key!r} is missing; required: {', '.join(required)}")
    return dict(data)
