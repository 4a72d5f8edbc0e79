"""``registry validate``, ``schema``, ``pin`` and ``add``: for those who write registry files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ckptkit.base.files import resolved
from ckptkit.cli.completion import complete_fetched
from ckptkit.cli.registry_add import add_command
from ckptkit.cli.registry_target import show_edit, target_registry
from ckptkit.cli.state import state_of

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
            metavar="FILE…", help="Registries, each on top of the built-in one; none: those in use."
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
    from ckptkit.registry import json_schema

    output = state_of(context).output
    output.as_json = True  # a schema is JSON with or without --json
    output.result(json_schema())


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
        bool, typer.Option("--all", help="Pin every entry that was fetched, and pass over the others.")
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

    What was observed stands in the cache and in the lock file. Comments and order are kept. The checksum is
    that of the file you fetched, not the publisher's word: the entry says when and from where it was
    observed, and which of the server's checksums held.

    Examples: ckptkit registry pin tiny-moat0-256 --file mine.yaml · ckptkit registry pin --all --dry-run
    """
    from ckptkit.cli.observed import observed_pins
    from ckptkit.registry import pin_many, preview_pins

    state = state_of(context)
    pins = observed_pins(state, ids or [], all_entries=all_entries, force=force)
    target, below = target_registry(state, file)
    edit = preview_pins(target, pins, below=below)
    lines = [f"{pin.id}  sha256 {pin.sha256}  {pin.size} bytes  {pin.observed_at}" for pin in pins]
    if not dry_run:
        pin_many(target, pins, below=below)
    shown = [
        {"id": pin.id, "sha256": pin.sha256, "size": pin.size, "observed_at": pin.observed_at} for pin in pins
    ]
    show_edit(state, target, edit, {"pins": shown}, lines, dry_run=dry_run)


registry_app.command("add")(add_command)
