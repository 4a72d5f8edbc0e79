"""Where labels stand beside their points, so that nothing lies over anything else.

Every label has a list of places it could take: touching its marker first, then farther away at the end of a
thin line. A place is possible where the label lies within the bounds and on no marker, and its line runs over
no other marker. Labels with the fewest possible places choose first. Then each looks for a better one and may
push up to two others to other places of theirs, as long as all together gain by it.
All lengths are in points (1/72 inch); the same input gives the same places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ckptkit.analysis.plot.geometry import (
    Floats,
    Truths,
    boxes_inside,
    boxes_overlap,
    nearest_in_boxes,
    segments_cross,
    segments_hit_boxes,
    segments_near_points,
)

_TOUCHING = 2.5
"""Between a marker and a label that needs no line."""
_DISTANCES = (8.0, 13.0, 19.0, 26.0, 34.0, 43.0, 54.0, 68.0)
"""Between a marker and a label at the end of a line."""
_ANGLES = 24
_BETWEEN = 1.5
"""Between two labels, and between a label and a foreign marker, at least."""
_SIDES = (
    *((1, 0, 0.0), (1, 1, 0.6), (1, 0.45, 0.4), (1, -0.45, 0.5), (0, 1, 0.8), (0.5, 1, 0.7), (-0.5, 1, 1.0)),
    *((1, -1, 1.2), (-1, 0, 1.4), (-1, 0.45, 1.5), (-1, -0.45, 1.6), (-1, 1, 1.5)),
    *((0, -1, 1.6), (0.5, -1, 1.5), (-0.5, -1, 1.8), (-1, -1, 2.0)),
)
"""Directions of a touching label, and what each costs: to the right is read most easily."""
_LINE_COST = 4.0
_CLEAR = 4.0
_DOUBT_COST = 2.0
"""For standing within that distance of a foreign marker, whose label it could be taken for."""
_WRONG_COST = 4.0
"""For standing beside a foreign marker more than beside the label's own."""
_SOFT_COST = 2.5
"""For lying on a line of the picture, such as the Pareto front."""
_MOST_PUSHED = 2
_MOST_TRIED = 60
"""Places a label tries by pushing others: in a crowd nearly all of them fail."""
_NOWHERE = 1000.0
"""What a label without a place costs."""
_ROUNDS = 5
_FIRST = 24
"""Candidates looked at before all others: most often one of them is free."""
_SAME = 1e-6
"""Centres no farther apart are those of one marker."""
_EDGE = 0.2
"""Width of a marker's edge that a line may touch."""


@dataclass(frozen=True)
class Wanted:
    """A label to place."""

    x: float  # centre of its marker
    y: float
    radius: float  # of the marker
    width: float  # of the text as it will be drawn
    height: float


@dataclass(frozen=True)
class Place:
    """Where a label stands."""

    box: tuple[float, float, float, float]  # left, lower, right and upper edge
    leader: tuple[float, float, float, float] | None  # from the marker to the label


class _Candidates:
    """The possible places of one label, best first."""

    def __init__(self, boxes: Floats, leaders: Floats, has_leader: Truths, costs: Floats) -> None:
        order = np.argsort(costs, kind="stable")
        self.boxes, self.leaders = boxes[order], leaders[order]
        self.has_leader, self.costs = has_leader[order], costs[order]

    def __len__(self) -> int:
        return len(self.costs)


def place_labels(
    wanted: Sequence[Wanted],
    bounds: tuple[float, float, float, float],
    *,
    markers: Sequence[tuple[float, float, float]] = (),
    lines: Sequence[tuple[float, float, float, float]] = (),
) -> list[Place | None]:
    """Find a place for each label."""
    circles = np.array(markers, dtype=np.float64).reshape(-1, 3)
    candidates = [
        _candidates_of(
            label,
            np.array(bounds),
            circles,
            np.array(lines, dtype=np.float64).reshape(-1, 4),
        )
        for label in wanted
    ]
    return _Layout(candidates).solve()


