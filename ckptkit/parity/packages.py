"""Whether everything a parity run imports is installed, asked before any work is done."""

from __future__ import annotations

from ckptkit.base.extras import is_installed, require_installed
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
    only_images = all(is_installed(package) for package in frameworks)
    needed = [*frameworks, "pillow"] if image else frameworks
    require_installed(needed, "parity --image" if only_images else purpose)
