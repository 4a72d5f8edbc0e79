"""What gives outputs for a batch of images: a model, a finished graph, or a recording.

A `Backend` runs one side of a comparison on the CPU and lets everything but the outputs go. TensorFlow's
allocator keeps the freed memory to itself, though, so a run in both frameworks takes about twice the weights,
the activations, and the frameworks' own 0.5 GB. For ``parity`` the models run in other processes (`apart`).

The Keras model is filled by the names that are in the file, or by Keras' own loader, without any layout rule,
so that a wrong rule cannot cancel itself out; the PyTorch model gets canonical names, which a converted file
has already.
"""

from __future__ import annotations

import gc
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ckptkit.base.errors import ConversionError, FormatError, UsageError
from ckptkit.base.progress import Say, say_nothing
from ckptkit.base.tensors import DTYPES, Array
from ckptkit.base.text import counted
from ckptkit.convert.planning import FamilyPlan, Move, plan_by_layout
from ckptkit.families.base import CANONICAL, Family, Structure
from ckptkit.families.binding import Weights
from ckptkit.families.filling import load_state
from ckptkit.families.recognition import Recognition, require_recognition
from ckptkit.formats.base import Reader
from ckptkit.formats.detect import open_reader
from ckptkit.formats.names import EXTENSIONS
from ckptkit.formats.readers import Renamed
from ckptkit.models.graphs.onnx_apart import open_foreign_onnx
from ckptkit.models.graphs.onnx_graph import LOGITS, OnnxGraph, in_order, is_stage, write_onnx
from ckptkit.models.graphs.saved_model import load_saved_model
from ckptkit.parity.compare import TOLERANCES
from ckptkit.parity.inputs import IMAGES
from ckptkit.parity.report import Framework, Side
from ckptkit.rules.language import Binding

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry
    from ckptkit.workspace import Located

_EXACT = "float32"


# -- a checkpoint as a model reads it ------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelFile:
    """An open checkpoint that fits an architecture."""

    reader: Reader
    plan: FamilyPlan  # its moves to the canonical layout: which tensor is which of the architecture
    located: Located | None = None  # where another process can open it, and which copy of the weights
    copy: Weights = "auto"

    @property
    def recognition(self) -> Recognition:
        """What it was recognised as."""
        return self.plan.recognition

    @property
    def is_for_keras(self) -> bool:
        """Whether the Keras model can read it without any layout rule."""
        family = self.recognition.family
        return self._is_keras_weights or self.recognition.layout in (
            family.keras_layout,
            family.layout_for("tf"),
        )

    @property
    def _is_keras_weights(self) -> bool:
        """Whether Keras' own ``load_weights`` takes it, which goes by the file's name and by its tensors'."""
        found = self.recognition
        return (
            self.reader.format == "keras"
            and not isinstance(self.reader, Renamed)
            and found.layout == found.family.layout_for("keras")
            and self.reader.path.name.endswith(EXTENSIONS["keras"])
        )

    def model(self, settings: Mapping[str, Any]) -> Model:
        """What to build, in either framework."""
        found = self.recognition
        return Model(found.family, found.variant, found.structure, settings)

    @property
    def facts(self) -> dict[str, Any]:
        """Its row in the report."""
        found = self.recognition
        return {
            "family": found.family.name,
            "variant": found.variant,
            "pos_emb": found.structure.pos_emb if found.family.has_pos_emb else None,
            "num_classes": found.structure.num_classes,
            "weights": self.plan.weights,
        }

    @property
    def lacks_statistics(self) -> bool:
        """Whether the file has no BatchNorm moving statistics."""
        return self.plan.metadata["bn_statistics"] == "missing"

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """Canonical name → element type in the file."""
        return {
            move.inward.canonical: self.reader.specs[move.source].dtype.name
            for move in self.plan.moves
            if isinstance(move, Move)
        }

    @property
    def dtype(self) -> str:
        """Describe the element types of the weights."""
        return ", ".join(sorted(dtype for dtype in set(self.dtypes.values()) if DTYPES[dtype].is_float))

    def filled_torch(self, model: Model) -> Any:
        """Build the PyTorch model with these weights, on the CPU."""
        module = model.family.torch_module()
        import torch

        with torch.no_grad():
            with torch.device("meta"):  # no time spent on random weights: loading gives memory, on the CPU
                built = model.build(module)
            state = {move.target.name: move.array(self._read) for move in self.plan.moves}
            state |= {row.canonical: _neutral(row, row.canonical_shape) for row in self._missing_statistics()}
            load_state(built, state)
        self._release()
        return built

    def fill_keras(self, module: Any, model: Any) -> None:
        """Fill the Keras model by the file's own names, or by Keras' own loader."""
        if self._is_keras_weights and not self.lacks_statistics:
            model.load_weights(str(self.reader.path))
            return
        neutral = {row.external: _neutral(row, row.external_shape) for row in self._missing_statistics()}
        if self.recognition.layout == self.recognition.family.keras_layout:
            moves = [move for move in self.plan.moves if isinstance(move, Move)]
            state = {move.inward.external: self._read(move.source) for move in moves}
            load_state(model, state | neutral)
            self._release()
            return
        second = self.recognition.table.layout.second_copy
        module.load_published(
            model,
            neutral.keys() | self.reader.specs.keys(),
            lambda name: neutral[name] if name in neutral else self._read(name),
            suffix=second.suffix if second is not None and second.holds == self.plan.weights else "",
        )
        self._release()

    def _release(self) -> None:
        """Let the file's pages go before the forward pass needs memory."""
        for move in self.plan.moves:
            for name in move.sources:
                self.reader.release(name)

    def _read(self, name: str) -> Array:
        self.reader.check(name)
        return self.reader.read(name)

    def _missing_statistics(self) -> list[Binding]:
        if not self.lacks_statistics:
            return []
        return [row for row in self.recognition.table.bindings if row.part == "bn_statistics"]


