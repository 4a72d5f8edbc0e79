"""Entries of the registry side by side: as a table, JSON, CSV, or Markdown ready for a README."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import UsageError
from ckptkit.base.text import csv_text, escaped, web_address
from ckptkit.cli.output import Column, Output

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry


UNKNOWN = "-"
DEFAULT_KEYS = (
    *("family", "id", "resolution", "pos-emb", "pretrain", "setting", "params", "flops", "top1", "cached"),
)

_BETWEEN = 3
_EDGES = 2
"""What a drawn table adds to the width of its cells: between two columns, and at its sides."""

#: Which columns go first when the terminal is narrow.
_LEAST_IMPORTANT = ("family", "pretrain", "setting", "pos-emb", "flops", "cached", "resolution")


@dataclass(frozen=True)
class Listed:
    """An entry and whether its file is in the cache."""

    row: Entry
    cached: bool


@dataclass(frozen=True)
class Field:
    """One thing that a list can show of an entry."""

    key: str  # its name for --columns and --sort, and in JSON
    heading: str
    value: Callable[[Listed], Any]  # for JSON, CSV and sorting
    text: Callable[[Listed], str] | None = None  # how a person reads it, where not as the value itself
    short: Callable[[Listed], str] | None = None  # the same in fewer letters, for narrow terminals
    short_heading: str | None = None
    numeric: bool = False  # right-aligned

    def shown(self, item: Listed, *, brief: bool = False) -> str:
        """Return the cell of a table."""
        if brief and self.short:
            return self.short(item)
        return self.text(item) if self.text else _plain(self.value(item))

    def headed(self, *, brief: bool = False) -> str:
        """Return the heading of the column."""
        return (self.short_heading if brief else None) or self.heading


def _plain(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _of(name: str) -> Callable[[Listed], Any]:
    return lambda item: getattr(item.row, name)


def _text_of(name: str) -> Callable[[Listed], str]:
    return lambda item: _plain(getattr(item.row, name))


def _resolution(item: Listed) -> str:
    train, test = item.row.train_resolution, item.row.test_resolution
    return _plain(test) if train in (test, None) else f"{train}/{_plain(test)}"


def _brief_data(item: Listed) -> str:
    return _plain(item.row.pretrain_data).replace("ImageNet-", "").replace(" ", "")


def _link(item: Listed) -> str | None:
    return next((source.url for source in item.row.sources if not source.manual), item.row.sources[0].url)


_OF_THE_MODEL = (
    Field("family", "family", _of("family")),
    Field("id", "id", _of("id")),
    Field("variant", "variant", _of("variant")),
    Field("name", "model", _of("display_name")),
    Field("group", "group", _of("group")),
    Field("required", "required", _of("required")),
    Field("resolution", "resolution", _of("test_resolution"), _resolution, short_heading="res", numeric=True),
    Field("train-resolution", "train resolution", _of("train_resolution"), numeric=True),
    Field("test-resolution", "test resolution", _of("test_resolution"), numeric=True),
    Field("pos-emb", "pos-emb", _of("pos_emb"), short_heading="pos"),
    Field("pretrain", "pretrain", _of("pretrain_data"), short=_brief_data),
    Field("setting", "setting", _of("setting")),
    Field("params", "params", _of("params"), _text_of("published_params"), numeric=True),
    Field("flops", "FLOPs", _of("flops"), _text_of("published_flops"), numeric=True),
    Field("top1", "top-1", _of("published_top1"), numeric=True),
    Field("top5", "top-5", _of("published_top5"), numeric=True),
    Field("published-params", "published params", _of("published_params"), numeric=True),
    Field("published-flops", "published FLOPs", _of("published_flops"), numeric=True),
    Field("exact-parameters", "exact parameters", _of("exact_parameters"), numeric=True),
    Field("cached", "cached", lambda item: item.cached),
    Field("layout", "layout", _of("layout")),
    Field("format", "format", _of("format")),
    Field("weights", "weights", _of("weights")),
    Field("normalization", "normalization", _of("normalization")),
    Field("test-resize", "test resize", _of("test_resize"), numeric=True),
    Field("interpolation", "interpolation", _of("interpolation")),
)
_ABOUT_THE_FILE = (
    Field("license", "license", _of("license")),
    Field("paper", "paper", _of("paper")),
    Field("file", "file", _of("file_name")),
    Field("size", "size", _of("size"), numeric=True),
    Field("sha256", "sha256", _of("sha256")),
    Field("url", "URL", _link),
    Field("config", "config", _of("config_url")),
    Field("log", "log", _of("log_url")),
    Field("note", "note", _of("note")),
)


@cache
def _fields(plugins: bool = True) -> tuple[Field, ...]:
    """Every column: those of all entries, with one for each setting of a family."""
    from ckptkit.families.base import families, get_family

    settings = [each for name in families(plugins) for each in get_family(name).settings.items()]
    return (
        *_OF_THE_MODEL,
        *(
            Field(
                name.replace("_", "-"),
                setting.title or name.replace("_", " "),
                lambda item, name=name: item.row.settings.get(name),  # type: ignore[misc]
                numeric=not setting.is_switch,
            )
            for name, setting in settings
        ),
        *_ABOUT_THE_FILE,
    )


_ALIASES = {
    "displayname": "name",
    "posembedding": "pos-emb",
    "pretraindata": "pretrain",
    "model": "name",
    "publishedtop1": "top1",
    "publishedtop5": "top5",
    "configurl": "config",
    "logurl": "log",
    "filename": "file",
    "sources": "url",
}


def _squeezed(name: str) -> str:
    return name.strip().lower().replace("-", "").replace("_", "").replace(" ", "")


def column_names() -> list[str]:
    """Names of the columns, as ``--columns`` and ``--sort`` take them."""
    return [field.key for field in _fields()]


def field_named(name: str) -> Field:
    """Return the field a user means; hyphens, underscores and capitals do not matter.

    Raises
    ------
    UsageError
        When there is none.

    Examples
    --------
    >>> field_named("Top-1").key, field_named("pretrain_data").key
    ('top1', 'pretrain')
    """
    squeezed = _squeezed(name)
    wanted = _squeezed(_ALIASES.get(squeezed, squeezed))
    every = (field for plugins in (False, True) for field in _fields(plugins))
    found = next((field for field in every if _squeezed(field.key) == wanted), None)
    if found is None:
        raise UsageError(
            f"unknown column {name!r}", hint=f"choose from {', '.join(field.key for field in _fields())}"
        )
    return found


def fields_named(names: str | None) -> list[Field] | None:
    """Return the fields of a comma-separated list; None for none given."""
    if names is None:
        return None
    wanted = [field_named(name) for name in names.split(",") if name.strip()]
    if not wanted:
        raise UsageError("--columns names no column", hint="write them like --columns id,params,top1")
    return wanted


def ordered(items: Iterable[Listed], key: str, *, reverse: bool) -> list[Listed]:
    """Sort by a field; unknown values come last in either direction."""
    field = field_named(key.removeprefix("-"))
    down = key.startswith("-") is not reverse
    known = [item for item in items if field.value(item) is not None]
    unknown = [item for item in items if field.value(item) is None]
    return [*sorted(known, key=field.value, reverse=down), *unknown]


def print_table(output: Output, items: Sequence[Listed], chosen: Sequence[Field] | None) -> None:
    """Print a table; on a terminal the default columns are made to fit its width."""
    fields, brief = list(chosen or [field_named(key) for key in DEFAULT_KEYS]), False
    hidden: list[str] = []
    if chosen is None and output.stdout.isatty():
        fitted, brief = _fitted(fields, items, shutil.get_terminal_size().columns)
        hidden = [field.headed() for field in fields if field not in fitted]
        fields = fitted
    output.table(
        [Column(field.headed(brief=brief), field.numeric) for field in fields],
        [[field.shown(item, brief=brief) for field in fields] for item in items],
    )
    if hidden:
        output.note(f"too wide for this terminal: {', '.join(hidden)}; choose with --columns")


def _fitted(fields: Sequence[Field], items: Sequence[Listed], room: int) -> tuple[list[Field], bool]:
    """Find what fits: with short cells, then without silent columns, then without the lesser ones."""
    left = list(fields)
    if _width(left, items, brief=False) <= room:
        return left, False
    silent = [field.key for field in fields if all(field.shown(item) == UNKNOWN for item in items)]
    for key in [*silent, *_LEAST_IMPORTANT]:
        if _width(left, items, brief=True) <= room:
            break
        left = [field for field in left if field.key != key]
    return left, True


def _width(fields: Sequence[Field], items: Sequence[Listed], *, brief: bool) -> int:
    cells = 0
    for field in fields:
        texts = [field.headed(brief=brief), *(escaped(field.shown(item, brief=brief)) for item in items)]
        cells += max(map(len, texts))
    return cells + _BETWEEN * (len(fields) - 1) + _EDGES


def as_json(items: Sequence[Listed], chosen: Sequence[Field] | None) -> list[dict[str, Any]]:
    """Return the list for JSON: every field of the registry, or the chosen columns."""
    if chosen is not None:
        return [{field.key: field.value(item) for field in chosen} for item in items]
    return [
        {
            **item.row.model_dump(mode="json"),
            "params": item.row.params,
            "flops": item.row.flops,
            "cached": item.cached,
        }
        for item in items
    ]


def as_csv(items: Sequence[Listed], chosen: Sequence[Field] | None) -> str:
    """Return the list as CSV: every column, or the chosen ones; unknown values are empty."""
    fields = list(chosen or _fields())
    rows = [[_csv_cell(field.value(item)) for field in fields] for item in items]
    return csv_text([[field.key for field in fields], *rows])


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    # Counts are whole numbers; accuracies keep their point.
    return str(int(value)) if isinstance(value, float) and value >= 1000 else _plain(value)


_PUBLISHED = ("name", "id", "setting", "pretrain", "resolution", "params", "flops", "top1", "top5")
_Group = tuple[str, str | None, bool | None, str]


def as_markdown(items: Sequence[Listed], chosen: Sequence[Field] | None) -> str:
    """Return the as_markdown, each under a heading."""
    groups: dict[_Group, list[Listed]] = {}
    for item in items:
        row = item.row
        groups.setdefault((row.family, row.group, row.pos_emb, row.layout), []).append(item)
    return "\n\n".join(_markdown_table(key, members, chosen) for key, members in groups.items())


def _markdown_table(key: _Group, items: Sequence[Listed], chosen: Sequence[Field] | None) -> str:
    columns: list[tuple[str, bool, Callable[[Listed], str]]] = []
    for field in chosen or [field_named(name) for name in _PUBLISHED]:
        if chosen is None and all(field.shown(item) == UNKNOWN for item in items):
            continue
        columns.append((_markdown_capital(field), field.numeric, _markdown_cell(field)))
    if chosen is None:
        columns.append(("Files", False, _markdown_links))
    lines = [
        f"### {_markdown_heading(key, items)}",
        "",
        _markdown_line(name for name, _, _ in columns),
        _markdown_line("---:" if numeric else "---" for _, numeric, _ in columns),
        *(_markdown_line(cell(item) for _, _, cell in columns) for item in items),
    ]
    return "\n".join(lines)


def _markdown_heading(key: _Group, items: Sequence[Listed]) -> str:
    """Say what the rows share: ``MOAT, strong, with position embedding (deeplab2 layout)``."""
    family, group, pos_emb, layout = key
    # The family's own spelling is in the display names: tiny-MOAT-0, MogaNet-XT.
    parts = items[0].row.display_name.split("-")
    title = next((part for part in parts if part.lower() == family), family)
    embedding = None if pos_emb is None else f"{'with' if pos_emb else 'without'} position embedding"
    shared = ", ".join(part for part in (title, group, embedding) if part)
    return f"{escaped(shared, 'markdown')} ({escaped(layout, 'markdown')} layout)"


def _markdown_capital(field: Field) -> str:
    return field.heading[:1].upper() + field.heading[1:] if field.key != "id" else "id"


def _markdown_cell(field: Field) -> Callable[[Listed], str]:
    if field.key == "id":
        return lambda item: escaped(item.row.id, "code")
    if field.key in {"url", "config", "log"}:
        return lambda item: _markdown_link(field.key, field.value(item))
    return lambda item: escaped(field.shown(item), "markdown")


def _markdown_links(item: Listed) -> str:
    row = item.row
    first = next((source.url for source in row.sources if not source.manual), row.sources[0].url)
    links = [("config", row.config_url), ("log", row.log_url), ("download", first)]
    return " · ".join(_markdown_link(name, url) for name, url in links if url)


def _markdown_link(name: str, url: str | None) -> str:
    if not url:
        return UNKNOWN
    address = web_address(url)
    return escaped(url, "code") if address is None else f"[{name}]({address})"


def _markdown_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
