"""Which registry file a command writes, and which it stands on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.base.files import resolved
from ckptkit.base.urls import scrubbed
from ckptkit.cli.state import State

if TYPE_CHECKING:
    from ckptkit.registry.writeback import Edit


def target_registry(state: State, file: Path | None) -> tuple[Path, list[Path]]:
    """Return the registry to write, and those it stands on.

    Parameters
    ----------
    state : State
    file : Path or None
        What ``--file`` says; None takes the last registry in use.

    Raises
    ------
    UsageError
        When that is the registry inside an installed package.
    """
    from ckptkit.base.errors import UsageError
    from ckptkit.registry import built_in_path, in_source_tree, registry_files

    files = registry_files(state.registries)
    if file is None and len(files) == 1 and not in_source_tree():
        raise UsageError(
            "the registry inside the installed package is not for editing",
            hint="name one of your own with --file FILE (made if need be), then use it with --registry",
        )
    target = file or files[-1]
    there = [resolved(path) for path in files]
    if resolved(target) in there:
        return target, files[: there.index(resolved(target))]
    return target, [built_in_path()]


def show_edit(
    state: State, target: Path, edit: Edit, result: dict[str, Any], lines: Sequence[str], *, dry_run: bool
) -> None:
    """Show a change of a registry file: what was written, or with --dry-run the diff."""
    from ckptkit.registry import registry_files

    diff = scrubbed(edit.diff()).rstrip("\n").split("\n") if edit.changes else []
    result |= {"file": str(target), "changed": bool(edit.changes), "dry_run": dry_run}
    if dry_run:
        state.output.result(result | {"diff": diff}, *diff)
        if not diff:
            state.output.note(f"{target}: would stay as it is")
        return
    state.output.result(result, *lines)
    if not edit.changes:
        state.output.note(f"{target}: already up to date")
        return
    in_use = resolved(target) in [resolved(path) for path in registry_files(state.registries)]
    state.output.note(f"{target}: written" + ("" if in_use else f"; use it with --registry {target}"))
