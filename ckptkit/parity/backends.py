"""What gives outputs for a batch of images: the Keras model, the PyTorch model, its graph in ONNX Runtime.

A `Backend` runs one side of a comparison on the CPU and lets everything but the outputs go. TensorFlow's
allocator keeps the freed memory to itself, though, so a run in both frameworks takes about twice the weights,
the activations, and the frameworks' own 0.5 GB.

The Keras model is filled by the names that are in the file, or by Keras' own loader, without any layout rule,
so that a wrong rule cannot cancel itself out; the PyTorch model gets canonical names, which a converted file
has already.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ckptkit.base.errors import ConversionError, UsageError, one_of, require_installed
from ckptkit.base.packages import is_installed
from ckptkit.base.tensors import DTYPES, Array
from ckptkit.convert.planning import FamilyPlan, plan_by_layout
from ckptkit.families.base import CANONICAL, Family, Structure
from ckptkit.families.binding import Weights
from ckptkit.families.filling import load_state
from ckptkit.families.recognition import Recognition, require_recognition
from ckptkit.formats.base import Reader
from ckptkit.formats.names import EXTENSIONS
from ckptkit.formats.readers import Renamed
from ckptkit.models.graphs.onnx_graph import OnnxGraph, open_onnx, write_onnx
from ckptkit.parity.compare import TOLERANCES
from ckptkit.parity.report import FRAMEWORK_NAMES, BackendName, Framework, Note, Side
from ckptkit.rules.language import Binding

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry

GRAPH_ENDING = ".onnx"
FRAMEWORKS = ("torch", "tensorflow")
ONNX = ("torch", "onnx", "onnxruntime", "onnxscript")
"""What exporting a graph and running it takes."""

_ALIASES = {"tf": "keras", "tensorflow": "keras", "onnx": "onnxruntime", "ort": "onnxruntime"}
_EXACT = "float32"


# -- which is meant ------------------------------------------------------------------------------------------


def backend_named(text: str) -> BackendName:
    """What PyTorch is to be compared with, by its own name or another one for it."""
    return cast(BackendName, one_of("backend", text, ("keras", "onnxruntime"), _ALIASES))


def chosen_backends(
    asked: Sequence[BackendName] = (), *, converted: Path | None = None, dtype: str | None = None
) -> tuple[BackendName, ...]:
    """Settle what to compare with: what was asked for, else what a given conversion is for, else Keras.

    >>> chosen_backends(), chosen_backends(converted=Path("moat0.onnx"))
    (('keras',), ('onnxruntime',))
    """
    fitting: BackendName = (
        "onnxruntime" if converted and converted.suffix.lower() == GRAPH_ENDING else "keras"
    )
    chosen = tuple(dict.fromkeys(asked)) or (fitting,)
    for backend in chosen:
        if converted is not None and backend != fitting:
            raise UsageError(
                f"{converted} cannot be compared with {backend}",
                hint=f"leave --with out: it is for --with {fitting}, which takes "
                + (f"files ending in {GRAPH_ENDING}" if fitting == "onnxruntime" else "checkpoints"),
            )
        if dtype is not None and backend != "keras":
            raise UsageError(f"--with {backend} runs in float32", hint="leave --dtype out")
    return chosen


def require_packages(*, image: bool = False, backend: BackendName = "keras") -> None:
    """Look for both frameworks (and Pillow, for an image) without importing them."""
    frameworks = FRAMEWORKS if backend == "keras" else ONNX
    purpose = "parity, which runs both frameworks," if backend == "keras" else "parity --with onnxruntime"
    only_images = all(is_installed(package) for package in frameworks)
    needed = [*frameworks, "pillow"] if image else frameworks
    require_installed(needed, "parity --image" if only_images else purpose)


# -- a checkpoint as a model reads it ------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelFile:
    """An open checkpoint that fits an architecture."""

    reader: Reader
    plan: FamilyPlan  # its moves to the canonical layout: which tensor is which of the architecture

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
    def lacks_statistics(self) -> bool:
        """Whether the file has no BatchNorm moving statistics."""
        return self.plan.metadata["bn_statistics"] == "missing"

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """Canonical name → element type in the file."""
        return {move.inward.canonical: self.reader.specs[move.source].dtype.name for move in self.plan.moves}

    @property
    def dtype(self) -> str:
        """Element types of the weights in words."""
        return ", ".join(sorted(dtype for dtype in set(self.dtypes.values()) if DTYPES[dtype].is_float))

    def filled_torch(self, model: Model) -> Any:
        """Build the PyTorch model with these weights, on the CPU."""
        module = model.family.torch_module()
        import torch

        with torch.no_grad():
            with torch.device("meta"):  # no time spent on random weights: loading gives memory, on the CPU
                built = model.build(module)
            state = {move.target.name: move.apply(self._read(move.source)) for move in self.plan.moves}
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
            state = {move.inward.external: self._read(move.source) for move in self.plan.moves}
            load_state(model, state | neutral)
            self._release()
            return
        twin = self.recognition.table.layout.second_copy
        module.load_published(
            model,
            neutral.keys() | self.reader.specs.keys(),
            lambda name: neutral[name] if name in neutral else self._read(name),
            suffix=twin.suffix if twin is not None and twin.holds == self.plan.weights else "",
        )
        self._release()

    def _release(self) -> None:
        """Let the file's pages go before the forward pass needs memory."""
        for move in self.plan.moves:
            self.reader.release(move.source)

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
    classes = f"{structure.num_classes} classes" if structure.num_classes else "no head"
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
    """Behaviour settings that are said of a file: by the user, its entry or its metadata."""
    keys = file.recognition.family.settings
    return {key: json.loads(value) for key, value in file.plan.metadata.items() if key in keys}


