"""Fill a reference model with arrays, strictly: every tensor has a place, and every place a tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import ConversionError, listed
from ckptkit.base.tensors import dtype_of

if TYPE_CHECKING:
    from ckptkit.base.tensors import Array

_NAMES_SHOWN = 3

_COUNTERS = (".num_batches_tracked", "/num_batches_tracked")
"""BatchNorm's counts of training steps: files carry them along, evaluation does not use them."""


def tensors_of(model: Any) -> dict[str, Any]:
    """Every tensor of a PyTorch or Keras model, by its name in the model's layout.

    Names in Keras do not depend on the name scope that the model was made in.
    """
    if _is_torch(model):
        return dict(model.state_dict())
    return {model.name + variable.path.removeprefix(model.path): variable for variable in model.weights}


def load_state(model: Any, state: Mapping[str, Array]) -> None:
    """Copy arrays into a model's tensors, in the model's types; nothing is changed unless all of them fit.

    A PyTorch model on the ``meta`` device is given memory on the CPU.
    """
    arrays = _without_counters(state)
    places = _without_counters(tensors_of(model))
    both = [name for name in places if name in arrays]
    refuse(
        model,
        {
            "missing": [name for name in places if name not in arrays],
            "unexpected": [name for name in arrays if name not in places],
            "of the wrong shape": [
                f"{name} {list(arrays[name].shape)} instead of {list(places[name].shape)}"
                for name in both
                if tuple(arrays[name].shape) != tuple(places[name].shape)
            ],
            "not floating-point": [
                f"{name} {arrays[name].dtype}" for name in both if not _is_float(arrays[name])
            ],
        },
    )
    if _is_torch(model):
        _fill_torch(model, arrays)
    else:
        for name, variable in places.items():
            variable.assign(arrays[name].astype("float32", copy=False))


def refuse(model: Any, faults: Mapping[str, Collection[str]]) -> None:
    """Raise a `ConversionError` with counts and first names of all faults, if there are any."""
    found = [
        f"{len(names)} {kind} ({listed(names, _NAMES_SHOWN)})" for kind, names in faults.items() if names
    ]
    if found:
        called = getattr(model, "variant", getattr(model, "name", "the model"))
        raise ConversionError(
            f"tensors do not fit {called}",
            details=found,
            hint="compare the variant, the number of classes and the position embedding",
        )


def _is_torch(model: Any) -> bool:
    return hasattr(model, "state_dict")


def _without_counters(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_COUNTERS)}


def _is_float(array: Array) -> bool:
    try:
        return dtype_of(array).is_float
    except KeyError:
        return False


def _fill_torch(model: Any, arrays: Mapping[str, Array]) -> None:
    import torch

    if any(tensor.is_meta for tensor in model.state_dict().values()):
        model.to_empty(device="cpu")
        for name, buffer in model.named_buffers():
            if name.endswith(_COUNTERS):
                buffer.zero_()
    places = model.state_dict()
    with torch.no_grad():
        for name, array in arrays.items():
            places[name].copy_(torch.from_numpy(_own_copy(array)))


def in_torch(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Arrays as torch tensors that share their memory; bits of types that are ml_dtypes' stay."""
    import torch

    tensors = {}
    for name, array in arrays.items():
        kind = getattr(torch, array.dtype.name, None)
        if not isinstance(kind, torch.dtype):
            raise ConversionError(
                f"{name}: torch has no tensors of {array.dtype.name}", hint="load it as numpy"
            )
        own = array.dtype.isbuiltin == 1
        plain = array if own else array.view(f"u{array.dtype.itemsize}")
        tensors[name] = torch.from_numpy(plain) if own else torch.from_numpy(plain).view(kind)
    return tensors


def _own_copy(array: Array) -> Array:
    """Copy an array in a type that torch knows; it takes no read-only views."""
    import numpy

    return numpy.array(array, dtype=numpy.float64 if array.dtype.itemsize == 8 else numpy.float32, order="C")
