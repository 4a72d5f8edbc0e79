"""Which registry file a command writes, and which it stands on."""

from __future__ import annotations

from pathlib import Path

from ckptkit.base.files import resolved
from ckptkit.cli.state import State


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
