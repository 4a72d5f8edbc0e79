"""Parity with ONNX Runtime: a checkpoint's PyTorch model against its graph, stage by stage.

The graph is exported into a temporary folder and run there, or it is a file that somebody is about to
publish. TensorFlow takes no part and need not be installed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import ConversionError, UsageError, listed
from ckptkit.base.tensors import Array
from ckptkit.families.base import get_family
from ckptkit.families.binding import Weights
from ckptkit.families.settings import missing_settings, setting_of_file
from ckptkit.families.synthetic import NOTE
from ckptkit.models.graphs.onnx_apart import open_foreign_onnx
from ckptkit.models.graphs.onnx_graph import OnnxGraph, open_onnx, write_onnx
from ckptkit.models.synth import is_synthetic
from ckptkit.parity.comparison import TOLERANCES, Tolerance, compare, top_agreement
from ckptkit.parity.files import ModelFile, examine, inputs_for, modes_of, settings_of
from ckptkit.parity.forward import Model, filled_torch, run_torch
from ckptkit.parity.inputs import Inputs
from ckptkit.parity.notes import source_notes
from ckptkit.parity.packages import require_packages
from ckptkit.parity.preparation import compare_inputs
from ckptkit.parity.report import FRAMEWORK_NAMES, ParityReport, Side

if TYPE_CHECKING:
    from ckptkit.workspace import Located

Note = Callable[[str], None]


@dataclass
class _Part:
    """One side while it runs."""

    outputs: dict[str, Array] = field(default_factory=dict)
    seconds: float = 0.0
    versions: str = ""
    layout: str = ""


def run_onnx_parity(
    located: Located,
    *,
    graph: Path | None = None,
    batch: int | None = None,
    resolution: int | tuple[int, int] | None = None,
    seed: int | None = None,
    image: Path | None = None,
    weights: Weights = "auto",
    variant: str | None = None,
    allow_missing_bn: bool = False,
    settings: Mapping[str, Any] | None = None,
    tolerance: Tolerance | None = None,
    synthetic: bool = False,
    name: str | None = None,
    note: Note | None = None,
) -> ParityReport:
    """Run a checkpoint's PyTorch model and its ONNX graph on the same inputs and compare them.

    Parameters
    ----------
    located : Located
        The checkpoint.
    graph : Path, optional
        An ONNX file made of it, to be proven instead of a fresh export.
    batch, resolution
        As for `run_parity`; default what the graph is fixed to.
    seed, image, weights, variant, allow_missing_bn, settings, synthetic, name, note
        As for `run_parity`.
    tolerance : Tolerance, optional
        Default that of float32, see `TOLERANCES`.

    Returns
    -------
    ParityReport
        PyTorch is its reference; ``.ok`` tells whether everything agrees.

    Raises
    ------
    MissingDependencyError
        When PyTorch, a package of the extra ``onnx``, or Pillow for an image, is not installed.
    ConversionError
        When the tensors do not fit, BatchNorm statistics are missing, or the graph is of another model.
    UsageError
        When the options make no sense for this file or this graph.
    FormatError
        When a file is damaged.
    """
    started = time.perf_counter()
    require_packages(image=image is not None, backend="onnxruntime")
    entry = located.entry
    if entry is not None:
        get_family(entry.family)
    with ExitStack() as opened:
        source = examine(
            opened.enter_context(located.open(weights)),
            weights=weights,
            variant=variant,
            entry=entry,
            allow_missing_bn=allow_missing_bn,
            settings=settings,
        )
        given = None if graph is None else open_foreign_onnx(graph)
        if given is not None:
            batch, resolution = batch or given.batch, resolution or given.size
        inputs = inputs_for(source, entry, batch=batch, resolution=resolution, seed=seed, image=image)
        prepared, left_out = compare_inputs(inputs, ("torch",))
        said = settings_of(source)
        travelled = {} if given is None else _settings_in(given, source)
        chosen = {**travelled, **said}
        torch, onnx = _run(source, given, chosen, inputs, note or _silent)
        compared = _in_both(torch, onnx, source, graph)
        stages = compare(
            compared,
            {output: onnx.outputs[output] for output in compared},
            tolerance or TOLERANCES["float32"],
            sides=(FRAMEWORK_NAMES["torch"], FRAMEWORK_NAMES["onnxruntime"]),
        )
        found = source.recognition
        synthetic = synthetic or is_synthetic(source.reader, found)
        return ParityReport(
            name=name or located.name,
            family=found.family.name,
            variant=found.variant,
            pos_emb=found.structure.pos_emb if found.family.has_pos_emb else None,
            num_classes=found.structure.num_classes,
            source=str(located.path),
            synthetic=synthetic,
            weights=source.plan.weights,
            reference="torch",
            sides=_sides(torch, onnx, source, graph, chosen=chosen, travelled=travelled),
            inputs=inputs,
            precision="float32",
            stages=(*prepared, *stages),
            top=top_agreement(compared, onnx.outputs, stages),
            notes=(
                *((NOTE,) if synthetic else ()),
                *left_out,
                *_notes(
                    graph, said, travelled, [output for output in torch.outputs if output not in compared]
                ),
                *source_notes(source, inputs, torch.outputs, unknown=missing_settings(found.family, chosen)),
            ),
            seconds=time.perf_counter() - started,
        )


def _silent(_sentence: str) -> None:
    return


def _settings_in(graph: OnnxGraph, source: ModelFile) -> dict[str, Any]:
    """Behaviour settings that a graph says it was made with."""
    family = source.recognition.family
    return {
        key: setting_of_file(family, key, graph.metadata[key], graph.path)
        for key in family.setting_names
        if key in graph.metadata
    }


def _run(
    source: ModelFile, given: OnnxGraph | None, chosen: dict[str, Any], inputs: Inputs, say: Note
) -> tuple[_Part, _Part]:
    """Run PyTorch's model and its graph, once for each function that the file may stand for."""
    import torch

    found = source.recognition
    modes = list(modes_of(found.family, chosen))
    if given is not None and len(modes) > 1:
        raise UsageError(
            f"{given.path} computes one function, and which of {len(modes)} is not known",
            hint="say "
            + " ".join(f"--set {key}=true or =false" for key in missing_settings(found.family, chosen)),
        )
    images = inputs.array()
    ours, theirs = _Part(versions=f"torch {torch.__version__}", layout=found.layout), _Part()
    with tempfile.TemporaryDirectory(prefix="ckptkit-onnx-") as folder:
        for number, (label, settings) in enumerate(modes):
            begun = time.perf_counter()
            say(f"loading {FRAMEWORK_NAMES['torch']} and running its model")
            model = filled_torch(
                Model(found.family, found.variant, found.structure, settings), source.fill_torch
            )
            used = time.process_time()
            outputs = run_torch(model, images)
            used = time.process_time() - used
            ours.outputs |= {name + label: output for name, output in outputs.items()}
            ran = time.perf_counter()
            graph = given
            if graph is None:
                say("exporting to onnx in a temporary folder")
                path = Path(folder) / f"{number}.onnx"
                write_onnx(model, path, size=(inputs.height, inputs.width))
                graph = open_onnx(path)
            del model
            say("running the graph by ONNX Runtime")
            given_by = graph.run(images, outputs, used)
            theirs.outputs |= {name + label: output for name, output in given_by.items()}
            theirs.versions, theirs.layout = graph.versions, f"opset {graph.opset}"
            ours.seconds += ran - begun
            theirs.seconds += time.perf_counter() - ran
    return ours, theirs


