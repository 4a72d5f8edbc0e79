"""A PyTorch model written as an ONNX graph, and an ONNX file run by ONNX Runtime on the CPU.

The graph takes ``images``, NCHW float32 of one fixed size in batches of any number, and gives ``logits`` or
the stages' outputs. The resolution is fixed because attention makes its position bias while the graph is
made. Each stage's output keeps its name inside the graph where it is none of the graph's outputs, so that a
finished file can still be compared stage by stage: messages that are joined byte by byte are one message with
all fields of both (https://protobuf.dev/programming-guides/encoding/#last-one-wins), so a value inside the
graph becomes one of its outputs by a few bytes at the end of the file, and the weights are neither parsed nor
copied for it.

Sources: the dynamo exporter of ``torch.onnx.export`` (PyTorch 2.6 or later), whose operator implementations
begin at opset 18; the limit of 2 GB for one protocol-buffer message and the layout of external data are those
of onnx/docs/ExternalData.md.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from ckptkit._version import __version__
from ckptkit.base.errors import ConversionError, FormatError, NotFoundError, UsageError, listed
from ckptkit.base.files import refuse_not_utf8, translated
from ckptkit.base.tensors import Array
from ckptkit.formats.protobuf_wire import bytes_field

INPUT = "images"
LOGITS = "logits"
BATCH = "batch"
"""Name of the one dimension that is open."""

OPSETS = (18, 25)
"""Lowest and highest operator set that both families were exported to and run with."""
DEFAULT_OPSET = 18
"""The one that most programs read."""

SINGLE_FILE_BYTES = 2**31 - (32 << 20)
"""Weights up to this size go into the file itself: a message ends at 2 GB, and the graph takes its part."""

DATA_ENDING = ".data"
"""Of the file beside the graph that holds larger weights."""

_TRACED_BATCH = 2  # an exporter takes a batch of 1 for a constant
_TALKATIVE = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class OnnxFiles:
    """What was written."""

    graph: Path
    data: Path | None  # the weights' file, where they are too large for the graph's
    outputs: tuple[str, ...]  # what the graph gives

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, the graph last: a graph whose weights are not there yet would be damaged."""
        return (self.graph,) if self.data is None else (self.data, self.graph)


def require_opset(opset: int) -> None:
    """Refuse an operator set that nothing is known of.

    >>> require_opset(20)
    """
    lowest, highest = OPSETS
    if not lowest <= opset <= highest:
        raise UsageError(f"ONNX operator set {opset}", hint=f"from {lowest} to {highest}")


def data_path(graph: Path) -> Path:
    """Where the weights are stored that are too large for the graph's own file.

    >>> data_path(Path("moat4.onnx")).name
    'moat4.onnx.data'
    """
    return graph.with_name(graph.name + DATA_ENDING)


def write_onnx(
    model: Any,
    path: Path,
    *,
    size: tuple[int, int],
    features: bool = False,
    opset: int = DEFAULT_OPSET,
    metadata: Mapping[str, str] | None = None,
    single_file_bytes: int = SINGLE_FILE_BYTES,
    verbose: bool = False,
) -> OnnxFiles:
    """Write a model as an ONNX file.

    The same model gives the same bytes, and nothing of this machine is in them: the exporter's stack traces
    and notes are taken out. Weights keep the names of the canonical layout where the exporter kept them; it
    folds a BatchNorm into the convolution before it.
    """
    require_opset(opset)
    with _quiet(verbose):
        program, names = _exported(model, size, features=features, opset=opset, verbose=verbose)
        graph = program.model
        made = graph.opset_imports.get("")
        if made != opset:
            raise UsageError(
                f"the installed PyTorch exports to ONNX operator set {made}, not {opset}",
                hint="choose another --opset, or update torch and onnxscript",
            )
        _tidy(graph, {} if metadata is None else metadata)
        if not features and LOGITS in names:
            _keep_outputs(graph, {LOGITS})
        outputs = tuple(value.name for value in graph.graph.outputs)
        data = _save(graph, path, single_file_bytes)
    return OnnxFiles(path, data, outputs)


