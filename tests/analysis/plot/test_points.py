"""Entries as points: figures, series, names, the Pareto front, the title and the sources."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ckptkit.analysis.plot.figure import linear_limits, log_limits
from ckptkit.analysis.plot.points import (
    FILLS,
    X_MEASURES,
    Y_MEASURES,
    Points,
    collect,
    default_title,
    human,
    missing_note,
    pareto_front,
    series_of,
    short_names,
    source_line,
)
from ckptkit.registry.schema import Entry
from tests.support.entries import entry_of
from tests.support.registries import published

X, Y = X_MEASURES["params"], Y_MEASURES["top1"]


def made(id: str, **fields: Any) -> Entry:
    return entry_of("https://a.org/x.tar.gz", id=id, published_params="5M", published_top1=80.0, **fields)


def at(points: Points, label: str) -> list[tuple[float, float]]:
    return [(point.x, point.y) for point in points.points if point.label == label]


def test_every_published_entry_has_its_place() -> None:
    entries = list(published().values())
    points = collect(entries, X, Y)
    placed = {entry.id: (point.x, point.y) for point in points.points for entry in point.entries}
    assert placed == {
        entry.id: (entry.params, entry.published_top1)
        for entry in entries
        if entry.published_top1 is not None and entry.params is not None
    }
    birds = [entry.id for entry in entries if entry.layout == "birder"]
    assert [entry.id for entry in points.missing] == ["moganet-s-224-nofp32gate", *birds]
    assert len({(point.x, point.y) for point in points.points}) == len(points.points)


def test_entries_at_one_place_share_a_marker() -> None:
    registry = published()
    points = collect([registry["moganet-b-224"], registry["moganet-b-224-timm"]], X, Y)
    (point,) = points.points
    assert point.label == "MogaNet-B"
    assert [series.words for series in point.series] == ["OpenMixup", "timm-style files"]


def test_labels_of_different_entries_at_one_place_are_joined() -> None:
    points = collect([made("a", display_name="A"), made("b", display_name="B")], X, Y)
    assert [point.label for point in points.points] == ["A / B"]


def test_a_resolution_is_said_where_it_tells_more() -> None:
    registry = published()
    names = short_names([registry[id] for id in ("moganet-xt-224", "moganet-xt-256", "moganet-s-224")])
    assert list(names.values()) == ["MogaNet-XT @224", "MogaNet-XT @256", "MogaNet-S"]
    assert short_names([registry["moganet-xt-256-deit3"]]) == {"moganet-xt-256-deit3": "MogaNet-XT"}


def test_a_label_is_one_line() -> None:
    points = collect([made("a", display_name=" A\n\tB ")], X, Y)
    assert [point.label for point in points.points] == ["A B"]


def test_a_subgroup_looks_the_same_in_every_picture() -> None:
    registry = published()
    whole = series_of(list(registry.values()))
    for family in ("moat", "moganet"):
        for id, series in series_of(registry.find(family=family)).items():
            assert (series.family_index, series.fill) == (whole[id].family_index, whole[id].fill)
    alone = series_of([registry["moat0-224-noposemb"]])["moat0-224-noposemb"]
    assert (alone.fill, alone.words) == ("open", "")


def test_no_two_subgroups_of_the_registry_look_alike() -> None:
    placed = [entry for entry in published().values() if entry.published_top1 is not None]
    found = set(series_of(placed).values())
    assert len({(series.family, series.fill) for series in found}) == len(found) == 10


def test_other_families_get_looks_of_their_own() -> None:
    kinds = [{"setting": f"recipe {number}"} for number in range(6)]
    entries = [made(f"e{number}", family="conv", **kind) for number, kind in enumerate(kinds)]
    series = series_of([*entries, made("m", family="moat"), made("o", family="other")])
    assert {one.family: one.family_index for one in series.values()} == {"moat": 0, "conv": 2, "other": 3}
    fills = [series[entry.id].fill for entry in entries]
    assert fills == list(FILLS)
    assert [series[entry.id].words for entry in entries] == [kind["setting"] for kind in kinds]


def test_words_for_narrow_pictures_are_shorter() -> None:
    series = series_of(published().find(task="image-classification"))
    assert series["moat0-224-noposemb"].description() == "strong, without position embedding"
    assert series["moat0-224-noposemb"].description(brief=True) == "strong, no pos-emb"
    assert series["moganet-s-224-timm"].description(brief=True) == "DeiT, timm-style"


URL = "https://a.org/x.tar.gz"


@pytest.mark.parametrize("values", [[5.0], [3e6, 5e8], [80.0, 80.0]])
def test_every_value_lies_well_within_the_limits(values: list[float]) -> None:
    for limits in (log_limits(values), linear_limits(values)):
        low, high = limits
        assert low < min(values)
        assert max(values) < high


@pytest.mark.parametrize(
    ("value", "text"),
    [(2_970_000, "2.97M"), (483_200_000, "483.2M"), (648.5e9, "648.5B"), (999, "999"), (1000, "1K")],
)
def test_human(value: float, text: str) -> None:
    assert human(value) == text


def test_figures_of_an_entry() -> None:
    entry = entry_of(URL, published_params="27.8M", published_flops="0.80G", published_top1=83.0)
    assert [one.value(entry) for one in X_MEASURES.values()] == [27.8e6, 0.8e9]
    assert [one.text(entry) for one in X_MEASURES.values()] == ["27.8M", "0.80G"]
    assert [one.value(entry) for one in Y_MEASURES.values()] == [83.0, None]
    assert [one.text(entry) for one in Y_MEASURES.values()] == ["83%", None]


def test_an_exact_count_stands_in_for_a_published_one() -> None:
    entry = entry_of(URL, exact_parameters=27846892)
    assert (X_MEASURES["params"].value(entry), X_MEASURES["params"].text(entry)) == (27846892.0, "27.85M")
    assert X_MEASURES["flops"].text(entry) is None


def dominated(point: tuple[float, float], others: list[tuple[float, float]]) -> bool:
    """By definition: another is as good in both and better in one."""
    return any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in others)


def test_the_front_is_what_nothing_dominates() -> None:
    random.seed(7)
    for _ in range(200):
        points = [(float(random.randint(1, 8)), float(random.randint(70, 78))) for _ in range(12)]
        expected = sorted({point for point in points if not dominated(point, points)})
        assert pareto_front(points) == expected


def test_of_nothing_there_is_none() -> None:
    assert pareto_front([]) == []


FLOPS, TOP1, TOP5 = X_MEASURES["flops"], Y_MEASURES["top1"], Y_MEASURES["top5"]


def test_of_the_registry() -> None:
    points = collect(list(published().values()), FLOPS, TOP1)
    assert default_title(points, FLOPS, TOP1) == "MOAT and MogaNet: top-1 accuracy against FLOPs"
    assert source_line(points, FLOPS, TOP1) == (
        "Figures as published: MOAT arXiv:2210.01820, MogaNet arXiv:2211.03295. "
        "4 entries are not shown: no published FLOPs or top-1 accuracy."
    )


def test_of_three_families_and_an_entry_without_anything() -> None:
    made = [
        entry_of("https://a.org/x", id=family, family=family, published_flops="1G", published_top1=70.0 + n)
        for n, family in enumerate(["moat", "conv", "mix"])
    ]
    points = collect([*made, entry_of("https://a.org/x", id="bare")], FLOPS, TOP1)
    assert default_title(points, FLOPS, TOP1) == "MOAT, conv and mix: top-1 accuracy against FLOPs"
    assert source_line(points, FLOPS, TOP1).startswith("Figures as published: MOAT, conv, mix. 1 entry")
    assert missing_note(points, FLOPS, TOP1) == "1 entry is not shown: no published FLOPs or top-1 accuracy"


def test_all_shown_is_nothing_to_say() -> None:
    points = collect(published().find(family="moat"), FLOPS, TOP1)
    assert missing_note(points, FLOPS, TOP1) == ""
    assert source_line(points, FLOPS, TOP1) == "Figures as published: MOAT arXiv:2210.01820."
