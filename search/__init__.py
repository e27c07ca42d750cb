"""Search a space for its front of accuracy against cost: `search(settings)`, or `python -m search.run`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.api import Result, load, search
    from search.evaluators import Evaluator
    from search.groups import Budget, Scope, Scoring
    from search.objectives import Objective
    from search.resources import Resources
    from search.settings import Settings

# The module of each public name, imported on first use: Optuna and pandas take a second, `import search` must not.
_LAZY = {
    "search": "api",
    "load": "api",
    "Result": "api",
    "Settings": "settings",
    "Scope": "groups",
    "Scoring": "groups",
    "Budget": "groups",
    "Resources": "resources",
    "Objective": "objectives",
    "Evaluator": "evaluators",
}

__all__ = [
    "Budget",
    "Evaluator",
    "Objective",
    "Resources",
    "Result",
    "Scope",
    "Scoring",
    "Settings",
    "load",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"search.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'search' has no attribute {name!r}")