def _neutral(row: Binding, shape: tuple[int, ...]) -> Array:
    """Mean 0 or variance 1: what a model has before its statistics are loaded."""
    import numpy

    return numpy.full(shape, 1 if row.canonical.endswith("var") else 0, dtype=numpy.float32)


def examine(
    reader: Reader,
    *,
    weights: Weights = "auto",
    variant: str | None = None,
    entry: Entry | None = None,
    allow_missing_bn: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> ModelFile:
    """Set an open file against the architecture it is of; a headless one is accepted."""
    wanted = variant or (entry.variant if entry else None)
    recognition = require_recognition(reader.path, reader.specs, variant=wanted)
    plan = plan_by_layout(
        reader,
        recognition,
        CANONICAL,
        weights=weights,
        head=recognition.structure.num_classes is not None,
        allow_missing_bn=allow_missing_bn,
        settings=settings,
        entry=entry,
    )
    return ModelFile(reader, plan)


def require_same_model(source: ModelFile, other: ModelFile) -> None:
    """Refuse to compare files of different architectures."""
    ours, theirs = source.recognition, other.recognition
    if (ours.variant, _as_published(ours.structure)) != (theirs.variant, _as_published(theirs.structure)):
        raise ConversionError(
            f"{other.reader.path} is {_in_words(theirs)}, {source.reader.path} is {_in_words(ours)}",
            hint="give a conversion of this very checkpoint",
        )


def _as_published(structure: Structure) -> Structure:
    """The structure before its position tables were resized, which leaves the model what it was."""
    return replace(structure, table_sizes=None)


def _in_words(recognition: Recognition) -> str:
    structure = recognition.structure
    position = " with" if structure.pos_emb else " without"
    embedding = f"{position} position embedding" if recognition.family.has_pos_emb else ""
    classes = counted(structure.num_classes, "class") if structure.num_classes else "no head"
    return f"{recognition.variant}{embedding}, {classes}"


def lossy_precision(source: ModelFile, converted: ModelFile) -> str:
    """Precision that the way from one file to the other rounded values to."""
    lossy = {
        dtype
        for name, dtype in converted.dtypes.items()
        if dtype not in (_EXACT, "float64") and dtype != source.dtypes.get(name)
    }
    for dtype in lossy - TOLERANCES.keys():
        raise UsageError(f"{converted.reader.path} holds {dtype}", hint="there is no tolerance for that type")
    return max(lossy, key=lambda dtype: TOLERANCES[dtype].stages.value, default=_EXACT)


def settings_of(file: ModelFile) -> dict[str, Any]:
    """Behaviour settings that are known of a file: by the user, its entry or its metadata."""
    keys = file.recognition.family.settings
    return {key: json.loads(value) for key, value in file.plan.metadata.items() if key in keys}


# -- running -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """What to build, the same in both frameworks."""

    family: Family
    variant: str
    structure: Structure
    settings: Mapping[str, Any]

    def build(self, module: Any) -> Any:
        """Build it with a framework's module."""
        return module.build(
            self.variant,
            num_classes=self.structure.num_classes,
            **({"pos_emb": self.structure.pos_emb} if self.family.has_pos_emb else {}),
            **({"table_sizes": self.structure.table_sizes} if self.structure.table_sizes else {}),
            **self.settings,
        )


@dataclass(frozen=True)
class Pass:
    """One forward pass."""

    outputs: dict[str, Array]  # channels last
    seconds: float = 0.0  # of processor time
    graph: Path | None = None  # what the model was exported to


@dataclass(frozen=True)
class Ran:
    """A backend's result: a pass for each function, and its part of the report."""

    passes: Mapping[str, Pass]  # by what the function's settings add to the outputs' names
    side: Side

    @property
    def outputs(self) -> dict[str, Array]:
        """All outputs by their full names."""
        return {
            name + label: output for label, one in self.passes.items() for name, output in one.outputs.items()
        }


Given = TypeVar("Given")
"""What a backend runs on: images (N, H, W, 3) float32 for those of the families' models."""


class Backend(ABC, Generic[Given]):
    """One side of a comparison."""

    framework: Framework

    def start(self, given: Given, /, say: Say = say_nothing) -> None:
        """Begin to run in another process; `run` waits for it."""

    @abstractmethod
    def run(self, given: Given, /, say: Say = say_nothing, reference: Ran | None = None) -> Ran:
        """Give the outputs; ``reference`` is what the other side gave before."""


@dataclass
class ModelBackend(Backend[Array]):
    """A family's model, filled from a checkpoint; run once for each function the file may be of."""

    file: ModelFile
    known: Mapping[str, Any]  # settings that are known of it
    reads: str  # the file, in words

    @property
    def modes(self) -> dict[str, dict[str, Any]]:
        """Each function's settings, by what they add to the outputs' names: one where all are known."""
        family = self.file.recognition.family
        open_keys = family.missing_settings(self.known)
        modes = {}
        for values in product((False, True), repeat=len(open_keys)):
            chosen = dict(zip(open_keys, values, strict=True))
            label = ", ".join(f"{key} {str(value).lower()}" for key, value in chosen.items())
            modes[f" ({label})" if label else ""] = {**family.default_settings, **self.known, **chosen}
        return modes

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, for the report."""
        unknown = self.file.recognition.family.missing_settings(self.known)
        return next(iter(self.modes.values())) | dict.fromkeys(unknown, "both")

    def run(self, images: Array, /, say: Say = say_nothing, reference: Ran | None = None) -> Ran:
        """Build the model, fill it and run it."""
        started = time.perf_counter()
        passes = {
            label: self._run(self.file.model(settings), images) for label, settings in self.modes.items()
        }
        return Ran(passes, self.side(self.versions(), time.perf_counter() - started))

    def side(self, versions: str, seconds: float) -> Side:
        """Its part of the report."""
        return Side(
            framework=self.framework,
            versions=versions,
            reads=self.reads,
            format=self.file.reader.format,
            layout=self.file.recognition.layout,
            dtype=self.file.dtype,
            settings=self.settings,
            seconds=seconds,
        )

    @abstractmethod
    def _run(self, model: Model, images: Array) -> Pass:
        """Run one model."""

    @staticmethod
    @abstractmethod
    def versions() -> str:
        """The framework's, which is loaded for it."""


class KerasBackend(ModelBackend):
    """The Keras model."""

    framework = "keras"

    def _run(self, model: Model, images: Array) -> Pass:
        module = model.family.keras_module()
        from ckptkit.families.keras_backend import tf

        try:
            with _out_of_memory_in_words(images, tf.errors.ResourceExhaustedError), tf.device("CPU:0"):
                built = model.build(module)
                self.file.fill_keras(module, built)
                return Pass({name: tensor.numpy() for name, tensor in built.forward_stages(images).items()})
        finally:
            built = None
            gc.collect()  # Keras' layers point at each other in circles

    @staticmethod
    def versions() -> str:
        """TensorFlow's, and Keras'."""
        from ckptkit.families.keras_backend import keras, tf

        return f"tensorflow {tf.__version__}, keras {keras.__version__}"


@dataclass
class TorchBackend(ModelBackend):
    """The PyTorch model; with a folder for graphs, each is exported while it is loaded."""

    framework = "torch"
    graphs: Path | None = None

    def _run(self, model: Model, images: Array) -> Pass:
        with _out_of_memory_in_words(images, RuntimeError):
            built = self.file.filled_torch(model)
        began = time.process_time()
        outputs = run_torch(built, images)
        seconds = time.process_time() - began
        graph = None
        if self.graphs is not None:
            graph = self.graphs / f"{len(list(self.graphs.iterdir()))}.onnx"
            write_onnx(built, graph, size=images.shape[1:3])
        return Pass(outputs, seconds, graph)

    @staticmethod
    def versions() -> str:
        """PyTorch's."""
        import torch

        return f"torch {torch.__version__}"


@dataclass
class GraphBackend(Backend[Array]):
    """A backend that carries its own weights and computes one function."""

    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)  # that it says it was made with
    batch: int | None = None  # what it is fixed to
    size: tuple[int, int] | None = None

    def _side(self, started: float, reference: Ran | None, **facts: str) -> Side:
        return Side(
            framework=self.framework,
            settings={**(reference.side.settings if reference else {}), **self.settings},
            seconds=time.perf_counter() - started,
            **{"reads": str(self.path), "dtype": "float32", **facts},
        )


