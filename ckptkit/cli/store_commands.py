"""``fetch`` and ``import``: getting published files into the cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptkit.cli.output import Column, human_bytes
from ckptkit.cli.state import State, state_of

if TYPE_CHECKING:
    from ckptkit.errors import CkptkitError
    from ckptkit.registry import Entry
    from ckptkit.store.cache import Home, Record
    from ckptkit.store.fetch import Fetched
    from ckptkit.store.mirrors import Mirror

Force = Annotated[bool, typer.Option("--force", help="Replace what is cached.")]
AcceptNew = Annotated[
    bool, typer.Option("--accept-new", help="Accept a file that differs from the one fetched before.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("fetch")(fetch_command)
    app.command("import")(import_command)


def fetch_command(
    context: typer.Context,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID…", help="Ids or globs such as 'moat*-384'.")
    ] = None,
    all_entries: Annotated[bool, typer.Option("--all", help="Fetch every entry.")] = False,
    force: Force = False,
    accept_new: AcceptNew = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Download published files into the cache, verify them, unpack archives; prints where they are.

    Interrupted downloads continue where they stopped. What is cached already is not downloaded again.
    """
    from ckptkit.cli.exit_codes import exit_code
    from ckptkit.errors import CkptkitError
    from ckptkit.store.cache import Home
    from ckptkit.store.mirrors import parse_mirrors

    state = state_of(context)
    mirrors = parse_mirrors(state.mirrors)
    entries = _chosen(state, ids or [], all_entries)
    home = Home.default()
    if dry_run:
        _print_plan(state, entries, home, mirrors, force=force, as_json=as_json)
        return
    results: list[dict[str, Any]] = []
    errors: list[CkptkitError] = []
    for entry in entries:
        try:
            fetched = _fetch_one(state, entry, home, mirrors, force=force, accept_new=accept_new)
        except CkptkitError as error:  # the others are fetched all the same
            errors.append(error)
            results.append({"id": entry.id, "error": str(error), "exit_code": int(exit_code(error))})
            if len(entries) > 1:
                state.output.warn(f"{entry.id} could not be fetched: {error}")
            continue
        results.append(_as_json(fetched))
        if not as_json:
            state.output.result(str(fetched.path))
    if as_json:
        state.output.json(results)
    if errors and len(entries) == 1:
        raise errors[0]
    if errors:
        state.output.warn(f"{len(errors)} of {len(entries)} could not be fetched")
        raise typer.Exit(int(exit_code(errors[0])))


def import_command(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID", help="The entry the file belongs to.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file as published.")],
    force: Force = False,
    accept_new: AcceptNew = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take a file downloaded by hand into the cache: it is copied, hashed and checked like a download."""
    from ckptkit.store.cache import Home
    from ckptkit.store.fetch import import_file
    from ckptkit.store.sources import source_of_file

    state = state_of(context)
    entry = state.registry()[id]
    home = Home.default()
    if dry_run:
        name = source_of_file(entry, file.absolute()).file
        state.output.result(f"{file} -> {home.artefact_folder(id) / name}")
        return
    output = state.output
    fetched = import_file(
        entry,
        file,
        home,
        force=force,
        accept_new=accept_new,
        progress=output.progress,
        notes=output.note,
        warn=output.warn,
    )
    how = "was there already" if fetched.from_cache else "imported"
    output.note(f"{id}: {how}, {human_bytes(fetched.record.size)}, sha256 {fetched.record.sha256}")
    if as_json:
        output.json(_as_json(fetched))
    else:
        output.result(str(fetched.path))


def _chosen(state: State, ids: Sequence[str], all_entries: bool) -> list[Entry]:
    from ckptkit.errors import UsageError

    if bool(ids) == all_entries:
        both = ", not both" if ids else ""
        raise UsageError(f"give ids or globs, or --all{both}", hint="see 'ckptkit list'")
    registry = state.registry()
    return registry.select(ids) if ids else list(registry.values())


def _fetch_one(
    state: State, entry: Entry, home: Home, mirrors: Sequence[Mirror], *, force: bool, accept_new: bool
) -> Fetched:
    from ckptkit.store.fetch import fetch

    output = state.output
    began = time.monotonic()
    fetched = fetch(
        entry,
        home,
        offline=state.offline,
        mirrors=mirrors,
        force=force,
        accept_new=accept_new,
        progress=output.progress,
        notes=output.note,
        warn=output.warn,
    )
    record = fetched.record
    if fetched.from_cache:
        output.note(f"{entry.id}: in the cache already ({human_bytes(record.size)})")
    else:
        seconds = max(time.monotonic() - began, 0.001)
        speed = f"{human_bytes(record.size)} in {seconds:.1f} s ({human_bytes(record.size / seconds)}/s)"
        output.note(f"{entry.id}: {speed}, {_checked_by(entry, record)}")
    return fetched


def _checked_by(entry: Entry, record: Record) -> str:
    """Say what the bytes were compared with: a person must know when it was nothing."""
    if entry.sha256:
        return "sha256 as the registry says"
    if record.server_hashes:
        return f"{' and '.join(sorted(record.server_hashes))} as the server says; sha256 {record.sha256}"
    return f"nobody publishes a checksum to compare with; sha256 {record.sha256}"


def _as_json(fetched: Fetched) -> dict[str, Any]:
    record = fetched.record
    return {
        "id": record.id,
        "path": str(fetched.path),
        "artefact": str(fetched.artefact),
        "from_cache": fetched.from_cache,
        "url": record.url,
        "used_url": record.used_url,
        "size": record.size,
        "sha256": record.sha256,
        "server_hashes": dict(record.server_hashes),
        "etag": record.etag,
        "generation": record.generation,
        "fetched_at": record.fetched_at,
        "bn_statistics": record.bn_statistics,
        "note": record.note,
    }


def _print_plan(
    state: State,
    entries: Sequence[Entry],
    home: Home,
    mirrors: Sequence[Mirror],
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Say what would be fetched, from where, to where."""
    from ckptkit.store.sources import plan_sources

    plans = []
    for entry in entries:
        sources = plan_sources(entry, mirrors)
        cached = home.is_cached(entry.id) and not force
        folder = home.artefact_folder(entry.id)
        plans.append(
            _Plan(
                entry.id,
                "nothing, cached" if cached else "fetch" if sources else "by hand",
                [source.used_url for source in sources] or [source.url for source in entry.sources],
                str(folder / sources[0].file if sources else folder),
            )
        )
    if as_json:
        names = ("id", "action", "from", "to")
        state.output.json([dict(zip(names, astuple(plan), strict=True)) for plan in plans])
        return
    columns = [Column("id"), Column("action"), Column("from"), Column("to")]
    state.output.table(columns, [[p.id, p.action, p.origins[0], p.target] for p in plans])


@dataclass(frozen=True)
class _Plan:
    """What a fetch would do for one entry."""

    id: str
    action: str
    origins: list[str]
    target: str
