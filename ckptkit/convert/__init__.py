"""Conversions: a plan of tensor moves made before a byte is written, then one streaming pass.

A conversion may change the container (format), the names and axis order (layout), the element type
(dtype), or several at once. `plan` decides all of it and refuses what does not fit; `execute` moves bytes
and reads the result back.
"""

from ckptkit.base.tensors import FLOAT_DTYPES
from ckptkit.convert.execution import (
    Converted,
    LoadedTensors,
    check_written,
    execute,
    load_tensors,
    tensor_crc32c,
)
from ckptkit.convert.moves import Move, TensorPlan
from ckptkit.convert.options import Options
from ckptkit.convert.planning import Plan, plan
from ckptkit.convert.rounding import RoundingLoss
from ckptkit.formats.names import FORMATS

__all__ = [
    "FLOAT_DTYPES",
    "FORMATS",
    "Converted",
    "LoadedTensors",
    "Move",
    "Options",
    "Plan",
    "RoundingLoss",
    "TensorPlan",
    "check_written",
    "execute",
    "load_tensors",
    "plan",
    "tensor_crc32c",
]
