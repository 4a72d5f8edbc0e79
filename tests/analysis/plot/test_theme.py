"""Colours that people with every common kind of colour vision tell apart, on light and on dark."""

from __future__ import annotations

from itertools import combinations

import pytest

from ckptkit.analysis.plot.points import DARK, LIGHT, MARKERS, Theme, marker_of

# Viénot, Brettel and Mollon (1999), "Digital video colourmaps for checking the legibility of displays by
# dichromats": linear RGB as protanopes and deuteranopes see it.
VISIONS = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.11238, 0.88762, 0), (0.11238, 0.88762, 0), (0.00401, -0.00401, 1)),
    "deuteranopia": ((0.29275, 0.70725, 0), (0.29275, 0.70725, 0), (-0.02234, 0.02234, 1)),
}


def linear(colour: str) -> tuple[float, ...]:
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return tuple(part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)


def seen(colour: str, vision: str) -> tuple[float, ...]:
    rgb = linear(colour)
    return tuple(max(sum(row[i] * rgb[i] for i in range(3)), 0.0) for row in VISIONS[vision])


def luminance(colour: str) -> float:
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_the_two_families_of_the_registry_differ_for_everybody(theme: Theme, vision: str) -> None:
    moat, moganet = (seen(colour, vision) for colour in theme.families[:2])
    assert sum(abs(a - b) for a, b in zip(moat, moganet, strict=True)) > 0.25


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_everything_stands_out_from_the_paper(theme: Theme) -> None:
    assert all(contrast(colour, theme.background) >= 3 for colour in theme.families[:3])  # WCAG 1.4.11
    assert contrast(theme.text, theme.background) >= 7
    assert contrast(theme.muted, theme.background) >= 4.5
    assert contrast(theme.front, theme.background) >= 3


def test_markers_differ_as_long_as_there_are_some_left() -> None:
    assert len({marker_of(index) for index in range(len(MARKERS))}) == len(MARKERS)
    assert marker_of(len(MARKERS)) == marker_of(0)
    assert len(LIGHT.families) == len(DARK.families) == len(MARKERS)
    assert all(a != b for a, b in combinations(LIGHT.families, 2))
