"""A Sphinx extension: turn the project's plain docstrings into reStructuredText.

A docstring consists of paragraphs. A line such as "size: pixels along a side" describes a parameter or a field, and
indented lines continue it. Text between single backquotes is code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

ITEM = re.compile(r"(?P<names>[a-z_][a-z0-9_]*(?:(?:,| to| and) [a-z_][a-z0-9_]*)*): (?P<text>.+)")
SENTENCE = re.compile(r"(Raise|Return|Several|Ctrl-C)\b")  # begins a new paragraph after a list of parameters


def setup(app: Any) -> dict[str, bool]:
    """Connect the extension with Sphinx."""
    app.connect("autodoc-process-docstring", lambda app, what, name, obj, options, lines: replace(lines))
    app.connect("autodoc-process-signature", lambda app, what, name, obj, options, *texts: signature(*texts))
    return {"parallel_read_safe": True}


def signature(arguments: str | None, returned: str | None) -> tuple[str | None, str | None]:
    """Return a signature with the names of functions that are defaults: Sphinx cannot read `<function name>`."""
    return arguments and re.sub(r"<(?:built-in )?function (\w+)>", r"\1", arguments), returned


def replace(lines: list[str]) -> None:
    """Replace the lines of a docstring by reStructuredText, in place, as Sphinx asks for it."""
    lines[:] = [line for block in blocks(lines) for line in (block, "")]


def blocks(lines: Iterable[str]) -> Iterator[str]:
    """Yield the paragraphs and list items of a docstring, each on one line of reStructuredText."""
    prefix, text = "", ""  # of the block so far
    for line in [*lines, ""]:
        opened = opening(line, text, in_list=bool(prefix))
        if opened is None:
            text = f"{text} {line.strip()}".strip()
            continue
        if text:
            yield prefix + marked(text)
        prefix, text = opened


def opening(line: str, before: str, in_list: bool) -> tuple[str, str] | None:
    """Return the prefix and the text of the block that a line begins; None if it continues a block.

    before: the text of the block so far; empty after an empty line. in_list: whether this block is a list item.
    """
    words, indented = line.strip(), line.startswith(" ")
    ended = not before or before.endswith((".", ":"))
    if not words:
        return "", ""
    if words.startswith("- "):
        return "- ", words[2:]
    if indented and in_list and re.match(r"`\w+`: ", words):
        return "  - ", words
    if not indented and ended and (item := ITEM.fullmatch(words)):
        return f"- **{item['names']}**: ", item["text"]
    if not indented and ended and in_list and SENTENCE.match(words):
        return "", words
    return None


def marked(text: str) -> str:
    """Return a text as reStructuredText: code in double backquotes, other characters of markup escaped."""
    parts = re.split(r"`+([^`]+)`+", text)
    for i, part in enumerate(parts):
        if i % 2:  # code; reStructuredText ends it only before a space or punctuation, so add a space that is not shown
            parts[i] = f"``{part}``" + ("\\ " if parts[i + 1][:1].isalnum() else "")
        else:
            parts[i] = re.sub(r"[\\*|]|_(?!\w)", r"\\\g<0>", part)
    return "".join(parts)
