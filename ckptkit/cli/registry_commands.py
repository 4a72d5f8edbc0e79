"""``registry validate``, ``schema``, ``pin`` and ``add``: for those who write registry files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptkit.base.errors import IntegrityError, NotFoundError, UsageError, command
from ckptkit.base.files import resolved
from ckptkit.cli.completion import complete_fetched
from ckptkit.cli.options import State, state_of
from ckptkit.cli.registry_add import add_command, show_edit, target_registry

if TYPE_CHECKING:
    from ckptkit.cli.options import State
    from ckptkit.registry import Entry, Pin
    from ckptkit.store.cache import Home, Record
    from ckptkit.store.lockfile import LockEntry, LockFile


registry_app = typer.Typer(help="Check, describe, pin and add to registry files.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(registry_app, name="registry", short_help="Check, describe, pin and add to registry files.")


@registry_app.command("validate")
def validate_command(
    context: typer.Context,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE…", help="Registries, each on top of the built-in one; default: those in use."
        ),
    ] = None,
) -> None:
    """Check registry files: every fault with its line. Exit 1 when there are any.

    Examples: ckptkit registry validate · ckptkit registry validate mine.yaml --json
    """
    from ckptkit.registry import registry_files

    state = state_of(context)
    checks = [_check(file) for file in files] if files else _check_chain(registry_files(state.registries))
    state.output.result(checks, *(line for check in checks for line in _checked(check)))
    if any(check["faults"] for check in checks):
        from ckptkit.cli.output import ExitCode

        raise typer.Exit(int(ExitCode.CHECK_FAILED))


def _checked(check: dict[str, Any]) -> Iterator[str]:
    faults = check["faults"]
    found = _counted(len(faults), "fault", "faults")
    if not faults:
        found = f"{_counted(check['entries'], 'entry', 'entries')}, no fault"
    return (f"{check['file']}: {one}" for one in (*faults, found))


def _check(file: Path) -> dict[str, Any]:
    from ckptkit.registry import built_in_path

    built_in = built_in_path()
    alone = resolved(file) == resolved(built_in)
    return _check_chain([file] if alone else [built_in, file])[-1]


def _check_chain(files: list[Path]) -> list[dict[str, Any]]:
    """Load files on top of each other: how many entries each has, or the faults of the first that has any."""
    from ckptkit.base.errors import RegistryError
    from ckptkit.families import registry_families
    from ckptkit.registry.loading import load_texts, read_text

    try:
        registry = load_texts([(file, read_text(file)) for file in files], registry_families())
    except RegistryError as error:
        return [{"file": str(error.path), "entries": None, "faults": error.faults}]
    counts = zip(files, registry.counts, strict=True)
    return [{"file": str(file), "entries": count, "faults": []} for file, count in counts]


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


@registry_app.command("schema")
def schema_command(context: typer.Context) -> None:
    """Print the JSON Schema of a registry file, for editors.

    Examples: ckptkit registry schema · ckptkit registry schema > registry.schema.json
    """
    from ckptkit.families import registry_families
    from ckptkit.registry import json_schema

    output = state_of(context).output
    output.as_json = True  # a schema is JSON with or without --json
    output.result(json_schema(registry_families()))


@registry_app.command("pin")
def pin_command(
    context: typer.Context,
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID…", help="Fetched entries, or globs on ids.", autocompletion=complete_fetched
        ),
    ] = None,
    all_entries: Annotated[
        bool, typer.Option("--all", help="Pin every fetched entry; skip the others.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="The registry to write; else the last --registry, else CKPTKIT_REGISTRY's last."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a different checksum, or pin the lesser upload.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the change as a diff, write nothing.")
    ] = False,
) -> None:
    """Write the observed sha256, size and time of fetched files into a registry file.

    What was observed is in the cache and in the lock file. Comments and order are kept. The checksum is
    that of the file you fetched, not the publisher's word: the entry says when and from where it was
    observed, and which of the server's checksums held.

    Examples: ckptkit registry pin tiny-moat0-256 --file mine.yaml · ckptkit registry pin --all --dry-run
    """
    from ckptkit.families import registry_families
    from ckptkit.registry import pin_many, preview_pins

    state = state_of(context)
    pins = observed_checksums(state, ids or [], all_entries=all_entries, force=force)
    target, below = target_registry(state, file)
    edit = preview_pins(target, pins, below=below, families=registry_families())
    lines = [f"{pin.id}  sha256 {pin.sha256}  {pin.size} bytes  {pin.observed_at}" for pin in pins]
    if not dry_run:
        pin_many(target, pins, below=below, families=registry_families())
    shown = [
        {"id": pin.id, "sha256": pin.sha256, "size": pin.size, "observed_at": pin.observed_at} for pin in pins
    ]
    show_edit(state, target, edit, {"pins": shown}, lines, dry_run=dry_run)


registry_app.command("add")(add_command)


def observed_checksums(state: State, ids: Sequence[str], *, all_entries: bool, force: bool) -> list[Pin]:
    """Pins of the entries asked for, or of all that were ever fetched here."""
    from ckptkit.store.cache import Home
    from ckptkit.store.lockfile import LockFile

    if bool(ids) == all_entries:
        both = ", not both" if ids else ""
        raise UsageError(f"give ids or globs, or --all{both}", hint="see 'ckptkit list --cached'")
    registry, home, trust = state.registry(), Home.default(), LockFile.default()
    if not all_entries:
        return [
            _pin_of(entry, _observed(entry, home, trust, force=force), force)
            for entry in registry.select(ids)
        ]
    pins = []
    for entry in registry.values():
        try:
            seen = _observed(entry, home, trust, force=force)
        except NotFoundError:
            continue
        if _lacks_bn_statistics(entry, seen) and not force:
            state.output.warn(f"{entry.id}: skipped, only the upload without BatchNorm statistics is here")
            continue
        pins.append(_pin_of(entry, seen, force))
    if not pins:
        raise NotFoundError("nothing to pin has been fetched here", hint="run 'ckptkit fetch ID' first")
    left = len(registry) - len(pins)
    if left:
        state.output.note(f"{len(pins)} of {len(registry)} entries were fetched; the others stay as they are")
    return pins


def _observed(entry: Entry, home: Home, trust: LockFile, *, force: bool) -> Record:
    """Return what is known of an entry's file: the cache's record, else what the lock file remembers."""
    known = trust.files(entry.id)
    record = home.record(entry.id)
    if record is None:
        record = _remembered(entry, known)
    if record is None:
        raise NotFoundError(
            f"{entry.id} has not been fetched here, so its checksum is not known",
            hint=command("fetch", entry.id),
        )
    trusted = trust.expected(entry.id, record.file)
    if trusted is not None and trusted.value != record.sha256 and not force:
        raise IntegrityError(
            f"{entry.id}: the cached file has sha256 {record.sha256}, but {trusted.origin} says "
            f"{trusted.value}",
            hint="--force pins the cached one, if that is the right one",
        )
    return record


def _remembered(entry: Entry, known: dict[str, LockEntry]) -> Record | None:
    """Make a record of what the lock file knows; of several uploads the one that is tried first."""
    from ckptkit.store.cache import FOUND, IMPORTED, Record
    from ckptkit.store.sources import plan_sources

    planned = {source.file: source.bn_statistics for source in reversed(plan_sources(entry))}
    names = [*(source.file for source in plan_sources(entry)), *known]
    file = next((name for name in names if name in known), None)
    if file is None:
        return None
    seen = known[file]
    return Record(
        id=entry.id,
        url=seen.url,
        file=file,
        size=seen.size,
        sha256=seen.sha256,
        fetched_at=seen.first_seen,
        used_url=seen.used_url,
        server_hashes=seen.server_hashes,
        note={"import": IMPORTED, "cache": FOUND}.get(seen.how, ""),
        bn_statistics=planned.get(file),
    )


def _pin_of(entry: Entry, record: Record, force: bool) -> Pin:
    """Make a pin of a record; refuse what contradicts an earlier pin, or would refuse the better upload."""
    from ckptkit.registry import Pin

    if entry.sha256 is not None and entry.sha256 != record.sha256 and not force:
        raise IntegrityError(
            f"{entry.id}: the fetched file has sha256 {record.sha256}, but {entry.sha256} is pinned",
            hint="--force pins the fetched one, if that is the right one",
        )
    if _lacks_bn_statistics(entry, record) and not force:
        raise UsageError(
            f"{entry.id}: the cached file is the upload without BatchNorm statistics ({record.url}), "
            "and a checksum pinned from it would refuse the one with them",
            hint="--force pins it all the same. "
            + command("fetch", entry.id, "--force").replace("Run", "To have the better one first", 1),
        )
    came_from = record.used_url or record.url
    return Pin(entry.id, record.sha256, record.size, record.fetched_at, came_from, _provenance_note(record))


def _lacks_bn_statistics(entry: Entry, record: Record) -> bool:
    """Whether it is the upload without statistics where the entry means the one with them."""
    return record.bn_statistics is False and any(source.bn_statistics for source in entry.sources)


def _provenance_note(record: Record) -> str | None:
    """Say how the bytes came and what they were compared with, where that is more than the URL says."""
    hashes = " and ".join(sorted(record.server_hashes))
    elsewhere = record.used_url not in ("", record.url)
    parts = [
        record.note,
        f"published at {record.url}" if elsewhere else "",
        f"the server's {hashes} held" if hashes else "",
    ]
    return "; ".join(text for text in parts if text) or None
