"""Choosing entries of the registry by what is known of them: the options that ``list`` and ``plot`` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptkit.cli.completion import complete_families, complete_ids, complete_variants

if TYPE_CHECKING:
    from ckptkit.cli.listing import Listed
    from ckptkit.registry.query import Catalogue
    from ckptkit.registry.rows import Row

_GLOB = "a glob, any case; may be repeated."
_COUNT = "such as 30M, 5.7B or 30000000."

PatternsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATTERN…",
        help="Ids or globs on the id, such as 'moat*-384*'.",
        autocompletion=complete_ids,
    ),
]
FamilyOption = Annotated[
    list[str] | None, typer.Option(help=f"Family: {_GLOB}", autocompletion=complete_families)
]
VariantsOption = Annotated[
    list[str] | None, typer.Option(help=f"Architecture: {_GLOB}", autocompletion=complete_variants)
]
SettingOption = Annotated[list[str] | None, typer.Option(help=f"Training setting: {_GLOB}")]
PretrainOption = Annotated[list[str] | None, typer.Option(help=f"Pretraining data: {_GLOB}")]
AtLeastOption = Annotated[str | None, typer.Option(metavar="COUNT", help=f"At least, {_COUNT}")]
AtMostOption = Annotated[str | None, typer.Option(metavar="COUNT", help=f"At most, {_COUNT}")]
LeastTop1Option = Annotated[float | None, typer.Option(metavar="PERCENT", help="At least this top-1.")]
MostTop1Option = Annotated[float | None, typer.Option(metavar="PERCENT", help="At most this top-1.")]
PixelsOption = Annotated[
    int | None, typer.Option(metavar="PIXELS", help="Trained or tested at this resolution.")
]
PosEmbOption = Annotated[
    bool | None, typer.Option("--pos-emb/--no-pos-emb", help="With or without position embedding.")
]
CachedOption = Annotated[bool | None, typer.Option("--cached/--not-cached", help="Fetched already, or not.")]


def found_entries(
    catalogue: Catalogue[Row], patterns: Sequence[str] | None, *, cached: bool | None, **conditions: Any
) -> list[Listed]:
    """Return the entries that meet every condition given.

    Parameters
    ----------
    catalogue : Catalogue
    patterns : sequence of str or None
        Ids and globs on them; None for all.
    cached : bool or None
        In the cache or not.
    **conditions
        As `Catalogue.find` takes them.

    Raises
    ------
    NotFoundError
        When a plain id is not there.
    """
    from ckptkit.cli.listing import Listed
    from ckptkit.store.cache import Home

    found = catalogue.find(ids=_known(catalogue, patterns), **conditions)
    fetched = set(Home.default().fetched_ids())
    items = [Listed(row, row.id in fetched) for row in found]
    return [item for item in items if cached is None or item.cached is cached]


def _known(catalogue: Catalogue[Row], patterns: Sequence[str] | None) -> Sequence[str] | None:
    """Patterns as they are, after refusing a plain id that is not there."""
    from ckptkit.registry.query import is_glob

    for pattern in patterns or []:
        if not is_glob(pattern):
            catalogue[pattern]
    return patterns or None
