"""Entries of the registry side by side: as a table, JSON, CSV, Markdown ready for a README, or a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import UsageError
from ckptkit.base.shown import Column
from ckptkit.base.text import counted, csv_text, escaped, in_words, spelled, web_address
from ckptkit.cli.output import Output

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry

UNKNOWN = "-"
_CLASSIFICATION = "image-classification"
"""As `ckptkit.registry.schema` has it, which the help does not load; a test compares the two."""
_ON_A_PAGE = "–"


@dataclass(frozen=True)
class Listed:
    """An entry and whether its file is in the cache."""

    row: Entry
    cached: bool


@dataclass(frozen=True)
class Field:
    """One thing that a list can show of an entry."""

    key: str  # its name for --columns and --sort, and in JSON
    attribute: str = ""  # of the entry, where not the key; another name for --columns
    heading: str = ""  # where not the key
    numeric: bool = False  # right-aligned
    of: Callable[[Listed], Any] | None = None  # the value, for JSON, CSV and sorting; default: the attribute
    text: Callable[[Listed], Any] | None = None  # how a person reads it, where not as the value itself
    short: Callable[[Listed], str] | None = None  # the same in fewer letters, for narrow terminals
    short_heading: str = ""
    is_metric: bool = False  # its name is a published one, so it is written as it is

    def value(self, item: Listed) -> Any:
        """Its value; None is not known."""
        return self.of(item) if self.of else getattr(item.row, self.attribute or self.key.replace("-", "_"))

    def shown(self, item: Listed, *, brief: bool = False) -> str:
        """The cell of a table."""
        if brief and self.short:
            return self.short(item)
        return _plain((self.text or self.value)(item))

    def headed(self, *, brief: bool = False) -> str:
        """The heading of the column."""
        return (brief and self.short_heading) or self.heading or self.key

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called on the command line, the key first."""
        return self.key, self.attribute, self.headed()


def _plain(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _resolution(item: Listed) -> str:
    train, test = item.row.train_resolution, item.row.test_resolution
    return _plain(test) if train in (test, None) else f"{train}/{_plain(test)}"


def _brief_data(item: Listed) -> str:
    return _plain(item.row.pretrain_data).replace("ImageNet-", "").replace(" ", "")


def _all_metrics(item: Listed) -> str | None:
    return ", ".join(f"{name} {value}" for name, value in item.row.metrics.items()) or None


def _metric(name: str) -> Field:
    """The column of a metric, under its published name."""
    return Field(name, numeric=True, of=lambda item: item.row.metric(name), is_metric=True)


def _metrics_of(items: Iterable[Listed]) -> list[str]:
    """Further metrics of some entries, in the order in which they are published."""
    return list(dict.fromkeys(name for item in items for name in item.row.metrics))


def _download(item: Listed) -> str:
    sources = item.row.sources
    return next((source.url for source in sources if not source.manual), sources[0].url)


_OF_THE_MODEL = (
    Field("family"),
    Field("id"),
    Field("variant"),
    Field("name", "display_name", "model"),
    Field("group"),
    Field("required"),
    Field("task"),
    Field("method"),
    Field("serves"),
    Field("resolution", "test_resolution", numeric=True, text=_resolution, short_heading="res"),
    Field("train-resolution", heading="train resolution", numeric=True),
    Field("test-resolution", heading="test resolution", numeric=True),
    Field("pos-emb", "pos_emb", short_heading="pos"),
    Field("pretrain", "pretrain_data", short=_brief_data),
    Field("setting"),
    Field("params", numeric=True, text=lambda item: item.row.published_params),
    Field("flops", heading="FLOPs", numeric=True, text=lambda item: item.row.published_flops),
    Field("top1", "published_top1", "top-1", numeric=True),
    Field("top5", "published_top5", "top-5", numeric=True),
    Field("metrics", of=_all_metrics),
    Field("dataset"),
    Field("classes", "num_classes", numeric=True),
    Field("published-params", heading="published params", numeric=True),
    Field("published-flops", heading="published FLOPs", numeric=True),
    Field("exact-parameters", heading="exact parameters", numeric=True),
    Field("cached", of=lambda item: item.cached),
    Field("layout"),
    Field("format"),
    Field("weights"),
    Field("normalization"),
    Field("test-resize", heading="test resize", numeric=True),
    Field("interpolation"),
)
_ABOUT_THE_FILE = (
    Field("license"),
    Field("paper"),
    Field("file", "file_name"),
    Field("size", numeric=True, of=lambda item: item.row.total_size),
    Field("sha256"),
    Field("md5"),
    Field("url", "sources", "URL", of=_download),
    Field("config", "config_url"),
    Field("log", "log_url"),
    Field("note"),
)
_LINKS = frozenset({"url", "config", "log"})

#: Columns that are shown where none are chosen.
_IN_A_TABLE = (
    *("family", "id", "resolution", "pos-emb", "pretrain", "setting", "params", "flops", "top1", "cached"),
)
_OF_OTHER_TASKS = ("id", "method", "setting", "resolution", "pretrain", "params", "flops", "top1", "cached")
_IN_MARKDOWN = ("name", "id", "setting", "pretrain", "resolution", "params", "flops", "top1", "top5")
_IN_A_PAGE = (
    *("id", "task", "resolution", "pos-emb", "pretrain", "setting", "params", "flops", "top1", "top5"),
    "metrics",
)
_WRAPPED = frozenset({"task", "pretrain", "setting", "metrics"})
"""Columns of a page whose cells may have several lines."""

#: Which columns go first when the terminal is narrow; then metrics, from the last.
_LEAST_IMPORTANT = ("family", "pretrain", "setting", "pos-emb", "flops", "cached", "resolution", "method")


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
                heading=setting.title or name.replace("_", " "),
                numeric=not setting.is_switch,
                of=lambda item, name=name: item.row.settings.get(name),  # type: ignore[misc]
            )
            for name, setting in settings
        ),
        *_ABOUT_THE_FILE,
    )