def _in_both(torch: _Part, onnx: _Part, source: ModelFile, graph: Path | None) -> dict[str, Array]:
    """Return PyTorch's outputs that the graph gives too.

    Raises
    ------
    ConversionError
        When there are none, or the graph gives others.
    """
    common = {name: output for name, output in torch.outputs.items() if name in onnx.outputs}
    others = [name for name in onnx.outputs if name not in torch.outputs]
    if others or not common:
        raise ConversionError(
            f"{graph or 'its graph'} gives {listed(onnx.outputs)}, "
            f"{source.reader.path} gives {listed(torch.outputs)}",
            hint="give a graph of this very checkpoint",
        )
    return common


def _sides(
    torch: _Part,
    onnx: _Part,
    source: ModelFile,
    graph: Path | None,
    *,
    chosen: Mapping[str, Any],
    travelled: Mapping[str, Any],
) -> tuple[Side, Side]:
    """Both sides as the report has them."""
    family = source.recognition.family
    settings = {
        **family.default_settings,
        **chosen,
        **dict.fromkeys(missing_settings(family, chosen), "both"),
    }
    return (
        Side(
            framework="torch",
            versions=torch.versions,
            reads="the original",
            format=source.reader.format,
            layout=torch.layout,
            dtype=source.dtype,
            settings=settings,
            seconds=torch.seconds,
        ),
        Side(
            framework="onnxruntime",
            versions=onnx.versions,
            reads="a fresh export" if graph is None else str(graph),
            format="onnx",
            layout=onnx.layout,
            dtype="float32",
            settings={**settings, **travelled},
            seconds=onnx.seconds,
        ),
    )


def _notes(
    graph: Path | None, said: Mapping[str, Any], travelled: Mapping[str, Any], unseen: list[str]
) -> Iterator[str]:
    """What a reader must know of the graph to judge the result."""
    for key, value in travelled.items():
        if key not in said:
            yield f"{key} is not known of the source: both ran as {graph} says, {value}"
        elif said[key] != value:
            yield f"{graph} says {key} is {value}, the source {said[key]}: each ran with its own"
    if unseen:
        yield f"{graph} has no {', '.join(unseen)} by name: not compared"
