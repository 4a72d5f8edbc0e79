"""The finished picture, measured: nothing lies over anything else, and no name is lost in silence."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from math import hypot
from typing import Any

import pytest

mpl = pytest.importorskip("matplotlib")


from ckptkit.analysis.drawing import drawing  # noqa: E402
from ckptkit.analysis.plot import figure as figure_module  # noqa: E402
from ckptkit.analysis.plot.figure import Row, draw, fitted, legend_rows  # noqa: E402
from ckptkit.analysis.plot.points import X_MEASURES, Y_MEASURES, FigureOptions, Points, collect, y_measures  # noqa: E402
from ckptkit.registry.schema import Entry  # noqa: E402
from tests.support.entries import entry_of  # noqa: E402
from tests.support.figures import Picture, overlap  # noqa: E402
from tests.support.registries import published  # noqa: E402

EVERYTHING = tuple(published().find(task="image-classification"))
ALL = tuple(entry for entry in EVERYTHING if entry.group not in {"mmpretrain", "kecam", "birder"})
"""Each model once or twice; those groups have the same models again, a little off the others."""
DETECTORS = tuple(published().find(metric="box_mAP"))
POSES = tuple(published().find(metric="AP"))
MOAT = tuple(entry for entry in ALL if entry.family == "moat")
MOGANET = tuple(entry for entry in ALL if entry.family == "moganet")


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    with drawing():
        yield


def drawn(
    entries: tuple[Entry, ...], x: str = "params", y: str = "top1", **options: Any
) -> tuple[Picture, Points, int]:
    points = collect(entries, X_MEASURES[x], Y_MEASURES[y])
    figure, unlabelled = draw(points, X_MEASURES[x], Y_MEASURES[y], FigureOptions(**{"dpi": 100, **options}))
    return Picture(figure), points, unlabelled


def check(picture: Picture, points: Points, unlabelled: int = 0) -> None:
    """Nothing collides, each name stands at its own marker, and what has none is counted."""
    assert picture.faults() == []
    labels = picture.texts("label")
    missing = Counter(point.label for point in points.points)
    missing.subtract(text for text, _ in labels)
    assert min(missing.values()) >= 0
    assert sum(missing.values()) == unlabelled
    at = picture.axes.transData.transform([(point.x, point.y) for point in points.points])
    for text, (left, lower, right, upper) in labels:
        away = [hypot(max(left - x, x - right, 0), max(lower - y, y - upper, 0)) for x, y in at]
        assert points.points[away.index(min(away))].label == text, f"{text!r} stands at another marker"
        assert min(away) < 8.8 * picture.figure.dpi / 72, f"{text!r} belongs to nothing"
    for axis in (picture.axes.xaxis, picture.axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        assert len(ticks) >= 2
        boxes = [tuple(tick.label1.get_window_extent(picture.renderer).extents) for tick in ticks]
        assert not any(overlap(one, other) for one, other in combinations(boxes, 2))


@pytest.mark.parametrize("y", ["top1", "top5"])
@pytest.mark.parametrize("x", ["params", "flops"])
@pytest.mark.parametrize("entries", [ALL, MOAT, MOGANET], ids=["all", "moat", "moganet"])
def test_the_registry(entries: tuple[Entry, ...], x: str, y: str) -> None:
    if entries is MOAT and y == "top5":
        pytest.skip("no top-5 accuracy of MOAT is published")
    picture, points, unlabelled = drawn(entries, x, y)
    assert unlabelled <= (7 if entries is ALL else 3)
    check(picture, points, unlabelled)


@pytest.mark.parametrize(("entries", "metric"), [(DETECTORS, "box_mAP"), (POSES, "AP"), (EVERYTHING, "top1")])
def test_other_metrics_and_every_publication(entries: tuple[Entry, ...], metric: str) -> None:
    x, y = X_MEASURES["params"], y_measures(entries)[metric]
    points = collect(entries, x, y)
    figure, unlabelled = draw(points, x, y, FigureOptions(dpi=100))
    check(Picture(figure), points, unlabelled)
    assert unlabelled <= len(points.points) / 4
    assert len({series.fill for series in points.series if series.family == "moganet"}) == len(
        [series for series in points.series if series.family == "moganet"]
    )


@pytest.mark.parametrize("seed", range(20))
def test_any_choice(seed: int) -> None:
    chosen = random.Random(seed)
    entries = tuple(chosen.sample([entry for entry in ALL if entry.published_top1], chosen.randint(2, 40)))
    options = {
        "log": chosen.random() < 0.7,
        "dark": chosen.random() < 0.5,
        "size": (chosen.choice([7.0, 9.0, 12.0]), chosen.choice([5.0, 5.6, 8.0])),
        "dpi": chosen.choice([72, 100, 144]),
    }
    picture, points, unlabelled = drawn(entries, chosen.choice(["params", "flops"]), **options)
    assert unlabelled <= len(points.points) / 2
    check(picture, points, unlabelled)


@pytest.mark.parametrize("size", [(3.5, 3.5), (6.6, 2.5), (2.5, 2.5), (5.0, 4.5)])
def test_a_small_picture_says_what_it_leaves_out(size: tuple[float, float]) -> None:
    picture, points, unlabelled = drawn(ALL, size=size)
    check(picture, points, unlabelled)
    assert unlabelled > 0
    rows = picture.texts("heading", "series", "joined", "front")
    left_out = [text for text, _ in picture.texts("more")]
    complete = len(legend_rows(points, front=True, narrow=size[0] < 6.5))
    assert left_out == ([] if len(rows) == complete else [f"… and {complete - len(rows)} more"])


def test_a_larger_picture_names_more() -> None:
    counts = [drawn(ALL, size=(side, 0.7 * side))[2] for side in (4.0, 7.0, 12.0, 20.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


def test_the_check_sees_collisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_module, "is_free", lambda *_, **__: True)
    picture, points, unlabelled = drawn(ALL)
    faults = picture.faults()
    assert unlabelled == 0
    assert sum("lies over" in fault for fault in faults) > 3
    assert sum("covers a marker" in fault for fault in faults) > 3
    assert any("leaves the axes" in fault for fault in faults)
    with pytest.raises(AssertionError):
        check(picture, points)


def test_without_labels_there_are_none() -> None:
    picture, _, unlabelled = drawn(ALL, labels=False)
    assert picture.texts("label") == []
    assert unlabelled == 0
    assert picture.faults() == []


def test_in_a_crowd_the_front_is_named_first() -> None:
    names = [f"a rather long name of a model, number {number}" for number in range(12)]
    crowd = tuple(
        entry_of(
            "https://a.org/x",
            id=f"e{n}",
            display_name=name,
            published_params=f"{100 + 7 * n}M",
            published_top1=80.0,
        )
        for n, name in enumerate(names)
    )
    far = entry_of(
        "https://a.org/x", id="far", display_name="far", published_params="1000M", published_top1=81.0
    )
    cheap = entry_of(
        "https://a.org/x", id="cheap", display_name="cheap", published_params="9M", published_top1=70.0
    )
    picture, points, unlabelled = drawn((*crowd[1:], far, cheap, crowd[0]), size=(8.0, 6.0))
    assert unlabelled > 0, "the test wants more than fits"
    check(picture, points, unlabelled)
    assert {names[0], "far", "cheap"} <= {text for text, _ in picture.texts("label")}


def test_every_series_stands_in_the_legend_once() -> None:
    picture, points, _ = drawn(ALL)
    said = [text for text, _ in picture.texts("heading", "series", "joined", "front")]
    assert said == [
        "MOAT",
        "strong, with position embedding",
        "strong, without position embedding",
        "tiny, with position embedding",
        "tiny, without position embedding",
        "MogaNet",
        "DeiT, OpenMixup",
        "and DeiT, timm-style files",
        "DeiT III, OpenMixup",
        "RSB A3, OpenMixup",
        "Pareto front",
    ]
    assert len(points.series) == 8


def test_the_sources_and_what_is_missing_are_said() -> None:
    picture, _, _ = drawn(EVERYTHING, y="top5")
    (line,) = [text for text, _ in picture.texts("source")]
    lacking = sum(entry.published_top5 is None for entry in EVERYTHING)
    assert line == (
        "Figures as published: MogaNet arXiv:2211.03295. "
        f"{lacking} entries are not shown: no published parameters or top-5 accuracy."
    )


@pytest.mark.parametrize(
    ("title", "said"), [(None, 1), ("Mine", 1), ("", 0), ("long " * 60, 1), ("$x_1$ 50%", 1)]
)
def test_titles(title: str | None, said: int) -> None:
    picture, _, _ = drawn(MOAT, title=title)
    bold = [text.get_text() for text in picture.figure.texts if text.get_gid() is None]
    assert len(bold) == said
    assert picture.faults() == []
    if title in {"Mine", "$x_1$ 50%"}:
        assert bold == [title]
    if title is None:
        assert bold == ["MOAT: top-1 accuracy against parameters"]
    if title and title.startswith("long"):
        assert bold[0].endswith("…")


def test_one_point_has_no_front() -> None:
    picture, points, _ = drawn(MOAT[:1])
    check(picture, points)
    assert [text for text, _ in picture.texts("front")] == []


def test_the_front_of_the_picture() -> None:
    picture, points, _ = drawn(MOGANET)
    (line,) = [line for line in picture.axes.lines if line.get_gid() != "marker"]
    drawn_front = list(zip(line.get_xdata(), line.get_ydata(), strict=True))
    places = [(point.x, point.y) for point in points.points]
    assert drawn_front == sorted(
        place
        for place in places
        if not any(other != place and other[0] <= place[0] and other[1] >= place[1] for other in places)
    )
    without, _, _ = drawn(MOGANET, pareto=False)
    assert all(line.get_gid() == "marker" for line in without.axes.lines)


def test_families_differ_by_colour_and_by_marker() -> None:
    picture, _, _ = drawn(ALL)
    looks = {
        (line.get_marker(), line.get_markeredgecolor())
        for line in picture.axes.lines
        if line.get_gid() == "marker" and line.get_markeredgewidth()
    }
    assert looks == {("o", "#0072b2"), ("D", "#d55e00")}


X, Y = X_MEASURES["params"], Y_MEASURES["top1"]


def points_of(*ids: str) -> Points:
    registry = published()
    return collect([registry[id] for id in ids], X, Y)


def said(points: Points, **options: bool) -> list[str]:
    return [row.text for row in legend_rows(points, **{"front": False, "narrow": False, **options})]


def test_one_series_needs_no_words() -> None:
    assert said(points_of("moat0-224", "moat1-224")) == ["MOAT", "all entries"]


def test_a_series_with_a_marker_somewhere_has_a_row_of_its_own() -> None:
    points = points_of("moganet-b-224", "moganet-b-224-timm", "moganet-s-224-timm")
    assert said(points) == ["MogaNet", "OpenMixup", "timm-style files"]


def test_a_series_that_only_shares_markers_is_named_below() -> None:
    points = points_of("moganet-b-224", "moganet-b-224-timm", "moganet-s-224")
    assert said(points, front=True) == ["MogaNet", "OpenMixup", "and timm-style files", "Pareto front"]
    assert said(points, narrow=True) == ["MogaNet OpenMixup", "and MogaNet timm-style"]


def test_rows_without_room_are_counted() -> None:
    rows = [Row(f"{number}  x", "series") for number in range(1, 6)]
    assert [row.text for row in fitted(rows, 5)] == [f"{number}  x" for number in range(1, 6)]
    assert [row.text for row in fitted(rows, 3)] == ["1  x", "2  x", "… and 3 more"]
    assert [row.text for row in fitted(rows, 1)] == ["… and 5 more"]
    assert fitted(rows, 0) == []


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (2.9e6, 4.9e8, ["2M", "5M", "10M", "20M", "50M", "100M", "200M", "500M"]),
        (2.7e7, 2.9e7, None),
        (8e8, 6.5e11, None),
        (1e3, 1e15, None),
        (5e6, 5e6, None),
    ],
)
@pytest.mark.parametrize("size", [(9.0, 5.6), (4.0, 4.0)])
def test_ticks_are_round_and_do_not_touch(low: float, high: float, texts: Any, size: Any) -> None:
    entries = tuple(
        entry_of("https://a.org/x", id=f"e{n}", published_params=f"{cost:.0f}", published_top1=80.0 + n)
        for n, cost in enumerate((low, high))
    )
    picture, points, unlabelled = drawn(entries, size=size)
    check(picture, points, unlabelled)
    left, right = picture.axes.get_xlim()
    found = [
        text.get_text()
        for text in picture.axes.get_xticklabels()
        if text.get_text() and left <= text.get_position()[0] <= right
    ]
    assert all(len(text.strip("KMBT").replace(".", "").rstrip("0")) <= 4 for text in found)
    if texts and size == (9.0, 5.6):
        assert found == texts
