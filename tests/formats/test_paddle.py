"""Pickles of Paddle: those that paddle writes, and others pickled as it does."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.errors import FormatError
from ckptkit.formats.detect import open_reader

BRAIN = np.array([1.0, 2.5, -3.0], ml_dtypes.bfloat16)
HELD = {"fc.weight": np.arange(6, dtype="float32").reshape(2, 3), "fc.bias": BRAIN}
SAVED = {name: array.view("uint16") if array is BRAIN else array for name, array in HELD.items()}
NAMES = {"StructuredToParameterName@@": {"fc.weight": "linear_0.w_0", "fc.bias": "linear_0.b_0"}}


class Named:
    """A tensor in a nested object, which Paddle reduces to a tuple of its name and its array."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __reduce__(self) -> Any:
        return tuple, (("linear_0.w_0", self.array),)


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def assert_held(path: Path, state_dict: str | None = None) -> dict[str, str]:
    with open_reader(path, state_dict=state_dict) as reader:
        assert reader.format == "paddle"
        assert list(reader.specs) == list(HELD)
        for name, array in HELD.items():
            assert str(reader.specs[name].dtype) == array.dtype.name
            assert reader.read(name).tobytes() == array.tobytes()
        assert list(reader.notes) == []
        return dict(reader.extras)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_state_dict(tmp_path: Path, protocol: int) -> None:
    assert_held(write(tmp_path / "m.bin", SAVED | NAMES, protocol))


def test_a_nested_one(tmp_path: Path) -> None:
    held = {name: Named(array) for name, array in SAVED.items()}
    path = write(tmp_path / "m.pdparams", {"model": held, "epoch": 3})
    assert assert_held(path)["epoch"] == "3"


def test_what_paddle_writes(tmp_path: Path) -> None:
    paddle = pytest.importorskip("paddle")
    held = {
        "fc.weight": paddle.to_tensor(HELD["fc.weight"]),
        "fc.bias": paddle.to_tensor([1.0, 2.5, -3.0], "bfloat16"),
    }
    paddle.save(held, str(tmp_path / "m.pdparams"))
    assert_held(tmp_path / "m.pdparams")
    paddle.save({"model": held, "epoch": 3}, str(tmp_path / "n.pdparams"))
    assert_held(tmp_path / "n.pdparams")
    paddle.save(held, str(tmp_path / "o.bin"), protocol=2)
    assert_held(tmp_path / "o.bin")


def test_a_folder_with_the_optimizers_state_is_that_of_the_weights(tmp_path: Path) -> None:
    write(tmp_path / "m.pdopt", SAVED | NAMES)
    write(tmp_path / "m.pdparams", SAVED | NAMES)
    with open_reader(tmp_path) as reader:
        assert reader.path.name == "m.pdparams"


def test_parameters_in_slices_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pdparams", SAVED | {"UnpackBigParamInfor@@": {}} | NAMES, 2)
    with pytest.raises(FormatError, match=r"cut into slices; load it with paddle\.load"):
        open_reader(path)


def test_a_pickle_that_would_run_code_is_called_that(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return eval, ("1",)

    with pytest.raises(FormatError, match=r"is a pickle that would run builtins\.eval"):
        open_reader(write(tmp_path / "m.pdparams", {"a": Runs()}))
