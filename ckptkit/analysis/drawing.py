"""Pictures: their kind by the ending of a name, matplotlib without its global state, and the file.

The same figure gives the same bytes: the fonts are matplotlib's own, text is set without hinting, and no date
or random id is written.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ckptkit.base.errors import MissingDependencyError, UsageError, choose_from
from ckptkit.base.files import StagedFile

FIGURES = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
"""What matplotlib draws, by the ending of the name."""

RULES: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "text.hinting": "none",
    "text.usetex": False,
    "text.parse_math": False,  # a dollar in a name begins no formula
    "svg.hashsalt": "ckptkit",
    "svg.fonttype": "path",  # looks the same where the font is not installed
    "pdf.fonttype": 42,  # what journals ask for
}
"""Settings of matplotlib while a figure is drawn."""

_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": "ckptkit"},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": "ckptkit"},
}


def picture_kind(path: Path, kinds: Mapping[str, str] = FIGURES) -> str:
    """The kind of picture that a file's name asks for; ``kinds`` are by ending.

    >>> picture_kind(Path("log.SVG"))
    'svg'
    """
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"cannot tell the picture format from {str(path)!r}", hint=choose_from(kinds))
    return kind


def require_matplotlib(purpose: str = "a PNG, SVG or PDF picture") -> None:
    """Import matplotlib, also where ``MPLBACKEND`` names a backend that is not installed: none is needed."""
    backend = os.environ.get("MPLBACKEND")
    try:
        if backend and "matplotlib" not in sys.modules:
            del os.environ["MPLBACKEND"]  # of a notebook, say, in which this process was started
            try:
                import matplotlib
            finally:
                os.environ["MPLBACKEND"] = backend
            with contextlib.suppress(ValueError):  # as importing it does
                matplotlib.rcParams["backend"] = backend
        import matplotlib.figure
    except ImportError as error:
        raise MissingDependencyError(purpose, "matplotlib") from error


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Draw with our settings and matplotlib's defaults, whatever the user's own are."""
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **RULES}):
        yield


def figure_bytes(figure: Any, form: str) -> bytes:
    """The file of a figure, to be called while `drawing`."""
    file = io.BytesIO()
    figure.savefig(
        file, format=form, dpi=figure.dpi, metadata=_METADATA[form], facecolor=figure.get_facecolor()
    )
    return file.getvalue()


def write_picture(data: bytes, path: Path, *, force: bool = False) -> Path:
    """Write a picture whole or not at all."""
    with StagedFile(path, force=force) as staged:
        staged.append(data)
        return staged.commit()
