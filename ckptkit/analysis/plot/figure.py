"""Accuracy against cost: the figure for a page of paper (PNG, SVG or PDF), or the page to look into.

A name is written beside its point, those of the Pareto front first, where it covers nothing else; points
without a name are counted. Lengths are in points (1/72 inch), from the lower left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.analysis.drawing import (
    FIGURES,
    drawing,
    figure_bytes,
    picture_kind,
    require_matplotlib,
    write_picture,
)
from ckptkit.analysis.plot.page import plot_page
from ckptkit.analysis.plot.points import (
    DARK,
    LIGHT,
    X_MEASURES,
    FigureOptions,
    Measure,
    Points,
    Series,
    collect,
    comparable,
    default_title,
    human,
    marker_of,
    missing_note,
    pareto_front,
    source_line,
    y_measures,
)
from ckptkit.base.errors import NotFoundError, UsageError, one_of
from ckptkit.base.files import refuse_existing
from ckptkit.base.text import counted, escaped, spelled

if TYPE_CHECKING:
    from matplotlib.transforms import Bbox

    from ckptkit.registry.schema import Entry

_KINDS = {**FIGURES, ".html": "html", ".htm": "html"}

_LABEL_SIZE, _TICK_SIZE, _TITLE_SIZE, _LEAST_TITLE, _SOURCE_SIZE = 7.0, 7.5, 10.5, 7.0, 6.0
_SOURCE_ROW, _TITLE_ROOM, _GAP = 8.5, 20.0, 14.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 12.0, 10.0, 50.0
_NARROW = 6.5 * 72
"""Pictures narrower than this have their legend below the plot, others beside it."""
_LEAST = 60.0
"""Width that the plot keeps, whatever is beside it."""
_SHARE = 0.42
"""Of the height of a narrow picture, which the plot keeps from the legend."""
_LONGEST_ROW = 48

_MARKER_SIZE, _EDGE = 6.5, 1.1
_RADIUS = (_MARKER_SIZE + _EDGE) / 2
_SHAPES = {"circle": "o", "diamond": "D", "triangle": "^", "square": "s", "down": "v"}
_SMALLER = {"D": 0.85, "s": 0.92}
"""A square or diamond of a width looks larger than a circle of that width."""

_TOUCHING, _BETWEEN = 2.5, 1.5
"""From a marker to its name, and between a name and any other name or marker."""
_SIDES = (
    *((1, 0), (1, 0.45), (1, -0.45), (1, 1), (0.5, 1), (0, 1), (-0.5, 1), (1, -1), (-1, 0), (-1, 0.45)),
    *((-1, 1), (0.5, -1), (0, -1), (-1, -0.45), (-0.5, -1), (-1, -1)),
)
"""Where a name may stand at its marker, best first: to the right is read most easily."""
_TICK_ROOM = 28.0


@dataclass(frozen=True)
class Saved:
    """What was written, or would be."""

    path: Path
    points: int  # places with a marker
    entries: int  # entries at these places
    missing: str  # which entries are not shown, and why
    unlabelled: int = 0  # points for whose label there was no room


def save_plot(
    entries: Sequence[Entry],
    output: Path,
    *,
    x: str = "params",
    y: str = "top1",
    options: FigureOptions | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Saved:
    """Draw accuracy against cost; the ending of ``output`` says how."""
    options = options or FigureOptions()
    form = picture_kind(output, _KINDS)
    across, up = measure(x, X_MEASURES), measure(y, y_measures(entries))
    if form != "html":
        require_matplotlib()
    given, entries = entries, comparable(entries, up)
    points = collect(entries, across, up)
    if not given:
        raise NotFoundError(
            "no entry to draw", hint="'ckptkit list' with the same filters says what there is"
        )
    if not points.points:
        raise UsageError(
            f"nothing to draw: none of {counted(len(given), 'entry')} has published "
            f"{across.short} and {up.short}",
            hint="choose other entries, --x or --y",
        )
    drawn = sum(len(point.entries) for point in points.points)
    saved = Saved(output, len(points.points), drawn, missing_note(points, across, up))
    if dry_run:
        return saved
    refuse_existing(output, force=force)
    if form == "html":
        data = plot_page(entries, x=across.name, y=up.name, options=options).encode()
    else:
        data, unlabelled = render(points, across, up, options, form)
        saved = replace(saved, unlabelled=unlabelled)
    write_picture(data, output, force=force)
    return saved


def measure(name: str, measures: dict[str, Measure]) -> Measure:
    """Return what an axis shows, named in any spelling."""
    found = next((one for known, one in measures.items() if spelled(known) == spelled(name)), None)
    return found or measures[one_of("axis", name, tuple(measures))]


def render(points: Points, x: Measure, y: Measure, options: FigureOptions, form: str) -> tuple[bytes, int]:
    """Draw the picture; return the bytes of its file, and how many points found no room for a label."""
    require_matplotlib()
    with drawing():
        figure, unlabelled = draw(points, x, y, options)
        return figure_bytes(figure, form), unlabelled


def draw(points: Points, x: Measure, y: Measure, options: FigureOptions) -> tuple[Any, int]:
    """Return the picture as a `matplotlib.figure.Figure`, and how many points have no label.

    Labels have the gid ``label``, markers ``marker``, rows of the legend their kind, the sources ``source``.
    """
    return _Drawing(points, x, y, options).draw()


@dataclass(frozen=True)
class Row:
    """One line of the legend: a ``heading``, a ``series``, one that is ``joined`` to it, the ``front``."""

    text: str
    kind: str
    series: Series | None = None  # whose marker is in front


def legend_rows(points: Points, *, front: bool, narrow: bool) -> list[Row]:
    """Return a heading for each family and a row for each of its series; in a narrow picture only rows."""
    leading = {point.series[0] for point in points.points}
    rows: list[Row] = []
    family = None
    for series in points.series:
        if series not in leading:
            continue
        if series.family != family and not narrow:
            rows.append(Row(series.family_name, "heading"))
        family = series.family
        words = series.description(brief=narrow)
        named = f"{series.family_name} {words}".strip() if narrow else words or "all entries"
        rows.append(Row(named, "series", series))
        rows += [
            Row(
                f"and {'' if other.family == family and not narrow else other.family_name + ' '}"
                f"{other.description(brief=narrow)}",
                "joined",
            )
            for other in points.series
            if other not in leading and _shares_a_marker(points, series, other)
        ]
    return [*rows, Row("Pareto front", "front")] if front else rows


def _shares_a_marker(points: Points, leader: Series, other: Series) -> bool:
    return any(point.series[0] == leader and other in point.series for point in points.points)


def fitted(rows: Sequence[Row], room: int) -> list[Row]:
    """Return the rows, or as many as there is room for and one that says how many more there are.

    >>> [row.text for row in fitted([Row("a", "series"), Row("b", "series"), Row("c", "series")], room=2)]
    ['a', '… and 2 more']
    """
    if len(rows) <= room:
        return list(rows)
    kept = max(room - 1, 0)
    return [*rows[:kept], Row(f"… and {len(rows) - kept} more", "more")][:room]


class _Drawing:
    """One picture in the making."""

    def __init__(self, points: Points, x: Measure, y: Measure, options: FigureOptions) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.points, self.x, self.y, self.options = points, x, y, options
        self.theme = DARK if options.dark else LIGHT
        self.figure = Figure(figsize=options.size, dpi=options.dpi, facecolor=self.theme.background)
        self.width, self.height = (72 * inches for inches in options.size)
        self.pixels = options.dpi / 72
        self.renderer = FigureCanvasAgg(self.figure).get_renderer()
        self.front = pareto_front((point.x, point.y) for point in points.points) if options.pareto else []
        self.narrow = self.width < _NARROW

    def draw(self) -> tuple[Any, int]:
        """Title and sources, then the legend, then axes in what room is left, markers, and names last."""
        room = self.width - _LEFT - _RIGHT
        title = self.options.title
        title = default_title(self.points, self.x, self.y) if title is None else title.strip()
        lower, upper = _BOTTOM, self.height - _TOP
        if title:
            upper -= _TITLE_ROOM
            size = _TITLE_SIZE
            while size > _LEAST_TITLE and self._extent(title, size, "bold")[0] > room:
                size -= 0.5
            shown = self._cut(title, size, room, "bold")
            self._text(_LEFT, upper + _TITLE_ROOM / 2 + 4.0, shown, size, weight="bold")
        sources = self._wrapped(source_line(self.points, self.x, self.y), _SOURCE_SIZE, room)
        look = {"color": self.theme.muted, "gid": "source", "va": "bottom", "linespacing": 1.25}
        self._text(_LEFT, 6.0, "\n".join(sources), _SOURCE_SIZE, **look)
        lower += (len(sources) - 1) * _SOURCE_ROW
        self._draw_axes(*self._draw_legend(lower, upper))
        if self.front:
            self.axes.plot(*zip(*self.front, strict=True), zorder=1.5, **self._dashes())
        for point in self.points.points:
            for mark in self._marks(point.series[0]):
                self.axes.plot([point.x], [point.y], gid="marker", zorder=3, **mark)
        return self.figure, self._draw_labels() if self.options.labels else 0

    # Text

    def _extent(self, text: str, size: float, weight: str = "normal") -> tuple[float, float]:
        """Width and height of a text as it will be drawn."""
        from matplotlib.text import Text

        line = Text(0, 0, escaped(text, "figure"), fontsize=size, weight=weight, figure=self.figure)
        box = line.get_window_extent(self.renderer)
        return box.width / self.pixels, box.height / self.pixels

    def _cut(self, text: str, size: float, room: float, weight: str = "normal") -> str:
        while self._extent(text, size, weight)[0] > room and len(text) > 1:
            text = text.removesuffix("…")[:-1].rstrip() + "…"
        return text

    def _wrapped(self, text: str, size: float, room: float) -> list[str]:
        lines: list[str] = []
        for word in text.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and self._extent(longer, size)[0] <= room:
                lines[-1] = longer
            else:
                lines.append(word)
        return [self._cut(line, size, room) for line in lines]

    def _text(self, x: float, y: float, text: str, size: float, **look: Any) -> Any:
        look = {"color": self.theme.text, "ha": "left", "va": "center", **look}
        shown = "\n".join(escaped(line, "figure") for line in text.split("\n"))
        return self.figure.text(x / self.width, y / self.height, shown, fontsize=size, **look)

    # Legend

    def _draw_legend(self, lower: float, upper: float) -> tuple[float, float, float, float]:
        """Draw the legend, with fewer rows where there is no room; gives the box that the axes get."""
        rows = legend_rows(self.points, front=len(self.front) > 1, narrow=self.narrow)
        room = self.width - _LEFT - _RIGHT
        for count in range(len(rows), 0, -1):
            for columns in (3, 2, 1) if self.narrow else (1,):
                legend = self._legend(fitted(rows, count), columns)
                box = legend.get_window_extent(self.renderer)
                width, height = box.width / self.pixels, box.height / self.pixels
                fits = width <= room
                if fits or columns == 1:
                    break
                legend.remove()
            left = upper - lower - height
            if left >= (_SHARE * self.height if self.narrow else 0) or count == 1:
                break
            legend.remove()
        if self.narrow:
            legend.set_loc("lower left")
            legend.set_bbox_to_anchor((_LEFT / self.width, (lower - _BOTTOM + 18.0) / self.height))
            lower += height + 4.0
            return _LEFT, lower, self.width - _RIGHT, max(upper, lower + _LEAST / 2)
        right = max(self.width - _RIGHT - width - _GAP, _LEFT + _LEAST)
        legend.set_bbox_to_anchor(((right + _GAP) / self.width, upper / self.height))
        return _LEFT, lower, right, max(upper, lower + _LEAST / 2)

    def _legend(self, rows: Sequence[Row], columns: int) -> Any:
        from matplotlib.legend_handler import HandlerTuple

        legend = self.figure.legend(
            [self._handle(row) for row in rows],
            [escaped(_short(row.text), "figure") for row in rows],
            loc="upper left",
            ncols=columns,
            fontsize=6.5 if self.narrow else 7.5,
            labelcolor=self.theme.text,
            handler_map={tuple: HandlerTuple(ndivide=1, pad=0)},
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=1.4,
            handletextpad=0.5,
            columnspacing=1.5,
        )
        for row, text in zip(rows, legend.get_texts(), strict=True):
            text.set_gid(row.kind)
            text.set_fontweight("bold" if row.kind == "heading" else "normal")
            if row.kind == "joined":
                text.set_color(self.theme.muted)
        return legend

    def _handle(self, row: Row) -> Any:
        from matplotlib.lines import Line2D

        if row.series is not None:
            return tuple(Line2D([], [], **mark) for mark in self._marks(row.series))
        return Line2D([], [], **(self._dashes() if row.kind == "front" else {"linestyle": "none"}))

    def _dashes(self) -> dict[str, Any]:
        return {"color": self.theme.front, "linewidth": 0.9, "dashes": (4, 2.5)}

    def _marks(self, series: Series) -> list[dict[str, Any]]:
        """How to plot the marker of a series: itself, and what is drawn upon it."""
        colour = self.theme.family(series.family_index)
        tint, hollow = self.theme.tint(colour), self.theme.background
        face = {"full": colour, "eye": colour, "tint": tint, "target": tint}.get(series.fill, hollow)
        shape = _SHAPES[marker_of(series.family_index)]
        size = _MARKER_SIZE * _SMALLER.get(shape, 1.0)
        look = {"markeredgecolor": colour, "linestyle": "none"}
        whole = {"marker": shape, "markersize": size, "markerfacecolor": face, "markeredgewidth": _EDGE}
        inner = hollow if series.fill == "eye" else colour
        dot = {"marker": "o", "markersize": size * 0.34, "markerfacecolor": inner, "markeredgewidth": 0}
        dotted = series.fill in ("dot", "eye", "target")
        return [{**mark, **look} for mark in ([whole, dot] if dotted else [whole])]

    # Axes

    def _draw_axes(self, left: float, lower: float, right: float, upper: float) -> None:
        across, up, theme = self.width, self.height, self.theme
        self.axes = axes = self.figure.add_axes(
            (left / across, lower / up, (right - left) / across, (upper - lower) / up)
        )
        axes.set_facecolor(theme.background)
        axes.grid(True, color=theme.grid, linewidth=0.6)
        axes.set_axisbelow(True)
        for name, spine in axes.spines.items():
            spine.set_visible(name in {"left", "bottom"})
            spine.set_color(theme.muted)
            spine.set_linewidth(0.7)
        look: dict[str, Any] = {
            "labelcolor": theme.text,
            "labelsize": _TICK_SIZE,
            "width": 0.6,
            "color": theme.muted,
        }
        axes.tick_params(which="both", **look)
        axes.set_xlabel(self.x.title, fontsize=_TICK_SIZE + 0.5, color=theme.text)
        fits = self._extent(self.y.title, _TICK_SIZE + 0.5)[0] < upper - lower
        words = self.y.title if fits else f"{self.y.short} (%)"
        axes.set_ylabel(words, fontsize=_TICK_SIZE + 0.5, color=theme.text)
        self._scale(right - left, upper - lower)

    def _scale(self, across: float, up: float) -> None:
        """Set limits with room for markers and names at both ends, and round ticks as far as they fit."""
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, ScalarFormatter

        axis, values = self.axes.xaxis, [point.x for point in self.points.points]
        if self.options.log:
            self.axes.set_xscale("log")
            limits = log_limits(values)
            axis.set_major_locator(log_locator(*limits, room=across))
        else:
            limits = (-0.03 * max(values), 1.08 * max(values))
            axis.set_major_locator(MaxNLocator(max(int(across // 50), 1), steps=[1, 2, 2.5, 5, 10]))
        self.axes.set_xlim(*limits)
        axis.set_major_formatter(FuncFormatter(lambda value, _place: human(value)))
        axis.set_minor_locator(NullLocator())
        self.axes.set_ylim(*linear_limits([point.y for point in self.points.points]))
        self.axes.yaxis.set_major_locator(MaxNLocator(max(int(up // 26), 1), steps=[1, 2, 2.5, 5, 10]))
        self.axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))

    # Names

    def _draw_labels(self) -> int:
        """Write the names that have a place; how many have none."""
        from matplotlib.path import Path as Line
        from matplotlib.patheffects import withStroke
        from matplotlib.transforms import Bbox

        points = self.points.points
        at = self.axes.transData.transform([(point.x, point.y) for point in points])
        radius = _RADIUS * self.pixels
        markers = [Bbox([[x - radius, y - radius], [x + radius, y + radius]]) for x, y in at]
        line = Line(self.axes.transData.transform(self.front)) if len(self.front) > 1 else None
        bounds = self.axes.get_window_extent(self.renderer).padded(-self.pixels)
        taken: list[Bbox] = []
        leading = set(self.front)
        order = sorted(
            range(len(points)), key=lambda index: (points[index].x, points[index].y) not in leading
        )
        for index in order:
            extent = self._extent(points[index].label, _LABEL_SIZE)
            boxes = [self._beside(at[index], side, extent) for side in _SIDES]
            if line is not None:
                boxes.sort(key=lambda box: bool(line.intersects_bbox(box, filled=False)))
            others = markers[:index] + markers[index + 1 :]
            gap = _BETWEEN * self.pixels
            free = (
                box
                for box in boxes
                if is_free(box, bounds, taken=taken, own=markers[index], others=others, gap=gap)
            )
            if (box := next(free, None)) is None:
                continue
            taken.append(box)
            middle = ((box.x0 + box.x1) / 2 / self.pixels, (box.y0 + box.y1) / 2 / self.pixels)
            written = self._text(*middle, points[index].label, _LABEL_SIZE, ha="center", gid="label")
            # Grid lines and the front stop short of the letters.
            written.set_path_effects([withStroke(linewidth=2.0, foreground=self.theme.background)])
        return len(points) - len(taken)

    def _beside(self, at: Any, side: tuple[float, float], extent: tuple[float, float]) -> Bbox:
        """The box of a name at one side of its marker; a corner may come nearer in both directions."""
        from matplotlib.transforms import Bbox

        reach = _RADIUS + _TOUCHING * (0.62 if abs(side[0] * side[1]) == 1 else 1.0)
        x, y = (at[axis] + self.pixels * side[axis] * (reach + extent[axis] / 2) for axis in (0, 1))
        half = [self.pixels * length / 2 for length in extent]
        return Bbox([[x - half[0], y - half[1]], [x + half[0], y + half[1]]])


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_ROW else text[: _LONGEST_ROW - 1] + "…"


def is_free(
    box: Bbox, bounds: Bbox, *, taken: Sequence[Bbox], own: Bbox, others: Sequence[Bbox], gap: float
) -> bool:
    """Whether a label may be placed here: within bounds, over nothing, and nearest to its own marker."""
    inside = bounds.x0 <= box.x0 and bounds.y0 <= box.y0 and box.x1 <= bounds.x1 and box.y1 <= bounds.y1
    if not inside or box.padded(gap).count_overlaps([*taken, *others]):
        return False
    mine = _distance(box, own)
    return all(_distance(box, other) > mine for other in others)


def _distance(box: Bbox, marker: Bbox) -> float:
    """From a box to the middle of a marker."""
    x, y = (marker.x0 + marker.x1) / 2, (marker.y0 + marker.y1) / 2
    return math.hypot(max(box.x0 - x, x - box.x1, 0.0), max(box.y0 - y, y - box.y1, 0.0))


def log_limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis: room at both sides for markers and labels."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max((high - low) * 0.08, 0.15)
    return 10 ** (low - room), 10 ** (high + room)


def linear_limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of a linear axis: room at both sides for markers and labels."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.02 or 1.0
    return low - room, high + room


def log_locator(low: float, high: float, room: float) -> Any:
    """Ticks at 1, 2 and 5 of each decade, or fewer, as many as there is room for."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    decades = math.log10(high / low)
    most = max(int(room // _TICK_ROOM), 2)
    if decades < 0.75:
        return MaxNLocator(max(int(room // 45), 2), steps=[1, 2, 2.5, 5, 10])
    for steps in ((1.0, 2.0, 5.0), (1.0, 3.0)):
        nearest = min(math.log10(b / a) for a, b in zip(steps, (*steps[1:], 10.0), strict=True))
        if nearest * room / decades >= _TICK_ROOM:
            return LogLocator(subs=steps, numticks=most)
    return LogLocator(subs=(1.0,), numticks=most)
