"""A Sphinx extension: the directive `option-table`, a table of the command-line options of a dataclass."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from res2net.options import describe, fields_of
from search.evaluators import EVALUATORS

CHOICES = {"evaluator": tuple(EVALUATORS)}  # choices that a field's metadata cannot name, because of a circular import


class OptionTable(SphinxDirective):
    """The directive. Its argument is the import path of a dataclass (`res2net.options`)."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        module, _, name = self.arguments[0].rpartition(".")
        rows = ["| option | meaning |", "|---|---|"]
        for field, kind in fields_of(getattr(import_module(module), name)):
            if field.metadata.get("positional"):
                continue
            value = "" if kind is bool else f" {field.metadata.get('metavar') or field.name.upper()}"
            text = describe(field, choices=CHOICES.get(field.name)).replace("|", r"\|").replace("`", "")
            rows.append(f"| `--{field.name.replace('_', '-')}{value}` | {text} |")
        return self.parse_text_to_nodes("\n".join(rows))


def setup(app: Any) -> dict[str, bool]:
    """Add the directive to Sphinx."""
    app.add_directive("option-table", OptionTable)
    return {"parallel_read_safe": True}
