"""One forward pass in one framework: build, fill, run on the CPU, keep the outputs, let the rest go.

The first model is gone before the second one is built. TensorFlow's allocator keeps the freed memory to
itself, though, so a run still takes about twice the weights, the activations, and the frameworks' own 0.5 GB.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ckptkit.base.errors import UsageError
from ckptkit.base.tensors import Array
from ckptkit.families.base import Family, Structure

Fill = Callable[[Any, Any], None]
"""Loads weights: takes the family's model module and the model."""


@dataclass(frozen=True)
class Model:
    """What to build, the same in both frameworks.

    Parameters
    ----------
    family : Family
    variant : str
    structure : Structure
    settings : mapping
        Behaviour settings.
    """

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


def keras_stages(model: Model, fill: Fill, images: Array) -> tuple[dict[str, Array], str]:
    """Run the Keras model.

    Parameters
    ----------
    model : Model
    fill : callable
    images : numpy.ndarray
        (N, H, W, 3) float32.

    Returns
    -------
    (dict of str to numpy.ndarray, str)
        Outputs by name, channels last; TensorFlow's and Keras' versions.
    """
    module = model.family.keras_module()

    from ckptkit.families.keras_backend import keras, tf

    try:
        with _out_of_memory_in_words(images, tf.errors.ResourceExhaustedError), tf.device("CPU:0"):
            built = model.build(module)
            fill(module, built)
            outputs = {name: tensor.numpy() for name, tensor in built.forward_stages(images).items()}
        return outputs, f"tensorflow {tf.__version__}, keras {keras.__version__}"
    finally:
        built = None
        gc.collect()  # Keras' layers point at each other in circles


def torch_stages(model: Model, fill: Fill, images: Array) -> tuple[dict[str, Array], str]:
    """Run the PyTorch model; parameters and results as for `keras_stages`."""
    import torch

    try:
        with _out_of_memory_in_words(images, RuntimeError):
            built = filled_torch(model, fill)
        return run_torch(built, images), f"torch {torch.__version__}"
    finally:
        built = None


def filled_torch(model: Model, fill: Fill) -> Any:
    """Build the PyTorch model with its weights, on the CPU."""
    module = model.family.torch_module()

    import torch

    with torch.no_grad():
        with torch.device("meta"):  # no time spent on random weights: loading gives memory, on the CPU
            built = model.build(module)
        fill(module, built)
    return built


def run_torch(built: Any, images: Array) -> dict[str, Array]:
    """Run a PyTorch model that is built.

    Parameters
    ----------
    built : torch.nn.Module
    images : numpy.ndarray
        (N, H, W, 3) float32.

    Returns
    -------
    dict of str to numpy.ndarray
        Outputs by name, channels last.

    Raises
    ------
    UsageError
        When there is not enough memory.
    """
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
