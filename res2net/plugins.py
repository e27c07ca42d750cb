"""Load objects from a user's own module by an import path such as `my_package.sub:NAME`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from res2net.errors import UserError, unknown

PATH = "my_package.my_module:NAME"  # the form of an import path, shown in error messages


def load_object(path: str, field: str, accepted: str = PATH, known: Iterable[str] = ()) -> object:
    """Return the object of an import path.

    known: accepted names other than paths, for the error. The caller has already handled these names.
    Raise `UserError` for a text that is no path, and if the module cannot be imported or lacks the name. The error
    shows `field` and `accepted`.
    """
    if ":" not in path:
        raise unknown(f"`{field}`", path, (*known, accepted))
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything while it is imported
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        text = f"`{field}`: {path!r}: module {module_name!r} does not import ({cause}); accepted: {accepted}"
        raise UserError(text) from error
    if not hasattr(module, name):
        raise UserError(f"`{field}`: {path!r}: module {module_name!r} has no {name!r}; accepted: {accepted}")
    return getattr(module, name)
