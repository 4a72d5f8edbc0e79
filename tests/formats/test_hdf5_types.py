"""HDF5's datatype messages, against those of libhdf5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import DTYPES
from ckptkit.formats.hdf5_bytes import Hdf5Bytes, Piece
from ckptkit.formats.hdf5_types import VARIABLE_TEXT, ElementType, parse_type, type_message
from ckptkit.formats.mapped_file import MappedFile
from tests.support.hdf5_files import h5py, keras_file

_ENCODING = 2
"""Bytes that libhdf5 puts before a type when it encodes one by itself."""


def encoded(kind: Any) -> bytes:
    return bytes(kind.encode())[_ENCODING:]


@pytest.fixture
def parse(tmp_path: Path) -> Any:
    (tmp_path / "m.h5").write_bytes(bytes(200))
    source = Hdf5Bytes(MappedFile(tmp_path / "m.h5"))
    return lambda raw: parse_type(Piece(source, 0, raw))


NUMBERS = [name for name, dtype in DTYPES.items() if dtype.kind in ("int", "uint") or "float" in name]


@pytest.mark.parametrize("name", [n for n in NUMBERS if n != "bfloat16" and "float8" not in n])
def test_messages_are_libhdf5s_bytes(parse: Any, name: str) -> None:
    theirs = encoded(h5py.h5t.py_create(DTYPES[name].numpy))
    assert type_message(DTYPES[name]) == theirs
    assert parse(theirs) == ElementType(DTYPES[name].itemsize, DTYPES[name])
    big = encoded(h5py.h5t.py_create(DTYPES[name].numpy.newbyteorder(">")))
    assert parse(big).dtype == DTYPES[name]
    assert parse(big).big_endian is (DTYPES[name].itemsize > 1)


def test_bfloat16_is_opaque_as_keras_writes_it(parse: Any) -> None:
    theirs = encoded(h5py.h5t.py_create(DTYPES["bfloat16"].numpy))
    assert type_message(DTYPES["bfloat16"]) == theirs
    assert parse(theirs).may_be_brain_float
    assert not parse(encoded(h5py.h5t.py_create(np.dtype("V3")))).may_be_brain_float


@pytest.mark.parametrize("name", ["bool", "complex64", "complex128"])
def test_booleans_and_complex_numbers_are_h5pys(parse: Any, name: str) -> None:
    theirs = encoded(h5py.h5t.py_create(np.dtype(name), logical=True))
    assert type_message(DTYPES[name]) == theirs
    assert parse(theirs) == ElementType(DTYPES[name].itemsize, DTYPES[name])


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz"])
def test_types_without_a_message(name: str) -> None:
    assert type_message(DTYPES[name]) is None


def test_texts(parse: Any, tmp_path: Path) -> None:
    assert VARIABLE_TEXT in keras_file(tmp_path / "x.h5").read_bytes()  # the type of its layer's name
    assert parse(VARIABLE_TEXT).text == "variable"
    assert parse(encoded(h5py.h5t.py_create(h5py.string_dtype(length=7), logical=True))).text == "fixed"
    lists = encoded(h5py.h5t.py_create(h5py.vlen_dtype(np.dtype("f4")), logical=True))
    assert parse(lists).text is None


def made(kind: Any) -> Any:
    return h5py.h5t.py_create(kind, logical=True)


def other_bias() -> Any:
    odd = h5py.h5t.IEEE_F32LE.copy()
    odd.set_ebias(100)
    return odd


def padded() -> Any:
    padded = h5py.h5t.STD_I32LE.copy()
    padded.set_precision(24)
    return padded


BYTES_ONLY = {
    "float of 32 bits in 4 bytes": other_bias,
    "integer of 24 bits in 4 bytes": padded,
    "float of 80 bits in 16 bytes": lambda: made(np.dtype(np.longdouble)),
    "time of 32 bits": lambda: h5py.h5t.UNIX_D32LE,
    "bit field of 16 bits": lambda: h5py.h5t.STD_B16BE,
    "void24": lambda: made(np.dtype("V3")),
    "void64": lambda: made(h5py.opaque_dtype(np.dtype("M8[D]"))),
    "record of a, b": lambda: made(np.dtype([("a", "i4"), ("b", "f8", (2,))])),
    "record of r, i": lambda: made(np.dtype([("r", "f4"), ("i", "f8")])),
    "record of i, r": lambda: made(np.dtype([("i", "f4"), ("r", "f4")])),
    "array of 3x2 float32": lambda: made(np.dtype(("f4", (3, 2)))),
}


@pytest.mark.parametrize("name", BYTES_ONLY)
def test_types_of_which_only_bytes_are_known(parse: Any, name: str) -> None:
    kind = BYTES_ONLY[name]()
    found = parse(encoded(kind)).dtype
    assert (found.kind, found.name, found.itemsize) == ("opaque", name, kind.get_size())
    assert type_message(found) is None


SCATTERED = {
    "references to other objects": lambda: made(h5py.ref_dtype),
    "lists of any length": lambda: made(h5py.vlen_dtype(np.dtype("f4"))),
    "arrays of lists of any length": lambda: h5py.h5t.array_create(
        made(h5py.vlen_dtype(np.dtype("f4"))), (2,)
    ),
    "records with references to other objects in them": lambda: made(np.dtype([("a", h5py.ref_dtype)])),
    "records with texts in them": lambda: made(np.dtype([("a", h5py.string_dtype())])),
}


@pytest.mark.parametrize("what", SCATTERED)
def test_elements_that_are_elsewhere_have_no_type(parse: Any, what: str) -> None:
    found = parse(encoded(SCATTERED[what]()))
    assert (found.dtype, found.text, found.what) == (None, None, what)


def test_an_enumeration_is_its_numbers(parse: Any) -> None:
    found = parse(encoded(made(h5py.enum_dtype({"A": 0, "B": 5}, basetype="i2"))))
    assert found == ElementType(2, DTYPES["int16"])
    assert parse(encoded(made(h5py.enum_dtype({"NO": 0, "TRUE": 1}, basetype="i1")))).dtype == DTYPES["int8"]


def test_types_of_newer_files(parse: Any, tmp_path: Path) -> None:
    """libhdf5 writes versions 3 and 4 of these where it may; of HDF5 2.0 there is the specification."""
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        for name, array in (("b", np.array([True])), ("c", np.array([1j])), ("r", np.zeros(1, "i4,f8"))):
            theirs = encoded(file.create_dataset(name, data=array).id.get_type())
            assert theirs[0] >> 4 >= 3
            dtype = parse(theirs).dtype
            assert dtype == DTYPES.get(array.dtype.name, dtype)
            assert dtype.itemsize == array.itemsize
    native = b"\x5b\x01\x00\x00" + (8).to_bytes(4, "little") + type_message(DTYPES["float32"])
    assert parse(native) == ElementType(8, DTYPES["complex64"])


def test_types_inside_each_other_without_end_are_refused(parse: Any) -> None:
    enumeration = b"\x18\x00\x00\x00\x01\x00\x00\x00"
    with pytest.raises(FormatError, match="no sense"):
        parse(enumeration * 100)


@pytest.mark.parametrize(
    "raw", [b"", b"\x10", type_message(DTYPES["float32"])[:-1], bytes(8), b"\xf0" + bytes(20)]
)
def test_damaged_messages(parse: Any, raw: bytes) -> None:
    with pytest.raises(FormatError, match=r"m\.h5: at byte"):
        parse(raw)
