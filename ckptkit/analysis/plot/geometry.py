"""Boxes, segments and points of the plane, many at once.

A box is ``[x0, y0, x1, y1]``, a segment ``[x0, y0, x1, y1]`` from one end to the other, a point ``[x, y]``;
arrays hold them in their last axis and are broadcast against one another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Truths = npt.NDArray[np.bool_]

_TINY = 1e-12


def boxes_overlap(first: Floats, second: Floats, gap: float = 0.0) -> Truths:
    """Whether boxes overlap, or come nearer than ``gap``.

    >>> a, b = np.array([0.0, 0, 2, 2]), np.array([2.5, 0, 3, 1])
    >>> bool(boxes_overlap(a, b)), bool(boxes_overlap(a, b, gap=1.0))
    (False, True)
    """
    return np.asarray(
        (first[..., 0] < second[..., 2] + gap)
        & (second[..., 0] < first[..., 2] + gap)
        & (first[..., 1] < second[..., 3] + gap)
        & (second[..., 1] < first[..., 3] + gap)
    )


def boxes_inside(boxes: Floats, bounds: Floats) -> Truths:
    """Whether boxes lie within ``bounds``, which is one box."""
    return np.asarray(
        (boxes[..., 0] >= bounds[0])
        & (boxes[..., 1] >= bounds[1])
        & (boxes[..., 2] <= bounds[2])
        & (boxes[..., 3] <= bounds[3])
    )


def nearest_in_boxes(points: Floats, boxes: Floats) -> Floats:
    """Return the point of each box that is nearest to each point."""
    return np.stack(
        [
            np.clip(points[..., 0], boxes[..., 0], boxes[..., 2]),
            np.clip(points[..., 1], boxes[..., 1], boxes[..., 3]),
        ],
        axis=-1,
    )


def segments_hit_boxes(segments: Floats, boxes: Floats) -> Truths:
    """Whether segments have a point inside boxes.

    >>> bool(segments_hit_boxes(np.array([0.0, 0, 4, 4]), np.array([1.0, 1, 2, 2])))
    True
    >>> bool(segments_hit_boxes(np.array([0.0, 0, 4, 0]), np.array([1.0, 1, 2, 2])))
    False
    """
    enters: Any = 0.0
    leaves: Any = 1.0
    for axis in (0, 1):
        start, way = segments[..., axis], segments[..., axis + 2] - segments[..., axis]
        safe = np.where(np.abs(way) < _TINY, _TINY, way)
        near, far = (boxes[..., axis] - start) / safe, (boxes[..., axis + 2] - start) / safe
        enters = np.maximum(enters, np.minimum(near, far))
        leaves = np.minimum(leaves, np.maximum(near, far))
    return np.asarray(enters < leaves)


def segments_near_points(segments: Floats, points: Floats, distance: float | Floats) -> Truths:
    """Whether segments come nearer to points than ``distance``."""
    way = segments[..., 2:] - segments[..., :2]
    from_start = points - segments[..., :2]
    share = np.sum(from_start * way, axis=-1) / np.maximum(np.sum(way * way, axis=-1), _TINY)
    foot = segments[..., :2] + np.clip(share, 0, 1)[..., None] * way
    return np.asarray(np.hypot(*np.moveaxis(points - foot, -1, 0)) < distance)


def segments_cross(first: Floats, second: Floats) -> Truths:
    """Whether segments cross, their ends apart.

    >>> bool(segments_cross(np.array([0.0, 0, 2, 2]), np.array([0.0, 2, 2, 0])))
    True
    """

    def side(segment: Floats, x: Floats, y: Floats) -> Floats:
        across = (segment[..., 2] - segment[..., 0]) * (y - segment[..., 1])
        along = (segment[..., 3] - segment[..., 1]) * (x - segment[..., 0])
        return np.asarray(across - along)

    return np.asarray(
        (side(first, second[..., 0], second[..., 1]) * side(first, second[..., 2], second[..., 3]) < 0)
        & (side(second, first[..., 0], first[..., 1]) * side(second, first[..., 2], first[..., 3]) < 0)
    )
