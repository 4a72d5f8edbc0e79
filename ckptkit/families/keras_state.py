"""Fill Keras models from arrays, strictly; shared by the families, needs no framework itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import ConversionError, listed
from ckptkit.base.tensors import dtype_of

if TYPE_CHECKING:
    from ckptkit.base.tensors import Array

_NAMES_SHOWN = 3

_COUNTER = "/num_batches_tracked"
"""BatchNorm's count of training steps: files that come from PyTorch carry it along, Keras has none."""


def variables_by_name(model: Any) -> dict[str, Any]:
    """Every variable by its name in the ``keras`` layout, whatever name scope the model was made in."""
    return {model.name + v.path.removeprefix(model.path): v for v in model.weights}


def load_state(model: Any, state: Mapping[str, Array]) -> None:
    """Fill a model from tensors of the ``keras`` layout; nothing is changed unless all of them fit."""
    variables = variables_by_name(model)
    misfits = [misfit(name, state[name], variable) for name, variable in variables.items() if name in state]
    refuse(
        model,
        missing=[name for name in variables if name not in state],
        unexpected=[name for name in state if name not in variables and not name.endswith(_COUNTER)],
        unfit=[reason for reason in misfits if reason is not None],
    )
    for name, variable in variables.items():
        assign(variable, state[name])


def assign(variable: Any, array: Array) -> None:
    """Give a variable a value, in float32."""
    variable.assign(array.astype("float32", copy=False))


def misfit(name: str, array: Array, variable: Any) -> str | None:
    """Why an array cannot be a variable's value; None when it can."""
    if tuple(array.shape) != tuple(variable.shape):
        return f"{name} is {list(array.shape)} and not {list(variable.shape)}"
    try:
        floating = dtype_of(array).is_float
    except KeyError:
        floating = False
    return None if floating else f"{name} is {array.dtype} and not a float type"


def refuse(
    model: Any,
    *,
    missing: Collection[str] = (),
    unexpected: Collection[str] = (),
    unfit: Collection[str] = (),
) -> None:
    """Raise a `ConversionError` that says all that is wrong, in counts and first names; else return."""
    kinds = {"missing": missing, "unexpected": unexpected, "unfit": unfit}
    faults = [
        f"{len(names)} {kind} ({listed(names, _NAMES_SHOWN)})" for kind, names in kinds.items() if names
    ]
    if faults:
        raise ConversionError(
            f"tensors do not fit {getattr(model, 'variant', model.name)}: " + "; ".join(faults),
            hint="compare the variant, the number of classes and the position embedding",
        )
