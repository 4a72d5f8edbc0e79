"""Drawing the points with matplotlib: room first, then axes, markers, labels, legend and key.

Lengths are in points (1/72 inch), from the lower left corner of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ckptkit.analysis.plot import axes as scales
from ckptkit.analysis.plot.canvas import MARKER_SIZE, RADIUS, Canvas
from ckptkit.analysis.plot.labels import Place, Wanted, place_labels
from ckptkit.analysis.plot.legend import Row, fitted, in_columns, key_row, legend_rows
from ckptkit.analysis.plot.pareto import pareto_front
from ckptkit.analysis.plot.theme import DARK, LIGHT
from ckptkit.analysis.plot.titles import default_title, source_line

if TYPE_CHECKING:
    from ckptkit.analysis.plot.axes import Measure
    from ckptkit.analysis.plot.figure import FigureOptions
    from ckptkit.analysis.plot.points import Points

_LABEL_SIZE, _TICK_SIZE, _TITLE_SIZE, _SOURCE_SIZE = 7.0, 7.5, 10.5, 6.0
_SOURCE_ROW = 8.5
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 12.0, 10.0, 50.0
_TITLE_ROOM = 20.0
_COLUMN_GAP = 14.0
_INDENT = 13.0
_NARROW = 6.5 * 72
"""Pictures narrower than this have their legend below the plot, others beside it."""
_LEAST = 60.0
"""Width and height that the plot keeps, whatever stands beside it."""
_SHARE = 0.42
"""Of the height of a narrow picture, which the plot keeps from the key."""
_TRIES = 3
"""How often the key may grow."""


def draw(points: Points, x: Measure, y: Measure, options: FigureOptions) -> tuple[Any, int]:
    """Return the picture as a `matplotlib.figure.Figure`, and how many points have neither label nor number.

    Labels have the gid ``label``, numbers that stand for a label ``number``, the lines of the key ``key``,
    markers ``marker``.
    """
    drawing = Drawing(points, x, y, options, set())
    places = drawing.place()
    for _ in range(_TRIES):
        # The key takes room from the plot, so all is placed anew whenever it grows.
        more = drawing.to_be_numbered(places)
        if not more:
            break
        numbered = {*drawing.numbers, *more}
        drawing = Drawing(points, x, y, options, numbered)
        if len(numbered) > drawing.key_room:
            drawing = Drawing(points, x, y, options, set(sorted(numbered)[: drawing.key_room]))
            places = drawing.place()
            break
        places = drawing.place()
    unlabelled = drawing.finish(places)
    return drawing.canvas.figure, unlabelled


class Drawing:
    """One picture in the making."""

    def __init__(
        self, points: Points, x: Measure, y: Measure, options: FigureOptions, numbered: set[int]
    ) -> None:
        # Numbers rise from left to right, as one looks for them.
        order = sorted(numbered, key=lambda index: (points.points[index].x, points.points[index].y))
        self.numbers = {index: number for number, index in enumerate(order, start=1)}
        self.points, self.x, self.y, self.options = points, x, y, options
        self.canvas = Canvas(options.size, options.dpi, DARK if options.dark else LIGHT)
        self._title = default_title(points, x, y) if options.title is None else options.title.strip()
        self._front = pareto_front((point.x, point.y) for point in points.points) if options.pareto else []
        self._narrow = self.canvas.width < _NARROW
        self._text_size, self._row = (6.5, 10.5) if self._narrow else (7.5, 12.0)
        self._rows = legend_rows(points, front=len(self._front) > 1, brief=self._narrow)
        self._slots: list[tuple[float, float]] = []
        self._slot_rows = 1
        self._frame()

    @property
    def key_room(self) -> int:
        """Rows of a key that the picture has room for."""
        return max(len(self._slots) - self._legend_length, 0)

    @property
    def _legend_length(self) -> int:
        """Rows of the legend; in columns, each heading but the first may leave a place empty before it."""
        headings = sum(row.kind == "heading" for row in self._rows)
        return len(self._rows) + (headings - 1 if self._narrow else 0)

    def _frame(self) -> None:
        """Draw axes and markers in the room that legend and key leave."""
        keys = [key_row(number, self.points.points[index].label) for index, number in self.numbers.items()]
        column = max(
            (_INDENT if row.indented else 0.0) + self.canvas.extent(row.text, self._text_size)[0]
            for row in [*self._rows, *keys]
        )
        room = self.canvas.width - _LEFT - _RIGHT
        self._sources = self.canvas.wrapped(source_line(self.points, self.x, self.y), _SOURCE_SIZE, room)
        lower = _BOTTOM + (len(self._sources) - 1) * _SOURCE_ROW
        upper = self.canvas.height - _TOP - (_TITLE_ROOM if self._title else 0.0)
        if self._narrow:
            lower = self._below(lower, upper, column, len(keys))
            right = self.canvas.width - _RIGHT
        else:
            right = max(self.canvas.width - _RIGHT - column - _COLUMN_GAP, _LEFT + _LEAST)
            self._lay_slots([right + _COLUMN_GAP], upper, int((upper - lower) // self._row))
        self._box = (_LEFT, lower, right, max(upper, lower + _LEAST / 2))
        self._draw_axes()
        self._draw_markers()

    def _below(self, lower: float, upper: float, column: float, keys: int) -> float:
        """Make room below the plot; returns the lower edge of what is left."""
        room = self.canvas.width - _LEFT - _RIGHT + _COLUMN_GAP
        across = max(1, int(room // (column + _COLUMN_GAP)))
        wanted = -(-(self._legend_length + keys) // across)
        legend = min(-(-self._legend_length // across), int((upper - lower - _LEAST) // self._row))
        most = int((upper - lower - _SHARE * self.canvas.height) // self._row)
        count = max(legend, min(wanted, most), 1)
        top = lower - _BOTTOM + 18.0 + count * self._row
        self._lay_slots([_LEFT + index * (column + _COLUMN_GAP) for index in range(across)], top, count)
        return lower + count * self._row + 4.0

    def _lay_slots(self, columns: Sequence[float], top: float, count: int) -> None:
        self._slot_rows = count
        self._slots = [(left, top - (row + 0.5) * self._row) for left in columns for row in range(count)]

    def place(self) -> list[Place | None]:
        """Find places for the names of all points, or their numbers."""
        if not self.options.labels:
            return []
        front = [self._at(*point) for point in self._front]
        left, lower, right, upper = self._box
        points = self.points.points
        said = [str(self.numbers.get(index, point.label)) for index, point in enumerate(points)]
        return place_labels(
            [
                Wanted(*self._at(point.x, point.y), RADIUS, *self.canvas.extent(text, _LABEL_SIZE))
                for point, text in zip(points, said, strict=True)
            ],
            (left + 1, lower + 1, right - 1, upper - 1),
            markers=[(*self._at(point.x, point.y), RADIUS) for point in points],
            lines=[(*start, *end) for start, end in pairwise(front)],
        )

    def to_be_numbered(self, places: list[Place | None]) -> set[int]:
        """Return the names for which a number would do better.

        Those without a place; or, where even a number found none, the names that stand at lines around it.
        """
        without = {index for index, place in enumerate(places) if place is None}
        if without - self.numbers.keys():
            return without - self.numbers.keys()
        points = self.points.points
        at_lines = {
            index: place.box
            for index, place in enumerate(places)
            if place is not None and place.leader is not None and index not in self.numbers
        }
        nearest = set()
        for index in without if at_lines else ():
            x, y = self._at(points[index].x, points[index].y)
            away = {
                other: abs((left + right) / 2 - x) + abs((lower + upper) / 2 - y)
                for other, (left, lower, right, upper) in at_lines.items()
            }
            nearest.add(min(away, key=lambda other: away[other]))
        return nearest

    def finish(self, places: list[Place | None]) -> int:
        """Draw names and numbers at their places, legend, key, title, sources.

        Returns how many points are left without name and number.
        """
        canvas = self.canvas
        keys = self._draw_names(places)
        self._draw_rows([*fitted(self._rows, len(self._slots)), *keys])
        room = canvas.width - _LEFT - _RIGHT
        if self._title:
            middle = canvas.height - _TOP - _TITLE_ROOM / 2 + 4.0
            canvas.text(_LEFT, middle, self._title, _TITLE_SIZE, room=room, weight="bold", va="center")
        for row, line in enumerate(reversed(self._sources)):
            look = {"color": canvas.theme.muted, "gid": "source"}
            canvas.text(_LEFT, 8.0 + row * _SOURCE_ROW, line, _SOURCE_SIZE, room=room, **look)
        return sum(place is None for place in places)

    # Axes

    def _draw_axes(self) -> None:
        theme = self.canvas.theme
        axes = self.axes = self.canvas.axes(*self._box)
        axes.set_facecolor(theme.background)
        self._scale()
        axes.grid(True, color=theme.grid, linewidth=0.6)
        axes.set_axisbelow(True)
        for name, spine in axes.spines.items():
            spine.set_visible(name in {"left", "bottom"})
            spine.set_color(theme.muted)
            spine.set_linewidth(0.7)
        axes.tick_params(
            which="both", labelcolor=theme.text, labelsize=_TICK_SIZE, width=0.6, color=theme.muted
        )
        axes.set_xlabel(self.x.title, fontsize=_TICK_SIZE + 0.5, color=theme.text)
        fits = self.canvas.extent(self.y.title, _TICK_SIZE + 0.5)[0] < self._box[3] - self._box[1]
        said = self.y.title if fits else f"{self.y.short} (%)"
        axes.set_ylabel(said, fontsize=_TICK_SIZE + 0.5, color=theme.text)

    def _scale(self) -> None:
        """Set limits and ticks that people read."""
        from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

        left, lower, right, upper = self._box
        across = [point.x for point in self.points.points]
        if self.options.log:
            self.axes.set_xscale("log")
            limits = scales.log_limits(across)
            ticks = scales.log_ticks(*limits, room=right - left)
        else:
            limits = scales.cost_limits(across)
            ticks = scales.linear_ticks(*limits, room=right - left, each=50.0)
        self.axes.set_xlim(*limits)
        self.axes.xaxis.set_major_locator(FixedLocator(ticks))
        self.axes.xaxis.set_major_formatter(FixedFormatter([scales.human(tick) for tick in ticks]))
        self.axes.xaxis.set_minor_locator(NullLocator())
        limits = scales.linear_limits([point.y for point in self.points.points])
        ticks = scales.linear_ticks(*limits, room=upper - lower, each=26.0)
        self.axes.set_ylim(*limits)
        self.axes.yaxis.set_major_locator(FixedLocator(ticks))
        self.axes.yaxis.set_major_formatter(FixedFormatter(scales.percent_texts(ticks)))

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return self.canvas.at(self.axes, x, y)

    # Markers

    def _draw_markers(self) -> None:
        if self._front:
            self.axes.plot(*zip(*self._front, strict=True), zorder=1.5, **self._dashes())
        for point in self.points.points:
            for mark in self.canvas.marks(point.series[0]):
                self.axes.plot([point.x], [point.y], gid="marker", zorder=3, **mark)

    def _dashes(self) -> dict[str, Any]:
        return {"color": self.canvas.theme.front, "linewidth": 0.9, "dashes": (4, 2.5)}

    # Labels

    def _draw_names(self, places: list[Place | None]) -> list[Row]:
        """Draw names and numbers; returns the key."""
        keys = []
        for index, (point, place) in enumerate(zip(self.points.points, places, strict=bool(places))):
            if place is None:
                continue
            if index in self.numbers:
                keys.append((self.numbers[index], point.label))
                self._draw_label(str(self.numbers[index]), place, "number")
            else:
                self._draw_label(point.label, place, "label")
        return [key_row(number, label) for number, label in sorted(keys)]

    def _draw_label(self, text: str, place: Place, gid: str) -> None:
        from matplotlib.patheffects import withStroke

        left, lower, right, upper = place.box
        middle = ((left + right) / 2, (lower + upper) / 2)
        written = self.canvas.text(*middle, text, _LABEL_SIZE, ha="center", va="center", gid=gid)
        # Grid lines and the front stop short of the letters.
        written.set_path_effects([withStroke(linewidth=2.0, foreground=self.canvas.theme.background)])
        if place.leader is not None:
            self.canvas.line(*place.leader, gid="leader", color=self.canvas.theme.muted, linewidth=0.5)

    # Legend and key

    def _draw_rows(self, rows: Sequence[Row]) -> None:
        canvas = self.canvas
        laid = in_columns(rows, self._slot_rows, len(self._slots) // self._slot_rows)
        for row, (left, middle) in zip(laid, self._slots, strict=False):
            if row is None:
                continue
            indent = _INDENT if row.indented else 0.0
            if row.kind == "front":
                canvas.line(left, middle, left + _INDENT - 4, middle, **self._dashes())
            for mark in canvas.marks(row.series) if row.series is not None else ():
                at = (left + MARKER_SIZE / 2, middle)
                canvas.line(*at, *at, **mark)
            canvas.text(
                left + indent,
                middle,
                row.text,
                self._text_size,
                room=canvas.width - left - indent - 4,
                va="center_baseline",
                weight="bold" if row.kind == "heading" else "normal",
                color=canvas.theme.muted if row.kind == "joined" else canvas.theme.text,
                gid=row.kind,
            )
