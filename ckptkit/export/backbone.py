"""``--to backbone``: headless weights under the names that the published dense-prediction code loads."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.base.errors import IntegrityError, UsageError, command, require_installed
from ckptkit.base.folders import StagedFolder, refuse_replacement
from ckptkit.base.text import counted
from ckptkit.export.hub import SYNTHETIC
from ckptkit.export.targets import Exported, ExportedFile, ExportRequest
from ckptkit.export.weights import PlannedWeights, planned_weights, settings_of
from ckptkit.families.base import Backbone, Consumer, Family, Structure
from ckptkit.formats.detect import open_reader
from ckptkit.parity.backends import ModelFile, TorchBackend, examine, lossy_precision
from ckptkit.parity.compare import TOLERANCES, StageComparison, compare, is_logits
from ckptkit.parity.inputs import random_inputs

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource
    from ckptkit.base.tensors import Array

NOTES = "USE.txt"

_SIDE = 64
"""Input side of the check, pixels: two pixels are left at the last stage."""


def require_backbone(request: ExportRequest) -> None:
    """Ask for PyTorch, which the check runs in, whatever the backbone is for."""
    if not request.dry_run:
        require_installed(["torch"], "the check of an exported backbone")


def consumer_of(family: Family, source: object = "FILE") -> Consumer:
    """The code that loads a family's backbones, those of ``source``."""
    if family.consumer is None:
        raise UsageError(
            f"no dense-prediction code is known for family {family.name}",
            hint=f"convert writes the weights alone. {command('convert', source, '--no-head')}",
        )
    return family.consumer


def export_backbone(source: ModelSource, output: Path, request: ExportRequest) -> Exported:
    """Write a folder with the weights and a text that says what to put into a config.

    Before it gets its name, the names and shapes are compared with what the headless architecture has, and
    the features that PyTorch computes from the written file with those from the source.
    """
    consumer = consumer_of(source.family, source.name)
    if consumer.dtype is not None and request.dtype not in (None, consumer.dtype):
        raise UsageError(f"{consumer.name} takes {consumer.dtype} alone", hint="leave --dtype out")
    refuse_replacement(output, force=request.force, owned=_owned(consumer))
    with planned_weights(
        source, consumer.to, layout=consumer.layout, dtype=consumer.dtype or request.dtype, head=False
    ) as weights:
        structure = weights.plan.recognition.structure
        if structure.table_sizes is not None:
            raise UsageError(
                f"{source.name}: its position tables were resized, and {consumer.name} resizes them itself",
                hint="export the original file",
            )
        backbone = Backbone(
            source.variant,
            structure.pos_emb,
            settings_of(source),
            source.preprocessing.normalization,
            Path(os.path.abspath(output)) / consumer.file,  # noqa: PTH100 - a link stays a link
        )
        notes = _notes(source, consumer, backbone)
        if request.dry_run:
            files = [ExportedFile(name, None) for name in consumer.files]
            size = ExportedFile(NOTES, len(notes.encode()))
            return Exported(output, (*files, size), counted(len(weights.plan.moves), "tensor"))
        done = _write(weights, consumer, output, notes, request)
    if done.ok:
        for line in notes.rstrip().split("\n"):
            source.workspace.note(line)
    return replace(done, details={**done.details, "config": consumer.config(backbone)})


def _owned(consumer: Consumer) -> frozenset[str]:
    return frozenset({*consumer.files, NOTES})


