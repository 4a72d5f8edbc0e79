"""A parity run from a checkpoint to a report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ckptkit.base.errors import UsageError
from ckptkit.base.tensors import Array
from ckptkit.convert.execution import Target, execute
from ckptkit.convert.planning import plan_by_layout
from ckptkit.families.base import CANONICAL, get_family
from ckptkit.families.binding import Weights
from ckptkit.families.settings import missing_settings
from ckptkit.families.synthetic import NOTE
from ckptkit.formats.detect import open_reader
from ckptkit.formats.names import EXTENSIONS
from ckptkit.models.synth import Synthetic, is_synthetic, write_checkpoint
from ckptkit.parity.comparison import TOLERANCES, Tolerance, compare, top_agreement
from ckptkit.parity.files import (
    ModelFile,
    examine,
    inputs_for,
    lossy_precision,
    modes_of,
    require_same_model,
    settings_of,
)
from ckptkit.parity.forward import Model, keras_stages, torch_stages
from ckptkit.parity.inputs import Inputs
from ckptkit.parity.notes import source_notes
from ckptkit.parity.packages import require_packages
from ckptkit.parity.preparation import compare_inputs
from ckptkit.parity.report import FRAMEWORK_NAMES, Framework, ParityReport, Side
from ckptkit.workspace import Located

if TYPE_CHECKING:
    from ckptkit.registry import Entry

Note = Callable[[str], None]


def run_parity(
    located: Located,
    *,
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
    """Run one checkpoint's forward pass in both frameworks and compare them stage by stage.

    A file with TensorFlow names is read by the Keras model as it is, and converted for the PyTorch model. Any
    other is read by the PyTorch model as it is, and converted to TensorFlow for the Keras model. It is the
    conversion of ``ckptkit convert``, into a temporary folder, unless a converted file is given. Where both
    that file and the source have PyTorch's names, the Keras model gets it by way of TensorFlow's format.

    Parameters
    ----------
    located : Located
        The checkpoint.
    converted : Path, optional
        A conversion of it, to be proven instead of a fresh one.
    batch : int, optional
        Random inputs, default 2.
    resolution : int or (int, int), optional
        Input side, or height and width; default the entry's test resolution, else what the file says, else
        the resolution that the variant was published for.
    seed : int, optional
        Of the random inputs, default 20260101.
    image : Path, optional
        An image instead of random inputs (a batch of one).
    weights : {"auto", "ema", "raw"}
        Which copy where the file holds both; both sides take the same.
    dtype : {"float32", "float16", "bfloat16"}, optional
        What the conversion rounds to; the other side stays as it is.
    variant : str, optional
        Overrides what the file is recognised as.
    allow_missing_bn : bool
        Compare a file without BatchNorm moving statistics, with mean 0 and variance 1 on both sides.
    settings : mapping of str to Any, optional
        Behaviour settings of the checkpoint, before what its entry and its metadata say. Where a setting that
        has no default (MogaNet's ``attn_force_fp32``) is not said at all, both functions are compared.
    tolerance : Tolerance, optional
        Default: by the precision that the conversion rounded to, see `TOLERANCES`.
    synthetic : bool
        Say in the report that the weights are synthetic; a file with the recipe's numbers is known by them.
    name : str, optional
        What to call the target, default its id or path.
    note : callable
        Takes each sentence about what is being done.

    Returns
    -------
    ParityReport
        ``.ok`` tells whether everything agrees.

    Raises
    ------
    MissingDependencyError
        When a framework, or Pillow for an image, is not installed.
    ConversionError
        When the tensors do not fit, or BatchNorm statistics are missing.
    UsageError
        When the options make no sense for this file.
    FormatError
        When a file is damaged.
    """
    started = time.perf_counter()
    require_packages(image=image is not None)
    if converted is not None and dtype is not None:
        raise UsageError(
            f"{converted} has the precision it has", hint="leave --dtype out, it is for a fresh conversion"
        )
    say = note or _silent
    entry = located.entry
    if entry is not None:
        get_family(entry.family)
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="ckptkit-parity-")))
        given = None if converted is None else Located(converted).like(located)
        copy = _same_copy(weights, given)
        source = examine(
            opened.enter_context(located.open(copy)),
            weights=copy,
            variant=variant,
            entry=entry,
            allow_missing_bn=allow_missing_bn,
            settings=settings,
        )
        inputs = inputs_for(source, entry, batch=batch, resolution=resolution, seed=seed, image=image)
        images = inputs.array()
        prepared, left_out = compare_inputs(inputs)
        other = examine(
            opened.enter_context(
                given.open(copy)
                if given is not None
                else open_reader(_convert(source, folder, entry, dtype=dtype, settings=settings, say=say))
            ),
            variant=source.recognition.variant,
            allow_missing_bn=source.lacks_statistics,
        )
        require_same_model(source, other)
        precision = lossy_precision(source, other)
        reads = "a fresh conversion" if converted is None else str(converted)
        if not (source.is_for_keras or other.is_for_keras):
            reads += ", by way of TensorFlow's format"
            by_way = _convert(other, folder, None, dtype=None, settings=None, say=say)
            other = examine(opened.enter_context(open_reader(by_way)), allow_missing_bn=True)
        ran = _run_both(source, other, reads, images, say)
        stages = compare(
            ran.reference.outputs,
            ran.candidate.outputs,
            tolerance or TOLERANCES[precision],
            sides=(ran.reference.called, ran.candidate.called),
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
            reference=ran.reference.framework,
            sides=ran.in_report(),
            inputs=inputs,
            precision=precision,
            stages=(*prepared, *stages),
            top=top_agreement(ran.reference.outputs, ran.candidate.outputs, stages),
            notes=(*((NOTE,) if synthetic else ()), *left_out, *_notes(ran, inputs)),
            seconds=time.perf_counter() - started,
        )


def _silent(_sentence: str) -> None:
    return


@contextmanager
def synthetic_checkpoint(synthetic: Synthetic, entry: Entry | None = None) -> Iterator[Located]:
    """Write a synthetic checkpoint into a temporary folder, there while the block lasts.

    Parameters
    ----------
    synthetic : Synthetic
    entry : Entry, optional
        The entry it stands in for: gives settings and resolution.
    """
    with tempfile.TemporaryDirectory(prefix="ckptkit-synthetic-") as folder:
        yield Located(write_checkpoint(synthetic, Path(folder) / "model.ckpt"), entry)


@dataclass(frozen=True)
class _Ran:
    """One side after its forward pass."""

    framework: Framework
    file: ModelFile
    settings: dict[str, Any]
    outputs: dict[str, Array]
    versions: str
    seconds: float

    @property
    def called(self) -> str:
        return FRAMEWORK_NAMES[self.framework]

    def in_report(self, reads: str) -> Side:
        """What the report says of it."""
        return Side(
            framework=self.framework,
            versions=self.versions,
            reads=reads,
            format=self.file.reader.format,
            layout=self.file.recognition.layout,
            dtype=self.file.dtype,
            settings=self.settings,
            seconds=self.seconds,
        )


@dataclass(frozen=True)
class _Both:
    """Both sides: the one that read the source, and the one that read its conversion."""

    reference: _Ran
    candidate: _Ran
    candidate_reads: str

    def in_report(self) -> tuple[Side, Side]:
        """Both sides as the report has them: Keras first."""
        sides = self.reference.in_report("the original"), self.candidate.in_report(self.candidate_reads)
        return sides if self.reference.framework == "keras" else (sides[1], sides[0])


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


def _run_both(source: ModelFile, other: ModelFile, reads: str, images: Array, say: Note) -> _Both:
    """Run Keras, let it go, run PyTorch.

    The converted file's own settings count for its side: one that travelled wrongly must show.
    """
    said = settings_of(source)
    travelled = {**said, **settings_of(other)}
    if source.is_for_keras:
        reference = _run("keras", source, said, images, say)
        return _Both(reference, _run("torch", other, travelled, images, say), reads)
    candidate = _run("keras", other, travelled, images, say)
    return _Both(_run("torch", source, said, images, say), candidate, reads)


def _run(framework: Framework, file: ModelFile, said: dict[str, Any], images: Array, say: Note) -> _Ran:
    say(f"loading {FRAMEWORK_NAMES[framework]} and running its model")
    started = time.perf_counter()
    found = file.recognition
    fill, stages = (
        (file.fill_keras, keras_stages) if framework == "keras" else (file.fill_torch, torch_stages)
    )
    modes = list(modes_of(found.family, said))
    outputs: dict[str, Array] = {}
    versions = ""
    for label, settings in modes:
        model = Model(found.family, found.variant, found.structure, settings)
        ran, versions = stages(model, fill, images)
        outputs |= {name + label: output for name, output in ran.items()}
    settings = modes[0][1] | dict.fromkeys(missing_settings(found.family, said), "both")
    return _Ran(framework, file, settings, outputs, versions, time.perf_counter() - started)


def _notes(ran: _Both, inputs: Inputs) -> Iterator[str]:
    """What a reader must know to judge the result."""
    source = ran.reference.file
    open_keys = missing_settings(source.recognition.family, settings_of(source))
    yield from source_notes(source, inputs, ran.reference.outputs, unknown=open_keys)
    for key, value in ran.candidate.settings.items():
        ours = ran.reference.settings[key]
        if value != ours:
            yield f"{ran.candidate_reads} says {key} is {value}, the source {ours}: each ran with its own"
    tables = {file.recognition.structure.table_sizes for file in (source, ran.candidate.file)}
    if len(tables) > 1:
        said = (source if source.recognition.structure.table_sizes else ran.candidate.file).reader.metadata
        yield (
            "the position tables of one file were resized"
            + (f" for {fit}" if (fit := said.get("resolution")) else "")
            + ": at any other resolution the two differ"
        )