def column_names() -> list[str]:
    """Names of the columns, as ``--columns`` and ``--sort`` take them."""
    return [field.key for field in _fields()]


def field_named(name: str, metrics: Iterable[str] = ()) -> Field:
    """The field a user means: its key, its heading or the registry's name, in any case, with hyphens or not.

    ``metrics`` are names of metrics that entries have.

    Examples
    --------
    >>> field_named("Top-1").key, field_named("pretrain_data").key
    ('top1', 'pretrain')
    """
    wanted = "posemb" if spelled(name) == "posembedding" else spelled(name)
    if (metric := next((one for one in metrics if spelled(one) == wanted), None)) is not None:
        return _metric(metric)
    for fields in map(_fields, (False, True)):
        for names in ([field.names[:1] for field in fields], [field.names for field in fields]):
            for field, own in zip(fields, names, strict=True):
                if wanted and wanted in map(spelled, own):
                    return field
    known = ", ".join([*column_names(), *metrics])
    raise UsageError(f"unknown column {name!r}", hint=f"choose from {known}")


def fields_named(names: str | None, metrics: Sequence[str] = ()) -> list[Field] | None:
    """The fields of a comma-separated list; None for none given."""
    if names is None:
        return None
    wanted = [field_named(name, metrics) for name in names.split(",") if name.strip()]
    if not wanted:
        raise UsageError("--columns is empty", hint="write them like --columns id,params,top1")
    return wanted


def ordered(items: Iterable[Listed], key: str, *, reverse: bool) -> list[Listed]:
    """Sort by a field; unknown values come last in either direction."""
    items = list(items)
    field = field_named(key.removeprefix("-"), _metrics_of(items))
    down = key.startswith("-") is not reverse
    known = [item for item in items if field.value(item) is not None]
    unknown = [item for item in items if field.value(item) is None]
    return [*sorted(known, key=field.value, reverse=down), *unknown]


