"""``list`` and ``show``: what the registry knows."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from ckptkit.cli.state import State, state_of

if TYPE_CHECKING:
    from ckptkit.cli.listing import Field, Listed
    from ckptkit.registry.query import Catalogue
    from ckptkit.registry.rows import Row


class Form(str, Enum):
    """How ``list`` prints."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"


Glob = "a glob, any case; may be repeated."
Count = "such as 30M, 5.7B or 30000000."


def register(app: typer.Typer) -> None:
    """Add the commands."""
    from ckptkit.cli.registry_admin import registry_app

    app.command("list")(list_command)
    app.command("show")(show_command)
    app.add_typer(registry_app, name="registry")


def list_command(
    context: typer.Context,
    patterns: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATTERN…", help="Ids or globs on the id, such as 'moat*-384*'."),
    ] = None,
    family: Annotated[list[str] | None, typer.Option(help=f"Family: {Glob}")] = None,
    variant: Annotated[list[str] | None, typer.Option(help=f"Architecture: {Glob}")] = None,
    setting: Annotated[list[str] | None, typer.Option(help=f"Training setting: {Glob}")] = None,
    pretrain: Annotated[list[str] | None, typer.Option(help=f"Pretraining data: {Glob}")] = None,
    min_params: Annotated[str | None, typer.Option(metavar="COUNT", help=f"At least, {Count}")] = None,
    max_params: Annotated[str | None, typer.Option(metavar="COUNT", help=f"At most, {Count}")] = None,
    min_flops: Annotated[str | None, typer.Option(metavar="COUNT", help=f"At least, {Count}")] = None,
    max_flops: Annotated[str | None, typer.Option(metavar="COUNT", help=f"At most, {Count}")] = None,
    min_top1: Annotated[float | None, typer.Option(metavar="PERCENT", help="At least this top-1.")] = None,
    max_top1: Annotated[float | None, typer.Option(metavar="PERCENT", help="At most this top-1.")] = None,
    resolution: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Trained or tested at this resolution.")
    ] = None,
    pos_emb: Annotated[
        bool | None, typer.Option("--pos-emb/--no-pos-emb", help="With or without position embedding.")
    ] = None,
    cached: Annotated[
        bool | None, typer.Option("--cached/--not-cached", help="Fetched already, or not.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Sort by a column; -COLUMN sorts downwards.")
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Turn the order round.")] = False,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Columns to show; a wrong one lists them all.")
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="What to print.")] = Form.TABLE,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """List the published checkpoints, in the order of the published tables.

    A resolution such as 160/224 means: trained at 160, tested at 224.

    Examples: ckptkit list --family moat --max-params 30M --min-top1 83
    · ckptkit list 'tiny-*' --sort -top1 --columns id,params,top-1
    """
    from ckptkit.cli import listing

    state = state_of(context)
    chosen = listing.fields_named(columns)
    catalogue = state.rows()
    found = catalogue.find(
        ids=_known(catalogue, patterns),
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
    items = [item for item in _with_cache(found) if cached is None or item.cached is cached]
    if sort is not None:
        items = listing.ordered(items, sort, reverse=reverse)
    elif reverse:
        items.reverse()
    _print(state, items, chosen, Form.JSON if as_json else form)
    if not items:
        state.output.note(f"no entry meets all of this (of {len(catalogue)} in the registry)")


def _known(catalogue: Catalogue[Row], patterns: list[str] | None) -> list[str] | None:
    """Patterns as they are, after refusing a plain id that is not there."""
    from ckptkit.registry.query import is_glob

    for pattern in patterns or []:
        if not is_glob(pattern):
            catalogue[pattern]
    return patterns or None


def _with_cache(rows: list[Row]) -> list[Listed]:
    from ckptkit.cli.listing import Listed
    from ckptkit.store.cache import Home

    fetched = set(Home.default().fetched_ids())
    return [Listed(row, row.id in fetched) for row in rows]


def _print(state: State, items: list[Listed], chosen: list[Field] | None, form: Form) -> None:
    from ckptkit.cli import listing

    if form is Form.JSON:
        state.output.json(listing.as_json(items, chosen))
    elif form is Form.CSV:
        state.output.result(listing.as_csv(items, chosen))
    elif form is Form.MARKDOWN:
        from ckptkit.cli.markdown import tables

        state.output.result(tables(items, chosen))
    else:
        listing.print_table(state.output, items, chosen)


def show_command(
    context: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Ids, or globs on them.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of JSON objects.")] = False,
) -> None:
    """Show everything known of an entry, and what to run next.

    Examples: ckptkit show moat2-384-noposemb · ckptkit show 'moganet-xt-*' --json
    """
    from ckptkit.cli import showing
    from ckptkit.store.cache import Home

    state = state_of(context)
    home = Home.default()
    shown = [(row, home.record(row.id), home.is_cached(row.id)) for row in state.rows().select(ids)]
    if as_json:
        state.output.json([showing.as_json(row, record, cached=cached) for row, record, cached in shown])
        return
    state.output.result(
        "\n\n".join(showing.as_text(row, record, cached=cached) for row, record, cached in shown)
    )
