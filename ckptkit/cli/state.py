"""What the global options said, handed to every command."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from ckptkit.cli.output import Output

if TYPE_CHECKING:
    from ckptkit.registry import Catalogue, Registry, Row
    from ckptkit.workspace import Workspace


@dataclass
class State:
    """Global options of one run.

    Parameters
    ----------
    output : Output
        The sink.
    offline : bool
        Never touch the network.
    registries : tuple of Path
        ``--registry`` files, later overrides earlier; come after ``CKPTKIT_REGISTRY``'s.
    mirrors : tuple of str
        ``--mirror FROM=TO`` rules, before ``CKPTKIT_MIRROR``'s.
    """

    output: Output = field(default_factory=Output)
    offline: bool = False
    registries: tuple[Path, ...] = ()
    mirrors: tuple[str, ...] = ()

    def workspace(self) -> Workspace:
        """The registries, cache and network rules that the global options name."""
        from ckptkit.workspace import Workspace

        return Workspace(
            registries=self.registries,
            offline=self.offline,
            mirrors=self.mirrors,
            note=self.output.note,
            warn=self.output.warn,
            progress=self.output.progress,
        )

    def registry(self) -> Registry:
        """Load the built-in registry with every overlay on top."""
        from ckptkit.families import registry_families
        from ckptkit.registry import load_registry

        return load_registry(self.registries, registry_families)

    def rows(self) -> Catalogue[Row]:
        """The same entries without their schema: for commands that only show them, and start at once."""
        from ckptkit.families import registry_families
        from ckptkit.registry.rows import load_rows

        return load_rows(self.registries, registry_families)


def state_of(context: typer.Context) -> State:
    """Return the State of the running command."""
    return cast(State, context.find_root().obj)
