"""Attention windows: how they are asked for, and how the PyTorch model cuts a map into them.

torch itself is not imported: cutting needs only the methods of a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from ckptkit.base.errors import UsageError
from ckptkit.base.parse import Size, is_int, parse_size
from ckptkit.families.moat.config import POSITION_TABLE_SIZE

if TYPE_CHECKING:
    from torch import Tensor

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


def split_windows(x: Tensor, window: Size) -> Tensor:
    """Cut a channels-last map (N, H, W, C) into windows (N * H/h * W/w, h, w, C), in raster order."""
    batch, height, width, channels = x.shape
    require_whole_windows((height, width), window)
    rows, columns = height // window[0], width // window[1]
    tiles = x.reshape(batch, rows, window[0], columns, window[1], channels)
    return tiles.transpose(2, 3).reshape(-1, *window, channels)


def join_windows(windows: Tensor, size: Size) -> Tensor:
    """Put windows back together: the inverse of `split_windows` for a map of ``size`` (H, W)."""
    _, height, width, channels = windows.shape
    tiles = windows.reshape(-1, size[0] // height, size[1] // width, height, width, channels)
    return tiles.transpose(2, 3).reshape(-1, *size, channels)
