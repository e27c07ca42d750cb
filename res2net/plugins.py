"""Objects of a user's own module, named by an import path such as `my_package.sub:NAME`."""

from __future__ import annotations

import importlib

from res2net.errors import UserError

PATH = "my_package.my_module:NAME"  # how an import path is written


def load_object(path: str, field: str, accepted: str = PATH) -> object:
    """Return the object of an import path.

    Raise `UserError`, which names the field and what is accepted, for a module that does not import and a name that it
    does not define.
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module's own code may raise anything
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        text = f"`{field}`: {path!r}: module {module_name!r} does not import ({cause}); accepted: {accepted}"
        raise UserError(text) from error
    if not hasattr(module, name):
        raise UserError(f"`{field}`: {path!r}: module {module_name!r} has no {name!r}; accepted: {accepted}")
    return getattr(module, name)
