"""What a checkpoint can be exported to: one row a target, each in a module of its own.

To add a target is to add one row here and one module with two functions:

* ``require(options)`` asks for the packages it needs, before anything slow is done, and raises
  `ckptkit.errors.MissingDependencyError`;
* ``export(source, output, options)`` writes it, checks what it wrote, and returns an `Exported`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.errors import UsageError

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource


def _silent(_text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class ExportOptions:
    """What an export should make.

    Parameters
    ----------
    dtype : str, optional
        ``float32``, ``float16`` or ``bfloat16`` for all floating tensors; default: as they are.
    features : bool
        The stages' outputs instead of logits (graphs only).
    opset : int, optional
        Of the ONNX operators; default: the exporter's.
    force : bool
        Replace an existing output.
    dry_run : bool
        Say what would be written, write nothing.
    verbose : bool
        Whether other packages may print what they like.
    repository : str, optional
        Where on the Hugging Face hub it will be, for what it says of its use.
    note, warn : callable
        Take each sentence that the user may want to see, or must see.
    """

    dtype: str | None = None
    features: bool = False
    opset: int | None = None
    force: bool = False
    dry_run: bool = False
    verbose: bool = False
    repository: str | None = None
    note: Callable[[str], None] = field(default=_silent, repr=False)
    warn: Callable[[str], None] = field(default=_silent, repr=False)


@dataclass(frozen=True)
class ExportedFile:
    """One file of an export.

    Parameters
    ----------
    name : str
        Relative to the export's folder, with slashes; the file's own name where the export is one file.
    nbytes : int or None
        None where only writing it would tell.
    """

    name: str
    nbytes: int | None


@dataclass(frozen=True)
class Exported:
    """What an export wrote, or would write.

    Parameters
    ----------
    path : Path
        The file or folder.
    files : tuple of ExportedFile
    verdict : str
        One sentence: what was checked and what came of it.
    ok : bool
        Whether the check held; where it did not, nothing stands at ``path``.
    details : mapping of str to Any
        More for ``--json``; what ``json.dumps`` takes.
    """

    path: Path
    files: tuple[ExportedFile, ...]
    verdict: str
    ok: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """One thing a checkpoint can be exported to.

    Parameters
    ----------
    name : str
        After ``--to``.
    module : str
        Where ``require`` and ``export`` are; imported when they are needed.
    ending : str
        Of the default output's name.
    takes : frozenset of str
        Options of `ExportOptions` that mean something to it, apart from those all targets take.
    folder : bool
        Whether it is a folder; else a file.
    """

    name: str
    module: str
    ending: str
    takes: frozenset[str] = frozenset()
    folder: bool = True

    def require(self, options: ExportOptions) -> None:
        """Refuse options that mean nothing to this target, and ask for the packages it needs.

        Raises
        ------
        UsageError
            An option that is another target's.
        MissingDependencyError
            A package is not installed.
        """
        for option in ("dtype", "features", "opset"):
            if option not in self.takes and getattr(options, option):
                raise UsageError(f"--{option} means nothing to --to {self.name}", hint="leave it out")
        importlib.import_module(self.module).require(options)

    def export(self, source: ModelSource, output: Path, options: ExportOptions) -> Exported:
        """Write it (or, in a dry run, say what would be written); see `Exported`.

        Raises
        ------
        UsageError
            ``output`` exists and ``options.force`` is false.
        CkptkitError
            The source is damaged; the disk refused.
        """
        exported: Exported = importlib.import_module(self.module).export(source, output, options)
        return exported


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("hf", "ckptkit.export.hub", "-hf", frozenset({"dtype"})),
        Target("onnx", "ckptkit.export.onnx_file", ".onnx", frozenset({"features", "opset"}), folder=False),
        Target("saved-model", "ckptkit.export.saved_model", "-saved-model", frozenset({"features"})),
        Target("backbone", "ckptkit.export.backbone", "-backbone", frozenset({"dtype"})),
    )
}


def get_target(name: str) -> Target:
    """Look up a target.

    Raises
    ------
    UsageError
        When there is none of that name.

    Examples
    --------
    >>> get_target("hf").ending
    '-hf'
    """
    if name not in TARGETS:
        raise UsageError(f"no export to {name!r}", hint="one of " + ", ".join(TARGETS))
    return TARGETS[name]
