"""The weights of an export, planned before a byte is written, and the ``config.json`` that describes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit._version import __version__
from ckptkit.base.parse import size_text
from ckptkit.convert.execution import Target, describe_losses, execute
from ckptkit.convert.pipeline import Provenance
from ckptkit.convert.planning import FamilyPlan, plan_by_layout
from ckptkit.families.model_config import ModelConfig, PreprocessingConfig
from ckptkit.families.recognition import require_recognition
from ckptkit.models.images.classes import imagenet_classes
from ckptkit.models.images.preprocessing import NORMALIZATIONS

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource
    from ckptkit.convert.execution import Converted
    from ckptkit.formats.base import Reader
    from ckptkit.models.images.preprocessing import Preprocessing


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
        """Metadata of the written file; waits for the source's checksum."""
        return {**self.plan.metadata, **self._late()}

    def _late(self) -> dict[str, str]:
        return {} if self.source.synthetic else dict(self._provenance.wait())

    def write(self, path: Path) -> Converted:
        """Convert, read back and compare."""
        with self.source.workspace.progress(f"exporting {self.source.name}", self.plan.nbytes) as advance:
            converted = execute(
                self.plan, self._reader, self._target, path, progress=advance, late=self._late
            )
        if converted.losses:
            self.source.workspace.warn(f"{self.source.name}: {describe_losses(converted.losses)}")
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
        metadata = {**decided.metadata, "resolution": size_text(source.preprocessing.size)}
        if source.synthetic:
            metadata.pop("entry", None)
            metadata["synthetic"] = "true"
        yield PlannedWeights(source, replace(decided, metadata=metadata), target, reader, provenance)


def config_of(weights: PlannedWeights) -> ModelConfig:
    """Say what the model of these weights is; waits for the source's checksum."""
    source, found = weights.source, weights.plan.recognition
    structure = found.structure
    config = ModelConfig(
        library_name="ckptkit",
        model_type=found.family.name,
        variant=found.variant,
        entry=None if source.synthetic or source.origin is None else source.origin.id,
        num_classes=source.num_classes,
        pos_emb=structure.pos_emb if found.family.has_pos_emb else None,
        settings=settings_of(source),
        preprocessing=preprocessing_config(source.preprocessing),
        torch_dtype=_float_types(weights),
        synthetic=source.synthetic,
        provenance=provenance_of(weights),
        table_sizes=None if structure.table_sizes is None else [list(size) for size in structure.table_sizes],
    )
    if config.num_classes == len(imagenet_classes()):
        names = class_names()
        config.id2label = {str(index): name for index, name in enumerate(names)}
        config.label2id = {name: index for index, name in enumerate(names)}
    return config


def settings_of(source: ModelSource) -> dict[str, Any]:
    """Every behaviour setting of a source's model, known or by default, as JSON has it."""
    settled = source.family.resolve_settings(source.known_settings(), name=source.name)
    plain: dict[str, Any] = json.loads(json.dumps(settled))
    return plain


def preprocessing_config(preprocessing: Preprocessing) -> PreprocessingConfig:
    """The preprocessing in ``config.json``."""
    mean, std = NORMALIZATIONS[preprocessing.normalization]
    return PreprocessingConfig.model_validate(
        {
            "size": preprocessing.size,
            "resize": preprocessing.resize,
            "interpolation": preprocessing.interpolation,
            "normalization": preprocessing.normalization,
            "mean": mean,
            "std": std,
        }
    )


def class_names() -> list[str]:
    """A name for each of ImageNet's 1,000 classes, no two alike: ``label2id`` is a mapping.

    WordNet's usual word; where two classes have it, all of its words, or else the WordNet id too.

    >>> names = class_names()
    >>> len(set(names)), names[0], names[134], names[639]
    (1000, 'tench', 'crane (n02012849)', 'maillot, tank suit')
    """
    classes = imagenet_classes()
    words = [one.name for one in classes]
    phrases = [", ".join(one.words) for one in classes]
    names = []
    for one, word, phrase in zip(classes, words, phrases, strict=True):
        if words.count(word) == 1:
            names.append(word)
        else:
            names.append(
                phrase if phrases.count(phrase) == 1 and phrase not in words else f"{word} ({one.wnid})"
            )
    return names


def provenance_of(weights: PlannedWeights) -> dict[str, Any]:
    """From what the weights were made, and by what."""
    source, metadata = weights.source, weights.metadata
    made: dict[str, Any] = {"ckptkit_version": __version__}
    if source.synthetic:
        return {**made, "stands_in_for": source.entry.id if source.entry else source.variant}
    made |= {key: metadata[key] for key in ("source_sha256", "source_index_sha256") if key in metadata}
    record = source.workspace.home.record(source.entry.id) if source.entry is not None else None
    if record is not None:
        made["source_url"] = record.url
    made |= {key: metadata[key] for key in ("weights", "bn_statistics") if key in metadata}
    return made


def _float_types(weights: PlannedWeights) -> str | None:
    names = {spec.dtype.name for spec in weights.plan.specs if spec.dtype.is_float}
    return names.pop() if len(names) == 1 else None
