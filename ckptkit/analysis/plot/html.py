"""The picture as a page to look into: hover, choose, search, switch axes; one file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from string import Template
from typing import TYPE_CHECKING, Any

from ckptkit.analysis.plot.axes import X_MEASURES, Y_MEASURES
from ckptkit.analysis.plot.page import link, links_of, page, template
from ckptkit.analysis.plot.points import Series, collect, series_of, short_names
from ckptkit.analysis.plot.theme import LIGHT, marker_of
from ckptkit.analysis.plot.titles import families_of, published_by
from ckptkit.base.text import escaped, web_address

if TYPE_CHECKING:
    from ckptkit.analysis.plot.figure import FigureOptions
    from ckptkit.registry import Entry

_MEASURES = {**X_MEASURES, **Y_MEASURES}
_UNKNOWN = "–"


def plot_page(entries: Sequence[Entry], *, x: str, y: str, options: FigureOptions) -> str:
    """Return the page."""
    points = collect(entries, _MEASURES[x], _MEASURES[y])
    title = options.title or f"{families_of(points)}: accuracy and cost"
    body = Template(template("plot.html")).substitute(
        title=escaped(title, "html"),
        sources=escaped(published_by(points) + ".", "html"),
        table=_table(entries),
    )
    data = {
        "start": {"x": x, "y": y, "log": options.log, "labels": options.labels, "pareto": options.pareto},
        "axes": {name: one.title for name, one in _MEASURES.items()},
        **_series_and_entries(entries),
    }
    style, script = template("plot.css"), template("plot.js")
    return page(title, body, style=style, script=script, data=data, dark=options.dark)


def _series_and_entries(entries: Sequence[Entry]) -> dict[str, Any]:
    series = series_of(entries)
    names = short_names(entries)
    ordered: list[Series] = sorted(dict.fromkeys(series.values()), key=lambda one: one.family_index)
    return {
        "series": [
            {
                "family": one.family_name,
                "colour": one.family_index % len(LIGHT.families),
                "marker": marker_of(one.family_index),
                "fill": one.fill,
                "words": one.words or "all entries",
            }
            for one in ordered
        ],
        "entries": [
            {
                "id": entry.id,
                "label": names[entry.id],
                "name": entry.display_name,
                "series": ordered.index(series[entry.id]),
                **{name: one.value(entry) for name, one in _MEASURES.items()},
                "text": {name: one.text(entry) for name, one in _MEASURES.items()},
                "facts": _facts(entry),
                "links": [
                    [one.name, one.url, one.note, web_address(one.url) is not None] for one in links_of(entry)
                ],
            }
            for entry in entries
        ],
    }


def _facts(entry: Entry) -> list[tuple[str, str]]:
    """What else is known of an entry, as name and text."""
    train, test = entry.train_resolution, entry.test_resolution
    known: list[tuple[str, str | None]] = [
        ("Architecture", entry.variant),
        (
            "Resolution",
            None if test is None else f"{test}" + (f", trained at {train}" if train != test else ""),
        ),
        ("Training data", entry.pretrain_data),
        ("Setting", entry.setting),
        ("Position embedding", None if entry.pos_emb is None else "yes" if entry.pos_emb else "no"),
        ("Exact count", f"{entry.exact_parameters:,} parameters" if entry.exact_parameters else None),
        ("Files", f"{entry.format}, {entry.layout} layout"),
        ("Licence", entry.license),
        ("Note", entry.note),
    ]
    return [(name, text) for name, text in known if text]


def _table(entries: Sequence[Entry]) -> str:
    """All figures, for readers without JavaScript and for print."""
    headings = ["entry", "model", "parameters", "FLOPs", "top-1", "top-5"]
    head = "".join(
        f'<th scope="col"{_number(place)}>{name}</th>' for place, name in enumerate([*headings, "published"])
    )
    rows = []
    for entry in entries:
        cells = [escaped(entry.id, "html"), escaped(entry.display_name, "html")]
        cells += [escaped(one.text(entry) or _UNKNOWN, "html") for one in _MEASURES.values()]
        cells.append(" · ".join(link(one.url, one.name) for one in links_of(entry)))
        rows.append("".join(f"<td{_number(place)}>{cell}</td>" for place, cell in enumerate(cells)))
    lines = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>"


def _number(place: int) -> str:
    return ' class="number"' if 2 <= place <= 5 else ""
