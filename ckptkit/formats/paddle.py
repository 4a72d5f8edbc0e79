"""Paddle's ``.pdparams`` and ``.pdopt`` files: pickles of numpy arrays by name, which nothing of is run.

``paddle.save`` turns each tensor of a state dict into an array, one of bfloat16 into an array of uint16, and
adds a table of the names that its own program has for them. Source: python/paddle/framework/io.py
(``_build_saved_state_dict``, ``reduce_varbase``, ``_unpack_saved_dict``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ckptkit.base.tensors import DTYPES
from ckptkit.formats.foreign import PADDLE_NAMES
from ckptkit.formats.torch_pickle import PickledArray, TensorRef
from ckptkit.formats.torch_reader import TorchReader

_SLICES = "UnpackBigParamInfor@@"


class PaddleReader(TorchReader):
    """A pickle of Paddle."""

    format = "paddle"

    def _values(self, table: Mapping[object, object]) -> dict[str, TensorRef | PickledArray | str]:
        """The arrays of a state dict; Paddle has no unsigned numbers of 16 bits, so these are bfloat16."""
        if _SLICES in table:
            hint = "load it with paddle.load and save it again with protocol=4"
            raise self._file.fault("has parameters cut into slices", hint=hint)
        values = super()._values({key: value for key, value in table.items() if key != PADDLE_NAMES})
        brain, plain = DTYPES["bfloat16"], DTYPES["uint16"]
        return {
            name: replace(value, dtype=brain)
            if isinstance(value, PickledArray) and value.dtype == plain
            else value
            for name, value in values.items()
        }
