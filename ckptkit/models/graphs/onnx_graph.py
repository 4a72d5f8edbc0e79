"""A built PyTorch model written as an ONNX graph, for programs that know nothing of PyTorch.

The graph takes ``images``, NCHW float32 of one fixed size in batches of any number, and gives ``logits`` or
the stages' outputs. The resolution is fixed because attention makes its position bias while the graph is
made. Each stage's output keeps its name inside the graph where it is none of the graph's outputs, so that a
finished file can still be compared stage by stage (`ckptkit.models.graphs.onnx_runtime`).

Sources: the dynamo exporter of ``torch.onnx.export`` (PyTorch 2.6 or later), whose operator implementations
begin at opset 18; the limit of 2 GB for one protocol-buffer message and the layout of external data are those
of onnx/docs/ExternalData.md.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ckptkit._version import __version__
from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.base.files import translated

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
    """Where the weights stand that are too large for the graph's own file.

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
    with _said_aside(verbose):
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
def _said_aside(verbose: bool) -> Iterator[None]:
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
