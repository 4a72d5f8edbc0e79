"""From what a user asks to a report: a request is opened as a case, and a case is run.

A `Case` is two sides that are ready to run, and what both will see. With ``keras``, a file that the Keras
model can read by its own names is read by it as it is, and converted for the PyTorch model; any other is read
by PyTorch, and converted for Keras. Where the source and a given conversion both have PyTorch's names, Keras
gets the latter by way of TensorFlow's format. With every other backend it is PyTorch's model, and a graph or
a recording of it; TensorFlow takes no part.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ckptkit.base.errors import ConversionError, FormatError, UsageError, listed, one_of, require_installed
from ckptkit.base.packages import is_installed
from ckptkit.base.progress import Say, say_nothing
from ckptkit.base.tensors import Array
from ckptkit.base.text import counted
from ckptkit.convert.execution import Target, execute
from ckptkit.convert.planning import plan_by_layout
from ckptkit.families.base import CANONICAL, Family, get_family
from ckptkit.families.binding import Weights
from ckptkit.families.synthetic import NOTE
from ckptkit.formats.names import EXTENSIONS
from ckptkit.models.graphs.onnx_apart import open_foreign_onnx
from ckptkit.models.images.preprocessing import Preprocessing
from ckptkit.models.onnx_model import PACKAGES
from ckptkit.models.synth import is_synthetic
from ckptkit.parity.apart import ModelApart, ModelFramework, ModelProcesses, kept_processes
from ckptkit.parity.backends import (
    Backend,
    GraphBackend,
    KerasBackend,
    ModelBackend,
    ModelFile,
    OnnxBackend,
    Ran,
    RecordedBackend,
    TorchBackend,
    examine,
    lossy_precision,
    require_same_model,
    settings_of,
)
from ckptkit.parity.case import Case, Compared
from ckptkit.parity.compare import TOLERANCES, StageComparison, Tolerance, top_agreement
from ckptkit.parity.inputs import Batch, Inputs, inputs_for
from ckptkit.parity.report import FRAMEWORK_NAMES, BackendName, ParityReport
from ckptkit.workspace import Located

FRAMEWORKS = ("torch", "tensorflow")
BACKENDS: Mapping[BackendName, tuple[tuple[str, ...], str]] = {
    "keras": (FRAMEWORKS, "checkpoints"),
    "onnxruntime": (PACKAGES, "files ending in .onnx"),
    "recorded": (("torch",), "outputs in a file ending in .npz"),
}
"""What PyTorch can be compared with: the packages that it takes, and what of it can be given."""

_ALIASES = {"tf": "keras", "tensorflow": "keras", "onnx": "onnxruntime", "ort": "onnxruntime"}

_LARGEST = 1 << 28
"""Numbers in a batch that a recording asks for: 1 GB."""

NO_STATISTICS = (
    "the file has no BatchNorm moving statistics: both models ran with mean 0 and variance 1, so this "
    "compares the other tensors only and says nothing of predictions"
)


# -- what is asked for ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParityRequest:
    """What to compare a checkpoint with, and how; see `ckptkit.parity`."""

    backend: BackendName = "keras"
    converted: Path | None = None
    batch: int | None = None
    resolution: int | tuple[int, int] | None = None
    seed: int | None = None
    image: Path | None = None
    weights: Weights = "auto"
    dtype: str | None = None  # what a fresh conversion rounds to
    variant: str | None = None
    allow_missing_bn: bool = False
    settings: Mapping[str, Any] | None = None
    tolerance: Tolerance | None = None  # None: that of the precision
    synthetic: bool = False
    name: str | None = None  # what the report calls the checkpoint

    def with_each(self, asked: Sequence[str] = ()) -> tuple[ParityRequest, ...]:
        """One request for each requested backend; without any, for the one that fits the given file."""
        chosen = [backend_named(text) for text in dict.fromkeys(asked)]
        requests = [replace(self, backend=backend) for backend in dict.fromkeys(chosen or [self._fitting()])]
        for request in requests:
            request._refuse_contradiction()
        return tuple(requests)

    def _fitting(self, backend: BackendName | None = None) -> BackendName:
        """What the given file is for; an ``.npz`` is a recording only where that is asked for."""
        suffix = self.converted.suffix.lower() if self.converted else ""
        if suffix == ".npz" and backend == "recorded":
            return "recorded"
        return "onnxruntime" if suffix == ".onnx" else "keras"

    def _refuse_contradiction(self) -> None:
        fitting = self._fitting(self.backend)
        if self.backend == "recorded" and self.converted is None:
            raise UsageError("--with recorded needs a recording", hint="name it: --converted outputs.npz")
        if self.converted is not None and self.backend != fitting:
            raise UsageError(
                f"{self.converted} cannot be compared with {self.backend}",
                hint=f"leave --with out: it is for --with {fitting}, which takes {BACKENDS[fitting][1]}",
            )
        if self.dtype is not None and self.backend != "keras":
            raise UsageError(f"--with {self.backend} runs in float32", hint="leave --dtype out")

    @property
    def models(self) -> tuple[ModelFramework, ...]:
        """The frameworks whose models run."""
        return ("torch", "keras") if self.backend == "keras" else ("torch",)

    def require(self) -> None:
        """Look for the packages it takes without importing them, and refuse options that contradict."""
        needed, _ = BACKENDS[self.backend]
        keras = "parity, which runs both frameworks,"
        purpose = keras if self.backend == "keras" else f"parity --with {self.backend}"
        if self.image is not None:
            purpose = "parity --image" if all(map(is_installed, needed)) else purpose
            needed = (*needed, "pillow")
        require_installed(needed, purpose)
        if self.converted is not None and self.dtype is not None:
            raise UsageError(
                f"{self.converted} already has its precision",
                hint="leave --dtype out, it is for a fresh conversion",
            )


def backend_named(text: str) -> BackendName:
    """What PyTorch is to be compared with, by its own name or another one for it."""
    return cast(BackendName, one_of("backend", text, tuple(BACKENDS), _ALIASES))


# -- running -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FamilyCase(Case[Array]):
    """A checkpoint of a known family, and what is made of it."""

    path: Path
    source: ModelFile
    synthetic: bool
    batch: Batch
    precision: str  # that the way from the one side to the other rounded to

    @property
    def given(self) -> Array:
        """The images."""
        return self.batch.images

    def in_common(self, reference: Ran, candidate: Ran) -> Compared:
        """The outputs to compare: a graph need not give every stage, but none of another model."""
        ours, theirs = reference.outputs, candidate.outputs
        if not theirs or theirs.keys() - ours.keys():
            raise ConversionError(
                f"{candidate.side.reads} gives {listed(theirs)}, {self.path} gives {listed(ours)}",
                hint="give one of this very checkpoint",
            )
        names = [name for name in ours if name in theirs]
        return Compared(
            {name: ours[name] for name in names},
            {name: theirs[name] for name in names},
            self.tolerance,
            [FRAMEWORK_NAMES[side.framework] for side in (reference.side, candidate.side)],
        )

    def report(
        self, reference: Ran, candidate: Ran, compared: Compared, stages: Sequence[StageComparison]
    ) -> ParityReport:
        """The report of both runs."""
        sides = (reference.side, candidate.side)
        return ParityReport(
            name=self.name,
            **self.source.facts,
            source=str(self.path),
            synthetic=self.synthetic,
            reference=reference.side.framework,
            sides=sides if candidate.side.framework != "keras" else (sides[1], sides[0]),
            inputs=self.batch.inputs,
            precision=self.precision,
            stages=(*self.batch.prepared, *stages),
            top=top_agreement(compared.ours, compared.theirs, stages),
            notes=(*self.notes, *_notes_of(reference, candidate)),
        )


def prove(located: Located, request: ParityRequest, say: Say = say_nothing) -> ParityReport:
    """Open a request and run it, by processes that are kept for others too, or its own."""
    started = time.perf_counter()
    with kept_processes() as running, open_case(located, request, running, say) as case:
        report = case.run(say)
        assert isinstance(report, ParityReport)
        return replace(report, seconds=time.perf_counter() - started)


def _notes_of(reference: Ran, candidate: Ran) -> Iterator[str]:
    """What limits a comparison and shows after the runs only."""
    missing = [name for name in reference.outputs if name not in candidate.outputs]
    if missing:
        yield f"{candidate.side.reads} has no {', '.join(missing)} by name: not compared"
    last = [output for output in reference.outputs.values() if output.ndim == 4][-1]
    if last.shape[1:3] == (1, 1):
        yield "the last stage is a single place at this resolution; a larger one tests more"


# -- from a request to a case --------------------------------------------------------------------------------


@contextmanager
def open_case(
    located: Located, request: ParityRequest, processes: ModelProcesses, say: Say = say_nothing
) -> Iterator[FamilyCase]:
    """Open both sides of a request while the block lasts: the source, and what is given or made of it."""
    request.require()
    if located.entry is not None:
        get_family(located.entry.family)
    processes.start(request.models)
    with ExitStack() as opened:
        folder = Path(
            opened.enter_context(
                tempfile.TemporaryDirectory(prefix="ckptkit-parity-", ignore_cleanup_errors=True)
            )
        )
        opening = _Opening(located, request, processes, folder, opened, say)
        yield opening.keras_and_torch() if request.backend == "keras" else opening.torch_and_graph()


@dataclass(frozen=True)
class _Opening:
    """A request while its case is made."""

    located: Located
    request: ParityRequest
    processes: ModelProcesses
    folder: Path  # for what is made of the source
    opened: ExitStack
    say: Say

    def keras_and_torch(self) -> FamilyCase:
        """The one side reads the source, the other its conversion: a fresh one, or the one given."""
        given = self.request.converted
        conversion = Located(given).like(self.located) if given else None
        weights = _same_copy(self.request.weights, conversion)
        source = self._source(weights)
        batch = self._batch(source)
        other = self._examined(
            conversion or Located(self._convert(source, fresh=True)),
            weights if conversion else "auto",
            variant=source.recognition.variant,
            allow_missing_bn=source.lacks_statistics,
        )
        require_same_model(source, other)
        precision = lossy_precision(source, other)
        reads = str(given) if given else "a fresh conversion"
        if not (source.is_for_keras or other.is_for_keras):
            reads += ", by way of TensorFlow's format"
            other = self._examined(Located(self._convert(other)), allow_missing_bn=True)
        known = settings_of(source)
        # The converted file's own settings count for its side: one that travelled wrongly must show.
        travelled = {**known, **settings_of(other)}
        first, second = (KerasBackend, TorchBackend) if source.is_for_keras else (TorchBackend, KerasBackend)
        reference, candidate = first(source, known, "the original"), second(other, travelled, reads)
        notes = _differences(reference, candidate)
        return self._case(reference, candidate, batch, precision, notes)

    def torch_and_graph(self) -> FamilyCase:
        """PyTorch's model, and a graph or recording of it: the one given, or a fresh export."""
        source = self._source(self.request.weights)
        family, known = source.recognition.family, settings_of(source)
        if self.request.converted is None:
            torch = TorchBackend(source, known, "the original", self.folder)
            return self._case(torch, OnnxBackend(self.folder), self._batch(source))
        given = _graph(self.request.converted, self.request.backend, family)
        torch = TorchBackend(source, {**given.settings, **known}, "the original")
        if len(torch.modes) > 1:
            unknown = family.missing_settings(torch.known)
            raise UsageError(
                f"{given.path} computes one function, and which of {len(torch.modes)} is not known",
                hint="say " + " ".join(family.set_option(key) for key in unknown),
            )
        return self._case(torch, given, self._batch(source, given), notes=_graph_notes(known, given))

    def _source(self, weights: Weights) -> ModelFile:
        return self._examined(
            self.located,
            weights,
            weights=weights,
            variant=self.request.variant,
            entry=self.located.entry,
            allow_missing_bn=self.request.allow_missing_bn,
            settings=self.request.settings,
        )

    def _examined(self, located: Located, copy: Weights = "auto", **asked: Any) -> ModelFile:
        file = examine(self.opened.enter_context(located.open(copy)), **asked)
        return replace(file, located=located, copy=copy)

    def _batch(self, source: ModelFile, fixed: GraphBackend | None = None) -> Batch:
        found = source.recognition
        asked: dict[str, Any] = {
            key: getattr(self.request, key) for key in ("batch", "resolution", "seed", "image")
        }
        recorded = fixed.path if isinstance(fixed, RecordedBackend) and fixed.has_images else None
        if recorded is not None and any(value is not None for value in asked.values()):
            raise UsageError(
                f"{recorded} has its own inputs",
                hint="leave --image, --seed, --batch and --resolution out",
            )
        for key, value in {"batch": fixed.batch, "resolution": fixed.size}.items() if fixed else ():
            asked[key] = value if asked[key] is None else asked[key]
        inputs = inputs_for(found.family, found.variant, self.located.entry, source.reader, **asked)
        if isinstance(fixed, RecordedBackend) and 3 * inputs.batch * inputs.height * inputs.width > _LARGEST:
            raise FormatError(fixed.path, f"recorded of {counted(inputs.batch, 'input')}, which is too many")
        if recorded is not None:
            inputs = replace(inputs, seed=None, recorded=recorded)
        return Batch.of(inputs, self.request.models, self._prepared)

    def _prepared(self, image: Path, wanted: Preprocessing, framework: ModelFramework) -> Array:
        return self.processes.of(framework, self._name).prepare(image, wanted, self.folder)

    @property
    def _name(self) -> str:
        """What to call the checkpoint."""
        return self.request.name or self.located.name

    def _apart(self, model: ModelBackend) -> ModelApart:
        return ModelApart(model, self._name, self.processes, self.folder)

    def _convert(self, file: ModelFile, *, fresh: bool = False) -> Path:
        """Convert for the other framework, by the code of ``ckptkit convert``; a fresh one as asked for."""
        found = file.recognition
        to = "safetensors" if file.is_for_keras else "tf"
        plan = plan_by_layout(
            file.reader,
            found,
            CANONICAL if file.is_for_keras else found.family.layout_for("tf"),
            weights=cast(Weights, file.plan.weights or "auto"),
            head=found.structure.num_classes is not None,
            allow_missing_bn=file.lacks_statistics,
            settings=self.request.settings if fresh else None,
            entry=self.located.entry if fresh else None,
        )
        self.say(f"converting to {to} in a temporary folder")
        target = Target(to, self.request.dtype if fresh else None)
        return execute(plan, file.reader, target, self.folder / f"converted{EXTENSIONS[to]}").path

    def _case(
        self,
        reference: ModelBackend,
        candidate: Backend[Array],
        batch: Batch,
        precision: str = "float32",
        notes: Iterable[str] = (),
    ) -> FamilyCase:
        source, request = reference.file, self.request
        synthetic = request.synthetic or is_synthetic(source.reader, source.recognition)
        about_source = _source_notes(reference, batch.inputs)
        return FamilyCase(
            name=self._name,
            path=self.located.path,
            source=source,
            synthetic=synthetic,
            reference=self._apart(reference),
            candidate=self._apart(candidate) if isinstance(candidate, ModelBackend) else candidate,
            batch=batch,
            precision=precision,
            tolerance=request.tolerance or TOLERANCES[precision],
            notes=(*([NOTE] if synthetic else []), *batch.notes, *about_source, *notes),
        )


