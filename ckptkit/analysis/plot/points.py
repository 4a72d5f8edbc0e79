"""Entries as points of a picture: figures, series, names, Pareto front; title, sources, colours, options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import UsageError
from ckptkit.base.text import counted
from ckptkit.families import base as known

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry


@dataclass(frozen=True)
class Measure:
    """A figure that an axis can show."""

    name: str  # what options call it
    short: str  # in a sentence
    title: str  # of the axis, with its unit
    value: Callable[[Entry], float | None]  # the figure of an entry
    text: Callable[[Entry], str | None]  # the same as published


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:g}%"


X_MEASURES = {
    "params": Measure(
        "params",
        "parameters",
        "Parameters",
        lambda entry: entry.params,
        lambda entry: entry.published_params or (entry.params and human(entry.params)) or None,
    ),
    "flops": Measure(
        "flops",
        "FLOPs",
        "FLOPs of one image (multiply-adds)",
        lambda entry: entry.flops,
        lambda entry: entry.published_flops,
    ),
}
Y_MEASURES = {
    "top1": Measure(
        "top1",
        "top-1 accuracy",
        "ImageNet-1K top-1 accuracy (%)",
        lambda entry: entry.published_top1,
        lambda entry: _percent(entry.published_top1),
    ),
    "top5": Measure(
        "top5",
        "top-5 accuracy",
        "ImageNet-1K top-5 accuracy (%)",
        lambda entry: entry.published_top5,
        lambda entry: _percent(entry.published_top5),
    ),
}


def y_measures(entries: Iterable[Entry]) -> dict[str, Measure]:
    """What the vertical axis can show of some entries: the accuracies, and every metric that they have."""
    data: dict[str, dict[str | None, None]] = {}
    for entry in entries:
        for name in entry.metrics:
            data.setdefault(name, {})[entry.dataset] = None
    return {**Y_MEASURES, **{name: _of_metric(name, list(found)) for name, found in data.items()}}


def _of_metric(name: str, datasets: Sequence[str | None]) -> Measure:
    title = f"{name}, {datasets[0]}" if len(datasets) == 1 and datasets[0] else name
    return Measure(
        name,
        name,
        title,
        lambda entry: entry.metrics.get(name),
        lambda entry: str(entry.metrics[name]) if name in entry.metrics else None,
    )


def comparable(entries: Sequence[Entry], y: Measure) -> list[Entry]:
    """The entries of those tasks that are measured so."""
    tasks = {entry.task for entry in entries if y.value(entry) is not None}
    return [entry for entry in entries if entry.task in tasks]


def human(value: float) -> str:
    """Write a count as people do.

    >>> [human(value) for value in (0, 800, 2_500_000, 5e6, 1e9, 2e12)]
    ['0', '800', '2.5M', '5M', '1B', '2T']
    """
    for power, sign in ((12, "T"), (9, "B"), (6, "M"), (3, "K")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.4g}{sign}"
    return f"{value:.4g}"


XY = tuple[float, float]


def pareto_front(points: Iterable[XY]) -> list[XY]:
    """Return the points that no other reaches with less cost and as much accuracy, or more for as much.

    >>> pareto_front([(5, 80.0), (3, 76.0), (5, 79.0), (9, 80.0), (9, 83.0)])
    [(3, 76.0), (5, 80.0), (9, 83.0)]
    """
    front: list[XY] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


FILLS = ("full", "open", "tint", "dot", "eye", "target")
"""How the subgroups of a family differ: filled, hollow or filled lightly, and each of these with a dot."""

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

    def description(self, *, brief: bool = False) -> str:
        """Return the words, or fewer."""
        words = self.words
        for long, short in _BRIEF if brief else ():
            words = words.replace(long, short)
        return words


@dataclass(frozen=True)
class Point:
    """One place in the picture, with every entry at that point."""

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
    """Put entries at their places; those at the very same place become one point.

    Entries of other tasks than those that ``y`` measures have no place to miss.
    """
    entries = comparable(entries, y) or entries
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


def _facts(entry: Entry) -> tuple[str | None, bool | None, str | None, str, str | None]:
    return entry.group, entry.pos_emb, entry.setting, entry.layout, entry.method


def series_of(entries: Sequence[Entry]) -> dict[str, Series]:
    """Return the series of each id: by family, group, position embedding, setting, layout and method."""
    found: dict[str, Series] = {}
    for family, index in family_indices(entry.family for entry in entries).items():
        members = [entry for entry in entries if entry.family == family]
        kinds = _once(_facts(entry) for entry in members)
        fills = _fills(family, kinds)
        words = [_words(family, kind, kinds) for kind in kinds]
        made = {
            kind: Series(family, index, fill, text)
            for kind, fill, text in zip(kinds, fills, words, strict=True)
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
    fixed = [None if kind[-1] else markers.get(kind[:-1]) for kind in kinds]
    free = [fill for fill in FILLS if fill not in fixed] or list(FILLS)
    others = iter(range(len(kinds)))
    return [fill or free[next(others) % len(free)] for fill in fixed]


def _words(family: str, kind: tuple[Any, ...], kinds: Sequence[tuple[Any, ...]]) -> str:
    """Name of a subgroup: those of its facts that are not the same in the whole family."""
    group, pos_emb, setting, layout, method = kind
    titles = known.get_family(family).layout_titles if family in known.families() else {}
    parts = [
        method,
        group,
        None if pos_emb is None else f"{'with' if pos_emb else 'without'} position embedding",
        setting,
        titles.get(layout, layout),
    ]
    places = (4, 0, 1, 2, 3)
    return ", ".join(
        part
        for place, part in zip(places, parts, strict=True)
        if part and len({other[place] for other in kinds}) > 1
    )


def short_names(entries: Sequence[Entry]) -> dict[str, str]:
    """Return what each entry's label says: its published name, and the resolution where that tells more.

    The resolution is added where entries of one family have the same name and are drawn at several.
    """
    sizes: dict[tuple[str, str], set[str]] = {}
    for entry in entries:
        sizes.setdefault((entry.family, _bare(entry)), set()).update(_size(entry))
    return {
        entry.id: " @".join([_bare(entry), *_size(entry)])
        if len(sizes[entry.family, _bare(entry)]) > 1
        else _bare(entry)
        for entry in entries
    }


def _size(entry: Entry) -> list[str]:
    """The input of the figures; empty where it is not known."""
    if entry.test_resolution is not None:
        return [str(entry.test_resolution)]
    return ["×".join(map(str, entry.flops_input))] if entry.flops_input else []


def _bare(entry: Entry) -> str:
    # The star of a published table refers to a footnote that a picture has not; the marker tells the setting.
    return " ".join(entry.display_name.rstrip("*").split()) or entry.id


def default_title(points: Points, x: Measure, y: Measure) -> str:
    """Return what is shown, of whom: "MOAT and MogaNet: top-1 accuracy against parameters"."""
    return f"{families_of(points)}: {y.short} against {x.short}"


def families_of(points: Points) -> str:
    """Return the names of the families shown: "MOAT and MogaNet"."""
    families = list(dict.fromkeys(series.family_name for series in points.series))
    return " and ".join(part for part in (", ".join(families[:-1]), families[-1]) if part)


def source_line(points: Points, x: Measure, y: Measure) -> str:
    """Return whose figures these are, and how many entries are not shown and why."""
    return ". ".join(part for part in (published_by(points), missing_note(points, x, y)) if part) + "."


def published_by(points: Points) -> str:
    """Return the papers of each family shown."""
    papers: dict[str, dict[str, None]] = {}
    for point in points.points:
        for entry in point.entries:
            cited = papers.setdefault(family_name(entry.family), {})
            cited.update({entry.paper: None} if entry.paper else {})
    return "Figures as published: " + ", ".join(
        " ".join([family, *cited]) for family, cited in papers.items()
    )


def missing_note(points: Points, x: Measure, y: Measure) -> str:
    """Return how many entries have no place and why; empty where all have one."""
    if not points.missing:
        return ""
    lacking = [
        measure.short for measure in (x, y) if any(not measure.value(entry) for entry in points.missing)
    ]
    entries = counted(len(points.missing), "entry", "are")
    return f"{entries} not shown: no published {' or '.join(lacking)}"


# The colours are those of Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), which people with every
# common kind of colour vision tell apart; families differ by marker too, their subgroups by how it is filled.

MARKERS = ("circle", "diamond", "triangle", "square", "down")
"""Marker of each family, by its index."""


@dataclass(frozen=True)
class Theme:
    """Colours of one picture."""

    background: str  # ``#rrggbb``
    text: str
    muted: str  # lesser words, axes
    grid: str
    front: str  # the Pareto front
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


_INCHES = (2.5, 60.0)
_DPI = (30, 1200)
_MOST_PIXELS = 100_000_000


@dataclass(frozen=True)
class FigureOptions:
    """How a picture looks."""

    log: bool = True  # logarithmic horizontal axis
    labels: bool = True  # names at the points
    pareto: bool = True  # the line through the points that no other beats at no greater cost
    dark: bool = False  # light on dark
    size: tuple[float, float] = (9.0, 5.6)  # width and height, inches: 2.5 to 60
    dpi: int = 200  # pixels per inch of a PNG: 30 to 1200
    title: str | None = None  # None makes one

    def __post_init__(self) -> None:
        width, height = self.size
        if not all(_INCHES[0] <= side <= _INCHES[1] for side in self.size):
            raise UsageError(
                f"a picture of {width:g} x {height:g} inches cannot be drawn",
                hint=f"give sides from {_INCHES[0]:g} to {_INCHES[1]:g} inches",
            )
        if not _DPI[0] <= self.dpi <= _DPI[1] or width * height * self.dpi**2 > _MOST_PIXELS:
            raise UsageError(
                f"{width:g} x {height:g} inches at {self.dpi} pixels per inch cannot be drawn",
                hint=f"give a dpi from {_DPI[0]} to {_DPI[1]} for at most 100 million pixels",
            )
