"""Whether everything a parity run imports is installed, asked before any work is done."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from ckptkit.errors import MissingDependencyError
from ckptkit.parity.report import Backend

_FRAMEWORKS = {"torch": "torch", "tensorflow": "tf"}
ONNX = {"torch": "torch", "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx"}
"""What exporting a graph and running it takes: package → extra."""
_IMAGES = {"PIL": "image"}
_DISTRIBUTIONS = {"PIL": "pillow"}


def require_packages(*, image: bool = False, backend: Backend = "keras") -> None:
    """Look for both frameworks (and Pillow, for an image) without importing them.

    Parameters
    ----------
    image : bool
        Whether an image file is to be read.
    backend : {"keras", "onnxruntime"}
        What PyTorch is compared with.

    Raises
    ------
    MissingDependencyError
        When any is missing; one error names all of them, and one command installs them.
    """
    frameworks = _FRAMEWORKS if backend == "keras" else ONNX
    purpose = "parity, which runs both frameworks," if backend == "keras" else "parity --with onnxruntime"
    only_images = all(_installed(package) for package in frameworks)
    needed = {**frameworks, **(_IMAGES if image else {})}
    require_installed(needed, "parity --image" if only_images else purpose)


def require_installed(needed: Mapping[str, str], purpose: str) -> None:
    """Look for packages without importing them.

    Parameters
    ----------
    needed : mapping of str to str
        Name to import → the extra that brings it.
    purpose : str
        What they are needed for.

    Raises
    ------
    MissingDependencyError
        When any is missing; names all of them.

    Examples
    --------
    >>> require_installed({"numpy": "none"}, "counting")
    """
    missing = [package for package in needed if not _installed(package)]
    if missing:
        names = " and ".join(_DISTRIBUTIONS.get(package, package) for package in missing)
        extras = ",".join(dict.fromkeys(needed[package] for package in missing))
        raise MissingDependencyError(names, extras, purpose)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # hidden by an import hook, or by None in sys.modules
        return False
