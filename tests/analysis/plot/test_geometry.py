"""The plane, many at once, against one at a time."""

from __future__ import annotations

import random
from math import hypot

import numpy as np
import pytest

from ckptkit.analysis.plot.geometry import (
    boxes_inside,
    boxes_overlap,
    nearest_in_boxes,
    segments_cross,
    segments_hit_boxes,
    segments_near_points,
)

STEPS = 400


def along(segment: list[float]) -> list[tuple[float, float]]:
    """Points of a segment, many."""
    x0, y0, x1, y1 = segment
    return [(x0 + (x1 - x0) * n / STEPS, y0 + (y1 - y0) * n / STEPS) for n in range(STEPS + 1)]


@pytest.fixture
def chosen() -> random.Random:
    return random.Random(3)


def segment_of(chosen: random.Random) -> list[float]:
    return [chosen.uniform(0, 10) for _ in range(4)]


def box_of(chosen: random.Random) -> list[float]:
    x, y = chosen.uniform(0, 8), chosen.uniform(0, 8)
    return [x, y, x + chosen.uniform(0.5, 4), y + chosen.uniform(0.5, 4)]


def test_boxes(chosen: random.Random) -> None:
    boxes = [box_of(chosen) for _ in range(40)]
    found = boxes_overlap(np.array(boxes)[:, None], np.array(boxes)[None])
    for i, a in enumerate(boxes):
        for j, b in enumerate(boxes):
            area = [min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])]
            assert found[i, j] == (min(area) > 0)
    bounds = np.array([1.0, 1.0, 9.0, 9.0])
    expected = [min(box[:2]) >= 1 and max(box[2:]) <= 9 for box in boxes]
    assert boxes_inside(np.array(boxes), bounds).tolist() == expected


def test_the_nearest_point_of_a_box(chosen: random.Random) -> None:
    for _ in range(40):
        box, point = box_of(chosen), [chosen.uniform(-2, 12), chosen.uniform(-2, 12)]
        x, y = nearest_in_boxes(np.array(point), np.array(box))
        grid = [
            (box[0] + (box[2] - box[0]) * i / 30, box[1] + (box[3] - box[1]) * j / 30)
            for i in range(31)
            for j in range(31)
        ]
        assert box[0] <= x <= box[2] and box[1] <= y <= box[3]
        assert (
            hypot(x - point[0], y - point[1])
            <= min(hypot(a - point[0], b - point[1]) for a, b in grid) + 1e-9
        )


def test_segments_and_boxes(chosen: random.Random) -> None:
    seen = set()
    for _ in range(150):
        segment, box = segment_of(chosen), box_of(chosen)
        inside = max(min(x - box[0], box[2] - x, y - box[1], box[3] - y) for x, y in along(segment))
        if abs(inside) > 0.05:  # too near to the edge to tell by steps
            hit = bool(segments_hit_boxes(np.array(segment), np.array(box)))
            assert hit == (inside > 0)
            seen.add(hit)
    assert seen == {True, False}


def test_segments_straight_up_and_across() -> None:
    box = np.array([1.0, 1.0, 2.0, 2.0])
    assert segments_hit_boxes(np.array([1.5, 0.0, 1.5, 3.0]), box)
    assert segments_hit_boxes(np.array([0.0, 1.5, 3.0, 1.5]), box)
    assert not segments_hit_boxes(np.array([0.5, 0.0, 0.5, 3.0]), box)
    assert not segments_hit_boxes(np.array([1.5, 0.0, 1.5, 0.9]), box)


def test_segments_and_points(chosen: random.Random) -> None:
    for _ in range(100):
        segment, point = segment_of(chosen), [chosen.uniform(0, 10), chosen.uniform(0, 10)]
        distance = min(hypot(x - point[0], y - point[1]) for x, y in along(segment))
        assert not segments_near_points(np.array(segment), np.array(point), distance - 0.05)
        assert segments_near_points(np.array(segment), np.array(point), distance + 0.05)


def test_two_segments() -> None:
    first = np.array([0.0, 0.0, 4.0, 0.0])
    assert segments_cross(first, np.array([1.0, -1.0, 1.0, 1.0]))
    assert not segments_cross(first, np.array([5.0, -1.0, 5.0, 1.0]))
    assert not segments_cross(first, np.array([1.0, 0.5, 1.0, 1.0]))
    assert not segments_cross(first, np.array([0.0, 1.0, 4.0, 1.0]))
