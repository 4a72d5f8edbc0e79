"""Colour tables for heat, whose lightness rises evenly with the value, so that no step is seen where none is.

Each is computed here from a few control points in CIELAB (D65 white): lightness is a straight line, a* and
b* are interpolated between the points. Colour blind people and grey prints keep the order of the values.
"""

from __future__ import annotations

from functools import cache

from ckptkit.base.errors import UsageError
from ckptkit.base.tensors import Array

_LIGHTNESS = (12.0, 96.0)
"""L* of the values 0 and 1: enough below white and above black to show on either."""

_CONTROL_POINTS: dict[str, tuple[tuple[float, float], ...]] = {
    "ember": ((10, -22), (38, -34), (58, -4), (60, 34), (42, 60), (14, 62), (-4, 26)),
    "lagoon": ((8, -24), (4, -34), (-14, -22), (-30, 4), (-38, 34), (-28, 58), (-8, 44)),
    "grey": ((0, 0), (0, 0)),
}
"""a* and b* of each table at even distances."""

COLORMAPS = tuple(_CONTROL_POINTS)
_D65 = (0.95047, 1.0, 1.08883)
_XYZ_TO_RGB = (
    (3.2404542, -1.5371385, -0.4985314),
    (-0.9692660, 1.8760108, 0.0415560),
    (0.0556434, -0.2040259, 1.0572252),
)
"""Linear sRGB from CIE XYZ (IEC 61966-2-1)."""


@cache
def colour_table(name: str) -> Array:
    """256 colours from no heat to most, (256, 3) uint8 sRGB.

    >>> colour_table("grey")[[0, 255]].tolist()
    [[31, 31, 31], [243, 243, 243]]
    """
    import numpy

    if name not in _CONTROL_POINTS:
        raise UsageError(f"no colormap {name!r}", hint="one of " + ", ".join(COLORMAPS))
    points = numpy.array(_CONTROL_POINTS[name], dtype=numpy.float64)
    values = numpy.linspace(0, 1, 256)
    at = numpy.linspace(0, 1, len(points))
    a, b = (numpy.interp(values, at, points[:, axis]) for axis in (0, 1))
    lightness = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * values
    rgb = _lab_to_srgb(numpy.stack([lightness, a, b], axis=1))
    table: Array = numpy.rint(rgb * 255).astype(numpy.uint8)
    table.flags.writeable = False
    return table


def _lab_to_srgb(lab: Array) -> Array:
    """CIELAB (n, 3) to sRGB in [0, 1]; what lies outside the gamut is clipped."""
    import numpy

    middle = (lab[:, 0] + 16) / 116
    roots = numpy.stack([middle + lab[:, 1] / 500, middle, middle - lab[:, 2] / 200], axis=1)
    linear_part = 3 * (6 / 29) ** 2 * (roots - 4 / 29)
    xyz = numpy.where(roots > 6 / 29, roots**3, linear_part) * _D65
    linear = (xyz @ numpy.array(_XYZ_TO_RGB).T).clip(0, 1)
    curved = 1.055 * linear ** (1 / 2.4) - 0.055
    encoded: Array = numpy.where(linear <= 0.0031308, 12.92 * linear, curved)
    return encoded
