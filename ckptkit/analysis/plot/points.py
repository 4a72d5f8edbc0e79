"""Entries as points of a picture: which series each belongs to, and what its label says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptkit.analysis.plot.axes import Measure
from ckptkit.families import base as known

if TYPE_CHECKING:
    from ckptkit.registry import Entry

FILLS = ("full", "open", "tint", "dot")
"""How the subgroups of a family differ: filled, hollow, filled lightly, hollow with a dot."""

_BRIEF = (
    ("without position embedding", "no pos-emb"),
    ("with position embedding", "pos-emb"),
    ("timm-style files", "timm-style"),
)


def family_name(family: str) -> str:
    """Return a family as its authors write it.

    >>> family_name("moganet"), family_name("another")
    ('MogaNet', 'another')
    """
    return known.get_family(family).title if family in known.families() else family


@dataclass(frozen=True)
class Series:
    """Entries that are drawn alike."""

    family: str
    family_index: int  # which colour and marker: the place of the family among those drawn and known
    fill: str  # one of `FILLS`
    words: str  # what tells it from the family's other series

    @property
    def family_name(self) -> str:
        """The family's own spelling."""
        return family_name(self.family)

    def said(self, *, brief: bool = False) -> str:
        """Return the words, or fewer."""
        words = self.words
        for long, short in _BRIEF if brief else ():
            words = words.replace(long, short)
        return words


@dataclass(frozen=True)
class Point:
    """One place in the picture, with every entry that lies there."""

    x: float  # figures of the two axes
    y: float
    series: tuple[Series, ...]  # of its entries, each once
    entries: tuple[Entry, ...]
    label: str


@dataclass(frozen=True)
class Points:
    """What a picture shows."""

    points: tuple[Point, ...]  # in the order of the entries
    series: tuple[Series, ...]  # those that occur, family by family
    missing: tuple[Entry, ...]  # those that cannot be shown: one of the two figures is not published


def collect(entries: Sequence[Entry], x: Measure, y: Measure) -> Points:
    """Put entries at their places; those at the very same place become one point."""
    series = series_of(entries)
    names = short_names(entries)
    places: dict[tuple[float, float], list[Entry]] = {}
    missing = []
    for entry in entries:
        at_x, at_y = x.value(entry), y.value(entry)
        if at_x is None or at_y is None or at_x <= 0:
            missing.append(entry)
        else:
            places.setdefault((at_x, at_y), []).append(entry)
    points = tuple(
        Point(
            *place,
            series=_once(series[entry.id] for entry in members),
            entries=tuple(members),
            label=" / ".join(_once(names[entry.id] for entry in members)),
        )
        for place, members in places.items()
    )
    shown = _once(one for point in points for one in point.series)
    ordered = sorted(shown, key=lambda one: one.family_index)
    return Points(points, tuple(ordered), tuple(missing))


def _once(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _facts(entry: Entry) -> tuple[str | None, bool | None, str | None, str]:
    return entry.group, entry.pos_emb, entry.setting, entry.layout


def series_of(entries: Sequence[Entry]) -> dict[str, Series]:
    """Return the series of each id: by family, group, position embedding, training setting and layout."""
    found: dict[str, Series] = {}
    for family, index in family_indices(entry.family for entry in entries).items():
        members = [entry for entry in entries if entry.family == family]
        kinds = _once(_facts(entry) for entry in members)
        fills = _fills(family, kinds)
        said = [_words(family, kind, kinds) for kind in kinds]
        made = {
            kind: Series(family, index, fill, words)
            for kind, fill, words in zip(kinds, fills, said, strict=True)
        }
        found.update((entry.id, made[_facts(entry)]) for entry in members)
    return found


def family_indices(families: Iterable[str]) -> dict[str, int]:
    """Return the index of each family, which chooses its colour and marker: the known ones keep theirs.

    >>> family_indices(["moganet", "another"])
    {'moganet': 1, 'another': 2}
    """
    present = _once(families)
    first = known.families()
    order = [*first, *(family for family in present if family not in first)]
    return {family: index for index, family in enumerate(order) if family in present}


def _fills(family: str, kinds: Sequence[tuple[Any, ...]]) -> list[str]:
    """How each subgroup is filled: as the family says, so that it looks the same in every picture."""
    markers = known.get_family(family).markers if family in known.families() else {}
    fixed = [markers.get(kind) for kind in kinds]
    free = [fill for fill in FILLS if fill not in fixed] or list(FILLS)
    others = iter(range(len(kinds)))
    return [fill or free[next(others) % len(free)] for fill in fixed]


def _words(family: str, kind: tuple[Any, ...], kinds: Sequence[tuple[Any, ...]]) -> str:
    """Name of a subgroup: those of its facts that are not the same in the whole family."""
    group, pos_emb, setting, layout = kind
    titles = known.get_family(family).layout_titles if family in known.families() else {}
    parts = [
        group,
        None if pos_emb is None else f"{'with' if pos_emb else 'without'} position embedding",
        setting,
        titles.get(layout, layout),
    ]
    return ", ".join(
        part for place, part in enumerate(parts) if part and len({other[place] for other in kinds}) > 1
    )


def short_names(entries: Sequence[Entry]) -> dict[str, str]:
    """Return what each entry's label says: its published name, and the resolution where that tells more.

    The resolution is added where entries of one family have the same name and are drawn at several.
    """
    resolutions: dict[tuple[str, str], set[Any]] = {}
    for entry in entries:
        resolutions.setdefault((entry.family, _bare(entry)), set()).add(entry.test_resolution)
    return {
        entry.id: f"{_bare(entry)} @{entry.test_resolution}"
        if len(resolutions[entry.family, _bare(entry)]) > 1 and entry.test_resolution
        else _bare(entry)
        for entry in entries
    }


def _bare(entry: Entry) -> str:
    # The star of a published table refers to a footnote that a picture has not; the marker tells the setting.
    return " ".join(entry.display_name.rstrip("*").split()) or entry.id
