"""What the global options said, handed to every command."""

from __future__ import annotations

import sys
import tempfile
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
    _spool: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False)

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
            standard_input=self.spooled_input,
        )

    def spooled_input(self) -> Path:
        """Copy standard input into a temporary file, which is there until the command ends.

        Raises
        ------
        UsageError
            Standard input is a terminal, or was read before.
        StorageError
            The disk refuses.
        """
        from ckptkit.base.errors import UsageError, storage_error

        if self._spool is not None:
            raise UsageError("standard input can be read once only", hint="give '-' in one place")
        if sys.stdin.isatty():
            raise UsageError("standard input is a terminal", hint="send a file into it: … < FILE")
        self._spool = tempfile.TemporaryDirectory(prefix="ckptkit-stdin-")
        path = Path(self._spool.name, "stdin")
        self.output.call(path, "standard input")
        try:
            with path.open("wb") as file, self.output.progress("reading standard input", None) as advance:
                while piece := sys.stdin.buffer.read(1 << 20):
                    file.write(piece)
                    advance(len(piece))
        except OSError as error:
            raise storage_error(error, path.parent) from error
        return path

    def close(self) -> None:
        """Remove what stood for standard input."""
        if self._spool is not None:
            self._spool.cleanup()

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
