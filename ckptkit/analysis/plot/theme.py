"""Colours and markers of the pictures, the same in matplotlib and in the page.

The colours are those of Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), which people with every
common kind of colour vision tell apart; families differ by marker too, their subgroups by how it is filled.
"""

from __future__ import annotations

from dataclasses import dataclass

MARKERS = ("circle", "diamond", "triangle", "square", "down")
"""Marker of each family, by its index."""


@dataclass(frozen=True)
class Theme:
    """Colours of one picture."""

    background: str  # ``#rrggbb``: paper, words, lesser words and leader lines, grid, Pareto front
    text: str
    muted: str
    grid: str
    front: str
    families: tuple[str, ...]  # of each family, by its index

    def family(self, index: int) -> str:
        """Colour of a family; they come round again after the last."""
        return self.families[index % len(self.families)]

    def tint(self, colour: str) -> str:
        """Return a colour two fifths of the way from the background.

        >>> LIGHT.tint("#000000")
        '#999999'
        """
        mixed = (
            round(0.4 * int(colour[at : at + 2], 16) + 0.6 * int(self.background[at : at + 2], 16))
            for at in (1, 3, 5)
        )
        return "#" + "".join(f"{value:02x}" for value in mixed)


LIGHT = Theme(
    background="#ffffff",
    text="#1b1f24",
    muted="#5f6770",
    grid="#e3e6ea",
    front="#6b7280",
    families=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00"),
)
DARK = Theme(
    background="#14171c",
    text="#e8eaed",
    muted="#a3abb5",
    grid="#2b3038",
    front="#9aa3ae",
    families=("#56b4e9", "#f28e2b", "#2ec99a", "#e29bc4", "#f0e442"),
)


def marker_of(family_index: int) -> str:
    """Return the marker of a family."""
    return MARKERS[family_index % len(MARKERS)]