def _candidates_of(label: Wanted, bounds: Floats, markers: Floats, lines: Floats) -> _Candidates:
    boxes, costs, has_leader = _around(label)
    centre = np.array([label.x, label.y])
    possible = boxes_inside(boxes, bounds)
    ends = nearest_in_boxes(centre, boxes)
    ways = ends - centre
    lengths = np.maximum(np.hypot(ways[:, 0], ways[:, 1]), 1e-9)[:, None]
    leaders = np.concatenate([centre + ways / lengths * label.radius, ends], axis=1)
    others = markers[np.hypot(*(markers[:, :2] - centre).T) > _SAME]
    if len(others):
        free, doubts = _among(others, label, boxes, leaders, has_leader)
        possible &= free
        costs = costs + doubts * ~has_leader  # a line says whose label it is
    if len(lines):
        on_lines = segments_hit_boxes(lines[None], boxes[:, None]).any(axis=1)
        crossing = segments_cross(leaders[:, None], lines[None]).any(axis=1) & has_leader
        costs = costs + _SOFT_COST * on_lines + _SOFT_COST * crossing
    return _Candidates(boxes[possible], leaders[possible], has_leader[possible], costs[possible])


def _among(
    others: Floats, label: Wanted, boxes: Floats, leaders: Floats, has_leader: Truths
) -> tuple[Truths, Floats]:
    """Which places the markers of other labels leave, and what it costs to be taken for theirs."""
    centre = np.array([label.x, label.y])
    squares = np.concatenate([others[:, :2] - others[:, 2:], others[:, :2] + others[:, 2:]], axis=1)
    free = ~boxes_overlap(boxes[:, None], squares[None], _BETWEEN).any(axis=1)
    # Where markers overlap, a line that leads away from the other can do no more than begin at the edge.
    apart = np.hypot(*(others[:, :2] - centre).T) > others[:, 2] + label.radius
    reach = others[:, 2] + np.where(apart, _BETWEEN / 2, -_EDGE)
    near = segments_near_points(leaders[:, None], others[None, :, :2], reach[None])
    free &= ~(near.any(axis=1) & has_leader)
    doubtful = boxes_overlap(boxes[:, None], squares[None], _CLEAR).any(axis=1)
    return free, _DOUBT_COST * doubtful + _WRONG_COST * _nearer(boxes, centre, others)


def _nearer(boxes: Floats, centre: Floats, others: Floats) -> Truths:
    """Whether the middle line of each box is as near to another marker as to its own, at ``centre``."""
    middle = (boxes[:, 1] + boxes[:, 3]) / 2
    lines = np.stack([boxes[:, 0], middle, boxes[:, 2], middle], axis=1)

    def distance(points: Floats) -> Floats:
        away = nearest_in_boxes(points, lines[:, None]) - points
        return np.hypot(away[..., 0], away[..., 1])

    return np.asarray((distance(others[None, :, :2]) <= distance(centre[None, None])).any(axis=1))


def _around(label: Wanted) -> tuple[Floats, Floats, Truths]:
    """Boxes, costs and whether they need a line, of all the places around a marker."""
    ways, distances, halves, costs, has_leader = _PLACES
    half = np.array([label.width, label.height]) / 2
    reach = distances[:, None] + np.where(has_leader, 1.0, distances / _TOUCHING)[:, None] * label.radius
    centres = np.array([label.x, label.y]) + ways * reach + halves * half
    return np.concatenate([centres - half, centres + half], axis=1), costs, has_leader


def _all_places() -> tuple[Floats, Floats, Floats, Floats, Truths]:
    """Every place around a marker: way, distance, halves of the label to add, cost, whether by a line."""
    rows: list[tuple[float, float, float, float, float, float, bool]] = []
    for across, up, cost in _SIDES:
        # Where the corner of the label looks at the marker, it may come nearer in both directions.
        near = _TOUCHING * (0.62 if abs(across * up) == 1 else 1.0)
        rows.append((across, up, near, across, up, cost, False))
    for distance in _DISTANCES:
        for step in range(_ANGLES):
            x, y = math.cos(2 * math.pi * step / _ANGLES), math.sin(2 * math.pi * step / _ANGLES)
            # Beside the marker a line is short and plain; straight up or down it looks like part of the grid.
            cost = _LINE_COST + distance * 0.12 + 0.5 * abs(y) + (0.3 if x < 0 else 0.0)
            rows.append((x, y, distance, max(-1, min(1.5 * x, 1)), max(-1, min(1.5 * y, 1)), cost, True))
    table = np.array([row[:6] for row in rows])
    return table[:, :2], table[:, 2], table[:, 3:5], table[:, 5], np.array([row[6] for row in rows])


