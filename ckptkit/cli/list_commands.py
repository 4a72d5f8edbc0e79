"""``list`` and ``show``: what the registry knows."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptkit.base.text import counted
from ckptkit.cli.completion import complete_column, complete_columns, complete_ids
from ckptkit.cli.entries import Listing, fields_named, ordered
from ckptkit.cli.options import EntryFilter, PatternsArgument, state_of
from ckptkit.cli.output import Output
from ckptkit.cli.remote_output import one_file

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry
    from ckptkit.store.cache import Record


class Form(str, Enum):
    """How ``list`` prints."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    MARKDOWN = "markdown"
    HTML = "html"


_BY_ENDING = {
    ".json": Form.JSON,
    ".csv": Form.CSV,
    ".tsv": Form.TSV,
    ".md": Form.MARKDOWN,
    ".html": Form.HTML,
    ".htm": Form.HTML,
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("list", short_help="List the published checkpoints.")(list_command)
    app.command("show", short_help="Show everything known about an entry.")(show_command)


def list_command(
    context: typer.Context,
    patterns: PatternsArgument = None,
    where: EntryFilter = EntryFilter(),
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Sort by a column; -COLUMN sorts in descending order.",
            autocompletion=complete_column,
        ),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Reverse the order.")] = False,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…",
            help="Columns to show; an unknown one lists them all.",
            autocompletion=complete_columns,
        ),
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option(
            "--format",
            help="Output format; default: by the ending of --output, else table.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="Write to this file instead of printing; - prints."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written.")] = False,
) -> None:
    """List the published checkpoints by task, in the order of the published tables.

    A resolution such as 160/224 means: trained at 160, tested at 224.

    Examples: ckptkit list --family moat --max-params 30M --min-top1 83
    · ckptkit list 'tiny-*' --sort -top1 --columns id,params,top-1
    · ckptkit list --task object-detection --sort -box_mAP
    · ckptkit list -o checkpoints.html
    """
    state = state_of(context)
    catalogue = state.registry()
    published = dict.fromkeys(name for row in catalogue.values() for name in row.metrics)
    chosen = fields_named(columns, list(published))
    items = where.of(catalogue, patterns)
    if sort is not None:
        items = ordered(items, sort, reverse=reverse)
    elif reverse:
        items.reverse()
    listing = Listing(items, chosen, where.metric)
    path = one_file(output)
    if path is None:
        _print(state.output, listing, form)
    else:
        if not dry_run:
            _write(state.output, path, listing, form, force=force)
        state.output.note(
            f"would write {counted(len(items), 'entry')} to {path}"
            if dry_run
            else counted(len(items), "entry")
        )
        written = {"path": str(path), "dry_run": dry_run, "entries": len(items)}
        state.output.result(written, *([] if dry_run else [str(path)]))
    if not items:
        state.output.note(f"no entry matches all filters (of {len(catalogue)} in the registry)")


def _print(output: Output, listing: Listing, form: Form | None) -> None:
    documents = {
        Form.CSV: listing.csv,
        Form.TSV: listing.tsv,
        Form.MARKDOWN: listing.markdown,
        Form.HTML: listing.html,
    }

    def people() -> None:
        if form in documents:
            output.document(documents[form]())
        else:
            listing.print_table(output)

    output.result(listing, people, json=form is Form.JSON)


def _write(output: Output, path: Path, listing: Listing, form: Form | None, *, force: bool) -> None:
    """Write to a file what would be printed in a pipe; its ending says in which form where no option does."""
    import io

    from ckptkit.base.files import StagedFile

    text = io.StringIO()
    _print(replace(output, stdout=text), listing, form or _BY_ENDING.get(path.suffix.lower()))
    with StagedFile(path, force=force) as file:
        file.append(text.getvalue().encode())
        file.commit()


def show_command(
    context: typer.Context,
    ids: Annotated[
        list[str],
        typer.Argument(metavar="ID…", help="Ids, or globs on them.", autocompletion=complete_ids),
    ],
) -> None:
    """Show everything known about an entry, and what to run next.

    Examples: ckptkit show moat2-384-noposemb · ckptkit show 'moganet-xt-*' --json
    """
    from ckptkit.cli.targets import several, targets
    from ckptkit.store.cache import Home

    state = state_of(context)
    home, workspace = Home.default(), state.workspace()
    names = targets(context, workspace, ids, "show", files=False)
    with several(state.output, names, "shown", done="", key="id") as work:
        for place, name in enumerate(names):
            with work.one(name):
                row = workspace.registry[name]
                record, cached = home.record(row.id), home.is_cached(row.id)
                lines = entry_lines(row, record, cached=cached)
                work.show(entry_json(row, record, cached=cached), *[""] * bool(place), *lines)


def entry_json(row: Entry, record: Record | None, *, cached: bool) -> dict[str, Any]:
    """Return the entry's fields, what follows from them, and what the cache holds of it."""
    observed = None
    if record is not None:
        observed = {
            "sha256": record.sha256,
            "size": record.size,
            "fetched_at": record.fetched_at,
            "url": record.url,
        }
    derived = {
        "params": row.params,
        "flops": row.flops,
        "file_name": row.file_name,
        "is_archive": row.is_archive,
        "total_size": row.total_size,
    }
    return {**row.model_dump(mode="json"), **derived, "cached": cached, "observed": observed}


def entry_lines(row: Entry, record: Record | None, *, cached: bool) -> list[str]:
    """Return the entry for people."""
    from ckptkit.registry.schema import described

    lines = list(described(row, _here(row, record, cached=cached)))
    lines += ["", "Next", *(f"  {command}" for command in _next(row, cached=cached))]
    return lines


def _here(row: Entry, record: Record | None, *, cached: bool) -> list[tuple[str, str]]:
    facts = [("cached", "yes" if cached else "no")]
    if record is not None and record.sha256 != row.sha256:
        facts.append(("observed here", f"sha256 {record.sha256}, {record.size:,} bytes, {record.fetched_at}"))
    return facts


def _next(row: Entry, *, cached: bool) -> list[str]:
    """Return the commands that lead on; those that need the family's models only where it has some."""
    from ckptkit.families.base import families

    get = "import {} FILE" if all(source.manual for source in row.sources) else "fetch {}"
    commands = ["verify {} --deep"] if cached else [get]
    if row.family in families() and row.serves == "whole":
        commands += ["convert {} --to safetensors", "parity {}"]
    else:
        commands += ["convert {} --to safetensors --layout as-is"]
    if cached and not row.is_pinned:
        commands.append("registry pin {}")
    return [f"ckptkit {command.format(row.id)}" for command in commands]
