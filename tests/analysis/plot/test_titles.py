"""What a picture says about itself."""

from __future__ import annotations

from ckptkit.analysis.plot.axes import X_MEASURES, Y_MEASURES
from ckptkit.analysis.plot.points import collect
from ckptkit.analysis.plot.titles import default_title, missing_note, source_line
from tests.support.entries import entry_of
from tests.support.registries import published

X, TOP1, TOP5 = X_MEASURES["flops"], Y_MEASURES["top1"], Y_MEASURES["top5"]


def test_of_the_registry() -> None:
    points = collect(list(published().values()), X, TOP1)
    assert default_title(points, X, TOP1) == "MOAT and MogaNet: top-1 accuracy against FLOPs"
    assert source_line(points, X, TOP1) == (
        "Figures as published: MOAT arXiv:2210.01820, MogaNet arXiv:2211.03295. "
        "1 entry is not shown: no published top-1 accuracy."
    )


def test_of_three_families_and_an_entry_without_anything() -> None:
    made = [
        entry_of("https://a.org/x", id=family, family=family, published_flops="1G", published_top1=70.0 + n)
        for n, family in enumerate(["moat", "conv", "mix"])
    ]
    points = collect([*made, entry_of("https://a.org/x", id="bare")], X, TOP1)
    assert default_title(points, X, TOP1) == "MOAT, conv and mix: top-1 accuracy against FLOPs"
    assert source_line(points, X, TOP1).startswith("Figures as published: MOAT, conv, mix. 1 entry")
    assert missing_note(points, X, TOP1) == "1 entry is not shown: no published FLOPs or top-1 accuracy"


def test_all_shown_is_nothing_to_say() -> None:
    points = collect(published().find(family="moat"), X, TOP1)
    assert missing_note(points, X, TOP1) == ""
    assert source_line(points, X, TOP1) == "Figures as published: MOAT arXiv:2210.01820."
