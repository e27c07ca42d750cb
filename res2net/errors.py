"""The exception for mistakes of users."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can correct.

    The message names the field or key, the wrong value, and the accepted values.
    """


def unknown(what: str, value: object, accepted: Iterable[str]) -> UserError:
    """Return the error for a value that is not an accepted name. The error suggests the most similar name, if any."""
    accepted = [str(a) for a in accepted]
    near = difflib.get_close_matches(str(value), accepted, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"{what}: unknown value {str(value)!r}; {hint}accepted: {', '.join(accepted)}")
