"""A parity run from a checkpoint to a report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ckptkit.base.errors import ConversionError, UsageError, listed
from ckptkit.base.tensors import Array
from ckptkit.convert.execution import Target, execute
from ckptkit.convert.planning import plan_by_layout
from ckptkit.families.base import CANONICAL, get_family
from ckptkit.families.binding import Weights
from ckptkit.families.synthetic import NOTE
from ckptkit.formats.detect import open_reader
from ckptkit.formats.names import EXTENSIONS
from ckptkit.models.graphs.onnx_apart import open_foreign_onnx
from ckptkit.models.synth import Synthetic, is_synthetic, write_checkpoint
from ckptkit.parity.backends import (
    KerasBackend,
    ModelFile,
    OnnxBackend,
    Ran,
    TorchBackend,
    examine,
    lossy_precision,
    modes_of,
    require_packages,
    require_same_model,
    settings_of,
)
from ckptkit.parity.compare import TOLERANCES, Tolerance, compare, top_agreement
from ckptkit.parity.inputs import Inputs, compare_inputs, inputs_for
from ckptkit.parity.report import FRAMEWORK_NAMES, BackendName, Note, ParityReport
from ckptkit.workspace import Located

if TYPE_CHECKING:
    from ckptkit.models.graphs.onnx_graph import OnnxGraph
    from ckptkit.registry.schema import Entry

NO_STATISTICS = (
    "the file has no BatchNorm moving statistics: both models ran with mean 0 and variance 1, so this "
    "compares the other tensors only and says nothing of predictions"
)


@dataclass(frozen=True)
class _Pair:
    """Both sides after their runs."""

    reference: Ran  # the side that read the source
    candidate: Ran
    precision: str  # that the way from the one to the other rounded to
    unknown: Sequence[str]  # settings that nobody said, so that both functions ran
    notes: Sequence[str] = ()


def run_parity(
    located: Located,
    *,
    backend: BackendName = "keras",
    converted: Path | None = None,
    batch: int | None = None,
    resolution: int | tuple[int, int] | None = None,
    seed: int | None = None,
    image: Path | None = None,
    weights: Weights = "auto",
    dtype: str | None = None,
    variant: str | None = None,
    allow_missing_bn: bool = False,
    settings: Mapping[str, Any] | None = None,
    tolerance: Tolerance | None = None,
    synthetic: bool = False,
    name: str | None = None,
    note: Note | None = None,
) -> ParityReport:
    """Run one checkpoint on two sides and compare them stage by stage.

    With ``keras``, a file that the Keras model can read by its own names is read by it as it is, and
    converted for the PyTorch model; any other is read by PyTorch, and converted for Keras. It is the
    conversion of ``ckptkit convert``, into a temporary folder, unless ``converted`` is given. Where both that
    file and the source have PyTorch's names, Keras gets it by way of TensorFlow's format. With the backend
    ``onnxruntime`` it is the PyTorch model and its graph, a fresh export or the file ``converted``;
    TensorFlow takes no part.

    ``dtype`` is what the conversion rounds to. Where a setting that has no default is not known at all, both
    functions are compared. ``note`` takes each sentence about what is being done.
    """
    started = time.perf_counter()
    require_packages(image=image is not None, backend=backend)
    if converted is not None and dtype is not None:
        raise UsageError(
            f"{converted} already has its precision", hint="leave --dtype out, it is for a fresh conversion"
        )
    say = note or _silent
    entry = located.entry
    if entry is not None:
        get_family(entry.family)
    with ExitStack() as opened:
        graph = given = None
        if converted is not None and backend == "onnxruntime":
            graph = open_foreign_onnx(converted)
        elif converted is not None:
            given = Located(converted).like(located)
        copy = _same_copy(weights, given)
        source = examine(
            opened.enter_context(located.open(copy)),
            weights=copy,
            variant=variant,
            entry=entry,
            allow_missing_bn=allow_missing_bn,
            settings=settings,
        )
        found = source.recognition
        if graph is not None:
            batch, resolution = batch or graph.batch, resolution or graph.size
        inputs = inputs_for(
            found.family,
            found.variant,
            entry,
            source.reader,
            batch=batch,
            resolution=resolution,
            seed=seed,
            image=image,
        )
        images = inputs.array()
        prepared, left_out = compare_inputs(inputs, ("torch", "keras") if backend == "keras" else ("torch",))
        if backend == "onnxruntime":
            pair = _with_graph(source, graph, images, say)
        else:
            pair = _with_keras(_Conversion(source, given, copy, dtype, settings, entry), images, say, opened)
        ours, theirs = pair.reference, pair.candidate
        compared = {name: output for name, output in ours.outputs.items() if name in theirs.outputs}
        stages = compare(
            compared,
            {name: theirs.outputs[name] for name in compared} if backend == "onnxruntime" else theirs.outputs,
            tolerance or TOLERANCES[pair.precision],
            sides=(FRAMEWORK_NAMES[ours.side.framework], FRAMEWORK_NAMES[theirs.side.framework]),
        )
        synthetic = synthetic or is_synthetic(source.reader, found)
        sides = (ours.side, theirs.side)
        return ParityReport(
            name=name or located.name,
            family=found.family.name,
            variant=found.variant,
            pos_emb=found.structure.pos_emb if found.family.has_pos_emb else None,
            num_classes=found.structure.num_classes,
            source=str(located.path),
            synthetic=synthetic,
            weights=source.plan.weights,
            reference=ours.side.framework,
            sides=sides if theirs.side.framework != "keras" else (sides[1], sides[0]),
            inputs=inputs,
            precision=pair.precision,
            stages=(*prepared, *stages),
            top=top_agreement(compared, theirs.outputs, stages),
            notes=(
                *((NOTE,) if synthetic else ()),
                *left_out,
                *(pair.notes if backend == "onnxruntime" else ()),
                *_source_notes(source, inputs, ours.outputs, pair.unknown),
                *(pair.notes if backend == "keras" else ()),
            ),
            seconds=time.perf_counter() - started,
        )


def _silent(_sentence: str) -> None:
    return


@contextmanager
def synthetic_checkpoint(synthetic: Synthetic, entry: Entry | None = None) -> Iterator[Located]:
    """A synthetic checkpoint, of the entry it stands in for, in a temporary folder while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="ckptkit-synthetic-") as folder:
        yield Located(write_checkpoint(synthetic, Path(folder) / "model.ckpt"), entry)