def _exported(
    model: Any, size: tuple[int, int], *, features: bool, opset: int, verbose: bool
) -> tuple[Any, list[str]]:
    """Run PyTorch's exporter with all outputs; gives its program and the outputs' names."""
    import torch

    class Stages(torch.nn.Module):  # type: ignore[misc]  # torch has no stubs under this configuration
        """What the families' models call `forward_stages`, as a module."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Any) -> tuple[Any, ...]:
            """``(N, 3, H, W)`` to the outputs in order."""
            outputs = self.model.forward_stages(images)
            return tuple(output for name, output in outputs.items() if not features or name != LOGITS)

    parameter = next(model.parameters())
    example = torch.zeros(_TRACED_BATCH, 3, *size, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        names = [name for name in model.forward_stages(example[:1]) if not features or name != LOGITS]
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                Stages().eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                external_data=False,
                verbose=verbose,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConversionError(
            f"PyTorch {torch.__version__} cannot write this model as ONNX: {reason}",
            hint="try another --opset, or other versions of torch and onnxscript",
        ) from error
    return program, names


def _tidy(model: Any, metadata: Mapping[str, str]) -> None:
    """Take out what the exporter noted (paths and lines of this machine), put in what the file should say."""
    from onnxscript import ir

    graph = model.graph
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    for node in ir.traversal.RecursiveGraphIterator(graph):
        values += node.outputs
        node.metadata_props.clear()
        node.doc_string = None
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
    for part in (graph, model):
        part.metadata_props.clear()
        part.doc_string = None
    model.producer_name, model.producer_version = "ckptkit", __version__
    model.metadata_props.update(metadata)
    for name in list(graph.initializers):
        if name.startswith("model."):
            value = graph.initializers.pop(name)
            value.name = name.removeprefix("model.")
            graph.initializers[value.name] = value


def _keep_outputs(model: Any, names: set[str]) -> None:
    """Make these the only outputs; the others stay in the graph, where the kept ones are made of them."""
    outputs = model.graph.outputs
    kept = [value for value in outputs if value.name in names]
    outputs.clear()
    outputs.extend(kept)


def _save(model: Any, path: Path, single_file_bytes: int) -> Path | None:
    """Write the file, and the weights beside it where they are too large; gives the latter's path."""
    from onnxscript import ir

    nbytes = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    data = data_path(path) if nbytes > single_file_bytes else None
    with translated(path):
        ir.save(model, path, external_data=None if data is None else data.name)
    return data


@contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Keep what the exporter prints, warns and logs off the terminal, unless the user wants to see it."""
    if verbose:
        yield
        return
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_STAGE = re.compile(r"stage[1-9][0-9]?")
_GRAPH, _OUTPUT, _NAME = 7, 12, 1  # ModelProto.graph, GraphProto.output, ValueInfoProto.name in onnx.proto
_IMAGE_DIMENSIONS = 4
_ERRORS_ONLY = 4


@dataclass(frozen=True)
class OnnxGraph:
    """An open ONNX file."""

    path: Path
    opset: int
    # What `run` gives: the stages that have names in the graph, then the graph's own other outputs
    outputs: tuple[str, ...]
    batch: int | None  # fixed size of a batch
    size: tuple[int, int] | None  # height and width of the input
    metadata: dict[str, str]  # the file's ``metadata_props``
    versions: str
    _session: Any = field(repr=False)

    def run(
        self, images: Array, like: Mapping[str, Array] | None = None, seconds: float = 0.0
    ) -> dict[str, Array]:
        """Run the graph.

        ``images``: (N, H, W, 3) float32.
        """
        import numpy

        batch, height, width = images.shape[:3]
        if self.size not in (None, (height, width)) or self.batch not in (None, batch):
            raise UsageError(
                f"{self.path} takes {_in_words(self.batch, self.size)}, not {batch} of {height}x{width}",
                hint="leave --resolution and --batch as the file has them, or export another one",
            )
        planes = numpy.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=numpy.float32)
        if hasattr(self._session, "get_inputs"):
            arrays = self.on_planes(list(self.outputs), planes)
        else:
            arrays = self._session.run(list(self.outputs), planes, like or {}, seconds)
        return {name: _channels_last(array) for name, array in zip(self.outputs, arrays, strict=True)}

    def on_planes(self, outputs: list[str], planes: Array) -> list[Any]:
        """Run ONNX Runtime's session on (N, 3, H, W) float32."""
        try:
            arrays: list[Any] = self._session.run(outputs, {self._session.get_inputs()[0].name: planes})
        except Exception as error:  # ONNX Runtime's exceptions have no base class but this
            raise FormatError(self.path, f"ONNX Runtime cannot run it: {first_line(error)}") from error
        return arrays