_PLACES = _all_places()


class _Layout:
    """Which candidate each label has, and what that leaves to the others."""

    def __init__(self, candidates: Sequence[_Candidates]) -> None:
        self._candidates = candidates
        count = len(candidates)
        self._boxes = np.zeros((count, 4))
        self._leaders = np.zeros((count, 4))
        self._has_leader = np.zeros(count, dtype=bool)
        self._stands = np.zeros(count, dtype=bool)
        self._chosen = np.full(count, -1)

    def solve(self) -> list[Place | None]:
        """Place all that can be placed."""
        order = sorted(range(len(self._candidates)), key=lambda label: (len(self._candidates[label]), label))
        for label in order:
            self._take_best(label)
        for _ in range(_ROUNDS):
            if sum(self._improve(label) for label in order) == 0:
                break
        return [self._place(label) for label in range(len(self._candidates))]

    def _place(self, label: int) -> Place | None:
        if self._chosen[label] < 0:
            return None
        left, lower, right, upper = map(float, self._boxes[label])
        leader = tuple(map(float, self._leaders[label])) if self._has_leader[label] else None
        return Place((left, lower, right, upper), leader)  # type: ignore[arg-type]  # four, as it was made

    def _take_best(self, label: int) -> bool:
        """Give a label the cheapest place that the others leave; whether there is one."""
        self._remove(label)
        for first, last in ((0, _FIRST), (_FIRST, len(self._candidates[label]))):
            free = np.flatnonzero(~self._conflicts(label, first, last).any(axis=1))
            if len(free):
                self._put(label, first + int(free[0]))
                return True
        return False

    def _remove(self, label: int) -> None:
        self._chosen[label] = -1
        self._stands[label] = self._has_leader[label] = False

    def _put(self, label: int, choice: int) -> None:
        mine = self._candidates[label]
        self._chosen[label] = choice
        self._boxes[label], self._leaders[label] = mine.boxes[choice], mine.leaders[choice]
        self._has_leader[label], self._stands[label] = mine.has_leader[choice], True

    def _conflicts(self, label: int, first: int, last: int) -> Truths:
        """Which candidates of a label (some, in rows) are in the way of which standing labels (columns)."""
        mine = self._candidates[label]
        boxes, leaders = mine.boxes[first:last, None], mine.leaders[first:last, None]
        with_leader = mine.has_leader[first:last, None]
        clash = boxes_overlap(boxes, self._boxes[None], _BETWEEN)
        clash |= segments_hit_boxes(leaders, self._boxes[None]) & with_leader
        clash |= segments_hit_boxes(self._leaders[None], boxes) & self._has_leader[None]
        clash |= segments_cross(leaders, self._leaders[None]) & with_leader & self._has_leader[None]
        return np.asarray(clash & self._stands[None])

    def _improve(self, label: int) -> bool:
        """Take a cheaper place, where up to two others in the way can go elsewhere for less.

        Whether anything changed; where nothing is gained all is left as it was.
        """
        now = self._cost(label)
        here = int(self._chosen[label])
        self._remove(label)
        cheaper = int(np.searchsorted(self._candidates[label].costs, now))
        cheaper = cheaper if here < 0 else min(cheaper, _FIRST)
        clash = self._conflicts(label, 0, cheaper)
        for choice in np.flatnonzero(clash.sum(axis=1) <= _MOST_PUSHED)[:_MOST_TRIED]:
            if self._swap(label, int(choice), np.flatnonzero(clash[choice]).tolist(), now):
                return True
        if here >= 0:
            self._put(label, here)
        return False

    def _swap(self, label: int, choice: int, pushed: list[int], now: float) -> bool:
        """Put a label at a place and those pushed elsewhere; undone unless all that costs less."""
        before = {other: int(self._chosen[other]) for other in pushed}
        cost = now + sum(self._cost(other) for other in pushed)
        for other in pushed:
            self._remove(other)
        self._put(label, choice)
        if all(self._take_best(other) for other in pushed) and cost > self._cost(label) + sum(
            self._cost(other) for other in pushed
        ):
            return True
        for other in [label, *pushed]:
            self._remove(other)
        for other, old in before.items():
            self._put(other, old)
        return False

    def _cost(self, label: int) -> float:
        choice = self._chosen[label]
        return _NOWHERE if choice < 0 else float(self._candidates[label].costs[choice])
