"""What a checkpoint can be exported to, and an export from a source to a folder or file, and on to the hub.

To add a target is to add one row to `TARGETS` and one module with two functions:

* ``require_NAME(request)`` asks for the packages it needs, before anything slow is done, and raises
  `ckptkit.base.errors.MissingDependencyError`;
* ``export_NAME(source, output, request)`` writes it, checks what it wrote, and returns an `Exported`.
"""

from __future__ import annotations

import importlib
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import UsageError, one_of
from ckptkit.base.home import user_path
from ckptkit.base.text import counted
from ckptkit.export.publishing import push, require_hub
from ckptkit.formats.names import file_ending, is_folder

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource


PUSHED = ("hf", "keras")
"""The targets whose folders can be pushed."""

_REPOSITORY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_])?")


@dataclass(frozen=True)
class ExportRequest:
    """What an export should make, and where it goes."""

    to: str | None = None  # name of the target; None: by the ending of the output
    output: str | Path | None = None  # default: a name by the source's, in the current folder
    within: bool = False  # whether the output is a folder for several exports, each by its source's name
    dtype: str | None = None  # ``float32``, ``float16`` or ``bfloat16`` for all floating tensors
    features: bool = False  # the stages' outputs instead of logits (graphs only)
    opset: int | None = None  # of the ONNX operators
    force: bool = False  # replace an existing output
    dry_run: bool = False  # say what would be written, write nothing
    push: str | None = None  # ``ORG/NAME`` on the Hugging Face hub
    private: bool = False  # whether a repository that has to be created is private
    push_synthetic: bool = False  # as a rule synthetic weights should not be where weights are looked for
    bars: bool = False  # whether huggingface_hub may draw progress bars
    verbose: bool = False  # whether other packages may print what they like

    def __post_init__(self) -> None:
        if self.push is None:
            return
        owner, _, name = self.push.partition("/")
        sound = _REPOSITORY.fullmatch(owner) and _REPOSITORY.fullmatch(name)
        if not sound or "--" in self.push or ".." in self.push or name.endswith(".git"):
            raise UsageError(
                f"{self.push!r} is not a repository name", hint="write it like my-name/moat0-224"
            )

    @property
    def target(self) -> Target:
        """What to export to; refuses a name of the output that contradicts it."""
        return get_target(self.to, self.output)

    @property
    def writes_folder(self) -> bool:
        """Whether what is written is a folder."""
        target = self.target
        if not target.either:
            return target.folder
        if self.output is None or self.within:
            return self.push is not None
        return not target.names_file(self.output)

    def require(self, *, offline: bool, synthetic: bool) -> None:
        """Refuse what makes no sense, and ask for packages, before anything is fetched or made."""
        if self.push is not None:
            if self.target.name not in PUSHED:
                raise UsageError(f"--push requires --to {' or '.join(PUSHED)}", hint="leave --push out")
            if not self.writes_folder:
                raise UsageError(
                    f"--push sends a folder, and {self.output} is the name of a file",
                    hint="give -o FOLDER, or leave it out",
                )
            self.require_consent(synthetic=synthetic)
            if not self.dry_run:
                require_hub(offline=offline)
        self.target.require(self)

    def require_consent(self, *, synthetic: bool) -> None:
        """Refuse to push synthetic weights unless they are meant to be."""
        if synthetic and self.push is not None and not self.push_synthetic:
            raise UsageError(
                "these weights are synthetic: on the hub somebody may take them for trained ones",
                hint="give --push-synthetic if that is what you want",
            )


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
    pushed: str | None = None  # URL of the commit on the hub
    kept: bool = True  # whether ``path`` is still there

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "path": str(self.path) if self.kept else None,
            "pushed": self.pushed,
            "files": [{"name": file.name, "bytes": file.nbytes} for file in self.files],
            "ok": self.ok,
            "verdict": self.verdict,
            **self.details,
        }


