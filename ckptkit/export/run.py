"""An export from a source to a folder or file, and from there to the hub."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import UsageError
from ckptkit.base.home import user_path
from ckptkit.export.publishing import Destination, push, require_hub
from ckptkit.formats.names import is_folder

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource
    from ckptkit.export.targets import Exported, ExportOptions, Target

PUSHED = "hf"
"""The target that can be pushed."""


@dataclass(frozen=True)
class ExportRequest:
    """What the user asked for."""

    target: Target
    options: ExportOptions
    output: str | Path | None = None  # default: a name by the source's, in the current folder
    destination: Destination | None = None  # where on the hub to push it
    # Push synthetic weights: as a rule nobody should find them where weights are looked for
    synthetic_too: bool = False
    bars: bool = False  # whether huggingface_hub may draw progress bars

    def require(self, *, offline: bool, synthetic: bool) -> None:
        """Refuse what makes no sense, and ask for packages, before anything is fetched or made."""
        if self.destination is not None:
            if self.target.name != PUSHED:
                raise UsageError(f"--push is for --to {PUSHED}", hint="leave --push out")
            self.require_consent(synthetic=synthetic)
            if not self.options.dry_run:
                require_hub(offline=offline)
        self.target.require(self.options)

    def require_consent(self, *, synthetic: bool) -> None:
        """Refuse to push synthetic weights unless they are meant to be."""
        if synthetic and self.destination is not None and not self.synthetic_too:
            raise UsageError(
                "these weights are synthetic: on the hub somebody may take them for trained ones",
                hint="give --push-synthetic if that is what you want",
            )


@dataclass(frozen=True)
class ExportOutcome:
    """What became of a request."""

    exported: Exported
    pushed: str | None = None  # URL of the commit on the hub
    kept: bool = True  # whether ``exported.path`` is still there

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as ``--json`` prints it."""
        exported = self.exported
        return {
            "path": str(exported.path) if self.kept else None,
            "pushed": self.pushed,
            "files": [{"name": file.name, "bytes": file.nbytes} for file in exported.files],
            "ok": exported.ok,
            "verdict": exported.verdict,
            **exported.details,
        }


def run_export(source: ModelSource, request: ExportRequest) -> ExportOutcome:
    """Export a source, and push it where that is asked for."""
    request.require_consent(synthetic=source.synthetic)
    destination, options = request.destination, request.options
    with ExitStack() as stack:
        output, kept = place_of(source, request.target, request.output), True
        if request.output is None and destination is not None:
            kept = False
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="ckptkit-export-"))
            output = Path(temporary) / "folder"
        if destination is not None:
            options = replace(options, repository=destination.repository)
        exported = request.target.export(source, output, options)
        if destination is None or options.dry_run or not exported.ok:
            return ExportOutcome(exported, kept=kept)
        options.note(f"pushing {len(exported.files)} files to {destination.repository}")
        url = push(
            exported.path,
            exported.files,
            destination,
            message=f"{source.origin.id if source.origin else source.variant}, exported by ckptkit",
            bars=request.bars,
        )
        return ExportOutcome(exported, url, kept)


def place_of(source: ModelSource, target: Target, output: str | Path | None) -> Path:
    """Where an export goes: by default the current folder, by the source's name."""
    if output is not None and (target.folder or not is_folder(output)):
        return user_path(output)
    folder = Path() if output is None else user_path(output)
    return folder / (source.stem + target.ending)
