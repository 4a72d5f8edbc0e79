"""Running a model on batches of images: which device, which precision, and the logits as numbers.

What is said here of GPUs follows PyTorch's documentation; it has not been run on one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from ckptkit.analysis.model_source import ModelSource
from ckptkit.base.errors import UsageError
from ckptkit.base.extras import require_installed
from ckptkit.base.tensors import Array
from ckptkit.models import Framework

_PACKAGES = {"torch": "torch", "keras": "tensorflow"}


@dataclass(frozen=True)
class Predictor:
    """A model on its device."""

    run: Callable[[Array], Array]  # takes (N, H, W, 3) float32, gives logits (N, classes) float32
    device: str  # ``cpu``, ``cuda:0`` …
    precision: str  # ``float32``, or the type that autocast computes in
    versions: str


def require_packages(framework: Framework, purpose: str) -> None:
    """Look for the framework and Pillow before any slow work, without importing them."""
    require_installed([_PACKAGES[framework], "pillow"], purpose)


def torch_device(wanted: str = "auto") -> str:
    """Choose the device of this process."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and count == 0):
        return "cpu"
    kind, _, number = wanted.partition(":")
    local = os.environ.get("LOCAL_RANK", "0")
    index = number or (local if local.isdigit() else "0")
    if wanted != "auto" and (kind != "cuda" or not index.isdigit() or wanted.endswith(":")):
        raise UsageError(f"no device {wanted!r}", hint="one of auto, cpu, cuda, cuda:N")
    if count == 0:
        raise UsageError(
            f"--device {wanted}: PyTorch sees no GPU here", hint="leave --device out, or say cpu"
        )
    if int(index) >= count:
        raise UsageError(f"--device: no GPU {index}, there are {count}", hint=f"cuda:0 to cuda:{count - 1}")
    return f"cuda:{index}"


def torch_predictor(source: ModelSource, device: str, *, amp: bool, **options: Any) -> Predictor:
    """Load a PyTorch model onto a device."""
    import torch

    kind = device.partition(":")[0]
    half = torch.bfloat16 if kind == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
    # the images arrive channels last; on a GPU the convolutions want their weights so too
    layout = torch.channels_last if kind == "cuda" else torch.preserve_format
    model = source.model("torch", **options).to(device=device, memory_format=layout)

    def run(images: Array) -> Array:
        batch = torch.from_numpy(images)
        if kind == "cuda":
            batch = batch.pin_memory().to(device, non_blocking=True)
        batch = batch.permute(0, 3, 1, 2)
        with (
            torch.inference_mode(),
            torch.autocast(kind, dtype=half) if amp else nullcontext(),
            out_of_memory_in_words(len(images)),
        ):
            logits: Array = model(batch if kind == "cuda" else batch.contiguous()).float().cpu().numpy()
            return logits

    precision = str(half).removeprefix("torch.") if amp else "float32"
    return Predictor(run, device, precision, f"torch {torch.__version__}")


def keras_predictor(source: ModelSource, device: str, **options: Any) -> Predictor:
    """Load a Keras model."""
    if device not in ("auto", "cpu"):
        raise UsageError(f"--device {device} is for --framework torch", hint="say cpu, or leave it out")
    source.family.keras_module()

    from ckptkit.families.keras_backend import keras, tf

    placed: Callable[[], Any] = (lambda: tf.device("CPU:0")) if device == "cpu" else nullcontext
    with placed():
        model = source.model("keras", **options)

    def run(images: Array) -> Array:
        with placed():
            try:
                logits: Array = model(images).numpy()
            except tf.errors.ResourceExhaustedError as error:
                raise _too_large(len(images)) from error
            return logits

    where = "cpu" if device == "cpu" or not tf.config.list_physical_devices("GPU") else "gpu"
    return Predictor(run, where, "float32", f"tensorflow {tf.__version__}, keras {keras.__version__}")


class out_of_memory_in_words:  # noqa: N801  # used like contextlib's
    """Turn PyTorch's ways of saying "no memory" into one line; let everything else pass."""

    def __init__(self, batch: int) -> None:
        self._batch = batch

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Translate."""
        if isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError)
            and ("out of memory" in str(error) or "can't allocate" in str(error))
        ):
            raise _too_large(self._batch) from error


def _too_large(batch: int) -> UsageError:
    return UsageError(f"not enough memory for {batch} images at once", hint="try a smaller --batch-size")
