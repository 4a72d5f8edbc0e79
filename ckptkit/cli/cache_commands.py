"""``cache``: what is on this machine, whether it still holds, and how to be rid of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ckptkit.base.errors import command
from ckptkit.base.parse import is_glob, parse_age, parse_bytes
from ckptkit.base.shown import Column
from ckptkit.base.text import counted, human_bytes
from ckptkit.cli.completion import complete_fetched
from ckptkit.cli.options import State, state_of, usage_of
from ckptkit.cli.output import ExitCode
from ckptkit.cli.remote_output import one_file

if TYPE_CHECKING:
    from ckptkit.base.checksums import ExpectedChecksum
    from ckptkit.store.cache import Home
    from ckptkit.store.checksum_file import ChecksumFile
    from ckptkit.store.upkeep import Holding, Kind, Removal


cache_app = typer.Typer(
    help="Inspect, verify and clean the cache folder (CKPTKIT_HOME).", no_args_is_help=True
)

Ids = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ID…]",
        help="Ids or globs such as 'moat*-384', 'onnx/*' or 'eval/*'; default: all.",
        autocompletion=complete_fetched,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be removed; remove nothing.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(cache_app, name="cache", short_help="Inspect, verify and clean the cache folder.")


@cache_app.command("ls")
def ls_command(context: typer.Context, ids: Ids = None) -> None:
    """List what is in the cache: sizes, last use, and whether it is intact by size and time.

    Stale: unpacked or converted from an earlier version of the entry's file. After the entries come graphs
    exported for ONNX Runtime (onnx/…) and unfinished evaluations (eval/…).

    Examples: ckptkit cache ls · ckptkit cache ls '*-256' --json
    """
    from ckptkit.store.cache import Home
    from ckptkit.store.upkeep import holdings

    state = state_of(context)
    home = Home.default()
    held = holdings(home, ids or [])
    if ids:
        _refuse_unknown(ids, [holding.id for holding in held])
    if not held:
        state.output.note(f"{home.path}: nothing in the cache yet")
    state.output.result(_cache_json(home, held), lambda: _print_holdings(state, home, held))


def _print_holdings(state: State, home: Home, held: Sequence[Holding]) -> None:
    entries = [holding for holding in held if "/" not in holding.id]
    if entries:
        _print_entries(state, home, entries)
    if shared := [holding for holding in held if "/" in holding.id]:
        columns = [Column("kept"), Column("size", True), Column("last used"), Column("state")]
        rows = [[h.id, human_bytes(h.size), _day(h.used), h.items[0].state] for h in shared]
        state.output.table(columns, rows)


_SIZES: Mapping[str, Kind] = {"file": "artefact", "unpacked": "unpacked", "converted": "converted"}
"""Columns of ``cache ls``, and the kind of thing whose size each shows."""


def _print_entries(state: State, home: Home, held: Sequence[Holding]) -> None:
    sizes = [Column(heading, numeric=True) for heading in (*_SIZES, "total")]
    columns = [Column("id"), *sizes, Column("last used", spare=True), Column("state")]
    rows = [
        [h.id, *(_size(h, kind) for kind in _SIZES.values()), human_bytes(h.size), _day(h.used), _states(h)]
        for h in held
    ]
    totals = [sum(h.size_of(kind) for h in held) for kind in _SIZES.values()] + [sum(h.size for h in held)]
    rows.append([f"total of {len({h.id for h in held})}", *map(human_bytes, totals), "", ""])
    if len(home.homes) > 1:
        columns.append(Column("folder"))
        rows = [[*row, place] for row, place in zip(rows, [*(str(h.home) for h in held), ""], strict=True)]
    state.output.table(columns, rows)


@cache_app.command("rm")
def rm_command(
    context: typer.Context,
    ids: Annotated[
        list[str],
        typer.Argument(
            metavar="ID…",
            help="Ids or globs such as 'moat*-384', 'onnx/*' or 'eval/*'.",
            autocompletion=complete_fetched,
        ),
    ],
    converted: Annotated[bool, typer.Option("--converted", help="Only the conversions.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Remove entries from the cache: the file, its unpacked archive, its conversions, its training log.

    onnx/… is a graph exported for ONNX Runtime, eval/… an unfinished evaluation.

    Entries in use by another process are skipped, with a note. If CKPTKIT_HOME lists several folders, entries
    are removed only from the one that is written to.

    Examples: ckptkit cache rm 'moganet*' --converted --dry-run · ckptkit cache rm tiny-moat0-256
    """
    from ckptkit.store.cache import Home
    from ckptkit.store.upkeep import held_ids, remove, shared_ids, sweep, written_to

    state = state_of(context)
    home = Home.default()
    held = [(single, id) for single in home.homes for id in held_ids(single, ids)]
    if not converted:
        held += [(single, id) for single in home.homes for id in shared_ids(single, ids)]
    found = [id for single, id in held if written_to(home, id) is single]
    for single in home.homes:
        if others := [id for place, id in held if place is single and written_to(home, id) is not single]:
            state.output.note(f"{', '.join(others)}: left in {single.path}, which is only read")
    _warn_of_links(state, home)
    _refuse_unknown(ids, [id for _, id in held])
    removals = [remove(home, id, converted_only=converted, dry_run=dry_run) for id in found]
    freed = 0 if dry_run else sweep(home)
    _report(state, removals, freed, dry_run=dry_run)


