"""HDF5's datatype messages, against those of libhdf5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.errors import FormatError
from ckptkit.formats.hdf5_bytes import Hdf5Bytes, Piece
from ckptkit.formats.hdf5_types import VARIABLE_TEXT, ElementType, parse_type, type_message
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.tensors import DTYPES
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


@pytest.mark.parametrize("name", ["bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"])
def test_types_without_a_message(name: str) -> None:
    assert type_message(DTYPES[name]) is None


def test_texts(parse: Any, tmp_path: Path) -> None:
    assert VARIABLE_TEXT in keras_file(tmp_path / "x.h5").read_bytes()  # the type of its layer's name
    assert parse(VARIABLE_TEXT).text == "variable"
    assert parse(encoded(h5py.h5t.py_create(h5py.string_dtype(length=7), logical=True))).text == "fixed"
    lists = encoded(h5py.h5t.py_create(h5py.vlen_dtype(np.dtype("f4")), logical=True))
    assert parse(lists).text is None


def unusual() -> dict[str, Any]:
    odd = h5py.h5t.IEEE_F32LE.copy()
    odd.set_ebias(100)
    padded = h5py.h5t.STD_I32LE.copy()
    padded.set_precision(24)
    return {"another bias": odd, "24 of 32 bits": padded}


@pytest.mark.parametrize("kind", ["another bias", "24 of 32 bits"])
def test_unusual_numbers_are_no_numbers_here(parse: Any, kind: str) -> None:
    found = parse(encoded(unusual()[kind]))
    assert found.dtype is None
    assert "bits" in found.what


@pytest.mark.parametrize(
    "raw", [b"", b"\x10", type_message(DTYPES["float32"])[:-1], bytes(8), b"\xf0" + bytes(20)]
)
def test_damaged_messages(parse: Any, raw: bytes) -> None:
    with pytest.raises(FormatError, match=r"m\.h5: at byte"):
        parse(raw)
