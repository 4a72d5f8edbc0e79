"""The finished picture, measured: nothing lies over anything else, and every point has its name."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from math import hypot
from typing import Any

import pytest

mpl = pytest.importorskip("matplotlib")

from ckptkit.analysis.plot import drawing as drawing_module  # noqa: E402
from ckptkit.analysis.plot.axes import X_MEASURES, Y_MEASURES  # noqa: E402
from ckptkit.analysis.plot.drawing import draw  # noqa: E402
from ckptkit.analysis.plot.figure import RULES, FigureOptions  # noqa: E402
from ckptkit.analysis.plot.labels import Place, Wanted  # noqa: E402
from ckptkit.analysis.plot.points import Points, collect  # noqa: E402
from ckptkit.registry import Entry  # noqa: E402
from tests.support.entries import entry_of  # noqa: E402
from tests.support.figures import Picture, gap  # noqa: E402
from tests.support.registries import published  # noqa: E402

ALL = tuple(published().values())
MOAT = tuple(entry for entry in ALL if entry.family == "moat")
MOGANET = tuple(entry for entry in ALL if entry.family == "moganet")


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    with mpl.rc_context(RULES):
        yield


def drawn(
    entries: tuple[Entry, ...], x: str = "params", y: str = "top1", **options: Any
) -> tuple[Picture, Points, int]:
    points = collect(entries, X_MEASURES[x], Y_MEASURES[y])
    figure, unlabelled = draw(points, X_MEASURES[x], Y_MEASURES[y], FigureOptions(**{"dpi": 100, **options}))
    return Picture(figure), points, unlabelled


def check(picture: Picture, points: Points, unlabelled: int = 0) -> None:
    """All names are there, nothing collides, and each name can be told from where it stands."""
    assert picture.faults() == []
    labels = [text for text, _ in picture.texts("label")]
    numbers = [text for text, _ in picture.texts("number")]
    keys = dict(text.split(maxsplit=1) for text, _ in picture.texts("key"))
    assert sorted(numbers) == sorted(keys)
    missing = Counter(point.label for point in points.points)
    missing.subtract([*labels, *keys.values()])
    assert min(missing.values()) >= 0
    assert sum(missing.values()) == unlabelled
    ends = [end for _, end in picture.leaders()]
    for text, box in picture.texts("label"):
        pointed = any(box[0] - 3 < x < box[2] + 3 and box[1] - 3 < y < box[3] + 3 for x, y in ends)
        nearest = min(gap(marker, box) for marker in picture.markers())
        assert pointed or nearest < 5 * picture.figure.dpi / 72, f"{text!r} belongs to nothing"
    for start, _ in picture.leaders():
        touched = min(
            abs(hypot(start[0] - marker.x, start[1] - marker.y) - marker.radius)
            for marker in picture.markers()
        )
        assert touched < 1.5, "a line begins at no marker"


@pytest.mark.parametrize("y", ["top1", "top5"])
@pytest.mark.parametrize("x", ["params", "flops"])
@pytest.mark.parametrize("entries", [ALL, MOAT, MOGANET], ids=["all", "moat", "moganet"])
def test_the_registry(entries: tuple[Entry, ...], x: str, y: str) -> None:
    if entries is MOAT and y == "top5":
        pytest.skip("no top-5 accuracy of MOAT is published")
    picture, points, unlabelled = drawn(entries, x, y)
    assert unlabelled == 0
    check(picture, points)


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
    # On a linear axis small models lie in a heap, where a marker that others cover may go without.
    assert unlabelled <= (0 if options["log"] else 1)
    check(picture, points, unlabelled)


@pytest.mark.parametrize("size", [(3.5, 3.5), (6.6, 2.5)])
def test_a_small_picture_says_what_it_leaves_out(size: tuple[float, float]) -> None:
    picture, points, unlabelled = drawn(ALL, size=size)
    assert picture.faults() == []
    said = len(picture.texts("label")) + len(picture.texts("number"))
    assert said + unlabelled == len(points.points)
    assert len(picture.texts("number")) == len(picture.texts("key"))


def test_the_check_sees_collisions(monkeypatch: pytest.MonkeyPatch) -> None:
    def beside(wanted: list[Wanted], *_: Any, **__: Any) -> list[Place]:
        boxes = [(one.x + 6, one.y - one.height / 2, one.width, one.height) for one in wanted]
        return [Place((x, y, x + width, y + height), None) for x, y, width, height in boxes]

    monkeypatch.setattr(drawing_module, "place_labels", beside)
    faults = drawn(ALL)[0].faults()
    assert sum("lies over" in fault for fault in faults) > 3
    assert sum("covers a marker" in fault for fault in faults) > 3
    assert any("leaves the axes" in fault for fault in faults)


def test_without_labels_there_are_none() -> None:
    picture, _, unlabelled = drawn(ALL, labels=False)
    assert picture.texts("label", "number", "key") == []
    assert unlabelled == 0
    assert picture.faults() == []


def test_a_crowd_gets_numbers_and_a_key() -> None:
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
    picture, points, unlabelled = drawn((*crowd, far), size=(8.0, 6.0))
    assert picture.texts("number"), "the test wants more than fits"
    assert unlabelled == 0
    check(picture, points)


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
    picture, _, _ = drawn(ALL, y="top5")
    (line,) = [text for text, _ in picture.texts("source")]
    lacking = sum(entry.published_top5 is None for entry in ALL)
    assert line == (
        "Figures as published: MogaNet arXiv:2211.03295. "
        f"{lacking} entries are not shown: no published top-5 accuracy."
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