def _same_copy(weights: Weights, conversion: Located | None) -> Weights:
    """Take the copy that a conversion was made from, unless another is requested."""
    if weights != "auto" or conversion is None:
        return weights
    with conversion.open(None) as reader:
        copy = reader.metadata.get("weights")
    return cast(Weights, copy) if copy in ("ema", "raw") else "auto"


def _graph(path: Path, backend: BackendName, family: Family) -> GraphBackend:
    """Open a given graph, with the settings that it says it was made with."""
    if backend == "recorded":
        return RecordedBackend.of(path)
    graph = open_foreign_onnx(path)
    names = [key for key in family.settings if key in graph.metadata]
    return OnnxBackend.of(
        graph, {key: family.setting_of_file(key, graph.metadata[key], path) for key in names}
    )


def _source_notes(reference: ModelBackend, inputs: Inputs) -> Iterator[str]:
    """What limits a comparison, whatever the source is compared with."""
    source, found = reference.file, reference.file.recognition
    if source.lacks_statistics:
        yield NO_STATISTICS
    if found.structure.num_classes is None:
        yield "the file has no classification head: the stages are compared, there are no logits"
    if source.plan.weights is not None:
        yield f"the file holds raw weights and moving averages; both sides took {source.plan.weights}"
    for key in found.family.missing_settings(reference.known):
        yield f"{key} is not known of this file: both functions it may stand for were compared"
    unread = found.family.unread_at_small_inputs(found.structure)
    usual = found.family.default_resolution(found.variant)
    if unread and min(inputs.height, inputs.width) < usual:
        yield (
            f"the input is smaller than the {usual} pixels this variant was published for, and small {unread}"
        )


def _differences(reference: ModelBackend, candidate: ModelBackend) -> Iterator[str]:
    """In what two files differ besides their tensors."""
    ours = reference.settings
    for key, value in candidate.settings.items():
        if value != ours[key]:
            yield f"{candidate.reads} says {key} is {value}, the source {ours[key]}: each ran with its own"
    files = [side.file for side in (reference, candidate)]
    resized = [file for file in files if file.recognition.structure.table_sizes]
    if len({file.recognition.structure.table_sizes for file in files}) > 1:
        fit = resized[0].reader.metadata.get("resolution")
        yield (
            "the position tables of one file were resized"
            + (f" for {fit}" if fit else "")
            + ": at any other resolution the two differ"
        )


def _graph_notes(known: Mapping[str, Any], given: GraphBackend) -> Iterator[str]:
    """In what a given graph differs from its source besides the weights."""
    for key, value in given.settings.items():
        if key not in known:
            yield f"{key} is not known of the source: both ran as {given.path} says, {value}"
        elif known[key] != value:
            yield f"{given.path} says {key} is {value}, the source {known[key]}: each ran with its own"
