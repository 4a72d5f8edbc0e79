"""Filling a PyTorch model with arrays, strictly: every tensor has a place and every place a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import ConversionError
from ckptkit.base.tensors import dtype_of

if TYPE_CHECKING:
    from ckptkit.base.tensors import Array

_COUNTER = ".num_batches_tracked"
"""BatchNorm's count of training steps, which no published file needs and evaluation does not use."""

_NAMED = 3
"""How many names a message lists."""


def load_state(model: Any, state: Mapping[str, Array]) -> None:
    """Copy arrays into a model's parameters and statistics.

    All names and shapes are checked before the first value is copied, so a refused state leaves the model as
    it was. Half-precision arrays are widened to the parameter's type. A model on the ``meta`` device is given
    memory on the CPU.
    """
    import torch

    arrays = {name: array for name, array in state.items() if not name.endswith(_COUNTER)}
    _check(_places(model), arrays)
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        model.to_empty(device="cpu")
        for name, buffer in model.named_buffers():
            if name.endswith(_COUNTER):
                buffer.zero_()
    with torch.no_grad():
        for name, target in _places(model).items():
            target.copy_(torch.from_numpy(_own_copy(arrays[name])))


def _places(model: Any) -> dict[str, Any]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_COUNTER)}


def _own_copy(array: Array) -> Array:
    """Copy an array in a type that torch knows; a read-only view cannot be handed over as it is."""
    import numpy

    return numpy.array(array, dtype=numpy.float64 if array.dtype.itemsize == 8 else numpy.float32, order="C")


def _check(places: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Compare names, shapes and types, and say everything that is wrong at once."""
    both = [name for name in places if name in arrays]
    faults = (
        ("missing", [name for name in places if name not in arrays]),
        ("without a place in the model", [name for name in arrays if name not in places]),
        (
            "of the wrong shape",
            [
                f"{name} {list(arrays[name].shape)} instead of {list(places[name].shape)}"
                for name in both
                if tuple(arrays[name].shape) != tuple(places[name].shape)
            ],
        ),
        (
            "not floating-point",
            [f"{name} {arrays[name].dtype}" for name in both if not _is_float(arrays[name])],
        ),
    )
    found = [f"{len(names)} {what} ({_sample(names)})" for what, names in faults if names]
    if found:
        raise ConversionError(
            f"these tensors do not fit the model: {'; '.join(found)}",
            hint="check variant, pos_emb and num_classes, and that the names are those of the torch layout",
        )


def _is_float(array: Array) -> bool:
    try:
        return dtype_of(array).is_float
    except KeyError:
        return False


def _sample(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_NAMED]) + (", …" if len(listed) > _NAMED else "")
