"""Value checks: extremes of tensors of every kind, and what is a fault and what a remark."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.tensors import DTYPES, TensorSpec, dtype_of
from ckptkit.compare.verify.values import ValueRange, check_values, has_values, value_range
from ckptkit.families.base import Structure, get_family

BIG = 700_000
"""Elements: several pieces of a megabyte each."""


def planted(dtype: str = "float32", **values: float) -> np.ndarray:
    array = np.linspace(1, 2, BIG).astype(dtype)
    for index, value in values.items():
        array[int(index[1:])] = value
    return array


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (planted(), ValueRange(1.0, 2.0)),
        (planted(_5=-3.0), ValueRange(-3.0, 2.0, not_positive=1)),
        (planted(_0=math.nan), ValueRange(float(planted()[1]), 2.0, nans=1)),
        (planted(_699999=math.nan, _3=math.inf, _4=-math.inf), None),
        (planted("float64", _600000=1e300), ValueRange(1.0, 1e300)),
        (planted("float16", _9=0.0), ValueRange(0.0, 2.0, not_positive=1)),
        (np.array([1, 2, -1], ml_dtypes.bfloat16), ValueRange(-1.0, 2.0, not_positive=1)),
        (np.array([1, math.nan], ml_dtypes.bfloat16), ValueRange(1.0, 1.0, nans=1)),
        (np.array([0.5, 2], ml_dtypes.float8_e4m3fn), ValueRange(0.5, 2.0)),
        (np.array([1 + 2j, 3 - 4j], "complex64"), ValueRange(-4.0, 3.0, not_positive=1)),
        (np.array(7.0), ValueRange(7.0, 7.0)),
        (np.arange(1.0, 7.0).reshape(2, 3).T, ValueRange(1.0, 6.0)),
    ],
)
def test_extremes(array, expected):
    found = value_range(array)
    if expected is None:
        assert (found.nans, found.infinities, found.not_positive) == (1, 2, 0)
        assert (found.lowest, found.highest) == (1.0, float(np.linspace(1, 2, BIG).astype("f4")[BIG - 2]))
    else:
        assert found == expected


def test_a_tensor_without_a_finite_element_has_no_extremes():
    found = value_range(np.array([math.nan, math.inf], "float32"))
    assert math.isnan(found.lowest)
    assert math.isnan(found.highest)
    assert not found.is_constant(0.0)


def test_a_tensor_of_zeros_with_a_nan_in_it_is_not_constant():
    assert value_range(np.zeros(9)).is_constant(0.0)
    assert not value_range(np.array([0.0, 0.0, math.nan])).is_constant(0.0)


@pytest.mark.parametrize(
    ("dtype", "shape", "looked_at"),
    [
        ("float32", (2,), True),
        ("bfloat16", (), True),
        ("complex64", (1,), True),
        ("int64", (3,), False),
        ("bool", (3,), False),
        ("float32", (0, 4), False),
    ],
)
def test_integers_and_empty_tensors_have_no_values_to_look_at(dtype, shape, looked_at):
    assert has_values(TensorSpec("x", DTYPES[dtype], shape)) is looked_at


def judged(name: str, array: np.ndarray, roles=None):
    spec = TensorSpec(name, dtype_of(array), array.shape)
    return check_values({name: value_range(array)}, {name: spec}, roles or {}, left_out={})


ONE_MINUS = np.array([1.0, -1e-9, 0.0, 2.0], "float32")


@pytest.mark.parametrize(
    ("name", "array", "status", "says"),
    [
        (
            "conv/kernel",
            np.zeros((3, 3, 2, 2), "f4"),
            "failed",
            "conv/kernel: all of its 36 elements are zero",
        ),
        ("q.weight", np.zeros((2, 2), "f4"), "failed", "q.weight: all of its 4 elements are zero"),
        ("scale", np.zeros((1, 8, 1, 1), "f4"), "ok", "remark: scale: all zero"),
        ("q/bias", np.zeros((4, 32), "f4"), "ok", "remark: q/bias: all zero"),
        ("norm/beta", np.zeros(4, "f4"), "ok", "remark: norm/beta: all zero"),
        ("bn/moving_variance", ONE_MINUS, "failed", "2 variances not positive (the lowest is -1e-09)"),
        ("bn.running_var", np.ones(3, "f4"), "ok", None),
        ("running_var", np.zeros(3, "f4"), "failed", "3 variances not positive (the lowest is 0)"),
        ("bn.running_mean", ONE_MINUS, "ok", None),
        ("my_running_var", ONE_MINUS, "ok", None),
        ("w", np.array([[1, np.nan], [np.nan, -np.inf]], "f4"), "failed", "w: 2 NaN"),
        ("w", np.array([[1, np.nan], [np.nan, -np.inf]], "f4"), "failed", "w: 1 infinite"),
    ],
)
def test_what_is_a_fault_by_name_alone(name, array, status, says):
    check = judged(name, array)
    assert check.status == status
    if says is None:
        assert check.items == ()
    else:
        assert any(says in item for item in check.items), check.items


def test_known_architecture_decides_what_is_a_bias_and_what_a_matrix():
    """A bias of the attention has two axes as published and one in canonical terms."""
    table = get_family("moat").table("deeplab2", "tiny-moat0", Structure())
    name = "moat/block_02_00/attention/k/bias"
    assert judged(name, np.zeros((4, 32), "f4"), {name: table.by_external[name]}).status == "ok"
    name = "moat/block_02_00/attention/relative_position_embedding"
    assert judged(name, np.zeros((4, 27, 27), "f4"), {name: table.by_external[name]}).status == "failed"


def test_nothing_to_look_at_is_not_called_ok():
    assert check_values({}, {}, {}, left_out={"of integers or empty": 3}).status == "skipped"


def test_what_was_not_looked_at_is_counted():
    array = np.ones((2, 2), "f4")
    spec = {"w": TensorSpec("w", dtype_of(array), array.shape)}
    check = check_values({"w": value_range(array)}, spec, {}, left_out={"left out by rule": 66, "damaged": 0})
    assert check.detail.endswith("not looked at: 66 left out by rule")