@dataclass(frozen=True)
class Listing:
    """Entries and the columns that were chosen for them; each form has columns of its own by default."""

    items: Sequence[Listed]
    chosen: Sequence[Field] | None = None
    metrics: Sequence[str] | None = None  # the only ones to show where no columns are chosen

    def to_json(self) -> list[dict[str, Any]]:
        """Every field of the registry, or the chosen columns."""
        if self.chosen is not None:
            return [{field.key: field.value(item) for field in self.chosen} for item in self.items]
        return [
            {
                **item.row.model_dump(mode="json"),
                "params": item.row.params,
                "flops": item.row.flops,
                "cached": item.cached,
            }
            for item in self.items
        ]

    def print_table(self, output: Output) -> None:
        """Print a table for each task; on a terminal the default columns are made to fit its width."""
        tasks: dict[str, list[Listed]] = {}
        for item in self.items:
            tasks.setdefault("" if self.chosen else item.row.task, []).append(item)
        hidden: dict[str, None] = {}
        for place, (task, members) in enumerate((tasks or {"": []}).items()):
            if len(tasks) > 1:
                what = f"{in_words(task)}: {counted(len(members), 'entry')}"
                output.text(*[""] * bool(place), what)
            hidden |= dict.fromkeys(replace(self, items=members)._print_task(output, task))
        if hidden:
            output.note(f"too wide for this terminal: {', '.join(hidden)}; choose with --columns")

    def _print_task(self, output: Output, task: str) -> list[str]:
        """Print one table; gives the headings of the columns that do not fit."""
        fields, brief = self._fields_of_a_task(task), False
        hidden: list[str] = []
        if self.chosen is None and output.stdout.isatty():
            if self.items:
                fields = [field for field in fields if not self._is_unknown(field)]
            fitted, brief = self._fitted(output, fields)
            hidden = [field.headed() for field in fields if field not in fitted]
            fields = fitted
        output.table(*self._table(fields, brief=brief))
        return hidden

    def _fields_of_a_task(self, task: str) -> list[Field]:
        """What tells entries of a task apart, and how good they are at it."""
        if self.chosen is not None:
            return list(self.chosen)
        usual = task in ("", _CLASSIFICATION)
        fields = [field_named(name) for name in (_IN_A_TABLE if usual else _OF_OTHER_TASKS)]
        if not usual:
            fields = [field for field in fields if not self._is_unknown(field)]
        names = _metrics_of(self.items) if self.metrics is None else self.metrics
        further = [_metric(name) for name in names if spelled(name) not in {"top1", "top5"}]
        return [*fields[:-1], *(field for field in further if not self._is_unknown(field)), *fields[-1:]]

    def _columns(self, default: Sequence[str]) -> list[Field]:
        return list(self.chosen or map(field_named, default))

    def _table(self, fields: Sequence[Field], *, brief: bool) -> tuple[list[Column], list[list[str]]]:
        columns = [Column(field.headed(brief=brief), field.numeric) for field in fields]
        return columns, [[field.shown(item, brief=brief) for field in fields] for item in self.items]

    def _is_unknown(self, field: Field) -> bool:
        return all(field.shown(item) == UNKNOWN for item in self.items)

    def _fitted(self, output: Output, fields: Sequence[Field]) -> tuple[list[Field], bool]:
        """Find what fits: with short cells, then without the lesser columns, except those that fit alone."""
        if output.fits(*self._table(fields, brief=False)):
            return list(fields), False
        metrics = [field.key for field in fields if field.is_metric]
        order = [*_LEAST_IMPORTANT, *metrics[:0:-1]]
        out: list[str] = []

        def without(keys: Sequence[str]) -> list[Field]:
            return [field for field in fields if field.key not in keys]

        while len(out) < len(order) and not output.fits(*self._table(without(out), brief=True)):
            out.append(order[len(out)])
        for key in reversed(out):
            fewer = [other for other in out if other != key]
            if output.fits(*self._table(without(fewer), brief=True)):
                out = fewer
        return without(out), True

    def csv(self) -> str:
        """The list as CSV: every column, or the chosen ones; unknown values are empty."""
        return csv_text(self._values())

    def tsv(self) -> str:
        """The same with tabs between the columns, for ``cut`` and ``awk``."""
        return "\n".join("\t".join(map(escaped, row)) for row in self._values())

    def _values(self) -> list[list[str]]:
        fields = list(self.chosen or [*_fields(), *map(_metric, _metrics_of(self.items))])
        rows = [[_csv_cell(field.value(item)) for field in fields] for item in self.items]
        return [[field.key for field in fields], *rows]

    def markdown(self) -> str:
        """The list as tables, one for each published table, under a heading."""
        groups: dict[_Group, list[Listed]] = {}
        for item in self.items:
            row = item.row
            key = (row.family, row.group, row.pos_emb, row.layout, row.task, row.method)
            groups.setdefault(key, []).append(item)
        return "\n\n".join(
            Listing(members, self.chosen)._markdown_table(_markdown_heading(key, members))
            for key, members in groups.items()
        )

    def _markdown_table(self, heading: str) -> str:
        fields = self._columns(_IN_MARKDOWN)
        if self.chosen is None:
            fields += map(_metric, _metrics_of(self.items))
            fields = [field for field in fields if not self._is_unknown(field)]
            fields.append(_FILES)
        lines = [
            f"### {heading}",
            "",
            _markdown_line(_markdown_capital(field) for field in fields),
            _markdown_line("---:" if field.numeric else "---" for field in fields),
            *(_markdown_line(_markdown_cell(field, item) for field in fields) for item in self.items),
        ]
        return "\n".join(lines)

    def html(self) -> str:
        """The list as a page to sort and filter, in one file that loads nothing.

        Without JavaScript it is a plain table with links. The page's parts are in ``templates/``.
        """
        from ckptkit.analysis.plot.page import page, template
        from ckptkit.analysis.plot.points import family_indices, family_name

        folder = Path(__file__).parent / "templates"
        fields, with_links = self._columns(_IN_A_PAGE), self.chosen is None
        if with_links:
            tasks = {item.row.task for item in self.items}
            left_out = {"task"} if tasks <= {_CLASSIFICATION} else set()
            left_out |= set() if _metrics_of(self.items) else {"metrics"}
            fields = [
                _RECIPE if field.key == "setting" else field for field in fields if field.key not in left_out
            ]
        families = family_indices(item.row.family for item in self.items)
        names = {family: family_name(family) for family in families}
        title = _html_title(list(names.values()))
        body = Template(template("list.html", folder)).substitute(
            title=_html(title),
            lead=_html(_html_lead(len(self.items))),
            families="\n".join(_html_option(family, name) for family, name in names.items()),
            flags="\n".join(
                _html_flag(field, self._choices(field)) for field in fields if self._choices(field)
            ),
            head=_html_head(fields, with_links=with_links),
            rows="\n".join(
                _html_row(item, fields, families[item.row.family], with_links=with_links)
                for item in self.items
            ),
        )
        whole = page(title, body, style=template("list.css", folder), script=template("list.js", folder))
        # It says that it is UTF-8, whatever the output encodes.
        return whole.rstrip("\n").encode("ascii", "xmlcharrefreplace").decode()

    def _choices(self, field: Field) -> list[str]:
        """What to choose from in a column: yes and no where it says both, or several tasks."""
        if field.key == "task":
            tasks = list(dict.fromkeys(item.row.task for item in self.items))
            return tasks if len(tasks) > 1 else []
        both = {True, False} <= {v for item in self.items if isinstance(v := field.value(item), bool)}
        return ["yes", "no"] if both else []


