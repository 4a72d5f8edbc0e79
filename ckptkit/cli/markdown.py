"""The registry as Markdown tables, one for each published table, ready for a README."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ckptkit.base.text import escaped, web_address
from ckptkit.cli.listing import UNKNOWN, Field, Listed, field_named

_PUBLISHED = ("name", "id", "setting", "pretrain", "resolution", "params", "flops", "top1", "top5")
_Group = tuple[str, str | None, bool | None, str]


def tables(items: Sequence[Listed], chosen: Sequence[Field] | None) -> str:
    """Return the tables, each under a heading.

    Parameters
    ----------
    items : sequence of Listed
    chosen : sequence of Field, optional
        Columns; by default those of the published tables, and of them only the ones that say something.
    """
    groups: dict[_Group, list[Listed]] = {}
    for item in items:
        row = item.row
        groups.setdefault((row.family, row.group, row.pos_emb, row.layout), []).append(item)
    return "\n\n".join(_table(key, members, chosen) for key, members in groups.items())


def _table(key: _Group, items: Sequence[Listed], chosen: Sequence[Field] | None) -> str:
    columns: list[tuple[str, bool, Callable[[Listed], str]]] = []
    for field in chosen or [field_named(name) for name in _PUBLISHED]:
        if chosen is None and all(field.shown(item) == UNKNOWN for item in items):
            continue
        columns.append((_capital(field), field.numeric, _cell(field)))
    if chosen is None:
        columns.append(("Files", False, _links))
    lines = [
        f"### {_heading(key, items)}",
        "",
        _line(name for name, _, _ in columns),
        _line("---:" if numeric else "---" for _, numeric, _ in columns),
        *(_line(cell(item) for _, _, cell in columns) for item in items),
    ]
    return "\n".join(lines)


def _heading(key: _Group, items: Sequence[Listed]) -> str:
    """Say what the rows share: ``MOAT, strong, with position embedding (deeplab2 layout)``."""
    family, group, pos_emb, layout = key
    # The family's own spelling stands inside the display names: tiny-MOAT-0, MogaNet-XT.
    parts = items[0].row.display_name.split("-")
    title = next((part for part in parts if part.lower() == family), family)
    embedding = None if pos_emb is None else f"{'with' if pos_emb else 'without'} position embedding"
    said = ", ".join(part for part in (title, group, embedding) if part)
    return f"{escaped(said, 'markdown')} ({escaped(layout, 'markdown')} layout)"


def _capital(field: Field) -> str:
    return field.heading[:1].upper() + field.heading[1:] if field.key != "id" else "id"


def _cell(field: Field) -> Callable[[Listed], str]:
    if field.key == "id":
        return lambda item: escaped(item.row.id, "code")
    if field.key in {"url", "config", "log"}:
        return lambda item: _link(field.key, field.value(item))
    return lambda item: escaped(field.shown(item), "markdown")


def _links(item: Listed) -> str:
    row = item.row
    first = next((source.url for source in row.sources if not source.manual), row.sources[0].url)
    links = [("config", row.config_url), ("log", row.log_url), ("download", first)]
    return " · ".join(_link(name, url) for name, url in links if url)


def _link(name: str, url: str | None) -> str:
    if not url:
        return UNKNOWN
    address = web_address(url)
    return escaped(url, "code") if address is None else f"[{name}]({address})"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
