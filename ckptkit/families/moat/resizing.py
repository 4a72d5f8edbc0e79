"""Resizing of relative position tables, as both models do it at run time, without a framework.

A table holds a bias for every displacement inside a window. Where an input makes windows of another size than
the published 14×14 and 7×7, the model resizes the table before it looks anything up; doing that once, and
storing the result, gives other code tables that it can use as they are. Same arithmetic as
``tf.image.resize`` (bilinear, no antialias) and ``torch.nn.functional.interpolate`` (bilinear,
``align_corners=False``): output place i lies at (i + 0.5) · in / out − 0.5 of the input, what lies outside is
the edge's value, and everything is float32, the places too. Their rounding is where the frameworks differ: on
tables of standard normal values and 32 sizes this code was within 1e-6 of TensorFlow's result and 3.6e-6 of
PyTorch's, which are 3.6e-6 from each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptkit.base.errors import UsageError
from ckptkit.base.parse import Size
from ckptkit.base.tensors import Array
from ckptkit.families.base import TableSizes
from ckptkit.families.moat.config import POSITION_TABLE_SIZE
from ckptkit.families.moat.windows import parse_window_size

SIDES = (32, 4096)
"""Least and greatest side of an input in pixels: below the total stride there is no whole last map."""

LARGEST = 2 * SIDES[1] // 16 - 1
"""Greatest side of a table."""


def table_sizes_at(resolution: Size, settings: Mapping[str, Any] | None = None) -> TableSizes:
    """Sizes of the tables that a model uses at an input resolution, windows being the whole map.

    A stage's map is the input divided by the stage's stride (16, then 32), rounded up as padding does it;
    a window of h×w places has (2h − 1)×(2w − 1) displacements.

    >>> table_sizes_at((224, 224)), table_sizes_at((384, 500))
    (((27, 27), (13, 13)), ((47, 63), (23, 31)))
    """
    if not all(SIDES[0] <= side <= SIDES[1] for side in resolution):
        raise UsageError(
            f"resolution {resolution[0]}x{resolution[1]}",
            hint=f"both sides must be from {SIDES[0]} to {SIDES[1]} pixels",
        )
    said = (settings or {}).get("window_size")
    if any(window is not None for window in parse_window_size(said).values()):
        raise UsageError(
            f"the attention has windows of a fixed size (window_size {said}), so the size of its position "
            "tables does not follow from the resolution",
            hint="leave --resolution out",
        )
    first, second = (_at_stride(resolution, 4 * 2**stage) for stage in POSITION_TABLE_SIZE)
    return first, second


def _at_stride(resolution: Size, stride: int) -> Size:
    height, width = (2 * -(-side // stride) - 1 for side in resolution)
    return height, width


def plausible_sizes(shapes: Mapping[int, tuple[int, ...]]) -> TableSizes | None:
    """Sizes of a file's resized tables; None where their shapes are nothing that `table_sizes_at` gives.

    Shapes are believed only when one input could have made both: odd sides, and stage 3 seeing half of what
    stage 2 sees, rounded up. Anything else is left to be reported as a wrong shape.
    """
    if any(len(shapes.get(stage, ())) != 3 for stage in POSITION_TABLE_SIZE):
        return None
    first, second = ((rows, columns) for _, rows, columns in (shapes[stage] for stage in POSITION_TABLE_SIZE))
    if any(side % 2 == 0 or side > LARGEST for side in (*first, *second)):
        return None
    halved = all(
        (small + 1) // 2 == -(-((large + 1) // 2) // 2) for large, small in zip(first, second, strict=True)
    )
    return (first, second) if halved else None


def resize_table(table: Array, size: Size) -> Array:
    """Resize tables bilinearly: half-pixel centres, edges clamped, no antialias, in float32.

    >>> import numpy
    >>> resize_table(numpy.array([[[0.0, 1.0]]]), (1, 4))
    array([[[0.  , 0.25, 0.75, 1.  ]]], dtype=float32)
    """
    resized = table.astype("float32")
    for axis, places in ((1, size[0]), (2, size[1])):
        resized = _resize_axis(resized, axis, places)
    return resized


def _resize_axis(table: Array, axis: int, places: int) -> Array:
    import numpy

    length = table.shape[axis]
    if length == places:
        return table
    # Rounded after each step, as TensorFlow does it, for which the model was published.
    centres = numpy.arange(places, dtype=numpy.float32) + numpy.float32(0.5)
    at = centres * numpy.float32(length / places) - numpy.float32(0.5)
    at = at.clip(0, length - 1)
    low = numpy.floor(at).astype(numpy.intp)
    high = numpy.minimum(low + 1, length - 1)
    shape = [1, 1, 1]
    shape[axis] = places
    share = (at - low.astype(numpy.float32)).reshape(shape)
    lower, upper = table.take(low, axis), table.take(high, axis)
    blended: Array = lower + (upper - lower) * share
    return blended
