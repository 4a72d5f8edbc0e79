"""What PyTorch can be compared with, and which of it a request means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ckptkit.base.errors import UsageError, one_of
from ckptkit.parity.onnx_backend import run_onnx_parity
from ckptkit.parity.report import Backend, ParityReport
from ckptkit.parity.run import run_parity

if TYPE_CHECKING:
    from ckptkit.workspace import Located

GRAPH_ENDING = ".onnx"


_ALIASES = {"tf": "keras", "tensorflow": "keras", "onnx": "onnxruntime", "ort": "onnxruntime"}


def backend_named(text: str) -> Backend:
    """What PyTorch is to be compared with, by its own name or another one for it.

    Raises
    ------
    UsageError
        It is none of them.
    """
    return cast(Backend, one_of("backend", text, ("keras", "onnxruntime"), _ALIASES))


def chosen_backends(
    asked: Sequence[Backend] = (), *, converted: Path | None = None, dtype: str | None = None
) -> tuple[Backend, ...]:
    """Settle what to compare with: what was asked for, else what a given conversion is for, else Keras.

    Raises
    ------
    UsageError
        When a given conversion or a precision is not for one of them.

    Examples
    --------
    >>> chosen_backends(), chosen_backends(converted=Path("moat0.onnx"))
    (('keras',), ('onnxruntime',))
    """
    fitting: Backend = "onnxruntime" if converted and converted.suffix.lower() == GRAPH_ENDING else "keras"
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


def run_with(
    backend: Backend,
    located: Located,
    *,
    converted: Path | None = None,
    dtype: str | None = None,
    **options: Any,
) -> ParityReport:
    """Compare with one of `chosen_backends`; the options are those that both kinds of run take.

    Raises
    ------
    CkptkitError
        As `run_parity` and `run_onnx_parity` raise it.
    """
    if backend == "keras":
        return run_parity(located, converted=converted, dtype=dtype, **options)
    return run_onnx_parity(located, graph=converted, **options)
