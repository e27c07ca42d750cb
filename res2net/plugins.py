"""Objects of a user's own module, named by an import path such as `my_package.sub:NAME`."""

from __future__ import annotations

import importlib

from res2net.errors import UserError


def load_object(path: str, field: str) -> object:
    """Return the object of an import path; raise `UserError`, which names the field, if there is none."""
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"`{field}`: {path!r} cannot be imported ({error}); accepted: my_package:NAME") from None
    if not hasattr(found, name):
        raise UserError(f"`{field}`: module {module!r} has no {name!r}; accepted: a name that it defines")
    return getattr(found, name)
