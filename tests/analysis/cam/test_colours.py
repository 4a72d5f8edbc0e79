"""Colour tables: even steps of lightness, worked out from the colours themselves."""

from __future__ import annotations

import numpy
import pytest

from ckptkit.analysis.cam.colours import COLORMAPS, colour_table
from ckptkit.base.errors import UsageError


def lightness(colours: numpy.ndarray) -> numpy.ndarray:
    """L* of sRGB colours, by the definitions of IEC 61966-2-1 and CIE 15."""
    encoded = colours.astype(numpy.float64) / 255
    linear = numpy.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126729, 0.7151522, 0.0721750]
    return numpy.where(luminance > 216 / 24389, 116 * numpy.cbrt(luminance) - 16, luminance * 24389 / 27)


@pytest.mark.parametrize("name", COLORMAPS)
def test_lightness_rises_in_even_steps(name: str):
    table = colour_table(name)
    assert (table.shape, table.dtype) == ((256, 3), numpy.uint8)
    found = lightness(table)
    assert numpy.abs(found - numpy.linspace(12, 96, 256)).max() < 1  # one step of L* is hardly seen
    assert (numpy.diff(found[::4]) > 0).all()


def test_tables_are_different_and_cannot_be_changed():
    tables = [colour_table(name) for name in COLORMAPS]
    assert len({table.tobytes() for table in tables}) == len(COLORMAPS)
    assert not any(table.flags.writeable for table in tables)


def test_grey_is_grey():
    assert (colour_table("grey") == colour_table("grey")[:, :1]).all()


def test_no_such_table():
    with pytest.raises(UsageError, match="no colormap 'jet'; one of ember, lagoon, grey"):
        colour_table("jet")
