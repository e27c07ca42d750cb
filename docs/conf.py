"""The configuration of Sphinx: pages in MyST Markdown, a reference from docstrings. `make docs` builds the pages."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "sphinx"))  # `plain_docstrings` and `option_table`

project = "Res2Net search"
author = "the authors of res2net-search"
copyright = author
release = importlib.metadata.version("res2net-search")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "plain_docstrings",
    "option_table",
]
exclude_patterns = ["_build"]

myst_heading_anchors = 3

autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

highlight_language = "text"  # for commands; code blocks of Python name their language

html_theme = "furo"
html_static_path = ["sphinx/static"]
html_css_files = ["tables.css"]
html_title = f"{project} {release}"
html_show_copyright = False
html_show_sourcelink = False
