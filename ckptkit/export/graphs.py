"""``--to onnx`` and ``--to saved-model``: graphs with batches of any number and a fixed resolution.

Each is run once it is written, and compared with the PyTorch model it was made of as ``parity`` does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import require_installed
from ckptkit.base.files import (
    move,
    refuse_existing,
    refuse_not_utf8,
    refuse_streams,
    sync_file,
    sync_folder,
    translated,
)
from ckptkit.base.folders import StagedFolder, refuse_replacement
from ckptkit.base.parse import size_text
from ckptkit.base.tensors import Array
from ckptkit.export.targets import Exported, ExportedFile, ExportRequest
from ckptkit.export.weights import PlannedWeights, config_of, planned_weights
from ckptkit.families.base import CANONICAL
from ckptkit.families.synthetic import NOTE
from ckptkit.formats.names import DEFAULT_FORMAT
from ckptkit.models.graphs.onnx_graph import (
    DEFAULT_OPSET,
    SINGLE_FILE_BYTES,
    OnnxFiles,
    data_path,
    open_onnx,
    require_opset,
    write_onnx,
)
from ckptkit.models.graphs.saved_model import CONTENTS, FACTS, SIGNATURE, write_saved_model
from ckptkit.models.onnx_model import PACKAGES
from ckptkit.parity.backends import Backend, OnnxBackend, SavedModelBackend, run_torch
from ckptkit.parity.compare import LOGITS, TOLERANCES, StageComparison, compare
from ckptkit.parity.inputs import Inputs, random_inputs
from ckptkit.parity.run import FRAMEWORKS

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource

_BATCH = 3
"""Odd, and another than the exporter sees."""


@dataclass(frozen=True)
class Reference:
    """What the PyTorch model gives."""

    inputs: Inputs
    outputs: dict[str, Array]  # channels last


@dataclass(frozen=True)
class GraphCheck:
    """Outcome of a comparison."""

    backend: str  # what ran the graph, with its version
    inputs: Inputs
    together: tuple[StageComparison, ...]  # all inputs as one batch, and the first one by itself
    alone: tuple[StageComparison, ...]

    @property
    def ok(self) -> bool:
        """Whether every output agrees in both."""
        return bool(self.together) and all(output.ok for output in (*self.together, *self.alone))

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        for outputs, where in ((self.together, str(self.inputs)), (self.alone, "one input alone")):
            for output in outputs:
                if not output.ok:
                    return f"{self.backend} DISAGREES with PyTorch at {output.name}, {where}: {output.reason}"
        worst = max((*self.together, *self.alone), key=lambda output: output.relative)
        names = ", ".join(output.name for output in self.together)
        return (
            f"{self.backend} agrees with PyTorch on {self.inputs}, and on one alone: {names}; "
            f"largest relative difference {worst.relative:.1e} ({worst.name})"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "backend": self.backend,
            "inputs": str(self.inputs),
            "batch": [output.to_json() for output in self.together],
            "alone": [output.to_json() for output in self.alone],
        }


def reference_of(source: ModelSource, model: Any) -> Reference:
    """Run the PyTorch model on seeded inputs of its source's resolution."""
    inputs = random_inputs(_BATCH, source.preprocessing.size, None)
    return Reference(inputs, run_torch(model, inputs.array()))


def check_graph(reference: Reference, candidate: Backend[Array], *, features: bool) -> GraphCheck:
    """Compare what a graph gives."""
    images = reference.inputs.array()
    expected = {name for name in reference.outputs if not (features and name == LOGITS)}
    required = expected & {LOGITS} or expected  # beside logits a graph need not give the stages
    together, alone = candidate.run(images), candidate.run(images[:1])
    versions = together.side.versions
    sides = ("PyTorch", versions.split(maxsplit=1)[0])

    def compared(found: dict[str, Array], count: int) -> tuple[StageComparison, ...]:
        names = expected & found.keys() | required
        ours = {name: output[:count] for name, output in reference.outputs.items() if name in names}
        theirs = {name: found[name] for name in ours if name in found}
        return compare(ours, theirs, TOLERANCES["float32"], sides=sides)

    return GraphCheck(
        versions,
        reference.inputs,
        compared(together.outputs, len(images)),
        compared(alone.outputs, 1),
    )


def require_onnx(request: ExportRequest) -> None:
    """Ask for PyTorch and the packages of the extra ``onnx``, and for a sensible operator set."""
    require_opset(request.opset or DEFAULT_OPSET)
    require_installed(PACKAGES, "export --to onnx")


