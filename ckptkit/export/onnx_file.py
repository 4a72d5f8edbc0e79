"""``--to onnx``: a graph for ONNX Runtime and its like, with batches of any number and a fixed resolution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.base.extras import require_installed
from ckptkit.base.files import (
    move,
    refuse_existing,
    refuse_not_utf8,
    refuse_streams,
    sync_file,
    sync_folder,
    translated,
)
from ckptkit.export.description import describe
from ckptkit.export.folder import StagedFolder
from ckptkit.export.graph_check import check_graph, reference_of
from ckptkit.export.targets import Exported, ExportedFile, ExportOptions
from ckptkit.export.weights import PlannedWeights, planned_weights
from ckptkit.families.base import CANONICAL
from ckptkit.models.graphs.onnx_graph import (
    DEFAULT_OPSET,
    SINGLE_FILE_BYTES,
    OnnxFiles,
    data_path,
    open_onnx,
    require_opset,
    write_onnx,
)
from ckptkit.models.onnx_model import PACKAGES
from ckptkit.models.synth import NOTE

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource


def require(options: ExportOptions) -> None:
    """Ask for PyTorch and the packages of the extra ``onnx``, and for a sensible operator set."""
    require_opset(options.opset or DEFAULT_OPSET)
    require_installed(PACKAGES, "export --to onnx")


def export(source: ModelSource, output: Path, options: ExportOptions) -> Exported:
    """Write the graph, run it by ONNX Runtime, and compare it with the PyTorch model."""
    refuse_not_utf8(output, "onnx")
    for path in (output, data_path(output)):
        refuse_existing(path, force=options.force)
        refuse_streams(path)
    with planned_weights(source, "safetensors", layout=CANONICAL) as weights:
        metadata = _metadata(weights)
        large = weights.plan.nbytes > SINGLE_FILE_BYTES
    if options.dry_run:
        names = (data_path(output).name, output.name) if large else (output.name,)
        return Exported(output, tuple(ExportedFile(name, None) for name in names), "not written, not checked")
    if source.synthetic:
        options.note(f"{source.name}: {NOTE}")
    height, width = source.preprocessing.size
    model = source.model("torch")
    options.note(f"{source.name}: running PyTorch's model …")
    reference = reference_of(source, model)
    options.note(f"{source.name}: writing the graph for {height}x{width}, operator set {_opset(options)} …")
    with StagedFolder(output.with_name(f"{output.name}.parts"), owned=()) as folder:
        files = write_onnx(
            model,
            folder.path / output.name,
            size=(height, width),
            features=options.features,
            opset=_opset(options),
            metadata=metadata,
            verbose=options.verbose,
        )
        del model
        graph = open_onnx(files.graph)
        options.note(f"{source.name}: running it by {graph.versions} …")
        checked = check_graph(reference, graph.run, features=options.features, backend=graph.versions)
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


def _opset(options: ExportOptions) -> int:
    return options.opset or DEFAULT_OPSET


def _metadata(weights: PlannedWeights) -> dict[str, str]:
    """What the file says of itself: the keys of a converted file, each setting as JSON."""
    config = describe(weights)
    height, width = weights.source.preprocessing.size
    carried = {key: value for key, value in weights.metadata.items() if key not in ("layout", "format")}
    return {
        **carried,
        **{key: json.dumps(value) for key, value in config.settings.items()},
        "resolution": str(height) if height == width else f"{height}x{width}",
        "normalization": weights.source.preprocessing.normalization,
        "preprocessing": config.preprocessing.model_dump_json(),
    }


def _put_in_place(files: OnnxFiles, output: Path) -> None:
    """Give the files their final names, weights first; an older graph never stands beside newer weights."""
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