@dataclass
class OnnxBackend(GraphBackend):
    """A graph in ONNX Runtime, which runs apart: a stranger's with the time and memory PyTorch suggests."""

    framework = "onnxruntime"
    graph: OnnxGraph | None = None  # None: those that PyTorch's side exported

    @classmethod
    def of(cls, graph: OnnxGraph, settings: Mapping[str, Any] | None = None) -> OnnxBackend:
        """A graph that is open."""
        return cls(graph.path, settings or {}, graph.batch, graph.size, graph)

    def run(self, images: Array, /, say: Say = say_nothing, reference: Ran | None = None) -> Ran:
        """Run it, or each of those."""
        started = time.perf_counter()
        passes, graph = {}, self.graph
        for label, theirs in reference.passes.items() if reference else [("", Pass({}))]:
            if theirs.graph is not None:
                graph = open_foreign_onnx(theirs.graph, limited=False)
            assert graph is not None
            say("running the graph by ONNX Runtime")
            passes[label] = Pass(graph.run(images, theirs.outputs, theirs.seconds))
        assert graph is not None
        reads = {} if self.graph else {"reads": "a fresh export"}
        facts = {"versions": graph.versions, "format": "onnx", "layout": f"opset {graph.opset}"}
        return Ran(passes, self._side(started, reference, **facts, **reads))


