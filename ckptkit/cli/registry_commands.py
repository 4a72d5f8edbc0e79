"""``list`` and ``show``: what the registry knows."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckptkit.cli.completion import complete_column, complete_columns, complete_ids
from ckptkit.cli.filters import (
    AtLeastOption,
    AtMostOption,
    CachedOption,
    FamilyOption,
    LeastTop1Option,
    MostTop1Option,
    PatternsArgument,
    PixelsOption,
    PosEmbOption,
    PretrainOption,
    SettingOption,
    VariantsOption,
    found_entries,
)
from ckptkit.cli.state import state_of

if TYPE_CHECKING:
    from ckptkit.cli.listing import Field, Listed
    from ckptkit.cli.output import Output


class Form(str, Enum):
    """How ``list`` prints."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"
    HTML = "html"


_BY_ENDING = {
    ".json": Form.JSON,
    ".csv": Form.CSV,
    ".md": Form.MARKDOWN,
    ".html": Form.HTML,
    ".htm": Form.HTML,
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("list", short_help="List the published checkpoints.")(list_command)
    app.command("show", short_help="Show everything known of an entry.")(show_command)


def list_command(
    context: typer.Context,
    patterns: PatternsArgument = None,
    family: FamilyOption = None,
    variant: VariantsOption = None,
    setting: SettingOption = None,
    pretrain: PretrainOption = None,
    min_params: AtLeastOption = None,
    max_params: AtMostOption = None,
    min_flops: AtLeastOption = None,
    max_flops: AtMostOption = None,
    min_top1: LeastTop1Option = None,
    max_top1: MostTop1Option = None,
    resolution: PixelsOption = None,
    pos_emb: PosEmbOption = None,
    cached: CachedOption = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Sort by a column; -COLUMN sorts downwards.",
            autocompletion=complete_column,
        ),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Turn the order round.")] = False,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…",
            help="Columns to show; a wrong one lists them all.",
            autocompletion=complete_columns,
        ),
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option(
            "--format",
            help="What to print; default what the ending of --output says, else table.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file instead of printing.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written.")] = False,
) -> None:
    """List the published checkpoints, in the order of the published tables.

    A resolution such as 160/224 means: trained at 160, tested at 224.

    Examples: ckptkit list --family moat --max-params 30M --min-top1 83
    · ckptkit list 'tiny-*' --sort -top1 --columns id,params,top-1
    · ckptkit list -o checkpoints.html
    """
    from ckptkit.cli import listing

    state = state_of(context)
    chosen = listing.fields_named(columns)
    catalogue = state.rows()
    items = found_entries(
        catalogue,
        patterns,
        cached=cached,
        family=family,
        variant=variant,
        setting=setting,
        pretrain_data=pretrain,
        min_params=min_params,
        max_params=max_params,
        min_flops=min_flops,
        max_flops=max_flops,
        min_top1=min_top1,
        max_top1=max_top1,
        resolution=resolution,
        pos_emb=pos_emb,
    )
    if sort is not None:
        items = listing.ordered(items, sort, reverse=reverse)
    elif reverse:
        items.reverse()
    wanted = form or _BY_ENDING.get(output.suffix.lower() if output else "") or Form.TABLE
    if output is None:
        _print(state.output, items, chosen, wanted)
    else:
        if not dry_run:
            _write(
                output,
                items,
                chosen,
                Form.JSON if state.output.as_json and form is None else wanted,
                force=force,
            )
        state.output.note(
            f"would write {len(items)} entries to {output}" if dry_run else f"{len(items)} entries"
        )
        written = {"path": str(output), "dry_run": dry_run, "entries": len(items)}
        state.output.result(written, *([] if dry_run else [str(output)]))
    if not items:
        state.output.note(f"no entry meets all of this (of {len(catalogue)} in the registry)")


def _write(path: Path, items: list[Listed], chosen: list[Field] | None, form: Form, *, force: bool) -> None:
    """Write to a file what would be printed in a pipe."""
    import io

    from ckptkit.base.files import StagedFile
    from ckptkit.cli.output import Output

    text = io.StringIO()
    _print(Output(stdout=text), items, chosen, form)
    with StagedFile(path, force=force) as file:
        file.append(text.getvalue().encode())
        file.commit()


def _print(output: Output, items: list[Listed], chosen: list[Field] | None, form: Form) -> None:
    from ckptkit.cli import listing

    def people() -> None:
        if form is Form.CSV:
            output.document(listing.as_csv(items, chosen))
        elif form is Form.MARKDOWN:
            from ckptkit.cli.markdown import tables

            output.document(tables(items, chosen))
        elif form is Form.HTML:
            from ckptkit.cli.html_page import list_page

            page = list_page(items, chosen).rstrip("\n")  # says that it is UTF-8, whatever the output encodes
            output.document(page.encode("ascii", "xmlcharrefreplace").decode())
        else:
            listing.print_table(output, items, chosen)

    output.as_json |= form is Form.JSON
    output.result(listing.as_json(items, chosen), people)


def show_command(
    context: typer.Context,
    ids: Annotated[
        list[str],
        typer.Argument(metavar="ID…", help="Ids, or globs on them.", autocompletion=complete_ids),
    ],
) -> None:
    """Show everything known of an entry, and what to run next.

    Examples: ckptkit show moat2-384-noposemb · ckptkit show 'moganet-xt-*' --json
    """
    from ckptkit.cli import showing
    from ckptkit.store.cache import Home

    state = state_of(context)
    home = Home.default()
    shown = [(row, home.record(row.id), home.is_cached(row.id)) for row in state.rows().select(ids)]
    with state.output.results() as show:
        for place, (row, record, cached) in enumerate(shown):
            lines = showing.as_lines(row, record, cached=cached)
            show(showing.as_json(row, record, cached=cached), *[""] * bool(place), *lines)
