"""``list --format html``: a table to sort and filter, in one file that loads nothing.

Without JavaScript it is a plain table with links. The page's parts are in ``templates/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from ckptkit.analysis.plot.figure import LIGHT
from ckptkit.analysis.plot.page import link, links_of, page, template
from ckptkit.analysis.plot.points import family_indices, family_name
from ckptkit.base.text import escaped
from ckptkit.cli.entry_table import Field, Listed, field_named

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry

_TEMPLATES = Path(__file__).parent / "templates"
_KEYS = ("id", "resolution", "pos-emb", "pretrain", "setting", "params", "flops", "top1", "top5")
_UNKNOWN = "–"
_URLS = frozenset({"url", "config", "log"})
_LONG = 60
"""Letters from which a cell is broken into lines."""
_html = partial(escaped, target="html")


def list_page(items: Sequence[Listed], chosen: Sequence[Field] | None) -> str:
    """Return the page; default columns are what distinguishes entries, and links to all that is published."""
    fields = list(chosen or [field_named(key) for key in _KEYS])
    families = family_indices(item.row.family for item in items)
    body = Template(template("list.html", _TEMPLATES)).substitute(
        title=_html(_title(list(families))),
        lead=_html(_lead(items)),
        families="\n".join(_option(family, family_name(family)) for family in families),
        flags="\n".join(_flag(field) for field in fields if _is_flag(field, items)),
        head=_head(fields, with_links=chosen is None),
        rows="\n".join(_row(item, fields, families, with_links=chosen is None) for item in items),
    )
    style, script = template("list.css", _TEMPLATES), template("list.js", _TEMPLATES)
    return page(_title(list(families)), body, style=style, script=script)


def _title(families: Sequence[str]) -> str:
    names = [family_name(family) for family in families]
    whose = " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part) if names else ""
    return f"Published checkpoints of {whose}" if whose else "Published checkpoints"


def _lead(items: Sequence[Listed]) -> str:
    count = "1 entry" if len(items) == 1 else f"{len(items)} entries"
    return (
        f"{count}. Parameters, FLOPs (multiply-adds of one image) and ImageNet-1K accuracy in percent as "
        f"published; {_UNKNOWN} where nothing is published."
    )


def _option(value: str, text: str) -> str:
    return f'<option value="{_html(value)}">{_html(text)}</option>'


def _is_flag(field: Field, items: Sequence[Listed]) -> bool:
    """Whether a column says yes and no, both."""
    return {True, False} <= {value for item in items if isinstance(value := field.value(item), bool)}


def _flag(field: Field) -> str:
    choices = "".join(_option(value, text) for value, text in (("", "any"), ("yes", "yes"), ("no", "no")))
    key = _html(field.key)
    return f'<label>{_html(field.heading)} <select name="{key}" data-flag="{key}">{choices}</select></label>'


def _head(fields: Sequence[Field], *, with_links: bool) -> str:
    cells = [
        f'<th scope="col" class="{_kind(field)}" data-key="{field.key}">{_html(field.heading)}</th>'
        for field in fields
    ]
    if with_links:
        cells.append('<th scope="col">published</th>')
    return "".join([*cells, '<th scope="col" class="get" hidden>fetch</th>'])


def _kind(field: Field) -> str:
    return "id" if field.key == "id" else "number" if field.numeric else "text"


def _row(item: Listed, fields: Sequence[Field], families: dict[str, int], *, with_links: bool) -> str:
    row = item.row
    cells = [_cell(field, item) for field in fields]
    if with_links:
        cells.append(f'<td class="links">{_links(row)}</td>')
    command = _html(f"ckptkit fetch {row.id}")
    cells.append(
        f'<td class="get" hidden><button type="button" class="copy" data-copy="{command}" title="{command}" '
        f'aria-label="copy the command {command}">copy</button></td>'
    )
    colour = families[row.family] % len(LIGHT.families)
    return f'<tr class="f{colour}" data-family="{_html(row.family)}">{"".join(cells)}</tr>'


def _links(row: Entry) -> str:
    return " ".join(link(one.url, one.name) for one in links_of(row))


def _cell(field: Field, item: Listed) -> str:
    value, text = field.value(item), field.shown(item)
    if value is None:
        return f'<td class="{_kind(field)} unknown">{_UNKNOWN}</td>'
    kind = _kind(field) + (" long" if len(text) > _LONG else "")
    # Numbers are sorted by what they are, not by how they are written.
    number = f' data-v="{value!r}"' if field.numeric and isinstance(value, (int, float)) else ""
    inside = link(text, text) if field.key in _URLS else _html(text)
    return f'<td class="{kind}"{number}>{inside}</td>'
