"""A checkpoint's model on its device, in any framework: images in, logits out.

What is done for GPUs follows PyTorch's documentation; it has not been run on one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ckptkit.analysis.model_source import ModelSource
from ckptkit.base.errors import UsageError, require_installed
from ckptkit.base.tensors import Array
from ckptkit.base.text import counted
from ckptkit.models import Framework
from ckptkit.models.onnx_model import PACKAGES

FRAMEWORK_NAMES: dict[Framework, str] = {"torch": "PyTorch", "keras": "Keras", "onnxruntime": "ONNX Runtime"}
_PACKAGES: dict[Framework, tuple[str, ...]] = {
    "torch": ("torch",),
    "keras": ("tensorflow",),
    "onnxruntime": PACKAGES,
}


@dataclass(frozen=True)
class Runner:
    """A model on its device."""

    run: Callable[[Array], Array]  # takes (N, H, W, 3) float32, gives logits (N, classes) float32
    device: str  # ``cpu``, ``cuda:0`` …
    precision: str  # ``float32``, or the type that autocast computes in
    versions: str


def require_packages(purpose: str, *frameworks: Framework) -> None:
    """Look for the frameworks and Pillow before any slow work, without importing them."""
    require_installed([*(name for one in frameworks for name in _PACKAGES[one]), "pillow"], purpose)


def open_runner(
    source: ModelSource, framework: Framework, device: str = "auto", *, amp: bool = False, **options: Any
) -> Runner:
    """Build a checkpoint's model on a device; ``options`` are more arguments of `create_model`."""
    if framework == "torch":
        return _torch_runner(source, torch_device(device), amp=amp, **options)
    if device not in ("auto", "cpu"):
        raise UsageError(f"--device {device} requires --framework torch", hint="use cpu, or leave it out")
    if framework == "onnxruntime":
        return _onnx_runner(source, **options)
    return _keras_runner(source, device, **options)


def torch_device(name: str = "auto") -> str:
    """Choose the device of this process."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return "cpu"
    kind, _, number = name.partition(":")
    local = os.environ.get("LOCAL_RANK", "0")
    index = number or (local if local.isdigit() else "0")
    if name != "auto" and (kind != "cuda" or not index.isdigit() or name.endswith(":")):
        raise UsageError(f"unknown device {name!r}", hint="choose from auto, cpu, cuda, cuda:N")
    if count == 0:
        raise UsageError(f"--device {name}: PyTorch sees no GPU here", hint="leave --device out, or use cpu")
    if int(index) >= count:
        raise UsageError(f"--device: no GPU {index}, there are {count}", hint=f"cuda:0 to cuda:{count - 1}")
    return f"cuda:{index}"


def _torch_runner(source: ModelSource, device: str, *, amp: bool, **options: Any) -> Runner:
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
            plain_out_of_memory(len(images)),
        ):
            logits: Array = model(batch if kind == "cuda" else batch.contiguous()).float().cpu().numpy()
            return logits

    precision = str(half).removeprefix("torch.") if amp else "float32"
    return Runner(run, device, precision, f"torch {torch.__version__}")


def _keras_runner(source: ModelSource, device: str, **options: Any) -> Runner:
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
    return Runner(run, where, "float32", f"tensorflow {tf.__version__}, keras {keras.__version__}")


def _onnx_runner(source: ModelSource, **options: Any) -> Runner:
    model = source.model("onnxruntime", **options)

    def run(images: Array) -> Array:
        with plain_out_of_memory(len(images)):
            logits: Array = model(images.transpose(0, 3, 1, 2))
            return logits

    return Runner(run, "cpu", "float32", model.versions)


@contextmanager
def hooked(hooks: Iterable[Any]) -> Iterator[None]:
    """Remove hooks of PyTorch's modules when the block ends."""
    with ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.remove)
        yield


@contextmanager
def plain_out_of_memory(batch: int) -> Iterator[None]:
    """Turn PyTorch's ways of saying "no memory" into one line; let everything else pass."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(
            sign in str(error) for sign in ("out of memory", "can't allocate")
        ):
            raise _too_large(batch) from error
        raise


def _too_large(batch: int) -> UsageError:
    return UsageError(
        f"not enough memory for {counted(batch, 'image')} at once", hint="try a smaller --batch-size"
    )
