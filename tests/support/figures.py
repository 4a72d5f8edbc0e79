"""Looking at a drawn picture: which of its texts and markers lie over one another.

Everything is measured on the finished figure by matplotlib's own renderer, in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Marker:
    """One marker as it is drawn."""

    x: float
    y: float
    radius: float

    @property
    def box(self) -> Box:
        return (self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)


class Picture:
    """A drawn figure.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    """

    def __init__(self, figure: Any) -> None:
        figure.canvas.draw()
        self.figure = figure
        self.renderer = figure.canvas.get_renderer()
        self.axes = figure.axes[0]

    def texts(self, *kinds: str) -> list[tuple[str, Box]]:
        """Text and box of everything written of these kinds; of all kinds where none is given."""
        written = [*self.figure.texts, *(row for legend in self.figure.legends for row in legend.get_texts())]
        found = [text for text in written if not kinds or text.get_gid() in kinds]
        return [(text.get_text(), tuple(text.get_window_extent(self.renderer).extents)) for text in found]

    def markers(self) -> list[Marker]:
        """Every marker in the plot, those drawn over others too."""
        pixels = self.figure.dpi / 72
        found = []
        for line in self.axes.lines:
            if line.get_gid() != "marker":
                continue
            x, y = self.axes.transData.transform((line.get_xdata()[0], line.get_ydata()[0]))
            radius = (line.get_markersize() + line.get_markeredgewidth()) / 2 * pixels
            found.append(Marker(float(x), float(y), float(radius)))
        return found

    def faults(self) -> list[str]:
        """Everything that lies where it must not."""
        labels = self.texts("label")
        markers = self.markers()
        left, lower, right, upper = self.axes.get_window_extent(self.renderer).extents
        faults = [
            f"{one!r} lies over {other!r}"
            for (one, a), (other, b) in combinations(labels, 2)
            if overlap(a, b)
        ]
        faults += [
            f"{text!r} covers a marker"
            for text, box in labels
            for marker in markers
            if overlap(box, marker.box)
        ]
        faults += [
            f"{text!r} leaves the axes"
            for text, box in labels
            if box[0] < left or box[1] < lower or box[2] > right or box[3] > upper
        ]
        others = [(text, box) for text, box in self.texts() if (text, box) not in labels]
        faults += [
            f"{one!r} lies over {other!r}"
            for (one, a), (other, b) in combinations(others, 2)
            if overlap(a, b)
        ]
        width, height = self.figure.bbox.width, self.figure.bbox.height
        faults += [
            f"{text!r} leaves the picture"
            for text, box in others
            if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height
        ]
        return faults


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes have an area in common."""
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
