"""Whether everything a parity run imports is installed, asked before any work is done."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from ckptkit.base.errors import MissingDependencyError
from ckptkit.base.extras import Requirement
from ckptkit.parity.report import Backend

FRAMEWORKS = ("torch", "tensorflow")
ONNX = ("torch", "onnx", "onnxruntime", "onnxscript")
"""What exporting a graph and running it takes."""


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
    frameworks = FRAMEWORKS if backend == "keras" else ONNX
    purpose = "parity, which runs both frameworks," if backend == "keras" else "parity --with onnxruntime"
    only_images = all(_installed(package) for package in frameworks)
    needed = [*frameworks, "pillow"] if image else frameworks
    require_installed(needed, "parity --image" if only_images else purpose)


def require_installed(needed: Sequence[str], purpose: str) -> None:
    """Look for packages without importing them.

    Parameters
    ----------
    needed : sequence of str
        Distributions.
    purpose : str
        What they are needed for.

    Raises
    ------
    MissingDependencyError
        When any is missing; names all of them.

    Examples
    --------
    >>> require_installed(["numpy"], "counting")
    """
    missing = [package for package in needed if not _installed(package)]
    if missing:
        raise MissingDependencyError(purpose, *missing)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(Requirement(package, "").module) is not None
    except (ImportError, ValueError):  # hidden by an import hook, or by None in sys.modules
        return False