def export_onnx(source: ModelSource, output: Path, request: ExportRequest) -> Exported:
    """Write the graph, run it by ONNX Runtime, and compare it with the PyTorch model."""
    refuse_not_utf8(output, "onnx")
    for path in (output, data_path(output)):
        refuse_existing(path, force=request.force)
        refuse_streams(path)
    with planned_weights(source, DEFAULT_FORMAT, layout=CANONICAL) as weights:
        metadata = _metadata(weights)
        large = weights.plan.nbytes > SINGLE_FILE_BYTES
    if request.dry_run:
        names = (data_path(output).name, output.name) if large else (output.name,)
        return Exported(output, tuple(ExportedFile(name, None) for name in names), "not written, not checked")
    note = source.workspace.note
    if source.synthetic:
        note(f"{source.name}: {NOTE}")
    height, width = source.preprocessing.size
    model = source.model("torch")
    note(f"{source.name}: running PyTorch's model …")
    reference = reference_of(source, model)
    source.workspace.note(
        f"{source.name}: writing the graph for {height}x{width}, operator set {_opset(request)} …"
    )
    with StagedFolder(output.with_name(f"{output.name}.parts"), owned=()) as folder:
        files = write_onnx(
            model,
            folder.path / output.name,
            size=(height, width),
            features=request.features,
            opset=_opset(request),
            metadata=metadata,
            verbose=request.verbose,
        )
        del model
        graph = open_onnx(files.graph)
        note(f"{source.name}: running it by {graph.versions} …")
        checked = check_graph(reference, OnnxBackend.of(graph), features=request.features)
        details = {
            "opset": graph.opset,
            "resolution": [height, width],
            "outputs": list(files.outputs),
            "metadata": metadata,
            "check": checked.to_json(),
        }
        if not checked.ok:
            return Exported(output, (), checked.verdict, ok=False, details=details)
        written = tuple(ExportedFile(path.name, path.stat().st_size) for path in files.paths)
        _put_in_place(files, output)
    return Exported(output, written, checked.verdict, details=details)


def _opset(request: ExportRequest) -> int:
    return request.opset or DEFAULT_OPSET


def _metadata(weights: PlannedWeights) -> dict[str, str]:
    """The file's metadata: the keys of a converted file, each setting as JSON."""
    config = config_of(weights)
    carried = {key: value for key, value in weights.metadata.items() if key not in ("layout", "format")}
    return {
        **carried,
        **{key: json.dumps(value) for key, value in config.settings.items()},
        "resolution": size_text(weights.source.preprocessing.size),
        "normalization": weights.source.preprocessing.normalization,
        "preprocessing": config.preprocessing.model_dump_json(),
    }


def _put_in_place(files: OnnxFiles, output: Path) -> None:
    """Give the files their final names, weights first, so that no old graph meets new weights."""
    with translated(output):
        for path in files.paths:
            with path.open("rb+") as file:
                sync_file(file.fileno())
        older = data_path(output)
        if files.data is not None or older.exists():
            output.unlink(missing_ok=True)
            older.unlink(missing_ok=True)
        for path in files.paths:
            move(path, output.with_name(path.name))
        sync_folder(output.parent)


_FILES = (
    FACTS,
    "fingerprint.pb",
    "saved_model.pb",
    "variables/variables.data-00000-of-00001",
    "variables/variables.index",
)


def require_saved_model(_request: ExportRequest) -> None:
    """Ask for both frameworks: PyTorch's model is what the SavedModel is compared with."""
    require_installed(FRAMEWORKS, "export --to saved-model, which is checked against PyTorch,")


def export_saved_model(source: ModelSource, output: Path, request: ExportRequest) -> Exported:
    """Write the Keras model, load it again by TensorFlow alone, and compare it with the PyTorch model."""
    refuse_not_utf8(output, "TensorFlow")
    refuse_replacement(output, force=request.force, owned=CONTENTS)
    with planned_weights(source, DEFAULT_FORMAT, layout=CANONICAL) as weights:
        facts = config_of(weights).model_dump(mode="json", exclude={"id2label", "label2id"})
    if request.dry_run:
        files = tuple(ExportedFile(name, None) for name in _FILES)
        return Exported(output, files, "not written, not checked")
    note = source.workspace.note
    if source.synthetic:
        note(f"{source.name}: {NOTE}")
    note(f"{source.name}: running PyTorch's model …")
    reference = reference_of(source, source.model("torch"))
    height, width = source.preprocessing.size
    note(f"{source.name}: writing Keras' model as a graph for {height}x{width} …")
    with StagedFolder(output, force=request.force, owned=CONTENTS) as folder:
        model = source.model("keras")
        outputs = write_saved_model(
            model, folder.path, size=(height, width), features=request.features, facts=facts
        )
        del model
        note(f"{source.name}: running it by TensorFlow alone …")
        checked = check_graph(reference, SavedModelBackend(folder.path), features=request.features)
        details = {
            "signature": SIGNATURE,
            "resolution": [height, width],
            "outputs": list(outputs),
            "check": checked.to_json(),
        }
        if not checked.ok:
            return Exported(output, (), checked.verdict, ok=False, details=details)
        written = tuple(
            ExportedFile(path.relative_to(folder.path).as_posix(), path.stat().st_size)
            for path in sorted(folder.path.rglob("*"))
            if path.is_file()
        )
        folder.commit()
    return Exported(output, written, checked.verdict, details=details)
