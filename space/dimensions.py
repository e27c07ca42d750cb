"""What may be chosen: the dimensions, and checks that name the key, the value and what would be accepted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from res2net.errors import UserError, unknown

DIMENSIONS = ("scale", "cardinality", "depth", "width")
Params = dict[str, int]


def combinations(choices: Mapping[str, tuple[int, ...]]) -> Iterator[Params]:
    """Every way of giving each name one of its values; the last name varies fastest."""
    return (dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


def is_count(value: object) -> bool:
    """Whether it is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def checked_choices(choices: object) -> dict[str, tuple[int, ...]]:
    """The choices in the order of `DIMENSIONS`, their values ascending; `UserError` for what cannot be chosen."""
    choices = checked_keys(choices, DIMENSIONS, "choices")
    if not choices:
        raise UserError(f"choices is empty; accepted: a table of {', '.join(DIMENSIONS)}, each with a list of values")
    for name, values in choices.items():
        if not isinstance(values, list | tuple) or not values or not all(map(is_count, values)):
            raise UserError(f"choices: {name} is {values!r}; accepted: a list of whole numbers of at least 1")
        if len(set(values)) < len(values):
            raise UserError(f"choices: {name} is {list(values)!r}; accepted: every value once")
    return {name: tuple(sorted(choices[name])) for name in DIMENSIONS if name in choices}


def checked_params(params: Mapping[str, int], accepted: Mapping[str, tuple[int, ...]], where: str) -> Params:
    """The parameters in order as plain ints, whatever equals a choice (NumPy's integers, a table's 4.0)."""
    if params.keys() != accepted.keys():
        checked_keys(params, tuple(accepted), where, required=tuple(accepted))
    try:
        return {name: values[values.index(params[name])] for name, values in accepted.items()}
    except ValueError:  # from `index`; looked for again here, so that the way without mistakes stays short
        name, values = next((name, values) for name, values in accepted.items() if params[name] not in values)
        raise UserError(f"{where}: {name} is {params[name]!r}; accepted: {', '.join(map(str, values))}") from None


def checked_keys(data: object, accepted: tuple[str, ...], where: str, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """The table as a dictionary, if its keys are among the accepted ones and none that is required is missing."""
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: {data!r} is not a table of keys; accepted keys: {', '.join(accepted)}")
    for key in data:
        if key not in accepted:
            raise unknown(f"{where}: key", key, accepted)
    for key in required:
        if key not in data:
            raise UserError(f"{where}: key {key!r} is missing; required: {', '.join(required)}")
    return dict(data)
