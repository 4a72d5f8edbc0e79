"""Which entries become which points, in which series, under which labels."""

from __future__ import annotations

from typing import Any

from ckptkit.analysis.plot.axes import X_MEASURES, Y_MEASURES
from ckptkit.analysis.plot.points import FILLS, Points, collect, series_of, short_names
from ckptkit.registry import Entry
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
    assert [entry.id for entry in points.missing] == ["moganet-s-224-nofp32gate"]
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
    found = set(series_of(list(published().values())).values())
    assert len({(series.family, series.fill) for series in found}) == len(found) == 8


def test_other_families_get_looks_of_their_own() -> None:
    kinds = [{"setting": f"recipe {number}"} for number in range(6)]
    entries = [made(f"e{number}", family="conv", **kind) for number, kind in enumerate(kinds)]
    series = series_of([*entries, made("m", family="moat"), made("o", family="other")])
    assert {one.family: one.family_index for one in series.values()} == {"moat": 0, "conv": 2, "other": 3}
    fills = [series[entry.id].fill for entry in entries]
    assert fills[:4] == list(FILLS)
    assert set(fills) <= set(FILLS)
    assert [series[entry.id].words for entry in entries] == [kind["setting"] for kind in kinds]


def test_words_for_narrow_pictures_are_shorter() -> None:
    series = series_of(list(published().values()))
    assert series["moat0-224-noposemb"].said() == "strong, without position embedding"
    assert series["moat0-224-noposemb"].said(brief=True) == "strong, no pos-emb"
    assert series["moganet-s-224-timm"].said(brief=True) == "DeiT, timm-style"
