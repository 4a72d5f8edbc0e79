"""The picture for a page of paper: PNG, SVG or PDF through matplotlib, without its global state.

The same points and options give the same bytes: the fonts are matplotlib's own, text is set without hinting,
and no date or random id is written.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from ckptkit.analysis.plot.axes import Measure
    from ckptkit.analysis.plot.points import Points

FORMATS = ("png", "svg", "pdf")
RULES: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "text.hinting": "none",
    "text.usetex": False,
    "svg.hashsalt": "ckptkit",
    "svg.fonttype": "path",  # looks the same where the font is not installed
    "pdf.fonttype": 42,  # what journals ask for
}
"""Settings of matplotlib while a picture is drawn."""
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": "ckptkit"},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": "ckptkit"},
}
_INCHES = (2.5, 60.0)
_DPI = (30, 1200)
_MOST_PIXELS = 100_000_000


@dataclass(frozen=True)
class FigureOptions:
    """How a picture looks."""

    log: bool = True  # logarithmic horizontal axis
    labels: bool = True  # names at the points
    pareto: bool = True  # the line through the points that no other beats at no greater cost
    dark: bool = False  # light on dark
    size: tuple[float, float] = (9.0, 5.6)  # width and height, inches: 2.5 to 60
    dpi: int = 200  # pixels per inch of a PNG: 30 to 1200
    title: str | None = None  # none makes one

    def __post_init__(self) -> None:
        width, height = self.size
        if not all(_INCHES[0] <= side <= _INCHES[1] for side in self.size):
            raise UsageError(
                f"a picture of {width:g} x {height:g} inches cannot be drawn",
                hint=f"give sides from {_INCHES[0]:g} to {_INCHES[1]:g} inches",
            )
        if not _DPI[0] <= self.dpi <= _DPI[1] or width * height * self.dpi**2 > _MOST_PIXELS:
            raise UsageError(
                f"{width:g} x {height:g} inches at {self.dpi} pixels per inch cannot be drawn",
                hint=f"give a dpi from {_DPI[0]} to {_DPI[1]} and no more than 100 million pixels in all",
            )


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


def render(points: Points, x: Measure, y: Measure, options: FigureOptions, form: str) -> tuple[bytes, int]:
    """Draw the picture; return the bytes of its file, and how many points found no room for a label."""
    require_matplotlib()
    import matplotlib as mpl

    from ckptkit.analysis.plot.drawing import draw

    with mpl.rc_context(RULES):
        figure, unlabelled = draw(points, x, y, options)
        file = io.BytesIO()
        figure.savefig(
            file, format=form, dpi=options.dpi, metadata=_METADATA[form], facecolor=figure.get_facecolor()
        )
    return file.getvalue(), unlabelled