# -- CSV and Markdown ----------------------------------------------------------------------------------------

_Group = tuple[str, str | None, bool | None, str, str, str | None]


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    # Counts are whole numbers; accuracies keep their point.
    return str(int(value)) if isinstance(value, float) and value >= 1000 else _plain(value)


def _markdown_heading(key: _Group, items: Sequence[Listed]) -> str:
    """Say what the rows share: ``MOAT, strong, with position embedding (deeplab2 layout)``."""
    family, group, pos_emb, layout, task, method = key
    # The family's own spelling is in the display names: tiny-MOAT-0, MogaNet-XT.
    parts = items[0].row.display_name.split("-")
    title = next((part for part in parts if part.lower() == family), family)
    embedding = None if pos_emb is None else f"{'with' if pos_emb else 'without'} position embedding"
    work = None if task == _CLASSIFICATION else in_words(task)
    shared = ", ".join(part for part in (title, group, work, method, embedding) if part)
    return f"{escaped(shared, 'markdown')} ({escaped(layout, 'markdown')} layout)"


def _markdown_capital(field: Field) -> str:
    heading = field.headed()
    return heading if field.is_metric or field.key == "id" else heading[:1].upper() + heading[1:]


def _markdown_links(item: Listed) -> str:
    links = [("config", item.row.config_url), ("log", item.row.log_url), ("download", _download(item))]
    return " · ".join(_markdown_link(name, url) for name, url in links if url)


