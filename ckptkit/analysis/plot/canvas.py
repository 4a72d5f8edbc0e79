"""A sheet to draw on with matplotlib, measured in points from its lower left corner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptkit.analysis.plot.theme import Theme, marker_of
from ckptkit.base.text import escaped

if TYPE_CHECKING:
    from ckptkit.analysis.plot.points import Series

MARKER_SIZE = 6.5
_EDGE = 1.1
RADIUS = (MARKER_SIZE + _EDGE) / 2
"""Of a marker with its edge."""
_SHAPES = {"circle": "o", "diamond": "D", "triangle": "^", "square": "s", "down": "v"}
_SMALLER = {"D": 0.85, "s": 0.92}
"""A square or diamond of a width looks larger than a circle of that width."""
_LEAST_TEXT = 5.0


class Canvas:
    """The sheet."""

    def __init__(self, size: tuple[float, float], dpi: int, theme: Theme) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.theme = theme
        self.figure = Figure(figsize=size, dpi=dpi, facecolor=theme.background)
        self.width, self.height = (72 * inches for inches in size)
        self._renderer = FigureCanvasAgg(self.figure).get_renderer()
        self._scale = 72 / dpi
        self._extents: dict[tuple[str, float, str], tuple[float, float]] = {}

    def axes(self, left: float, lower: float, right: float, upper: float) -> Any:
        """Add axes that fill a box."""
        across, up = self.width, self.height
        return self.figure.add_axes(
            (left / across, lower / up, (right - left) / across, (upper - lower) / up)
        )

    def at(self, axes: Any, x: float, y: float) -> tuple[float, float]:
        """Where a point of the axes lies on the sheet."""
        across, up = axes.transData.transform((x, y))
        return float(across) * self._scale, float(up) * self._scale

    def extent(self, text: str, size: float, weight: str = "normal") -> tuple[float, float]:
        """Width and height of a line as it will be drawn."""
        from matplotlib.text import Text

        text = escaped(text, "figure")
        asked = (text, size, weight)
        if asked not in self._extents:
            line = Text(0, 0, text, fontsize=size, weight=weight, parse_math=False, figure=self.figure)
            box = line.get_window_extent(self._renderer)
            self._extents[asked] = (box.width * self._scale, box.height * self._scale)
        return self._extents[asked]

    def wrapped(self, text: str, size: float, room: float) -> list[str]:
        """Break a text into lines no wider than ``room``, where its words allow."""
        lines: list[str] = []
        for word in text.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and self.extent(longer, size)[0] <= room:
                lines[-1] = longer
            else:
                lines.append(word)
        return lines

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        *,
        room: float = 0.0,
        weight: str = "normal",
        **look: Any,
    ) -> Any:
        """Write a line; where it is wider than ``room`` it becomes smaller, and is cut in the end."""
        text = escaped(text, "figure")
        while room and self.extent(text, size, weight)[0] > room and len(text) > 1:
            if size > _LEAST_TEXT:
                size -= 0.5
            else:
                text = text.removesuffix("…")[:-1] + "…"
        look = {"color": self.theme.text, "ha": "left", **look}
        place = (x / self.width, y / self.height)
        return self.figure.text(*place, text, fontsize=size, weight=weight, parse_math=False, **look)

    def line(self, x0: float, y0: float, x1: float, y1: float, gid: str | None = None, **look: Any) -> None:
        """Draw a line from one place to another; with a marker, at both of them."""
        from matplotlib.lines import Line2D

        across, up = (x0 / self.width, x1 / self.width), (y0 / self.height, y1 / self.height)
        line = Line2D(across, up, transform=self.figure.transFigure, **look)
        line.set_gid(gid)
        self.figure.add_artist(line)

    def marks(self, series: Series) -> list[dict[str, Any]]:
        """How to plot the marker of a series: itself, and what is drawn upon it."""
        colour = self.theme.family(series.family_index)
        face = {"full": colour, "tint": self.theme.tint(colour)}.get(series.fill, self.theme.background)
        shape = _SHAPES[marker_of(series.family_index)]
        size = MARKER_SIZE * _SMALLER.get(shape, 1.0)
        whole = {
            "marker": shape,
            "markersize": size,
            "markerfacecolor": face,
            "markeredgecolor": colour,
            "markeredgewidth": _EDGE,
            "linestyle": "none",
        }
        dot = {
            **whole,
            "marker": "o",
            "markersize": size * 0.34,
            "markerfacecolor": colour,
            "markeredgewidth": 0,
        }
        return [whole, dot] if series.fill == "dot" else [whole]
