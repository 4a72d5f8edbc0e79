"""The header: what the reference library accepts, and every lie it could tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError
from ckptkit.formats.json_text import strict_json
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.formats.safetensors_header import Header, read_header


def file_of(table: Any, data: bytes = b"", *, pad: int = 0) -> bytes:
    raw = table if isinstance(table, bytes) else json.dumps(table).encode()
    raw += b" " * pad
    return len(raw).to_bytes(8, "little") + raw + data


def row(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def read(folder: Path, raw: bytes) -> Header:
    (folder / "x.safetensors").write_bytes(raw)
    file = MappedFile(folder / "x.safetensors")
    try:
        return read_header(file)
    finally:
        file.close()


def test_a_header(tmp_path: Path) -> None:
    table = {
        "__metadata__": {"format": "pt"},
        "late": row("F32", [1], [6, 10]),
        "early": row("I16", [3, 1], [0, 6]),
        "none": row("F64", [0, 5], [10, 10]),
        "scalar": row("U8", [], [10, 11]),
    }
    raw = file_of(table, b"x" * 11, pad=5)
    header = read(tmp_path, raw)
    assert list(header.specs) == ["early", "late", "none", "scalar"]
    assert header.specs["early"].shape == (3, 1)
    assert header.specs["scalar"].dtype.name == "uint8"
    assert header.offsets["late"] == len(raw) - 11 + 6
    assert header.metadata == {"format": "pt"}


@pytest.mark.parametrize(
    ("code", "shape", "nbytes", "bits"),
    [("F4", [3, 8], 12, 4), ("F6_E2M3", [4], 3, 6), ("F8_E8M0", [2], 2, None), ("Q7_X", [3], 5, None)],
)
def test_other_element_types_are_opaque(
    tmp_path: Path, code: str, shape: list[int], nbytes: int, bits: int | None
) -> None:
    table = {"odd": row(code, shape, [0, nbytes]), "w": row("F32", [1], [nbytes, nbytes + 4])}
    header = read(tmp_path, file_of(table, b"x" * (nbytes + 4)))
    spec = header.specs["odd"]
    assert (spec.dtype.kind, spec.dtype.safetensors, spec.dtype.bits) == ("opaque", code, bits)
    assert (spec.shape, spec.nbytes) == (tuple(shape), nbytes)
    assert list(header.specs) == ["odd", "w"]


@pytest.mark.parametrize(
    ("code", "shape", "nbytes"),
    [("F4", [4], 3), ("F4", [3], 2), ("F6_E3M2", [4], 4), ("F8_E8M0", [4], 5), ("not a type", [4], 4)],
)
def test_opaque_types_of_another_size_are_refused(
    tmp_path: Path, code: str, shape: list[int], nbytes: int
) -> None:
    with pytest.raises(FormatError, match="tensor 'odd'"):
        read(tmp_path, file_of({"odd": row(code, shape, [0, nbytes])}, b"x" * nbytes))


@pytest.mark.parametrize("extra", [{}, {"__metadata__": None}, {"__metadata__": {}}])
def test_no_metadata(tmp_path: Path, extra: dict[str, Any]) -> None:
    assert read(tmp_path, file_of({"w": row(), **extra}, b"x" * 8)).metadata == {}


DATA = b"x" * 8
BAD = {
    "short": b"\x01\x00\x00",
    "length beyond the file": b"\xff" * 8 + b"{}",
    "length beyond 100 MB": (100_000_001).to_bytes(8, "little") + b"{}",
    "empty header": file_of(b""),
    "no JSON": file_of(b"hello"),
    "a list": file_of(b"[]"),
    "cut JSON": file_of(b'{"w": {"dtype"'),
    "two objects": file_of(b"{}{}"),
    "not UTF-8": file_of(b'{"\xff": 1}'),
    "NaN": file_of(b'{"w": NaN}'),
    "nested deeply": file_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "nested lists": file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "too many values": file_of(b'{"a":[' + b"1," * 4_000_001 + b"1]}"),
    "huge integer": file_of(b'{"a":' + b"9" * 100_000 + b"}"),
    "same name twice": file_of(b'{"w": %b, "w": %b}' % ((json.dumps(row()).encode(),) * 2), DATA),
    "same field twice": file_of(
        b'{"w": {"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', DATA
    ),
    "metadata is a list": file_of({"__metadata__": [], "w": row()}, DATA),
    "metadata holds numbers": file_of({"__metadata__": {"a": 1}, "w": row()}, DATA),
    "row is a list": file_of({"w": []}, DATA),
    "row lacks shape": file_of({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, DATA),
    "dtype is a number": file_of({"w": row(1)}, DATA),
    "shape is a number": file_of({"w": row(shape=2)}, DATA),
    "shape is negative": file_of({"w": row(shape=[-2])}, DATA),
    "shape is fractional": file_of({"w": row(shape=[2.0])}, DATA),
    "shape is boolean": file_of({"w": row(shape=[True, 2])}, DATA),
    "shape overflows": file_of({"w": row(shape=[2**61, 2**61])}, DATA),
    "too many axes": file_of({"w": row(shape=[1] * 50 + [2])}, DATA),
    "shape and bytes differ": file_of({"w": row(shape=[3])}, DATA),
    "one offset": file_of({"w": row(offsets=[0])}, DATA),
    "offsets reversed": file_of({"w": row(offsets=[8, 0])}, DATA),
    "negative offset": file_of({"w": row(offsets=[-8, 0])}, DATA),
    "beyond the data": file_of({"w": row(offsets=[1, 9])}, DATA),
    "huge offsets": file_of({"w": row(offsets=[2**64, 2**64 + 8])}, DATA),
    "hole at the start": file_of({"w": row("U8", [4], [4, 8])}, DATA),
    "hole between": file_of({"a": row("U8", [2], [0, 2]), "b": row("U8", [4], [4, 8])}, DATA),
    "overlap": file_of({"a": row("U8", [6], [0, 6]), "b": row("U8", [4], [4, 8])}, DATA),
    "same range": file_of({"a": row(), "b": row()}, DATA),
    "bytes behind": file_of({"w": row()}, DATA + b"more"),
    "bytes missing": file_of({"w": row()}, DATA[:5]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_headers(tmp_path: Path, case: str) -> None:
    with pytest.raises(FormatError, match=r"x\.safetensors") as caught:
        read(tmp_path, BAD[case])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("case", BAD)
def test_the_reference_library_refuses_them_too(tmp_path: Path, case: str) -> None:
    """All but two: there we are stricter (number of axes) or bound the memory."""
    safetensors: Any = pytest.importorskip("safetensors")
    (tmp_path / "x.safetensors").write_bytes(BAD[case])
    tolerated = {"too many axes", "same field twice"}
    try:
        with safetensors.safe_open(tmp_path / "x.safetensors", "np"):
            pass
    except Exception:  # its error classes differ from version to version
        return
    assert case in tolerated | {"same name twice"}


def test_strict_json_is_plain_json_otherwise(tmp_path: Path) -> None:
    assert strict_json(tmp_path, ' {"a": [1, {"b": null}], "\\u00e9": 1.5}', Budget(60, ValueError)) == {
        "a": [1, {"b": None}],
        "é": 1.5,
    }
