"""What a checkpoint can be exported to: one row a target, each in a module of its own.

To add a target is to add one row here and one module with two functions:

* ``require(options)`` asks for the packages it needs, before anything slow is done, and raises
  `ckptkit.base.errors.MissingDependencyError`;
* ``export(source, output, options)`` writes it, checks what it wrote, and returns an `Exported`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import UsageError, one_of
from ckptkit.formats.names import file_ending, is_folder

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource


def _silent(_text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class ExportOptions:
    """What an export should make."""

    dtype: str | None = None  # ``float32``, ``float16`` or ``bfloat16`` for all floating tensors
    features: bool = False  # the stages' outputs instead of logits (graphs only)
    opset: int | None = None  # of the ONNX operators
    force: bool = False  # replace an existing output
    dry_run: bool = False  # say what would be written, write nothing
    verbose: bool = False  # whether other packages may print what they like
    repository: str | None = None  # where on the Hugging Face hub it will be, for what it says of its use
    # Take each sentence that the user may want to see, or must see
    note: Callable[[str], None] = field(default=_silent, repr=False)
    # Take each sentence that the user may want to see, or must see
    warn: Callable[[str], None] = field(default=_silent, repr=False)


@dataclass(frozen=True)
class ExportedFile:
    """One file of an export."""

    name: str  # relative to the export's folder, with slashes
    nbytes: int | None  # none where only writing it would tell


@dataclass(frozen=True)
class Exported:
    """What an export wrote, or would write."""

    path: Path  # the file or folder
    files: tuple[ExportedFile, ...]
    verdict: str  # one sentence: what was checked and what came of it
    ok: bool = True  # whether the check held
    details: Mapping[str, Any] = field(default_factory=dict)  # more for ``--json``


@dataclass(frozen=True)
class Target:
    """One thing a checkpoint can be exported to."""

    name: str  # after ``--to``
    module: str  # where ``require`` and ``export`` are
    ending: str  # of the default output's name
    # Options of `ExportOptions` that mean something to it, apart from those all targets take
    takes: frozenset[str] = frozenset()
    folder: bool = True  # whether it is a folder

    def refuse_name(self, output: str | Path | None) -> None:
        """Raise UsageError for a name that says something else than this target writes."""
        if output is None or (not self.folder and (output == "-" or is_folder(output))):
            return
        text = os.fspath(output)
        if text == "-":
            raise UsageError(
                f"--to {self.name} writes a folder, which standard output cannot take", hint="give -o FOLDER"
            )
        ending = file_ending(text)
        if self.folder and ending and not is_folder(output):
            raise UsageError(
                f"{text} is the name of a file, and --to {self.name} writes a folder",
                hint=f"give -o {text[: -len(ending)]}" + (", or --to onnx" if ending == ".onnx" else ""),
            )
        if not self.folder and not text.lower().endswith(self.ending):
            stem = text[: len(text) - len(ending)]
            raise UsageError(
                f"{text} is not the name of a file that --to {self.name} writes",
                hint=f"give -o {stem}{self.ending}",
            )

    def require(self, options: ExportOptions) -> None:
        """Refuse options that mean nothing to this target, and ask for the packages it needs."""
        for option in ("dtype", "features", "opset"):
            if option not in self.takes and getattr(options, option):
                raise UsageError(f"--{option} means nothing to --to {self.name}", hint="leave it out")
        importlib.import_module(self.module).require(options)

    def export(self, source: ModelSource, output: Path, options: ExportOptions) -> Exported:
        """Write it (or, in a dry run, say what would be written); see `Exported`."""
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


_ALIASES = {"huggingface": "hf", "hub": "hf", "saved_model": "saved-model", "savedmodel": "saved-model"}


def target_named(text: str) -> str:
    """The name of the target that a user means.

    >>> target_named("SavedModel")
    'saved-model'
    """
    return one_of("export to", text, tuple(TARGETS), _ALIASES)


def get_target(to: str | None, output: str | Path | None = None) -> Target:
    """Look up a target by its name, else by the ending of what is to be written.

    >>> get_target("hf").ending, get_target(None, "moat.onnx").name
    ('-hf', 'onnx')
    """
    if to is None:
        fitting = [
            t for t in TARGETS.values() if not t.folder and str(output or "").lower().endswith(t.ending)
        ]
        if not fitting:
            raise UsageError("nothing says what to export to", hint=f"choose --to {', '.join(TARGETS)}")
        return fitting[0]
    target = TARGETS[target_named(to)]
    target.refuse_name(output)
    return target
