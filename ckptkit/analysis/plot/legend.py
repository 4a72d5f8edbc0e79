"""What stands beside the plot: the legend, and the key to the numbers that stand for labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckptkit.analysis.plot.points import Points, Series


@dataclass(frozen=True)
class Row:
    """One line beside the plot."""

    text: str
    kind: str
    series: Series | None = None  # whose marker stands in front

    @property
    def indented(self) -> bool:
        """Whether the text leaves room for a marker in front."""
        return self.kind in {"series", "joined", "front"}


def legend_rows(points: Points, *, front: bool, brief: bool) -> list[Row]:
    """Return a heading for each family and a row for each of its series."""
    leading = {point.series[0] for point in points.points}
    rows: list[Row] = []
    family = None
    for series in points.series:
        if series not in leading:
            continue
        if series.family != family:
            family = series.family
            rows.append(Row(series.family_name, "heading"))
        rows.append(Row(series.said(brief=brief) or "all entries", "series", series))
        rows += [
            Row(
                f"and {'' if other.family == family else other.family_name + ', '}{other.said(brief=brief)}",
                "joined",
            )
            for other in points.series
            if other not in leading and _shares_a_marker(points, series, other)
        ]
    return [*rows, Row("Pareto front", "front")] if front else rows


def _shares_a_marker(points: Points, leader: Series, other: Series) -> bool:
    return any(point.series[0] == leader and other in point.series for point in points.points)


def key_row(number: int | str, label: str) -> Row:
    """Return the row that says what a number stands for."""
    return Row(f"{number}  {label}", "key")


def fitted(rows: Sequence[Row], room: int) -> list[Row]:
    """Return the rows, or as many as there is room for and one that says how many more there are.

    >>> [row.text for row in fitted([key_row(1, "a"), key_row(2, "b"), key_row(3, "c")], room=2)]
    ['1  a', '… and 2 more']
    """
    if len(rows) <= room:
        return list(rows)
    kept = max(room - 1, 0)
    return [*rows[:kept], Row(f"… and {len(rows) - kept} more", "more")][:room]


def in_columns(rows: Sequence[Row], height: int, columns: int) -> list[Row | None]:
    """Lay rows out column by column, so that no heading is left at the foot of one where there is room.

    >>> heading, row = Row("MOAT", "heading"), Row("strong", "series")
    >>> [one and one.text for one in in_columns([row, heading, row], 2, 2)]
    ['strong', None, 'MOAT', 'strong']
    """
    laid: list[Row | None] = []
    for row in rows:
        if row.kind == "heading" and len(laid) % height == height - 1:
            laid.append(None)
        laid.append(row)
    return laid if len(laid) <= height * columns else list(rows)
