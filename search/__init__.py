"""Which network to try next: `search(settings)` does from Python what `python -m search.run` does."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.api import Result, search
    from search.settings import Settings

# Optuna and pandas take a second to import; a worker needs neither.
_LAZY = {"search": "api", "Result": "api", "Settings": "settings"}

__all__ = ["Result", "Settings", "search"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"search.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'search' has no attribute {name!r}")