def _in_words(batch: int | None, size: tuple[int, int] | None) -> str:
    number = "batches of any number" if batch is None else f"batches of {batch}"
    return f"{number}, images of any size" if size is None else f"{number}, images of {size[0]}x{size[1]}"


def _channels_last(array: Array) -> Array:
    return array.transpose(0, 2, 3, 1) if array.ndim == _IMAGE_DIMENSIONS else array


def open_onnx(path: Path, check: Callable[[Path, Any], None] | None = None) -> OnnxGraph:
    """Check an ONNX file that we made and load it into ONNX Runtime, on the CPU.

    One that others made is for `onnx_apart.open_foreign_onnx`; ``check`` is its first look.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    refuse_not_utf8(path, "onnx")
    opset, names = _checked_outline(path, check)
    session, versions = open_session(path, also=names)
    batch, _, height, width = (
        extent if isinstance(extent, int) else None for extent in session.get_inputs()[0].shape
    )
    return OnnxGraph(
        path,
        opset,
        in_order([output.name for output in session.get_outputs()]),
        batch,
        None if height is None or width is None else (height, width),
        dict(session.get_modelmeta().custom_metadata_map),
        versions,
        session,
    )


def onnx_runtime() -> Any:
    """Import ONNX Runtime without its telemetry, which would put an id into the home folder at once."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def open_session(path: Path, also: Sequence[str] = ()) -> tuple[Any, str]:
    """Load a file into ONNX Runtime, ``also`` with these values as outputs; the session, and what runs it."""
    onnxruntime = onnx_runtime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent.resolve())
    )
    with translated(path):
        data = path.read_bytes() if not also else _with_outputs(path, also)
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no base class but this
        raise FormatError(path, f"ONNX Runtime cannot load it: {first_line(error)}") from error
    return session, f"onnxruntime {onnxruntime.__version__}"


def is_stage(name: str) -> bool:
    """Whether a value is one stage's output."""
    return _STAGE.fullmatch(name) is not None


def _checked_outline(path: Path, check: Callable[[Path, Any], None] | None) -> tuple[int, list[str]]:
    """Have onnx check a file; gives its operator set, and the stages in it that are no outputs of it yet."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, OSError
        raise FormatError(path, f"not a valid ONNX file: {first_line(error)}") from error
    if check is not None:
        check(path, model)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # protobuf's DecodeError, onnx' ValidationError and InferenceError, OSError
        raise FormatError(path, f"not a valid ONNX file: {first_line(error)}") from error
    inputs = [
        value for value in model.graph.input if value.name not in {i.name for i in model.graph.initializer}
    ]
    shape = [extent.dim_value for extent in inputs[0].type.tensor_type.shape.dim] if inputs else []
    if len(inputs) != 1 or len(shape) != _IMAGE_DIMENSIONS or shape[1] != 3:
        raise FormatError(
            path,
            "its graph does not take one batch of images (N, 3, H, W)",
            hint="'ckptkit export ID --to onnx' makes one that does",
        )
    outputs = {value.name for value in model.graph.output}
    inside = {name for node in model.graph.node for name in node.output if _STAGE.fullmatch(name)}
    if not outputs & {LOGITS} and not any(map(_STAGE.fullmatch, outputs)):
        raise FormatError(path, f"its graph gives {listed(sorted(outputs))}, neither {LOGITS} nor stages")
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    opset = max(versions, default=0)
    return opset, sorted(inside - outputs)


def _with_outputs(path: Path, names: Sequence[str]) -> bytes:
    """Bytes of a file whose graph gives these values too."""
    values = b"".join(bytes_field(_OUTPUT, bytes_field(_NAME, name.encode())) for name in names)
    return b"".join((path.read_bytes(), bytes_field(_GRAPH, values)))


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Stages by number, then the rest in its order."""
    stages = sorted((name for name in names if _STAGE.fullmatch(name)), key=lambda name: int(name[5:]))
    return (*stages, *(name for name in names if name not in stages))


def first_line(error: Exception) -> str:
    """The first words of an error that says much."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
