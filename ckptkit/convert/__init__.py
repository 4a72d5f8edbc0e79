"""Conversions: a plan of tensor moves made before a byte is written, then one streaming pass.

A conversion may change the container (format), the names and axis order (layout), the element type
(dtype), or several at once. `plan` decides all of it and refuses what does not fit; `execute` moves bytes
and reads the result back.
"""

from ckptkit.base.tensors import FLOAT_DTYPES
from ckptkit.convert.execution import Converted, Target, check_written, execute, tensor_crc32c
from ckptkit.convert.loading import LoadedTensors, load_tensors
from ckptkit.convert.pipeline import Options, convert_checkpoint, plan
from ckptkit.convert.planning import AS_IS, FamilyPlan, Move, Plan, plan_as_is, plan_by_layout
from ckptkit.convert.rounding import RoundingLoss
from ckptkit.formats.names import FORMATS

__all__ = [
    "AS_IS",
    "FLOAT_DTYPES",
    "FORMATS",
    "Converted",
    "FamilyPlan",
    "LoadedTensors",
    "Move",
    "Options",
    "Plan",
    "RoundingLoss",
    "Target",
    "check_written",
    "convert_checkpoint",
    "execute",
    "load_tensors",
    "plan",
    "plan_as_is",
    "plan_by_layout",
    "tensor_crc32c",
]
