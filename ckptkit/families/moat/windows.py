"""Attention windows, and the relative position tables that belong to them, without a framework.

A table holds a bias for every displacement inside a window. Where an input makes windows of another size than
the published 14×14 and 7×7, the model resizes the table before it looks anything up; doing that once, and
storing the result, gives other code tables that it can use as they are. Same arithmetic as
``tf.image.resize`` (bilinear, no antialias) and ``torch.nn.functional.interpolate`` (bilinear,
``align_corners=False``): output place i is at (i + 0.5) · in / out − 0.5 of the input, what is outside has
the edge's value, and everything is float32, the places too. Their rounding is where the frameworks differ: on
tables of standard normal values and 32 sizes this code was within 1e-6 of TensorFlow's result and 3.6e-6 of
PyTorch's, which are 3.6e-6 from each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

from ckptkit.base.errors import UsageError
from ckptkit.base.parse import Size, is_int, parse_size
from ckptkit.base.tensors import Array
from ckptkit.families.base import TableSizes
from ckptkit.families.moat.config import POSITION_TABLE_SIZE

WindowSize: TypeAlias = "int | Sequence[Any] | Mapping[Any, Any] | None"
"""What `parse_window_size` takes."""

ATTENTION_STAGES = tuple(POSITION_TABLE_SIZE)


def parse_window_size(window_size: WindowSize) -> dict[int, Size | None]:
    """Read which attention window each stage gets: (height, width), or None for the whole map.

    One side or (height, width) is for both stages; a mapping says it for each (``2``, ``3``, or the same as
    strings, as JSON has them), and a stage that it does not name sees the whole map; a pair is of stage 2 and
    stage 3 where it is not of two integers, which are (height, width).

    >>> parse_window_size(12)
    {2: (12, 12), 3: (12, 12)}
    >>> parse_window_size({2: 14, 3: (7, 7)})
    {2: (14, 14), 3: (7, 7)}
    >>> parse_window_size((14, None))
    {2: (14, 14), 3: None}
    """
    by_stage: dict[int, object]
    if isinstance(window_size, Mapping):
        by_stage = dict.fromkeys(ATTENTION_STAGES)
        by_stage.update({_stage(key): value for key, value in window_size.items()})
    elif _is_pair(window_size) and not all(is_int(part) for part in window_size):
        by_stage = dict(zip(ATTENTION_STAGES, window_size, strict=True))
    else:
        by_stage = dict.fromkeys(ATTENTION_STAGES, window_size)
    return {
        stage: None if value is None else parse_size(value, f"window_size of stage {stage}")
        for stage, value in by_stage.items()
    }


def _stage(key: object) -> int:
    """Read a mapping's key."""
    for stage in ATTENTION_STAGES:
        if (is_int(key) and key == stage) or key == str(stage):
            return stage
    raise UsageError(
        f"window_size names stage {key!r}", hint=f"the stages with attention are {ATTENTION_STAGES}"
    )


def _is_pair(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, (tuple, list)) and len(value) == 2


def require_whole_windows(size: Size, window: Size) -> None:
    """Check that a map can be cut into windows."""
    if size[0] % window[0] or size[1] % window[1]:
        raise UsageError(
            f"an attention map of {size[0]}x{size[1]} cannot be cut into windows of {window[0]}x{window[1]}",
            hint="choose an input resolution or a window_size that divides evenly, or window_size=None",
        )


# -- position tables -----------------------------------------------------------------------------------------

SIDES = (32, 4096)
"""Smallest and largest side of an input, in pixels; below the total stride the last map is empty."""

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
    window_size = (settings or {}).get("window_size")
    if any(window is not None for window in parse_window_size(window_size).values()):
        raise UsageError(
            f"the attention has windows of a fixed size (window_size {window_size}), so the size of its "
            "position tables does not follow from the resolution",
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
