"""What a shell offers for the word under the cursor: ids, variants, columns.

typer finds the parameter under the cursor, and a function here offers what fits. File names are left to the
shell, which offers its own where nothing fits: it knows how to quote them. An answer becomes part of a
command line, and zsh evaluates it: only `PLAIN` values are offered, and a description is quoted. Any error
means that nothing is offered.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ckptkit.registry.query import Registry

PLAIN = re.compile(r"[A-Za-z0-9@%+,./=_-]+")
"""What no shell takes for anything but itself, typed without quotes."""

VARIABLE = "_CKPTKIT_COMPLETE"
"""Of the environment: what a shell asks for."""

_DESCRIPTION = 200


def complete_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the registry, those of the overlays on the line too, without those given already."""
    given = _given(ctx)
    return [id for id in _registry(ctx) if id.startswith(incomplete) and id not in given]


def complete_fetched(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the entries that are in the cache."""
    given = _given(ctx)
    return [id for id in _fetched() if id.startswith(incomplete) and id not in given]


def complete_logs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the entries of which a training log is published."""
    return [id for id, row in _registry(ctx).items() if row.log_url and id.startswith(incomplete)]


def complete_ids_or_variants(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the registry and the variants they are of."""
    return [*complete_ids(ctx, incomplete), *complete_variants(ctx, incomplete)]


def complete_variants(ctx: typer.Context, incomplete: str) -> list[str]:
    """Variants that the registry has entries of."""
    return _distinct((row.variant for row in _registry(ctx).values()), incomplete)


def complete_families(ctx: typer.Context, incomplete: str) -> list[str]:
    """Families that the registry has entries of."""
    return _distinct((row.family for row in _registry(ctx).values()), incomplete)


def complete_tasks(ctx: typer.Context, incomplete: str) -> list[str]:
    """Tasks of ckptkit's registry, and those of the registry in use."""
    from ckptkit.registry.schema import TASKS

    return _distinct([*TASKS, *(row.task for row in _registry(ctx).values())], incomplete)


def complete_metrics(ctx: typer.Context, incomplete: str) -> list[str]:
    """Metrics that an entry of the registry has."""
    published = (name for row in _registry(ctx).values() for name in row.published_metrics)
    return _distinct(published, incomplete)


def complete_values(field: str) -> Callable[[str], list[str]]:
    """Values that a field of a registry entry may have, of those that have few.

    Examples
    --------
    >>> complete_values("normalization")("h")
    ['half']
    """

    def complete(incomplete: str) -> list[str]:
        from ckptkit.families.base import registry_families
        from ckptkit.registry.schema import json_schema

        rule = json_schema(registry_families())["$defs"]["Entry"]["properties"][field]
        values = [value for choice in (rule, *rule.get("anyOf", ())) for value in choice.get("enum", ())]
        return [value for value in values if value.startswith(incomplete)]

    return complete


def complete_column(incomplete: str) -> list[str]:
    """Columns of ``list``."""
    from ckptkit.cli.entries import column_names

    return [name for name in column_names() if name.startswith(incomplete)]


def complete_columns(incomplete: str) -> list[str]:
    """The last of several columns of ``list``, separated by commas.

    Examples
    --------
    >>> [text for text in complete_columns("id,top") if "top1" in text]
    ['id,top1']
    """
    before, comma, last = incomplete.rpartition(",")
    named = before.split(",")
    return [before + comma + name for name in complete_column(last) if name not in named]


def _registry(ctx: typer.Context) -> Registry:
    """The entries, with the overlays on the line; without those where one cannot be read."""
    from ckptkit.base.errors import CkptkitError
    from ckptkit.families.base import registry_families
    from ckptkit.registry.loading import cached_registry, is_url, load_registry

    named = ctx.find_root().params.get("registry") or ()
    try:
        overlays = [cached_registry(name) if is_url(name) else Path(name) for name in named]
        return load_registry(overlays, registry_families)
    except (CkptkitError, OSError):
        return load_registry(families=registry_families)


def _fetched() -> list[str]:
    from ckptkit.store.cache import Home

    return Home.default().fetched_ids()


def _given(ctx: typer.Context) -> set[str]:
    """What is on the line already, of arguments that may be repeated."""
    return {word for values in ctx.params.values() if isinstance(values, (list, tuple)) for word in values}


def _distinct(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def answer(line: Any) -> None:
    """Answer a shell for the line's root and end the process; nothing is ever printed on stderr."""
    with _silenced():
        try:
            join_assignments(os.environ)
            what, _, shell = os.environ[VARIABLE].partition("_")
            if what != "complete":
                line([])  # typer prints the script that a shell sources
            offers = _offers(shell, line)
            if shell == "fish" and os.environ.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
                sys.exit(0 if offers else 1)
            typer.echo(_SHELLS[shell](offers))
        except Exception:  # a shell in the middle of a line has no use for an error
            sys.exit(1)
    sys.exit(0)


def _offers(shell: str, line: Any) -> dict[str, str]:
    """What fits under the cursor, by typer's search, with its description."""
    from typer import _completion_classes as classes

    kinds = {"bash": classes.BashComplete, "zsh": classes.ZshComplete, "fish": classes.FishComplete}
    kind: Any = kinds.get(shell, classes.PowerShellComplete)
    asked = kind(line, {}, "ckptkit", VARIABLE)
    found = asked.get_completions(*asked.get_completion_args())
    return {item.value: _described(item.help) for item in found if PLAIN.fullmatch(item.value)}


def _described(text: str | None) -> str:
    """A description as one line of printable text."""
    whole = " ".join((text or "").replace("\\[", "[").split())
    return "".join(c for c in whole if c.isprintable())[:_DESCRIPTION]


def _for_bash(offers: dict[str, str]) -> str:
    return "\n".join(offers)


def _for_zsh(offers: dict[str, str]) -> str:
    """What typer's script evaluates, with all its line breaks made spaces."""
    if not offers:
        return "_files"
    texts = (f"{value}:{text}" if text else value for value, text in offers.items())
    words = " ".join("'" + text.replace("'", "'\\''") + "'" for text in texts)
    return f"local -a offers; offers=({words}); compset -P '--*='; _describe ckptkit offers"


def _for_fish(offers: dict[str, str]) -> str:
    return "\n".join(f"{value}\t{text}" if text else value for value, text in offers.items())


def _for_powershell(offers: dict[str, str]) -> str:
    return "\n".join(f"{value}:::{text.replace(':::', ' ') or ' '}" for value, text in offers.items())


_SHELLS: dict[str, Callable[[dict[str, str]], str]] = {
    "bash": _for_bash,
    "zsh": _for_zsh,
    "fish": _for_fish,
    "powershell": _for_powershell,
    "pwsh": _for_powershell,
}


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def join_assignments(environment: os._Environ[str] | dict[str, str]) -> None:
    r"""Undo what bash does to ``--option=value``, which it hands over as three words.

    Examples
    --------
    >>> line = {"COMP_WORDS": "ckptkit\nlist\n--format\n=\njs", "COMP_CWORD": "4"}
    >>> join_assignments(line)
    >>> line
    {'COMP_WORDS': 'ckptkit\nlist\n--format\njs', 'COMP_CWORD': '3'}
    """
    words = environment.get("COMP_WORDS", "").split("\n")
    cursor = environment.get("COMP_CWORD", "")
    if "=" not in words or not cursor.isdecimal():
        return
    environment["COMP_WORDS"] = "\n".join(word for word in words if word != "=")
    environment["COMP_CWORD"] = str(int(cursor) - words[: int(cursor)].count("="))
