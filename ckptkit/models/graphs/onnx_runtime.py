"""An ONNX file run by ONNX Runtime on the CPU, with its stages' outputs where they have names.

Messages that are joined byte by byte are one message with all fields of both
(https://protobuf.dev/programming-guides/encoding/#last-one-wins), so a value inside the graph becomes one of
its outputs by a few bytes at the end of the file: the weights are neither parsed nor copied for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptkit.base.errors import FormatError, NotFoundError, UsageError, listed
from ckptkit.base.files import refuse_not_utf8, translated
from ckptkit.base.tensors import Array
from ckptkit.formats.protobuf_wire import bytes_field
from ckptkit.models.graphs.onnx_graph import LOGITS

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
            raise FormatError(self.path, f"ONNX Runtime cannot run it: {_first_line(error)}") from error
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
    import onnxruntime

    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    refuse_not_utf8(path, "onnx")
    opset, names = _checked_outline(path, check)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent.resolve())
    )
    with translated(path):
        data = path.read_bytes() if not names else _with_outputs(path, names)
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no base class but this
        raise FormatError(path, f"ONNX Runtime cannot load it: {_first_line(error)}") from error
    batch, _, height, width = (
        extent if isinstance(extent, int) else None for extent in session.get_inputs()[0].shape
    )
    return OnnxGraph(
        path,
        opset,
        _in_order([output.name for output in session.get_outputs()]),
        batch,
        None if height is None or width is None else (height, width),
        dict(session.get_modelmeta().custom_metadata_map),
        f"onnxruntime {onnxruntime.__version__}",
        session,
    )


def is_stage(name: str) -> bool:
    """Whether a value is one stage's output."""
    return _STAGE.fullmatch(name) is not None


def _checked_outline(path: Path, check: Callable[[Path, Any], None] | None) -> tuple[int, list[str]]:
    """Have onnx check a file; gives its operator set, and the stages in it that are no outputs of it yet."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, OSError
        raise FormatError(path, f"no valid ONNX file: {_first_line(error)}") from error
    if check is not None:
        check(path, model)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # protobuf's DecodeError, onnx' ValidationError and InferenceError, OSError
        raise FormatError(path, f"no valid ONNX file: {_first_line(error)}") from error
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


def _in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Stages by number, then the rest as it stands."""
    stages = sorted((name for name in names if _STAGE.fullmatch(name)), key=lambda name: int(name[5:]))
    return (*stages, *(name for name in names if name not in stages))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
