"""Headers of .npy arrays: those numpy writes, and those nobody should."""

from __future__ import annotations

import ast
import io
import struct
from typing import Any

import numpy as np
import pytest

from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.formats.npy_header import CODES, header_bytes, parse_header


def saved(array: Any, version: tuple[int, int] | None = None) -> bytes:
    raw = io.BytesIO()
    np.lib.format.write_array(raw, np.asanyarray(array), version=version)
    return raw.getvalue()


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (0, 2), (1, 2, 3, 4)])
def test_headers_are_numpys_own(name: str, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, DTYPES[name].numpy)
    spec = TensorSpec("w", DTYPES[name], shape)
    assert header_bytes(spec) + array.tobytes() == saved(array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_versions_and_orders(version: tuple[int, int], order: Any) -> None:
    raw = saved(np.zeros((3, 4), np.float32, order=order), version)
    header = parse_header(raw)
    assert (header.dtype, header.shape) == (DTYPES["float32"], (3, 4))
    assert header.fortran == (order == "F")
    assert header.nbytes == len(raw)


@pytest.mark.parametrize(
    ("dtype", "known"),
    [
        (">f4", True),
        ("<f4", True),
        ("|b1", True),
        ("<U3", False),
        ("O", False),
        ("M8[s]", True),
        ("V2", True),
    ],
)
def test_element_types(dtype: str, known: bool) -> None:
    header = parse_header(
        saved(np.zeros(2, dtype)) if dtype != "O" else text("{'descr': '|O', " + REST + "}")
    )
    assert (header.dtype is not None) is known
    assert header.big_endian == (dtype == ">f4")


REST = "'fortran_order': False, 'shape': (2,), "


def text(table: str, version: int = 1) -> bytes:
    raw = table.encode("latin-1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(raw)) + raw


BAD = {
    "empty": b"",
    "another magic": b"hello world, hello",
    "only the magic": b"\x93NUMPY",
    "version 9": text("{}", 9),
    "cut": saved(np.zeros(3))[:50],
    "longer than allowed": text("{'descr': '<f4', " + REST + " " * 10_000 + "}"),
    "length of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 100,
    "no table": text("[1]"),
    "an expression": text("{'descr': '<f4', 'fortran_order': False, 'shape': (1+1,)}"),
    "a call": text("__import__('os').system('true')"),
    "nested deeply": text("(" * 5000),
    "shape missing": text("{'descr': '<f4', 'fortran_order': False}"),
    "one key more": text("{'descr': '<f4', 'evil': 1, " + REST + "}"),
    "negative size": text("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}"),
    "boolean size": text("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}"),
    "fractional size": text("{'descr': '<f4', 'fortran_order': False, 'shape': (2.0,)}"),
    "enormous size": text(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**70},)}}"),
    "shape is a list": text("{'descr': '<f4', 'fortran_order': False, 'shape': [2]}"),
    "too many axes": text("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 40 + ")}"),
    "order is a number": text("{'descr': '<f4', 'fortran_order': 1, 'shape': (2,)}"),
    "unhashable key": text("{[]: 1}"),
    "null byte": text("{'descr': '<f4'\0, " + REST + "}"),
}


@pytest.mark.parametrize(
    "code", ["'<M8[\x1b[31m]'", "[('a\x1b[31m', '<f4')]", "[('a\\nb', '<f4')]", "'<V99999999999'", "'?'", "7"]
)
def test_names_of_types_are_plain_text_or_none(code: str) -> None:
    dtype = parse_header(text(f"{{'descr': {code}, {REST}}}")).dtype
    assert dtype is None or dtype.name.isprintable()


def test_a_header_that_numpy_would_not_write_costs_more() -> None:
    usual = parse_header(saved(np.zeros((2, 3), ">f4", order="F")))
    other = parse_header(text("{'shape': (2, 3), 'fortran_order': True, 'descr': '>f4'}" + " " * 60 + "\n"))
    assert (usual.dtype, usual.shape, usual.fortran) == (other.dtype, other.shape, other.fortran)
    assert usual.big_endian
    assert other.big_endian
    assert usual.steps < 20
    assert other.steps > 500


@pytest.mark.parametrize(
    "shape", ["(1)", "(01,)", "(1,2)", "(1, 2,)", "( 1,)", "(1,, 2)", "(99999999999999999999,)"]
)
def test_shapes_mean_what_python_takes_them_for(shape: str) -> None:
    raw = text(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n")
    try:
        wanted = ast.literal_eval(shape)
        wanted = wanted if isinstance(wanted, tuple) and max(wanted) < 1 << 62 else None
    except SyntaxError:
        wanted = None
    if wanted is None:
        with pytest.raises(ValueError, match="npy"):
            parse_header(raw)
    else:
        assert parse_header(raw).shape == wanted


@pytest.mark.parametrize("case", BAD)
def test_bad_headers(case: str) -> None:
    with pytest.raises(ValueError, match="npy"):
        parse_header(BAD[case])