# -- Keras and PyTorch ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Conversion:
    """A source, and how the other side gets its weights."""

    source: ModelFile
    given: Located | None
    copy: Weights
    dtype: str | None
    settings: Mapping[str, Any] | None
    entry: Entry | None


def _with_keras(asked: _Conversion, images: Array, say: Note, opened: ExitStack) -> _Pair:
    """Run Keras, let it go, run PyTorch; the one reads the source, the other its conversion."""
    source, given = asked.source, asked.given
    folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="ckptkit-parity-")))
    other = examine(
        opened.enter_context(
            given.open(asked.copy)
            if given is not None
            else open_reader(
                _convert(source, folder, asked.entry, dtype=asked.dtype, settings=asked.settings, say=say)
            )
        ),
        variant=source.recognition.variant,
        allow_missing_bn=source.lacks_statistics,
    )
    require_same_model(source, other)
    precision = lossy_precision(source, other)
    reads = "a fresh conversion" if given is None else str(given.path)
    if not (source.is_for_keras or other.is_for_keras):
        reads += ", by way of TensorFlow's format"
        by_way = _convert(other, folder, None, dtype=None, settings=None, say=say)
        other = examine(opened.enter_context(open_reader(by_way)), allow_missing_bn=True)
    known = settings_of(source)
    # The converted file's own settings count for its side: one that travelled wrongly must show.
    travelled = {**known, **settings_of(other)}
    if source.is_for_keras:
        reference = KerasBackend(source, known, "the original").run(images, say)
        candidate = TorchBackend(other, travelled, reads).run(images, say)
    else:
        candidate = KerasBackend(other, travelled, reads).run(images, say)
        reference = TorchBackend(source, known, "the original").run(images, say)
    unknown = source.recognition.family.missing_settings(known)
    return _Pair(
        reference, candidate, precision, unknown, [*_differences(reference, candidate, source, other)]
    )


def _same_copy(weights: Weights, converted: Located | None) -> Weights:
    """Take the copy that a converted file says it was made of, where nobody asked for one."""
    if weights != "auto" or converted is None:
        return weights
    with converted.open(None) as reader:
        said = reader.metadata.get("weights")
    return "ema" if said == "ema" else "raw" if said == "raw" else "auto"


def _convert(
    source: ModelFile,
    folder: Path,
    entry: Entry | None,
    *,
    dtype: str | None,
    settings: Mapping[str, Any] | None,
    say: Note,
) -> Path:
    """Convert the source for the other framework, by the code of ``ckptkit convert``."""
    found = source.recognition
    to = "safetensors" if source.is_for_keras else "tf"
    target = Target(to, dtype)
    plan = plan_by_layout(
        source.reader,
        found,
        CANONICAL if source.is_for_keras else found.family.layout_for("tf"),
        weights=cast(Weights, source.plan.weights or "auto"),
        head=found.structure.num_classes is not None,
        allow_missing_bn=source.lacks_statistics,
        settings=settings,
        entry=entry,
    )
    say(f"converting to {to} in a temporary folder")
    return execute(plan, source.reader, target, folder / f"converted{EXTENSIONS[to]}").path