@cache_app.command("prune")
def prune_command(
    context: typer.Context,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Remove what has not been used for this long: 30d, 12h, 2w."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Remove until the total size is at most this: 20GB, 500MiB."),
    ] = None,
    imported: Annotated[
        bool,
        typer.Option("--imported", help="Also remove what was imported by hand, which fetch cannot restore."),
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Remove whole entries, least recently used first; exported graphs and evaluations are pruned alike.

    Used means: fetched, converted or proven by ckptkit. Entries in use by another process are skipped.

    Examples: ckptkit cache prune --older-than 30d · ckptkit cache prune --max-size 20GB --dry-run
    """
    from ckptkit.base.errors import UsageError
    from ckptkit.store.cache import Home
    from ckptkit.store.upkeep import own_holdings, prune, sweep

    state = state_of(context)
    if older_than is None and max_size is None:
        typer.echo(usage_of(context), err=True)
        raise UsageError(
            "nothing selected for removal", hint="give --older-than 30d, --max-size 20GB, or both"
        )
    home = Home.default()
    age = None if older_than is None else parse_age(older_than)
    limit = None if max_size is None else parse_bytes(max_size, example="20GB, 500MB or 1.5GiB")
    _warn_of_links(state, home)
    swept = 0 if dry_run else sweep(home)
    sizes = {holding.id: holding.size for holding in own_holdings(home)}
    removals = list(prune(home, older_than=age, max_size=limit, by_hand=imported, dry_run=dry_run))
    _report(state, removals, swept, dry_run=dry_run)
    left = sum(sizes.values()) - sum(min(r.freed, sizes.get(r.id, 0)) for r in removals)
    if limit is not None and left > limit:
        state.output.warn(f"{human_bytes(left)} are left, more than {human_bytes(limit)}")


@cache_app.command("checksums")
def checksums_command(
    context: typer.Context,
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID…]",
            help="Ids, or globs on them; default: all of the lock file.",
            autocompletion=complete_fetched,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write to this file instead of printing; - prints."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
) -> None:
    """Export the lock file's checksums in the format of sha256sum.

    The paths are those below the cache folder, so 'sha256sum -c --ignore-missing' works there, and
    'ckptkit cache verify --checksums FILE' on any machine.

    Examples: ckptkit cache checksums -o SHA256SUMS · ckptkit cache checksums 'moganet-*'
    """
    from fnmatch import fnmatchcase

    from ckptkit.base.errors import NotFoundError
    from ckptkit.base.files import StagedFile
    from ckptkit.store.checksum_file import checksum_lines
    from ckptkit.store.lockfile import LockFile

    state, trust = state_of(context), LockFile.default()
    entries = trust.everything()
    for pattern in ids or ():
        if not any(fnmatchcase(id, pattern) for id in entries):
            raise NotFoundError(
                f"the lock file {trust.path} knows nothing of {pattern!r}", hint=command("fetch", pattern)
            )
    chosen = [id for id in sorted(entries) if not ids or any(fnmatchcase(id, one) for one in ids)]
    lines = checksum_lines(entries, chosen)
    path = one_file(output)
    if path is not None:
        with StagedFile(path, force=force) as file:
            file.append("".join(f"{line}\n" for line in lines).encode())
            file.commit()
    result = {"lock_file": str(trust.path), "checksums": lines, "path": path and str(path)}
    state.output.result(result, *(lines if path is None else [str(path)]))
    state.output.note(f"{counted(len(lines), 'checksum')} of {counted(len(chosen), 'entry')}")


@cache_app.command("verify")
def verify_command(
    context: typer.Context,
    ids: Ids = None,
    checksums: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Compare with this file of sha256sum as well, such as 'cache checksums' makes.",
        ),
    ] = None,
) -> None:
    """Read everything again: each file against its record, the registry's pin and the lock file.

    Unpacked folders are compared with their archive. Several threads read at once; nothing is changed.
    Exits with 1 if a check fails.

    Examples: ckptkit cache verify · ckptkit cache verify moganet-xt-224 --json
    · ckptkit cache verify --checksums SHA256SUMS
    """
    from ckptkit.store.cache import Home
    from ckptkit.store.checksum_file import read_checksums
    from ckptkit.store.upkeep import held_ids, holdings, verify_cache

    state = state_of(context)
    listed = None if checksums is None else read_checksums(checksums)
    home = Home.default()
    if ids:
        _refuse_unknown(ids, [id for single in home.homes for id in held_ids(single, ids)])
    held = holdings(home, ids or [], examine=False)
    total = sum(holding.size_of("artefact") + holding.size_of("unpacked") for holding in held)
    with state.output.progress("reading the cache", total) as advance:
        verdicts = list(verify_cache(home, ids or [], expected=_expected_by(state, listed), advance=advance))
    wrong = [verdict for verdict in verdicts if not verdict.ok]
    rows = [[v.id, v.path.name, "ok" if v.ok else "wrong", v.detail] for v in verdicts]
    columns = [Column("id"), Column("what"), Column("status"), Column("found")]
    styles = [None if v.ok else "red" for v in verdicts]
    table = partial(state.output.table, columns, rows, styles=styles)
    state.output.result(verdicts, *([table] if rows else []))
    state.output.note(
        f"{human_bytes(sum(v.size for v in verdicts))} read, {counted(len(verdicts), 'check')}: "
        + (f"{len(wrong)} failed" if wrong else "all passed")
    )
    if wrong:
        raise typer.Exit(int(ExitCode.CHECK_FAILED))


@cache_app.command("path")
def path_command(
    context: typer.Context,
    id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="An entry that was fetched.", autocompletion=complete_fetched),
    ] = None,
) -> None:
    """Print the cache folder, or the path of an entry's checkpoint.

    If CKPTKIT_HOME lists several folders, the one that is written to comes first.

    Examples: ckptkit cache path · ls "$(ckptkit cache path moganet-xt-224)"
    """
    from ckptkit.store.cache import Home

    state = state_of(context)
    home = Home.default()
    if id is not None and is_glob(id):
        state.registry()[id]  # says which entries it matches
    paths = [str(single.path) for single in home.homes] if id is None else [_checkpoint_path(home, id)]
    state.output.result({"folders": paths} if id is None else {"id": id, "path": paths[0]}, *paths)


def _expected_by(state: State, listed: ChecksumFile | None) -> Callable[[str, str], list[ExpectedChecksum]]:
    """What the registry, the lock file and a file of checksums expect of a file."""
    from ckptkit.store.lockfile import LockFile

    registry, trust = state.registry(), LockFile.default()

    def expected(id: str, file: str) -> list[ExpectedChecksum]:
        entry = registry.get(id)
        stated = list((entry.of_companion(file) or entry).expected) if entry else []
        trusted = None if any(one.algorithm == "sha256" for one in stated) else trust.expected(id, file)
        of_list = listed.expected(id, file) if listed else []
        return [*stated, *([trusted] if trusted else []), *of_list]

    return expected


def _checkpoint_path(home: Home, id: str) -> str:
    from ckptkit.base.errors import NotFoundError, command
    from ckptkit.store.unpack import checkpoint_of

    record = home.record(id)
    if record is None or not home.is_cached(id):
        raise NotFoundError(f"{id} is not in the cache", hint=command("fetch", id))
    return str(checkpoint_of(home, record) or home.artefact(record))


def _refuse_unknown(patterns: Sequence[str], found: Sequence[str]) -> None:
    """Refuse an id or a glob of which the cache has nothing."""
    import fnmatch

    from ckptkit.base.errors import NotFoundError

    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(id, pattern) for id in found):
            raise NotFoundError(f"nothing in the cache matches {pattern!r}", hint="see 'ckptkit cache ls'")


def _warn_of_links(state: State, home: Home) -> None:
    from ckptkit.store.cache import KINDS, OTHER_DISK
    from ckptkit.store.upkeep import SHARED

    for single in home.homes:
        for link in single.links(kinds=(*KINDS, "locks", *SHARED)):
            state.output.warn(f"{link}; left as it is: {OTHER_DISK}")


def _report(state: State, removals: Sequence[Removal], swept: int, *, dry_run: bool) -> None:
    freed = sum(removal.freed for removal in removals) + swept
    for removal in removals:
        for reason in removal.kept:
            state.output.warn(reason)
    state.output.result(
        {"dry_run": dry_run, "freed": freed, "entries": removals},
        *(f"{removal.id}  {human_bytes(removal.freed)}" for removal in removals if removal.removed),
    )
    state.output.note(f"{human_bytes(freed)} {'would be freed' if dry_run else 'freed'}")


def _size(holding: Holding, kind: Kind) -> str:
    found = holding.of(kind)
    count = f"{len(found)}: " if kind == "converted" else ""
    return f"{count}{human_bytes(holding.size_of(kind))}" if found else "-"


def _states(holding: Holding) -> str:
    states = []
    names = {"artefact": "file", "unpacked": "unpacked", "converted": "conversion", "unfinished": "download"}
    for item in holding.items:
        if item.kind == "unfinished":
            if item.path.suffix != ".json":
                states.append(f"{item.state}: {human_bytes(item.size)}")
        elif item.state != "intact":
            is_one_of_several = item.kind == "converted" or len(holding.of(item.kind)) > 1
            what = item.path.name if is_one_of_several else names[item.kind]
            states.append(f"{what} {item.state}")
    return ", ".join(states) or "intact"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M")


def _cache_json(home: Home, held: Sequence[Holding]) -> dict[str, Any]:
    """The same for ``--json``, every file with its path."""
    from ckptkit.store.upkeep import Kind

    return {
        "folders": [str(single.path) for single in home.homes],
        "kept": [
            {"id": h.id, "folder": h.home, "last_used": _iso(h.used), **vars(h.items[0])}
            for h in held
            if "/" in h.id
        ],
        "entries": [
            {
                "id": h.id,
                "folder": h.home,
                "size": h.size,
                "last_used": _iso(h.used),
                "imported_by_hand": h.by_hand,
                "intact": h.is_intact,
                "items": h.items,
            }
            for h in held
            if "/" not in h.id
        ],
        "total": {kind: sum(h.size_of(kind) for h in held) for kind in get_args(Kind)}
        | {"all": sum(h.size for h in held)},
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
