"""Placing labels, without any drawing."""

from __future__ import annotations

import random
from itertools import combinations
from math import hypot

import pytest

from ckptkit.analysis.plot.labels import Place, Wanted, place_labels
from tests.support.figures import overlap, runs_through

BOUNDS = (0.0, 0.0, 400.0, 300.0)


def wanted(x: float, y: float, width: float = 50.0, height: float = 9.0) -> Wanted:
    return Wanted(x, y, 4.0, width, height)


def markers_of(labels: list[Wanted]) -> list[tuple[float, float, float]]:
    return [(label.x, label.y, label.radius) for label in labels]


def placed(labels: list[Wanted]) -> list[Place | None]:
    return place_labels(labels, BOUNDS, markers=markers_of(labels))


def test_alone_a_label_stands_to_the_right_and_touches() -> None:
    (place,) = placed([wanted(100, 100)])
    assert place is not None
    assert place.leader is None
    left, lower, right, upper = place.box
    assert 104 < left < 108
    assert (lower + upper) / 2 == pytest.approx(100)
    assert (right - left, upper - lower) == pytest.approx((50, 9))


@pytest.mark.parametrize(("x", "y"), [(396, 100), (4, 100), (200, 296), (200, 4), (396, 296), (4, 4)])
def test_at_an_edge_it_stands_inside(x: float, y: float) -> None:
    (place,) = placed([wanted(x, y)])
    assert place is not None
    assert place.leader is None
    assert place.box[0] >= 0 and place.box[1] >= 0 and place.box[2] <= 400 and place.box[3] <= 300


@pytest.mark.parametrize("seed", range(15))
def test_nothing_ever_collides(seed: int) -> None:
    chosen = random.Random(seed)
    spread = chosen.choice([30.0, 80.0, 150.0])
    labels = [
        wanted(
            chosen.gauss(200, spread) % 380 + 10, chosen.gauss(150, spread) % 280 + 10, chosen.uniform(20, 90)
        )
        for _ in range(chosen.randint(2, 45))
    ]
    places = placed(labels)
    standing = [place for place in places if place is not None]
    assert len(standing) >= min(len(labels), 8)
    for one, other in combinations(standing, 2):
        assert not overlap(one.box, other.box)
    for label, place in zip(labels, places, strict=True):
        if place is None:
            continue
        assert place.box[0] >= 0 and place.box[1] >= 0 and place.box[2] <= 400 and place.box[3] <= 300
        for x, y, radius in markers_of(labels):
            assert not overlap(place.box, (x - radius, y - radius, x + radius, y + radius))
        if place.leader is not None:
            start, end = place.leader[:2], place.leader[2:]
            assert hypot(start[0] - label.x, start[1] - label.y) == pytest.approx(label.radius)
            assert not any(runs_through(start, end, other.box) for other in standing)


def test_a_line_keeps_off_foreign_markers() -> None:
    """The first label has no place at its marker but beyond a ring of others, and one gap in the ring."""
    ring = [
        (200 + 14 * dx, 150 + 14 * dy, 4.0)
        for dx in (-1, 0, 1)
        for dy in (-1, 0, 1)
        if (dx, dy) not in {(0, 0), (1, 0)}
    ]
    (place,) = place_labels([wanted(200, 150, 60.0)], BOUNDS, markers=[(200.0, 150.0, 4.0), *ring])
    assert place is not None
    if place.leader is not None:
        for x, y, radius in ring:
            assert not runs_through(
                place.leader[:2], place.leader[2:], (x - radius, y - radius, x + radius, y + radius)
            )


def test_where_there_is_no_room_there_is_no_place() -> None:
    assert placed([wanted(200, 150, width=500.0)]) == [None]
    assert place_labels([], BOUNDS) == []


def test_one_makes_room_for_another() -> None:
    """The wide one fits only where the narrow one would like to stand, who can go to the other side."""
    labels = [wanted(20, 20, 12.0), wanted(190, 20, 150.0)]
    narrow, wide = place_labels(labels, (0.0, 10.0, 200.0, 30.0), markers=markers_of(labels))
    assert narrow is not None
    assert wide is not None
    assert narrow.box[2] < 16
    (alone,) = place_labels(labels[:1], (0.0, 10.0, 200.0, 30.0), markers=markers_of(labels))
    assert alone is not None
    assert alone.box[0] > 24


def test_a_label_prefers_to_lie_beside_the_front() -> None:
    line = (100.0, 100.0, 300.0, 100.0)
    (place,) = place_labels([wanted(100, 100)], BOUNDS, markers=[(100, 100, 4.0)], lines=[line])
    assert place is not None
    assert not runs_through(line[:2], line[2:], place.box)


def test_a_label_stands_nearer_to_its_own_marker() -> None:
    labels = [wanted(100, 100), wanted(100, 106)]
    for label, place in zip(labels, placed(labels), strict=True):
        assert place is not None
        if place.leader is None:
            middle = (place.box[1] + place.box[3]) / 2
            other = 206 - label.y
            assert abs(middle - label.y) < abs(middle - other)


def test_the_same_wish_gives_the_same_places() -> None:
    labels = [wanted(100 + 9 * n, 100 + 4 * n) for n in range(12)]
    assert placed(labels) == placed(labels)
