"""The picture as a page to look into: hover, choose, search, switch axes; one file that needs no network.

Nothing is loaded from anywhere, and the page is safe whatever the registry's texts hold. Style and script are
inline and named by their hashes in a content security policy that forbids all else, so that text out of a
registry could not run even if it got into the markup; and it cannot: it is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from ckptkit.analysis.plot.points import (
    DARK,
    LIGHT,
    X_MEASURES,
    Y_MEASURES,
    FigureOptions,
    Measure,
    Series,
    Theme,
    collect,
    families_of,
    marker_of,
    published_by,
    series_of,
    short_names,
    y_measures,
)
from ckptkit.base.text import arxiv_id, counted, escaped, json_text, web_address

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry

_TEMPLATES = Path(__file__).parent / "templates"

_PAGE = """<!doctype html>
<html lang="en"{theme}>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
{data}<script>{script}</script>
</body>
</html>
"""


def template(name: str, folder: Path = _TEMPLATES) -> str:
    """Return the text of a file of the package."""
    return (folder / name).read_text(encoding="utf-8")


def page(title: str, body: str, *, style: str, script: str, data: Any = None, dark: bool = False) -> str:
    """Return a page."""
    whole_style = "\n" + colours() + template("page.css") + style
    whole_script = "\n" + script
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src '{_hash(whole_style)}'",
            f"script-src '{_hash(whole_script)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    embedded = ""
    if data is not None:
        embedded = f'<script type="application/json" id="data">{embedded_json(data)}</script>\n'
    return _PAGE.format(
        theme=' data-theme="dark"' if dark else "",
        policy=policy,
        title=escaped(title, "html"),
        style=whole_style,
        body=body,
        data=embedded,
        script=whole_script,
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embedded_json(value: Any) -> str:
    r"""Write JSON that is safe in a script element: nothing in it can end the element or open a comment.

    >>> print(embedded_json({"name": "</script><!-- & more"}))
    {"name":"\u003c/script\u003e\u003c!-- \u0026 more"}
    """
    text = json_text(_shown(value), ascii_only=True, compact=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown(value: Any) -> Any:
    """The same with every text as it is shown."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, dict):
        return {_shown(key): _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, (list, tuple)) else value


def link(url: str, text: str) -> str:
    """Return a link in HTML, or the text alone where the URL is none for a browser: a path, a store's."""
    if web_address(url) is None:
        return f"<span>{escaped(text, 'html')}: {escaped(url, 'html')}</span>"
    return f'<a href="{escaped(url, "html")}" rel="noreferrer">{escaped(text, "html")}</a>'


@dataclass(frozen=True)
class Link:
    """Something published of an entry: what it is, where, and what to know about it."""

    name: str
    url: str
    note: str = ""


def links_of(entry: Entry) -> list[Link]:
    """Return everything published of an entry: its file, configuration, log, paper."""
    sources = sorted(entry.sources, key=lambda source: source.manual)
    found = [
        Link(f"file {index}" if index > 1 else "file", source.url, source.note)
        for index, source in enumerate(sources, start=1)
    ]
    if entry.config_url:
        found.append(Link("config", entry.config_url))
    if entry.log_url:
        found.append(Link("log", entry.log_url))
    if (paper := arxiv_id(entry.paper)) is not None:
        found.append(Link("paper", f"https://arxiv.org/abs/{paper}"))
    return found


def colours() -> str:
    """Return both themes as CSS variables: light, dark where the system or the page says so."""
    dark = _variables(DARK)
    return (
        f":root{{{_variables(LIGHT)}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f":root[data-theme=dark]{{{dark};color-scheme:dark}}\n"
        f"@media print{{:root,:root[data-theme=dark]{{{_variables(LIGHT)};color-scheme:light}}}}\n"
    )


def _variables(theme: Theme) -> str:
    plain: Sequence[tuple[str, str]] = [
        ("background", theme.background),
        ("text", theme.text),
        ("muted", theme.muted),
        ("grid", theme.grid),
        ("front", theme.front),
        *((f"family-{index}", colour) for index, colour in enumerate(theme.families)),
    ]
    return ";".join(f"--{name}:{colour}" for name, colour in plain)


_UNKNOWN = "–"


def plot_page(entries: Sequence[Entry], *, x: str, y: str, options: FigureOptions) -> str:
    """Return the page."""
    measures = _measures(entries)
    points = collect(entries, measures[x], measures[y])
    title = options.title or f"{families_of(points)}: accuracy and cost"
    body = Template(template("plot.html")).substitute(
        title=escaped(title, "html"),
        sources=escaped(published_by(points) + ".", "html"),
        table=_table(entries, measures),
        ups="".join(
            f'<option value="{escaped(name, "html")}">{escaped(_BRIEF.get(name, name), "html")}</option>'
            for name in measures
            if name not in X_MEASURES
        ),
    )
    data = {
        "start": {"x": x, "y": y, "log": options.log, "labels": options.labels, "pareto": options.pareto},
        "axes": {name: one.title for name, one in measures.items()},
        "names": [[name, _BRIEF.get(name, name)] for name in measures],
        **_series_and_entries(entries, measures),
    }
    style, script = template("plot.css"), template("plot.js")
    return page(title, body, style=style, script=script, data=data, dark=options.dark)


_BRIEF = {"params": "parameters", "flops": "FLOPs", "top1": "top-1", "top5": "top-5"}


def _measures(entries: Sequence[Entry]) -> dict[str, Measure]:
    """The figures that a page can show; the accuracies unless there are other metrics alone."""
    ups = y_measures(entries)
    if len(ups) > len(Y_MEASURES) and not any(
        one.value(entry) for entry in entries for one in Y_MEASURES.values()
    ):
        ups = {name: one for name, one in ups.items() if name not in Y_MEASURES}
    return {**X_MEASURES, **ups}


def _series_and_entries(entries: Sequence[Entry], measures: Mapping[str, Measure]) -> dict[str, Any]:
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
                **{name: one.value(entry) for name, one in measures.items()},
                "text": {name: one.text(entry) for name, one in measures.items()},
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
        ("Method", entry.method),
        ("Setting", entry.setting),
        ("Position embedding", None if entry.pos_emb is None else "yes" if entry.pos_emb else "no"),
        ("Exact count", counted(entry.exact_parameters, "parameter") if entry.exact_parameters else None),
        ("Files", f"{entry.format}, {entry.layout} layout"),
        ("Licence", entry.license),
        ("Note", entry.note),
    ]
    return [(name, text) for name, text in known if text]


def _table(entries: Sequence[Entry], measures: Mapping[str, Measure]) -> str:
    """All figures, for readers without JavaScript and for print."""
    headings = ["entry", "model", *(_BRIEF.get(name, name) for name in measures), "published"]
    head = "".join(
        f'<th scope="col"{_number(place, measures)}>{escaped(name, "html")}</th>'
        for place, name in enumerate(headings)
    )
    rows = []
    for entry in entries:
        cells = [escaped(entry.id, "html"), escaped(entry.display_name, "html")]
        cells += [escaped(one.text(entry) or _UNKNOWN, "html") for one in measures.values()]
        cells.append(" · ".join(link(one.url, one.name) for one in links_of(entry)))
        rows.append("".join(f"<td{_number(place, measures)}>{cell}</td>" for place, cell in enumerate(cells)))
    lines = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>"


def _number(place: int, measures: Mapping[str, Measure]) -> str:
    return ' class="number"' if 2 <= place < 2 + len(measures) else ""
