"""What a picture says about itself: its title, and where its figures come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptkit.analysis.plot.points import family_name

if TYPE_CHECKING:
    from ckptkit.analysis.plot.axes import Measure
    from ckptkit.analysis.plot.points import Points


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
    entries = "1 entry is" if len(points.missing) == 1 else f"{len(points.missing)} entries are"
    return f"{entries} not shown: no published {' or '.join(lacking)}"