def _differences(reference: Ran, candidate: Ran, source: ModelFile, other: ModelFile) -> Iterator[str]:
    """In what the two files differ besides their tensors."""
    for key, value in candidate.side.settings.items():
        ours = reference.side.settings[key]
        if value != ours:
            yield f"{candidate.side.reads} says {key} is {value}, the source {ours}: each ran with its own"
    tables = {file.recognition.structure.table_sizes for file in (source, other)}
    if len(tables) > 1:
        metadata = (source if source.recognition.structure.table_sizes else other).reader.metadata
        yield (
            "the position tables of one file were resized"
            + (f" for {fit}" if (fit := metadata.get("resolution")) else "")
            + ": at any other resolution the two differ"
        )


# -- PyTorch and its graph -----------------------------------------------------------------------------------


def _with_graph(source: ModelFile, graph: OnnxGraph | None, images: Array, say: Note) -> _Pair:
    """Run PyTorch's model, then its graph: a fresh export, or the one that is given."""
    family = source.recognition.family
    known = settings_of(source)
    travelled = {} if graph is None else _settings_in(graph, source)
    chosen = {**travelled, **known}
    modes = [*modes_of(family, chosen)]
    unknown = family.missing_settings(chosen)
    if graph is not None and len(modes) > 1:
        raise UsageError(
            f"{graph.path} computes one function, and which of {len(modes)} is not known",
            hint="say " + " ".join(family.set_option(key) for key in unknown),
        )
    torch = TorchBackend(source, chosen, "the original")
    reference = torch.run(images, say)
    candidate = OnnxBackend(torch, reference, graph, travelled).run(images, say)
    others = [name for name in candidate.outputs if name not in reference.outputs]
    if others or not candidate.outputs:
        raise ConversionError(
            f"{graph.path if graph else 'its graph'} gives {listed(candidate.outputs)}, "
            f"{source.reader.path} gives {listed(reference.outputs)}",
            hint="give a graph of this very checkpoint",
        )
    unseen = [name for name in reference.outputs if name not in candidate.outputs]
    notes = [*_graph_notes(graph, known, travelled, unseen)] if graph is not None else []
    return _Pair(reference, candidate, "float32", unknown, notes)


def _settings_in(graph: OnnxGraph, source: ModelFile) -> dict[str, Any]:
    """Settings that a graph says it was made with."""
    family = source.recognition.family
    return {
        key: family.setting_of_file(key, graph.metadata[key], graph.path)
        for key in family.settings
        if key in graph.metadata
    }


def _graph_notes(
    graph: OnnxGraph, known: Mapping[str, Any], travelled: Mapping[str, Any], unseen: Sequence[str]
) -> Iterator[str]:
    """What a reader must know of a graph to judge the result."""
    for key, value in travelled.items():
        if key not in known:
            yield f"{key} is not known of the source: both ran as {graph.path} says, {value}"
        elif known[key] != value:
            yield f"{graph.path} says {key} is {value}, the source {known[key]}: each ran with its own"
    if unseen:
        yield f"{graph.path} has no {', '.join(unseen)} by name: not compared"


# -- both ----------------------------------------------------------------------------------------------------


def _source_notes(
    source: ModelFile, inputs: Inputs, outputs: Mapping[str, Array], unknown: Sequence[str]
) -> Iterator[str]:
    """Tell what limits a comparison, whatever the source is compared with."""
    usual = source.recognition.family.default_resolution(source.recognition.variant)
    if source.lacks_statistics:
        yield NO_STATISTICS
    if source.recognition.structure.num_classes is None:
        yield "the file has no classification head: the stages are compared, there are no logits"
    if source.plan.weights is not None:
        yield f"the file holds raw weights and moving averages; both sides took {source.plan.weights}"
    for key in unknown:
        yield f"{key} is not known of this file: both functions it may stand for were compared"
    unread = source.recognition.family.unread_at_small_inputs(source.recognition.structure)
    if unread and min(inputs.height, inputs.width) < usual:
        yield (
            f"the input is smaller than the {usual} pixels this variant was published for, and small {unread}"
        )
    last = [output for output in outputs.values() if output.ndim == 4][-1]
    if last.shape[1:3] == (1, 1):
        yield "the last stage is a single place at this resolution; a larger one tests more"
