"""Whether everything a parity run imports is installed, asked before any work is done."""

from __future__ import annotations

import importlib.util

from ckptkit.errors import MissingDependencyError

_FRAMEWORKS = {"torch": "torch", "tensorflow": "tf"}
_IMAGES = {"PIL": "image"}
_DISTRIBUTIONS = {"PIL": "pillow"}


def require_packages(*, image: bool = False) -> None:
    """Look for both frameworks (and Pillow, for an image) without importing them.

    Parameters
    ----------
    image : bool
        Whether an image file is to be read.

    Raises
    ------
    MissingDependencyError
        When any is missing; one error names all of them, and one command installs them.
    """
    needed = {**_FRAMEWORKS, **(_IMAGES if image else {})}
    missing = [package for package in needed if not _installed(package)]
    if not missing:
        return
    names = " and ".join(_DISTRIBUTIONS.get(package, package) for package in missing)
    purpose = "parity --image" if missing == ["PIL"] else "parity, which runs both frameworks,"
    raise MissingDependencyError(names, ",".join(needed[package] for package in missing), purpose)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # hidden by an import hook, or by None in sys.modules
        return False
