"""Other packages of the same name: `search`, `space` and `trainers` are common names."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib import metadata, util
from importlib.machinery import PathFinder
from pathlib import Path

from res2net.errors import UserError

DISTRIBUTION = "res2net-search"
REMEDY = "rename it, or take its folder out of PYTHONPATH"


def check_ours(packages: Iterable[str], path: list[str] | None = None, remedy: str = REMEDY) -> None:
    """Raise `UserError` if Python finds a package that is not the one beside `res2net`. Nothing is imported.

    path: the folders that Python searches. None: those of this process.
    remedy: what the error tells the user to do about a file or folder that hides a package of ours.
    """
    for package in packages:
        ours = Path(__file__).resolve().parents[1] / package
        # Finders of editable installs have their turn after all folders: so a folder without `__init__.py` hides them.
        spec = PathFinder.find_spec(package, path) or util.find_spec(package)
        found = ours
        if spec is not None:
            found = Path(spec.origin or next(iter(spec.submodule_search_locations or ()), ours)).resolve()
        if found == ours:  # a folder without `__init__.py`, or nothing
            raise UserError(f"the package {package!r} in {ours} is not complete; install {DISTRIBUTION} again")
        if found.parent != ours:
            raise UserError(f"{found} hides the package {package!r} in {ours}; {remedy}")
        if (other := _overwritten_by(found)) is not None:
            raise UserError(
                f"the distribution {other!r} wrote its own {found}; "
                f"install {DISTRIBUTION} in an environment without {other!r}"
            )


def _overwritten_by(file: Path) -> str | None:
    """Return the distribution that installed its own file in the place of ours, or None.

    pip lets two distributions write the same file. It then has another hash than our distribution recorded.
    An editable install records no such file.
    """
    name = f"{file.parent.name}/{file.name}"
    recorded = next((f.hash for f in metadata.files(DISTRIBUTION) or () if str(f) == name), None)
    if recorded is None:
        return None
    digest = hashlib.new(recorded.mode, file.read_bytes()).digest()
    if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == recorded.value:
        return None
    # Without another owner, the user has edited the file.
    others = (d for d in metadata.distributions(path=[str(file.parents[1])]) if d.name != DISTRIBUTION)
    return next((d.name for d in others if any(str(f) == name for f in d.files or ())), None)
