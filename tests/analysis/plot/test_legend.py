"""The rows beside the plot."""

from __future__ import annotations

from ckptkit.analysis.plot.axes import X_MEASURES, Y_MEASURES
from ckptkit.analysis.plot.legend import Row, fitted, in_columns, key_row, legend_rows
from ckptkit.analysis.plot.points import Points, collect
from tests.support.registries import published

X, Y = X_MEASURES["params"], Y_MEASURES["top1"]


def points_of(*ids: str) -> Points:
    registry = published()
    return collect([registry[id] for id in ids], X, Y)


def said(points: Points, **options: bool) -> list[str]:
    return [row.text for row in legend_rows(points, **{"front": False, "brief": False, **options})]


def test_one_series_needs_no_words() -> None:
    assert said(points_of("moat0-224", "moat1-224")) == ["MOAT", "all entries"]


def test_a_series_with_a_marker_somewhere_has_a_row_of_its_own() -> None:
    points = points_of("moganet-b-224", "moganet-b-224-timm", "moganet-s-224-timm")
    assert said(points) == ["MogaNet", "OpenMixup", "timm-style files"]


def test_a_series_that_only_shares_markers_is_named_below() -> None:
    points = points_of("moganet-b-224", "moganet-b-224-timm", "moganet-s-224")
    assert said(points, front=True) == ["MogaNet", "OpenMixup", "and timm-style files", "Pareto front"]
    assert said(points, brief=True) == ["MogaNet", "OpenMixup", "and timm-style"]


def test_rows_without_room_are_counted() -> None:
    rows = [key_row(number, "x") for number in range(1, 6)]
    assert [row.text for row in fitted(rows, 5)] == [f"{number}  x" for number in range(1, 6)]
    assert [row.text for row in fitted(rows, 3)] == ["1  x", "2  x", "… and 3 more"]
    assert [row.text for row in fitted(rows, 1)] == ["… and 5 more"]
    assert fitted(rows, 0) == []


def test_no_heading_is_left_alone_unless_it_must() -> None:
    heading, row = Row("A", "heading"), Row("a", "series")
    assert in_columns([row, row, heading, row], 3, 2) == [row, row, None, heading, row]
    assert in_columns([row, row, heading, row], 3, 1) == [row, row, heading, row]