@dataclass(frozen=True)
class Target:
    """One thing a checkpoint can be exported to."""

    name: str  # after ``--to``
    module: str  # where ``require_NAME`` and ``export_NAME`` are
    ending: str  # of the default output's name
    # Fields of `ExportRequest` that mean something to it, apart from those all targets take
    takes: frozenset[str] = frozenset()
    folder: bool = True  # whether it is a folder
    either: bool = False  # whether a folder is a file instead under a name with the ending

    def names_file(self, output: str | Path) -> bool:
        """Whether a name has the target's ending."""
        return os.fspath(output).lower().endswith(self.ending)

    def refuse_name(self, output: str | Path | None) -> None:
        """Raise UsageError for a name that says something else than this target writes."""
        if output is None or (not self.folder and (output == "-" or is_folder(output))):
            return
        text = os.fspath(output)
        if text == "-":
            what, give = ("a file", f"FILE{self.ending}") if self.either else ("a folder", "FOLDER")
            raise UsageError(
                f"--to {self.name} writes {what}, which standard output cannot take", hint=f"give -o {give}"
            )
        if self.folder and is_folder(output):
            return
        ending = file_ending(text)
        stem = text[: len(text) - len(ending)]
        if self.folder and not self.either and ending:
            raise UsageError(
                f"{text} is the name of a file, and --to {self.name} writes a folder",
                hint=f"give -o {stem}" + (", or --to onnx" if ending == ".onnx" else ""),
            )
        if (ending or not self.folder) and not self.names_file(text):
            raise UsageError(
                f"{text} is not the name of a file that --to {self.name} writes",
                hint=f"give -o {stem}{self.ending}",
            )

    def require(self, request: ExportRequest) -> None:
        """Refuse options that mean nothing to this target, and ask for the packages it needs."""
        for option in ("dtype", "features", "opset"):
            if option not in self.takes and getattr(request, option):
                raise UsageError(f"--{option} does not apply to --to {self.name}", hint="leave it out")
        self._function("require")(request)

    def export(self, source: ModelSource, output: Path, request: ExportRequest) -> Exported:
        """Write it (or, in a dry run, say what would be written); see `Exported`."""
        exported: Exported = self._function("export")(source, output, request)
        return exported

    def _function(self, verb: str) -> Any:
        return getattr(importlib.import_module(self.module), f"{verb}_{self.name.replace('-', '_')}")


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("hf", "ckptkit.export.hub", "-hf", frozenset({"dtype"})),
        Target("onnx", "ckptkit.export.graphs", ".onnx", frozenset({"features", "opset"}), folder=False),
        Target("saved-model", "ckptkit.export.graphs", "-saved-model", frozenset({"features"})),
        Target("keras", "ckptkit.export.keras", ".keras", frozenset({"features"}), either=True),
        Target("backbone", "ckptkit.export.backbone", "-backbone", frozenset({"dtype"})),
    )
}


_ALIASES = {"huggingface": "hf", "hub": "hf", "saved_model": "saved-model", "savedmodel": "saved-model"}


def target_named(text: str) -> str:
    """The name of the target that a user means.

    >>> target_named("SavedModel")
    'saved-model'
    """
    return one_of("export target", text, tuple(TARGETS), _ALIASES)


def get_target(to: str | None, output: str | Path | None = None) -> Target:
    """Look up a target by its name, else by the ending of what is to be written.

    >>> get_target("hf").ending, get_target(None, "moat.onnx").name
    ('-hf', 'onnx')
    """
    if to is None:
        fitting = [t for t in TARGETS.values() if (t.either or not t.folder) and t.names_file(output or "")]
        if not fitting:
            raise UsageError("no export target given", hint=f"choose --to {', '.join(TARGETS)}")
        return fitting[0]
    target = TARGETS[target_named(to)]
    target.refuse_name(output)
    return target


def run_export(source: ModelSource, request: ExportRequest) -> Exported:
    """Export a source, and push it with ``push``."""
    request.require_consent(synthetic=source.synthetic)
    with ExitStack() as stack:
        output, kept = place_of(source, request), True
        if request.output is None and request.push is not None:
            kept = False
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="ckptkit-export-"))
            output = Path(temporary) / "folder"
        exported = replace(request.target.export(source, output, request), kept=kept)
        if request.push is None or request.dry_run or not exported.ok:
            return exported
        source.workspace.note(f"pushing {counted(len(exported.files), 'file')} to {request.push}")
        url = push(
            exported.path,
            [file.name for file in exported.files],
            request.push,
            private=request.private,
            message=f"{source.origin.id if source.origin else source.variant}, exported by ckptkit",
            bars=request.bars,
        )
        return replace(exported, pushed=url)


def place_of(source: ModelSource, request: ExportRequest) -> Path:
    """Where an export goes: by default the current folder, by the source's name."""
    target, output = request.target, request.output
    if output is not None and not request.within and (target.folder or not is_folder(output)):
        return user_path(output)
    folder = Path() if output is None else user_path(output)
    ending = f"-{target.name}" if target.either and request.writes_folder else target.ending
    return folder / (source.stem + ending)
