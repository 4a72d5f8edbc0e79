"""Two arrays against each other, beside a reference that walks over them one element at a time."""

from __future__ import annotations

import cmath
import math
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptkit.base.tensors import DTYPES
from ckptkit.compare import arrays
from ckptkit.compare.arrays import Tolerance, ValueDifference, compare_arrays

RANDOM = np.random.default_rng(11)
NAN, INF = math.nan, math.inf
OTHER_NAN = np.array([0x7FC00001], np.uint32).view(np.float32)[0]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def plain(value: Any, other: Any) -> Any:
    """One element as a Python number: exact beside another integer, else widened to float64."""
    if {value.dtype.kind, other.dtype.kind} <= set("iub"):
        return int(value)
    return complex(int(value) if value.dtype.kind in "iub" else value)


def reference(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """The figures by their definition, slowly."""
    found = {"differing": 0, "nan_only_a": 0, "nan_only_b": 0, "infinities": 0, "nan_bits": 0}
    found |= {"zero_signs": 0, "max_abs": 0, "scale": 0}
    for x, y in zip(a.ravel(), b.ravel(), strict=True):
        p, q = plain(x, y), plain(y, x)
        if cmath.isfinite(p):
            found["scale"] = max(found["scale"], abs(p))
        bits = a.dtype == b.dtype and x.tobytes() != y.tobytes()
        if cmath.isnan(p) and cmath.isnan(q):
            found["nan_bits"] += bits
            found["differing"] += bits
        elif p != q:
            found["differing"] += 1
            if cmath.isnan(p) or cmath.isnan(q):
                found["nan_only_a" if cmath.isnan(p) else "nan_only_b"] += 1
            elif not (cmath.isfinite(p) and cmath.isfinite(q)):
                found["infinities"] += 1
            else:
                found["max_abs"] = max(found["max_abs"], abs(p - q))
        elif bits:
            found["zero_signs"] += 1
            found["differing"] += 1
    return found


def assert_figures(found: ValueDifference, a: np.ndarray, b: np.ndarray) -> None:
    expected = reference(a, b)
    for key in ("differing", "nan_only_a", "nan_only_b", "infinities", "nan_bits", "zero_signs"):
        assert getattr(found, key) == expected[key], key
    assert found.elements == a.size
    assert found.max_abs == pytest.approx(expected["max_abs"], rel=1e-15)
    if not found.same:
        assert found.scale == pytest.approx(expected["scale"], rel=1e-15)
    if found.at is not None:
        x, y = a[found.at], b[found.at]
        assert found.values == (plain(x, y), plain(y, x))
        assert abs(plain(x, y) - plain(y, x)) == pytest.approx(found.max_abs, rel=1e-15)


def array(*values: Any, of: Any = "float32") -> np.ndarray:
    return np.array(values, of)


SAME = [
    (array(), array()),
    (np.zeros((2, 0, 3)), np.zeros((2, 0, 3))),
    (np.array(2.5, "float32"), np.array(2.5, "float32")),
    (array(NAN, INF, -INF, -0.0), array(NAN, INF, -INF, -0.0)),
    (array(1, NAN), array(1, NAN, of="float64")),
    (array(0.0, -0.0), array(-0.0, 0.0, of=BFLOAT16)),
    (array(1, 2, 3, of="int8"), array(1, 2, 3, of="float16")),
    (array(True, False, of=bool), array(1, 0, of="int64")),
    (array(2**64 - 1, of="uint64"), array(2**64 - 1, of="uint64")),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_what_is_the_same(a, b):
    found = compare_arrays(a, b)
    assert found == ValueDifference(a.size, scale=found.scale)
    assert found.same
    assert found.relative == 0
    assert found.remark == ""


DIFFERENT = [
    ("one element", array(1, 2, 3), array(1, 2.5, 3)),
    ("0-d", np.array(1.0), np.array(1.5)),
    ("sign of zero", array(0.0, 1), array(-0.0, 1)),
    ("NaN in A", array(NAN, 1), array(0, 1)),
    ("NaN in B", array(0, 1), array(NAN, 1)),
    ("NaN of other bits", array(NAN, 1), array(OTHER_NAN, 1)),
    ("NaN against infinity", array(NAN, INF), array(INF, NAN)),
    ("infinities of other sign", array(INF, 5), array(-INF, 4)),
    ("infinity against a number", array(INF, 5), array(3, 5)),
    ("everything at once", array(NAN, INF, 0, 7, -3, NAN), array(0, 1, -0.0, 8, -3, OTHER_NAN)),
    ("all of A zero", array(0, 0), array(0, 2)),
    ("float16", array(1, 65504, of="float16"), array(1.001, -65504, of="float16")),
    ("bfloat16", array(1, 3, of=BFLOAT16), array(1.0078125, 3, of=BFLOAT16)),
    ("float32 and bfloat16", array(1.001, -2.5), array(1.001, -2.5).astype(BFLOAT16)),
    ("float8", array(1, 448, of=ml_dtypes.float8_e4m3fn), array(1, NAN, of=ml_dtypes.float8_e4m3fn)),
    ("subnormal", array(0, 1e-320, of="float64"), array(5e-324, 1e-320, of="float64")),
    ("int8", array(-128, 5, of="int8"), array(127, 5, of="int8")),
    ("int64 beyond float64", array(2**60, 7, of="int64"), array(2**60 + 1, 7, of="int64")),
    ("int64 far apart", array(-(2**63), 1, of="int64"), array(2**63 - 1, 1, of="int64")),
    ("uint64", array(2**64 - 1, 0, of="uint64"), array(0, 0, of="uint64")),
    ("int64 and uint64", array(-1, 2**62, of="int64"), array(2**64 - 1, 2**62, of="uint64")),
    ("bool", array(True, False, of=bool), array(True, True, of=bool)),
    ("bool and float", array(True, False, of=bool), array(1, 0.25)),
    ("int and float", array(3, 4, of="int32"), array(3.5, 4)),
    ("complex64", array(1 + 2j, 3, of="complex64"), array(1 - 2j, 3, of="complex64")),
    ("complex128", array(1 + 2j, 3, of="complex128"), array(1 + 2j, 3 + 4j, of="complex128")),
    ("complex NaN", array(complex(NAN, 1), 3, of="complex64"), array(1, 3, of="complex64")),
    ("complex and float", array(1 + 1j, 3, of="complex64"), array(1, 3)),
]


@pytest.mark.parametrize(("a", "b"), [case[1:] for case in DIFFERENT], ids=[case[0] for case in DIFFERENT])
def test_figures_are_those_of_the_definition(a, b):
    found = compare_arrays(a, b)
    assert not found.same
    assert_figures(found, a, b)


def test_figures_by_hand():
    found = compare_arrays(array(NAN, INF, 0, 7, -8, NAN), array(0, 1, -0.0, 7.5, -8, OTHER_NAN))
    assert found == ValueDifference(
        elements=6,
        differing=5,
        max_abs=0.5,
        scale=8.0,
        at=(3,),
        values=(7.0, 7.5),
        nan_only_a=1,
        infinities=1,
        nan_bits=1,
        zero_signs=1,
    )
    assert found.relative == 0.0625
    assert found.not_comparable == 2
    assert found.remark == (
        "1 NaN in A only, 1 infinite on one side, or of other sign, 1 NaN of other bits, 1 other sign of zero"
    )


def test_integers_are_exact_where_float64_is_not():
    found = compare_arrays(array(-(2**63), 1, of="int64"), array(2**63 - 1, 1, of="int64"))
    assert (found.max_abs, found.at) == (2**64 - 1, (0,))
    assert compare_arrays(array(2**60, of="int64"), array(2**60 + 1, of="int64")).max_abs == 1


def test_a_first_tensor_of_zeros_has_no_relative_difference():
    found = compare_arrays(array(0, 0), array(0, 2))
    assert (found.max_abs, found.relative) == (2.0, None)
    assert not found.within(Tolerance(relative=1e9))


def test_a_difference_beyond_float64_is_null_in_json():
    found = compare_arrays(array(1.7e308, of="float64"), array(-1.7e308, of="float64"))
    assert found.max_abs == INF
    assert found.to_json()["max_abs"] is None
    assert not found.within(Tolerance(absolute=1e308))


def test_complex_elements_are_text_in_json():
    found = compare_arrays(array(1 + 2j, of="complex64"), array(1 + 0j, of="complex64"))
    assert found.to_json()["values"] == ["(1+2j)", "(1+0j)"]


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[3, 2\] differ"):
        compare_arrays(np.zeros((2, 3)), np.zeros((3, 2)))


MOVES = {
    "as they lie": lambda x: x,
    "matrix transposed": lambda x: np.ascontiguousarray(x.T).T,
    "fortran": np.asfortranarray,
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "every other": lambda x: np.repeat(np.repeat(x, 2, 0), 2, 1)[::2, ::2],
}


@pytest.fixture
def small_pieces(monkeypatch) -> None:
    """Cut into many pieces what would be one."""
    monkeypatch.setattr(arrays, "_BITS_BYTES", 48 << 10)
    monkeypatch.setattr(arrays, "_FIGURES_BYTES", 10_000)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("move_a", MOVES)
@pytest.mark.parametrize("move_b", MOVES)
@pytest.mark.parametrize("place", [(0, 0), (101, 300), (254, 384)])
def test_one_element_is_found_in_many_pieces_of_any_strides(move_a, move_b, place):
    original = RANDOM.integers(-40, 40, (255, 385)).astype("float32") / 8  # adding a quarter is exact
    changed = original.copy()
    changed[place] += 0.25
    a, b = MOVES[move_a](original), MOVES[move_b](changed)
    found = compare_arrays(a, b)
    assert (found.differing, found.max_abs, found.at) == (1, 0.25, place)
    assert found.values == (float(original[place]), float(original[place]) + 0.25)
    assert found.scale == float(np.abs(original).max())
    assert compare_arrays(a, MOVES[move_b](original)).same


def test_other_types_are_cut_at_other_places():
    a = RANDOM.standard_normal((700, 900)).T
    b = a.astype("float16")
    found = compare_arrays(a, b)
    gaps = np.abs(a - b.astype("float64"))
    assert found.max_abs == gaps.max()
    assert found.differing == np.count_nonzero(gaps)
    assert found.at == np.unravel_index(gaps.argmax(), gaps.shape)


def test_memory_stays_bounded_by_a_piece():
    a = np.zeros((4000, 4000), "float32")
    b = np.zeros((4000, 4000), "float32")
    b[:] = np.arange(4000, dtype="float32")
    rests = []
    tracemalloc.start()
    found = compare_arrays(a.T, b.T, rest=lambda: rests.append(1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.differing == 4000 * 3999
    assert peak < 24 << 20  # one float64 copy of a tensor alone would be 128 MB
    assert len(rests) == 1  # 64 MB walked over: pages are given back once on the way


@pytest.mark.parametrize(
    ("tolerance", "covered"),
    [
        (Tolerance(), False),
        (Tolerance(absolute=0.49), False),
        (Tolerance(absolute=0.5), True),
        (Tolerance(relative=0.06), False),
        (Tolerance(relative=0.0625), True),
        (Tolerance(absolute=0.1, relative=0.1), True),
        (Tolerance(ignore_dtype=True), False),
    ],
)
def test_a_tolerance_covers_what_it_says(tolerance, covered):
    assert compare_arrays(array(8, 1), array(8, 1.5)).within(tolerance) is covered


@pytest.mark.parametrize(
    ("a", "b", "covered"),
    [
        (array(0.0), array(-0.0), True),
        (array(NAN), array(OTHER_NAN), True),
        (array(NAN), array(0), False),
        (array(0), array(NAN), False),
        (array(INF), array(-INF), False),
        (array(INF), array(1e38), False),
    ],
)
def test_a_tolerance_compares_values_and_never_covers_what_is_not_finite(a, b, covered):
    found = compare_arrays(a, b)
    assert found.within(Tolerance(absolute=1e300)) is covered
    assert not found.within(Tolerance())


NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, NAN, INF, -INF, 1e-40, 1e38]),
    st.integers(-99, 99).map(float),
    st.floats(width=32),
)


@given(
    names=st.tuples(st.sampled_from(sorted(DTYPES)), st.sampled_from(sorted(DTYPES))),
    pairs=st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12),
    equal=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_any_two_arrays(names, pairs, equal):
    first, second = (DTYPES[name].numpy for name in (names if not equal else (names[0], names[0])))
    with np.errstate(all="ignore"):
        a = np.array([x for x, _ in pairs], "float64").astype(first)
        b = np.array([y for _, y in pairs], "float64").astype(second)
    assert_figures(compare_arrays(a, b), a, b)
    assert compare_arrays(a, a).same
    there, back = compare_arrays(a, b), compare_arrays(b, a)
    assert (there.differing, there.max_abs) == (back.differing, back.max_abs)
    assert (there.nan_only_a, there.nan_only_b) == (back.nan_only_b, back.nan_only_a)