@dataclass
class SavedModelBackend(GraphBackend):
    """A SavedModel, run by TensorFlow alone. It is a program: one that others made is not for this."""

    framework = "saved-model"

    @cached_property
    def _signature(self) -> Any:
        return load_saved_model(self.path)

    @cached_property
    def versions(self) -> str:
        """TensorFlow's."""
        from ckptkit.families.keras_backend import tf

        return f"tensorflow {tf.__version__}"

    def run(self, images: Array, /, say: Say = say_nothing, reference: Ran | None = None) -> Ran:
        """Load it once, and run it."""
        started = time.perf_counter()
        passes = {"": Pass(self._signature(images))}
        facts = {"versions": self.versions, "format": "saved-model", "layout": "serving_default"}
        return Ran(passes, self._side(started, reference, **facts))


@dataclass
class RecordedBackend(GraphBackend):
    """Outputs that were recorded elsewhere, under their names in an ``.npz``.

    ``images`` in the file are what they were made of; without them, the inputs of `random_inputs`.
    """

    framework = "recorded"
    has_images: bool = False

    @classmethod
    def of(cls, path: Path) -> RecordedBackend:
        """Look into the file."""
        with open_reader(path) as reader:
            outputs = [spec for spec in reader.specs.values() if _is_output(spec.name)]
            images = reader.specs.get(IMAGES)
            usable = [spec.shape and spec.dtype.is_float for spec in outputs]
            if reader.format != "npz" or not usable or not all(usable):
                raise FormatError(
                    path, "not a recording", hint=f"save {LOGITS}, stage1, … by numpy.savez, channels last"
                )
            if images and not (len(images.shape) == 4 and images.shape[3] == 3 and images.dtype.is_float):
                what = f"{list(images.shape)} of {images.dtype}"
                raise FormatError(path, f"its {IMAGES} are {what}, not (N, H, W, 3) of floats")
            size = (images.shape[1], images.shape[2]) if images else None
            return cls(path, {}, outputs[0].shape[0], size, images is not None)

    def run(self, images: Array, /, say: Say = say_nothing, reference: Ran | None = None) -> Ran:
        """Read what has the shape of the other side's; of any other the shape alone is compared."""
        import numpy

        started = time.perf_counter()
        expected = reference.outputs if reference else {}
        outputs = {}
        with open_reader(self.path) as reader:
            for name in in_order([name for name in reader.specs if _is_output(name)]):
                shape = reader.specs[name].shape
                is_same = name in expected and expected[name].shape == shape
                outputs[name] = reader.read(name) if is_same else numpy.broadcast_to(numpy.nan, shape)
        facts = {"versions": "made elsewhere", "format": "npz", "layout": "outputs"}
        return Ran({"": Pass(outputs)}, self._side(started, reference, **facts))


def _is_output(name: str) -> bool:
    return name == LOGITS or is_stage(name)


def run_torch(built: Any, images: Array) -> dict[str, Array]:
    """Run a PyTorch model that is built."""
    import torch

    with _out_of_memory_in_words(images, RuntimeError), torch.inference_mode():
        batch = torch.tensor(images, device="cpu").permute(0, 3, 1, 2).contiguous()
        return {name: _channels_last(tensor) for name, tensor in built.forward_stages(batch).items()}


def _channels_last(tensor: Any) -> Array:
    array: Array = (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).numpy()
    return array


@contextmanager
def _out_of_memory_in_words(images: Array, kind: type[Exception]) -> Iterator[None]:
    """Turn a framework's way of saying "no memory" into one line; let everything else pass."""
    try:
        yield
    except (MemoryError, kind) as error:
        if kind is RuntimeError and not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        batch, height, width = images.shape[:3]
        raise UsageError(
            f"not enough memory for a forward pass of {counted(batch, 'input')} at {height}x{width}",
            hint="try a smaller --batch or --resolution",
        ) from error
