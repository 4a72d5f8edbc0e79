"""The published preparation of a picture once more, by PyTorch alone.

Written from the description, with nothing of `preprocessing` but what a checkpoint asks for,
so that the two can be set against each other: no Pillow, no size or offset computed there.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ckptkit.base.tensors import Array
from ckptkit.models.images.preprocessing import NEAREST, ROWS_AT_ONCE, NoEquivalentError

if TYPE_CHECKING:
    from ckptkit.models.images.preprocessing import Preprocessing

_MODES = {"bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "lanczos"}
_MEANS_AND_DEVIATIONS = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "half": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "birds": ([0.5191, 0.5306, 0.4877], [0.2316, 0.2304, 0.2588]),
}


def prepare(pixels: Array, wanted: Preprocessing) -> Array:
    """Prepare decoded pixels.

    ``pixels``: (height, width, 3) uint8, RGB. Returns (rows, columns, 3) float32.
    """
    import torch

    rows, columns = wanted.size
    height, width = _resized_sides(pixels.shape[0], pixels.shape[1], wanted)
    across = []  # in strips: as float32 a large picture takes three times what it took
    for top in range(0, pixels.shape[0], ROWS_AT_ONCE):
        strip = torch.from_numpy(pixels[top : top + ROWS_AT_ONCE].copy()).permute(2, 0, 1)[None]
        across.append(_resize(strip.to(torch.float32), (strip.shape[-2], width), wanted.interpolation))
    image = _resize(torch.cat(across, dim=-2), (height, width), wanted.interpolation)
    image = image.narrow(2, _margin(height, rows), rows).narrow(3, _margin(width, columns), columns)
    mean, deviation = (
        torch.tensor(values).reshape(1, 3, 1, 1) for values in _MEANS_AND_DEVIATIONS[wanted.normalization]
    )
    prepared: Array = ((image / 255 - mean) / deviation)[0].permute(1, 2, 0).contiguous().numpy()
    return prepared


def _resized_sides(height: int, width: int, wanted: Preprocessing) -> tuple[int, int]:
    """Height and width after resizing: the shorter side is given, or the picture just covers the input."""
    rows, columns = wanted.size
    if wanted.resize is not None and wanted.resize >= max(rows, columns):
        if height <= width:
            return wanted.resize, math.floor(Fraction(width, height) * wanted.resize)
        return math.floor(Fraction(height, width) * wanted.resize), wanted.resize
    growth = max(Fraction(rows, height), Fraction(columns, width))
    return math.floor(height * growth), math.floor(width * growth)


def _margin(side: int, kept: int) -> int:
    """Pixels before the part that is kept: half of what goes; of two halves as near the even one."""
    half, odd = divmod(side - kept, 2)
    return half + (odd and half % 2)


def _resize(image: Any, size: tuple[int, int], interpolation: str) -> Any:
    """Resize one side; the picture has 256 levels afterwards, as it had before."""
    import torch
    from torch.nn import functional

    if interpolation == "nearest":
        raise NoEquivalentError(f"PyTorch: {NEAREST}")
    if tuple(image.shape[-2:]) == size:
        return image
    centres = {} if interpolation == "lanczos" else {"align_corners": False}
    try:
        resized = functional.interpolate(
            image, size=size, mode=_MODES[interpolation], antialias=True, **centres
        )
    except (NotImplementedError, ValueError) as error:
        raise NoEquivalentError(
            f"PyTorch {torch.__version__} has no {interpolation} interpolation"
        ) from error
    return torch.floor(resized.clamp(0, 255) + 0.5)  # halves up, where torch.round goes to even
