"""The dimensions that a space may search, and checks of choices and parameters.

A dimension is a property of networks, such as the scale. A parameter is one decision of a search: the scale of all
stages (`scale`) or of one stage (`scale_2`). Choices are the values that a dimension may have.

To add a dimension, add
    - an entry in `DIMENSIONS`,
    - a field in `Stage` (or `Arch`) and in `Skeleton`,
    - a term in `res2net.cost`,
    - a layer in the blocks of `res2net.model` and `res2net.elastic`.

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
    """A property of a network that a space may search.

    name: the name of the dimension. A field of `Stage` and a field of `Skeleton` have the same name. A dimension of the
        whole network has a field in `Arch` instead of `Stage`.
    least: the smallest accepted value.
    whole_network: whether all stages share one value, even in per-stage spaces.
    repaired: whether a stage may get another value than the chosen one (see `space.skeleton.repaired`).
    container: a function that picks the value whose weights, in a supernet, contain the weights of all other values.
    """

    name: str
    least: int = 1
    whole_network: bool = False
    repaired: bool = False
    container: Callable[[tuple[int, ...]], int] = max

    def accepts(self, value: object) -> bool:
        """Return whether the value is a whole number of at least `least`."""
        return is_whole(value, self.least)


# The order of the mapping is the order of parameters. Append new dimensions at the end, because random samples, stored
# studies and CSV columns depend on the order.
DIMENSIONS: Mapping[str, Dimension] = {
    dimension.name: dimension
    for dimension in (
        Dimension("scale"),
        Dimension("cardinality", container=lambda _: 1),  # a dense kernel contains every block-diagonal one
        Dimension("depth"),
        Dimension("width", repaired=True),  # rounded down to a multiple of the cardinality
        # The least reduction above 0 has the most hidden channels. 0 means no squeeze-and-excitation.
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
    """Return the choices in the order of `DIMENSIONS`, with each dimension's values in ascending order.

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
    """Return the parameters as plain ints, in the order of `accepted`.

    Any number that equals a choice is valid, such as a NumPy integer or 4.0 from a table. Raise `UserError` for other
    values, and for a missing or unknown parameter.

    accepted: the choices of each parameter.
    where: the subject of the error.
    """
    if params.keys() != accepted.keys():
        checked_keys(params, tuple(accepted), where, required=tuple(accepted))
    try:
        return {name: values[values.index(params[name])] for name, values in accepted.items()}
    except ValueError:  # raised by `index`: find the wrong value only now, because most parameters are valid
        name, values = next((name, values) for name, values in accepted.items() if params[name] not in values)
        raise UserError(f"{where}: {name} is {params[name]!r}; accepted: {', '.join(map(str, values))}") from None


def checked_keys(data: object, accepted: tuple[str, ...], where: str, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the table as a dictionary. Raise `UserError` for another type, or for an unknown or missing key.

    where: the subject of the error.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: {data!r} is not a table of keys; accepted keys: {', '.join(accepted)}")
    for key in data:
        if key not in accepted:
            raise unknown(f"{where}: key", key, accepted)
    for key in required:
        if key not in data:
            raise UserError(f"{where}: key {key!r} is missing; required: {', '.join(required)}")
    return dict(data)
