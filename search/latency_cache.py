"""The latency table of a search: read from a file, or measured once on this device and kept for later searches."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from res2net.arch import Arch
from res2net.errors import UserError
from res2net.files import write_atomic
from res2net.latency import LatencyTable
from search.latency import check, load, make
from space import Space
from trainers.meta import environment


def parse_table(text: str, name: str) -> LatencyTable:
    """Return the table of a file. If the file holds no table, raise `UserError` with the setting's name."""
    try:
        return load(text)
    except UserError as error:
        raise UserError(f"`{name}`: {error}") from None


def check_table(table: LatencyTable, space: Space, networks: Sequence[Arch] = ()) -> None:
    """Raise `UserError` unless a table has the latency of all members of a space, and of more networks."""
    try:
        check(table, space, networks)
    except UserError as error:
        raise UserError(f"`latency`: {error}") from None


def table_for(
    space: Space,
    form: str,
    device: str,
    seconds: float | None,
    networks: Sequence[Arch] = (),
    console: Console | None = None,
    share: float = 1.0,
) -> LatencyTable:
    """Return the table of this device for batches of 1 on one thread: from the user's cache, or newly measured.

    seconds, networks, console, share: see `search.latency.make`.
    """
    path = _folder() / f"{_name(space, form, device)}.json"
    if path.is_file():
        try:
            table = load(path)
            check(table, space, networks)
        except UserError:  # written by another version, or for other networks
            pass
        else:
            if console is not None:
                text = f"latency: {table.text}, from {path} (delete it to measure again)"
                console.print(text, highlight=False, markup=False, soft_wrap=True)
            return table
    table = make(space, form, device, seconds=seconds, networks=networks, console=console, share=share)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, table.to_json())
    return table


def _folder() -> Path:
    """Return the folder of the user's cached tables."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "res2net-search" / "latency"


def _name(space: Space, form: str, device: str) -> str:
    """Return the name of a table: the space, and a hash of all conditions of the measurement."""
    here = environment()
    content = [{**space.to_dict(), "name": ""}, form, device, here["hardware"], here["versions"]]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return f"{space.name}-{space.base}-{form}-{device}-{digest}"