def modes_of(family: Family, said: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each function the file may stand for: what its outputs' names add, and all settings.

    One, where every setting is said or has a default; else one for either value of each that is not.
    """
    open_keys = family.missing_settings(said)
    for values in product((False, True), repeat=len(open_keys)):
        chosen = dict(zip(open_keys, values, strict=True))
        label = ", ".join(f"{key} {str(value).lower()}" for key, value in chosen.items())
        yield f" ({label})" if label else "", {**family.default_settings, **said, **chosen}


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
class Ran:
    """What a backend gave: outputs by name, channels last, and what the report says of it."""

    outputs: dict[str, Array]
    side: Side


class Backend(ABC):
    """One side of a comparison."""

    framework: ClassVar[Framework]

    @property
    def called(self) -> str:
        """What messages call it."""
        return FRAMEWORK_NAMES[self.framework]

    @abstractmethod
    def run(self, images: Array, say: Note) -> Ran:
        """Give the outputs for (N, H, W, 3) float32."""


@dataclass
class ModelBackend(Backend):
    """A family's model, filled from a checkpoint; run once for each function that the file may stand for."""

    file: ModelFile
    known: Mapping[str, Any]  # settings that are known of it
    reads: str  # the file, in words

    def run(self, images: Array, say: Note) -> Ran:
        """Build the model, fill it and run it."""
        say(f"loading {self.called} and running its model")
        started = time.perf_counter()
        family = self.file.recognition.family
        modes = list(modes_of(family, self.known))
        outputs: dict[str, Array] = {}
        versions = ""
        for label, settings in modes:
            ran, versions = self._run(self.file.model(settings), images, label)
            outputs |= {name + label: output for name, output in ran.items()}
        side = Side(
            framework=self.framework,
            versions=versions,
            reads=self.reads,
            format=self.file.reader.format,
            layout=self.file.recognition.layout,
            dtype=self.file.dtype,
            settings=modes[0][1] | dict.fromkeys(family.missing_settings(self.known), "both"),
            seconds=time.perf_counter() - started,
        )
        return Ran(outputs, side)

    @abstractmethod
    def _run(self, model: Model, images: Array, label: str) -> tuple[dict[str, Array], str]:
        """Outputs of one model, and the framework's version."""


class KerasBackend(ModelBackend):
    """The Keras model."""

    framework = "keras"

    def _run(self, model: Model, images: Array, label: str) -> tuple[dict[str, Array], str]:
        module = model.family.keras_module()
        from ckptkit.families.keras_backend import keras, tf

        try:
            with _out_of_memory_in_words(images, tf.errors.ResourceExhaustedError), tf.device("CPU:0"):
                built = model.build(module)
                self.file.fill_keras(module, built)
                outputs = {name: tensor.numpy() for name, tensor in built.forward_stages(images).items()}
            return outputs, f"tensorflow {tf.__version__}, keras {keras.__version__}"
        finally:
            built = None
            gc.collect()  # Keras' layers point at each other in circles


@dataclass
class TorchBackend(ModelBackend):
    """The PyTorch model."""

    framework = "torch"
    used: dict[str, float] = field(default_factory=dict)  # processor seconds of each forward pass

    def _run(self, model: Model, images: Array, label: str) -> tuple[dict[str, Array], str]:
        import torch

        with _out_of_memory_in_words(images, RuntimeError):
            built = self.file.filled_torch(model)
        used = time.process_time()
        outputs = run_torch(built, images)
        self.used[label] = time.process_time() - used
        return outputs, f"torch {torch.__version__}"


@dataclass
class OnnxBackend(Backend):
    """The graph of a PyTorch model in ONNX Runtime: a fresh export, or a file, which runs apart.

    ``like`` is what PyTorch gave, by which a stranger's graph is allowed time and memory.
    """

    framework = "onnxruntime"
    torch: TorchBackend
    like: Ran
    given: OnnxGraph | None
    settings: Mapping[str, Any]  # that the graph was made with

    def run(self, images: Array, say: Note) -> Ran:
        """Export the graph where none is given, and run it."""
        started = time.perf_counter()
        outputs: dict[str, Array] = {}
        graph = self.given
        with tempfile.TemporaryDirectory(prefix="ckptkit-onnx-") as folder:
            modes = modes_of(self.torch.file.recognition.family, self.torch.known)
            for number, (label, settings) in enumerate(modes):
                if self.given is None:
                    say("exporting to onnx in a temporary folder")
                    path = Path(folder) / f"{number}.onnx"
                    model = self.torch.file.filled_torch(self.torch.file.model(settings))
                    write_onnx(model, path, size=images.shape[1:3])
                    del model
                    graph = open_onnx(path)
                assert graph is not None
                say("running the graph by ONNX Runtime")
                like = {
                    name.removesuffix(label): output
                    for name, output in self.like.outputs.items()
                    if name.endswith(label)
                }
                ran = graph.run(images, like, self.torch.used[label])
                outputs |= {name + label: output for name, output in ran.items()}
        assert graph is not None
        side = Side(
            framework="onnxruntime",
            versions=graph.versions,
            reads="a fresh export" if self.given is None else str(self.given.path),
            format="onnx",
            layout=f"opset {graph.opset}",
            dtype="float32",
            settings={**self.like.side.settings, **self.settings},
            seconds=time.perf_counter() - started,
        )
        return Ran(outputs, side)


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
            f"not enough memory for a forward pass of {batch} inputs at {height}x{width}",
            hint="try a smaller --batch or --resolution",
        ) from error