def _write(
    weights: PlannedWeights, consumer: Consumer, output: Path, notes: str, request: ExportRequest
) -> Exported:
    """Write the folder, check it, and give it its name if the check holds."""
    for note in weights.plan.notes:
        weights.source.workspace.note(f"{weights.source.name}: {note}")
    if rules := Counter(one.rule for one in weights.plan.ignored):
        counts = ", ".join(f"{rule} {count:,}" for rule, count in rules.items())
        weights.source.workspace.note(f"{weights.source.name}: left out by rule: {counts}")
    with StagedFolder(output, force=request.force, owned=_owned(consumer)) as folder:
        weights.write(folder.path / consumer.file)
        _require_names(folder.path / consumer.file, weights)
        features = compare_features(weights.source, folder.path / consumer.file)
        verdict = _verdict(weights, features)
        details = {**_details(features), "left_out": weights.plan.left_out}
        if not all(stage.ok for stage in features):
            return Exported(output, (), verdict, ok=False, details=details)
        folder.write_text(NOTES, notes)
        names = (*consumer.files, NOTES)
        files = tuple(ExportedFile(name, (folder.path / name).stat().st_size) for name in names)
        folder.commit()
    return Exported(output, files, verdict, details=details)


def compare_features(source: ModelSource, written: Path) -> tuple[StageComparison, ...]:
    """Set the features PyTorch computes from the written file against those from the source, at 64 pixels."""
    entry = source.entry
    with ExitStack() as opened:
        original = examine(
            opened.enter_context(source.located.open(source.weights)),
            weights=source.weights,
            variant=source.variant,
            entry=entry,
            settings=source.settings,
        )
        copy = examine(opened.enter_context(open_reader(written)), variant=source.variant)
        images = random_inputs(1, (_SIDE, _SIDE), None).array()
        settings = settings_of(source)
        reference, candidate = (_features(file, settings, images) for file in (original, copy))
        return compare(
            reference,
            candidate,
            TOLERANCES[lossy_precision(original, copy)],
            sides=("source", "backbone"),
        )


def _features(file: ModelFile, settings: dict[str, object], images: Array) -> dict[str, Array]:
    outputs = TorchBackend(file, settings, str(file.reader.path)).run(images).outputs
    return {name: output for name, output in outputs.items() if not is_logits(name)}


def _require_names(written: Path, weights: PlannedWeights) -> None:
    """Refuse a file whose tensors are not the headless architecture's, all of them and no other."""
    found = weights.plan.recognition
    structure = Structure(found.structure.pos_emb, None, found.structure.table_sizes)
    table = found.family.table(weights.plan.layout, found.variant, structure)
    expected = {row.external: row.external_shape for row in table.bindings}
    optional = {row.external for row in table.bindings if row.part == "counter"}
    with open_reader(written) as reader:
        has = {spec.name: spec.shape for spec in reader.specs.values()}
    wrong = sorted(name for name in has if has[name] != expected.get(name))
    wrong += sorted(expected.keys() - has.keys() - optional)
    if wrong:
        raise IntegrityError(
            f"{counted(len(wrong), 'tensor', 'do')} not belong to {found.variant} without head: {wrong[0]}",
            hint="nothing was kept",
        )


def _notes(source: ModelSource, consumer: Consumer, backbone: Backbone) -> str:
    """Say what to put into a config, and what else its user must know."""
    called = source.entry.id if source.entry else source.variant
    whose = f"synthetic weights for {called}" if source.synthetic else called
    remarks = [*([SYNTHETIC] if source.synthetic else []), *consumer.remarks(backbone)]
    listing = "\n".join(f"- {remark}" for remark in remarks)
    return (
        f"{backbone.variant} without head ({whose}), for {consumer.name}.\n\n"
        f"In the config:\n\n{consumer.config(backbone)}\n\n{listing}\n"
    )


def _verdict(weights: PlannedWeights, features: tuple[StageComparison, ...]) -> str:
    tensors = f"{counted(len(weights.plan.moves), 'tensor')}, read back and compared"
    departed = next((stage for stage in features if not stage.ok), None)
    if departed is None:
        worst = max(stage.relative for stage in features)
        agree = f"features at {_SIDE} pixels agree with the source's"
        return f"{tensors}; {agree} (largest relative difference {worst:.1e})"
    differs = f"{departed.name} at {_SIDE} pixels differs from the source's: {departed.reason}"
    return f"{tensors}, but {differs}; nothing was kept"


def _details(features: tuple[StageComparison, ...]) -> dict[str, object]:
    return {"stages": [stage.to_json() for stage in features]}