_RECIPE = Field(
    "setting", of=lambda item: ", ".join(filter(None, (item.row.method, item.row.setting))) or None
)
_FILES = Field("files", of=_markdown_links)


def _markdown_cell(field: Field, item: Listed) -> str:
    if field is _FILES:
        return _markdown_links(item)
    if field.key == "id":
        return escaped(item.row.id, "code")
    if field.key in _LINKS:
        return _markdown_link(field.key, field.value(item))
    return escaped(field.shown(item), "markdown")


def _markdown_link(name: str, url: str | None) -> str:
    if not url:
        return UNKNOWN
    address = web_address(url)
    return escaped(url, "code") if address is None else f"[{name}]({address})"


def _markdown_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# -- the page ------------------------------------------------------------------------------------------------

_LONG = 60
"""Letters from which a cell is broken into lines."""


def _html(text: str) -> str:
    return escaped(text, "html")


def _html_title(families: Sequence[str]) -> str:
    whose = " and ".join(part for part in (", ".join(families[:-1]), *families[-1:]) if part)
    return f"Published checkpoints of {whose}" if whose else "Published checkpoints"


def _html_lead(count: int) -> str:
    entries = counted(count, "entry")
    return (
        f"{entries}. Parameters, FLOPs (multiply-adds of one image) and ImageNet-1K accuracy in percent as "
        f"published; {_ON_A_PAGE} where nothing is published."
    )


def _html_option(value: str, text: str) -> str:
    return f'<option value="{_html(value)}">{_html(text)}</option>'


def _html_flag(field: Field, values: Sequence[str]) -> str:
    choices = "".join(_html_option(value, value or "any") for value in ("", *values))
    key = _html(field.key)
    return f'<label>{_html(field.headed())} <select name="{key}" data-flag="{key}">{choices}</select></label>'


def _html_head(fields: Sequence[Field], *, with_links: bool) -> str:
    cells = [
        f'<th scope="col" class="{_html_kind(field)}" data-key="{field.key}">{_html(field.headed())}</th>'
        for field in fields
    ]
    links = ['<th scope="col">published</th>'] if with_links else []
    return "".join([*cells, *links, '<th scope="col" class="get" hidden>fetch</th>'])


def _html_kind(field: Field) -> str:
    return "id" if field.key == "id" else "number" if field.numeric else "text"


def _html_row(item: Listed, fields: Sequence[Field], family: int, *, with_links: bool) -> str:
    from ckptkit.analysis.plot.page import link, links_of
    from ckptkit.analysis.plot.points import LIGHT

    row = item.row
    cells = [_html_cell(field, item) for field in fields]
    if with_links:
        links = " ".join(link(one.url, one.name) for one in links_of(row))
        cells.append(f'<td class="links">{links}</td>')
    command = _html(f"ckptkit fetch {row.id}")
    cells.append(
        f'<td class="get" hidden><button type="button" class="copy" data-copy="{command}" title="{command}" '
        f'aria-label="copy the command {command}">copy</button></td>'
    )
    colour = family % len(LIGHT.families)
    return f'<tr class="f{colour}" data-family="{_html(row.family)}">{"".join(cells)}</tr>'


def _html_cell(field: Field, item: Listed) -> str:
    from ckptkit.analysis.plot.page import link

    value, text = field.value(item), field.shown(item)
    if value is None:
        return f'<td class="{_html_kind(field)} unknown">{_ON_A_PAGE}</td>'
    wrapped = " wrapped" if field.key in _WRAPPED else " long" if len(text) > _LONG else ""
    kind = _html_kind(field) + wrapped
    if field.key == "task":
        text = in_words(text)
    # Numbers are sorted by what they are, not by how they are written.
    number = f' data-v="{value!r}"' if field.numeric and isinstance(value, (int, float)) else ""
    inside = link(text, text) if field.key in _LINKS else _html(text)
    return f'<td class="{kind}"{number}>{inside}</td>'
