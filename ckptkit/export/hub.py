"""``--to hf``: a folder for the Hugging Face hub, which `ckptkit.create_model` loads as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.export.description import describe
from ckptkit.export.folder import StagedFolder, refuse_replacement
from ckptkit.export.model_card import model_card
from ckptkit.export.targets import Exported, ExportedFile, ExportOptions
from ckptkit.export.weights import PlannedWeights, planned_weights
from ckptkit.families.base import CANONICAL
from ckptkit.families.model_config import CONFIG, WEIGHTS, open_exported
from ckptkit.formats.safetensors import file_bytes
from ckptkit.models.synth import NOTE

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource

CARD = "README.md"
OWNED = frozenset({CONFIG, WEIGHTS, CARD})
"""What such a folder holds."""


def require(_options: ExportOptions) -> None:
    """Ask for nothing: no framework is needed to write the folder."""


def export(source: ModelSource, output: Path, options: ExportOptions) -> Exported:
    """Write the folder."""
    refuse_replacement(output, force=options.force, owned=OWNED)
    with planned_weights(source, "safetensors", layout=CANONICAL, dtype=options.dtype) as weights:
        texts = _texts(weights, options.repository)
        size = file_bytes(Path(WEIGHTS), weights.plan.specs, weights.metadata)
        files = (
            ExportedFile(WEIGHTS, size),
            *(ExportedFile(name, len(text.encode())) for name, text in texts.items()),
        )
        if options.dry_run:
            return Exported(output, files, f"{len(weights.plan.moves)} tensors")
        for note in (*weights.plan.notes, *((NOTE,) if source.synthetic else ())):
            options.note(f"{source.name}: {note}")
        with StagedFolder(output, force=options.force, owned=OWNED) as folder:
            weights.write(folder.path / WEIGHTS, options)
            for name, text in texts.items():
                folder.write_text(name, text)
            open_exported(folder.path)
            folder.commit()
    return Exported(
        output, files, f"{len(weights.plan.moves)} tensors, read back and compared; {CONFIG} fits them"
    )


def _texts(weights: PlannedWeights, repository: str | None) -> dict[str, str]:
    """Return the files beside the weights, by name."""
    config = describe(weights)
    return {CONFIG: config.text(), CARD: model_card(weights.source, config, repository=repository)}
