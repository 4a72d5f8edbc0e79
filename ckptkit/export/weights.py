"""The weights of an export: planned before a byte is written, then converted and read back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.convert import FamilyPlan, Target, execute, plan_by_layout
from ckptkit.convert.provenance import Provenance
from ckptkit.convert.rounding import describe
from ckptkit.families.base import require_recognition

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource
    from ckptkit.convert import Converted
    from ckptkit.export.targets import ExportOptions
    from ckptkit.formats.base import Reader


@dataclass(frozen=True)
class PlannedWeights:
    """A conversion that is decided; its source is open."""

    source: ModelSource
    plan: FamilyPlan  # its provenance is filled with zeros of the right length until `write` is done
    _target: Target
    _reader: Reader
    _provenance: Provenance

    @cached_property
    def metadata(self) -> dict[str, str]:
        """What the written file says of itself; waits for the source's checksum."""
        return {**self.plan.metadata, **self._late()}

    def _late(self) -> dict[str, str]:
        return {} if self.source.synthetic else dict(self._provenance.wait())

    def write(self, path: Path, options: ExportOptions) -> Converted:
        """Convert, read back and compare."""
        with self.source.workspace.progress(f"exporting {self.source.name}", self.plan.nbytes) as advance:
            converted = execute(
                self.plan, self._reader, self._target, path, progress=advance, late=self._late
            )
        if converted.losses:
            options.warn(f"{self.source.name}: {describe(converted.losses)}")
        return converted


@contextmanager
def planned_weights(
    source: ModelSource, to: str, *, dtype: str | None = None, layout: str | None = None, head: bool = True
) -> Iterator[PlannedWeights]:
    """Decide what becomes of a source's tensors.

    The file's metadata name the resolution the source was opened for. Synthetic weights say so there, and
    nothing says whose they are.
    """
    located = source.located
    target = Target(to, dtype)
    with (
        located.open(source.weights) as reader,
        Provenance(located) as provenance,
    ):
        recognition = require_recognition(reader.path, reader.specs, variant=source.variant)
        decided = plan_by_layout(
            reader,
            recognition,
            layout or recognition.family.layout_for(to),
            weights=source.weights,
            head=head and source.num_classes is not None,
            settings=source.settings,
            entry=located.entry,
        )
        known = {} if source.synthetic else provenance.placeholder
        decided = target.fit(decided).with_metadata(known)
        height, width = source.preprocessing.size
        resolution = str(height) if height == width else f"{height}x{width}"
        said = {**decided.metadata, "resolution": resolution}
        if source.synthetic:
            said.pop("entry", None)
            said["synthetic"] = "true"
        yield PlannedWeights(source, replace(decided, metadata=said), target, reader, provenance)
