"""npz archives and the headers of their arrays: what numpy writes, and what nobody should."""

from __future__ import annotations

import ast
import io
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from ckptkit.base.errors import ConversionError, FormatError, NotFoundError, UsageError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.formats.base import bytes_of
from ckptkit.formats.npz import CODES, NpzReader, NpzWriter, header_bytes, parse_header
from tests.support.damage import mutations, survives
from tests.support.tensors import arrays, same_bits, some_arrays, specs_of, write_all


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


# ----------------------------------------------------------------------------------------------------
# npz archives: numpy's, ours, and bombs.

WITHOUT = frozenset({"bfloat16", *(name for name in DTYPES if name.startswith("float8"))})
META = {"layout": "torch", "note": "ü"}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpys_archives(tmp_path: Path, save: Any) -> None:
    held = arrays(without=WITHOUT)
    save(tmp_path / "m.npz", **held)
    with NpzReader(tmp_path / "m.npz") as reader:
        assert list(reader.specs) == list(held)
        assert reader.metadata == {}
        assert reader.notes == ()
        for name, wanted in held.items():
            for _ in range(2):
                view = reader.read(name)
                assert same_bits(view, wanted), name
                assert not view.flags.writeable
                assert reader.check(name) is True
                reader.release(name)


def test_stored_arrays_are_views(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", c=np.ones((3, 4)), f=np.asfortranarray(np.ones((3, 4))))
    with NpzReader(tmp_path / "m.npz") as reader:
        assert not reader.read("c").flags.owndata
        assert not reader.read("f").flags.owndata
        assert reader.read("f").flags.f_contiguous


def test_big_endian_arrays(tmp_path: Path) -> None:
    wanted = np.arange(6, dtype=">f4").reshape(2, 3)
    np.savez(tmp_path / "m.npz", w=wanted, c=np.array([1 + 2j], ">c8"))
    with NpzReader(tmp_path / "m.npz") as reader:
        assert reader.read("w").tolist() == wanted.tolist()
        assert reader.read("c").tolist() == [1 + 2j]
        assert reader.read("w").dtype.isnative
        assert not reader.read("w").flags.writeable


class Canary:
    """Touches a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def test_objects_are_left_out_and_never_unpickled(tmp_path: Path) -> None:
    objects = np.empty(1, object)
    objects[0] = Canary(str(tmp_path / "canary"))
    inside = np.zeros(2, [("x", "f4"), ("y", "O")])
    np.savez(tmp_path / "m.npz", good=np.ones(2), evil=objects, inside=inside)
    (tmp_path / "canary").unlink(missing_ok=True)
    with NpzReader(tmp_path / "m.npz") as reader:
        assert list(reader.specs) == ["good"]
        assert dict(reader.left_out) == dict.fromkeys(
            ["evil", "inside"], "Python objects, which ckptkit never unpickles"
        )
    assert not (tmp_path / "canary").exists()


def test_what_is_no_tensor_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", w=np.ones(2), words=np.array([["a"]]), raw=np.array([b"abc"]))
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as archive:
        archive.writestr("README.txt", "hello")
    with NpzReader(tmp_path / "m.npz") as reader:
        assert list(reader.specs) == ["w"]
        assert reader.also == {
            "words": "texts [1, 1]",
            "raw": "texts [1]",
            "README.txt": "a file of 5 bytes",
        }
        assert (reader.left_out, reader.notes) == ({}, ())


OPAQUE_ARRAYS = {
    "void16": np.arange(6, dtype=ml_dtypes.bfloat16),
    "void24": np.array([b"abc", b"def"], "V3"),
    "datetime64[D]": np.array([["2020-01-01", "1999-12-31"], ["NaT", "1970-01-01"]], "M8[D]"),
    "timedelta64[25s]": np.array([1, 2, 3], "m8[25s]"),
    "float128": np.array([[1, 2], [3, 4]], np.longdouble) / 3,
    "complex256": np.array([1 + 2j, 3], np.clongdouble),
    "float128, big-endian": np.array([1, 2], np.longdouble).astype(">f16"),
    "record of x, ñ": np.array([(1, 2), (3, 4)], [("x", "<f4"), ("ñ", "<i8", (2,))]),
    "record of a": np.zeros(3, np.dtype({"names": ["a"], "formats": ["u1"], "itemsize": 8})),
}


@pytest.mark.parametrize("kind", OPAQUE_ARRAYS)
@pytest.mark.parametrize("form", ["stored", "packed", "fortran", "empty"])
def test_other_elements_are_carried_as_they_are(tmp_path: Path, kind: str, form: str) -> None:
    array = OPAQUE_ARRAYS[kind]
    array = {"fortran": np.asfortranarray(array), "empty": array[:0]}.get(form, array)
    (np.savez_compressed if form == "packed" else np.savez)(tmp_path / "m.npz", w=array)
    with NpzReader(tmp_path / "m.npz") as reader:
        spec = reader.specs["w"]
        assert (spec.dtype.kind, spec.dtype.name) == ("opaque", kind)
        assert (spec.shape, spec.nbytes) == (array.shape, array.nbytes)
        read = reader.read("w")
        assert read.tobytes() == array.tobytes()
        assert kind.startswith("void") or read.dtype == array.dtype
        carried = bytes_of(reader, "w")
        with NpzWriter(tmp_path / "n.npz", [spec], {}) as writer:
            writer.write("w", carried)
            writer.finish()
    again = np.load(tmp_path / "n.npz")["w"]
    theirs = np.load(tmp_path / "m.npz")["w"]
    assert (again.dtype, again.shape, again.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


def test_unknown_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", w=np.ones(2))
    with NpzReader(tmp_path / "m.npz") as reader:
        for method in (reader.read, reader.check, reader.release):
            with pytest.raises(NotFoundError, match="no tensor 'x'"):
                method("x")


# -- bad archives --------------------------------------------------------------------------------------------


def npy(array: Any) -> bytes:
    raw = io.BytesIO()
    np.save(raw, array)
    return raw.getvalue()


def archive(path: Path, data: bytes, method: int = zipfile.ZIP_STORED, name: str = "w.npy") -> bytes:
    with zipfile.ZipFile(path, "w", method) as made:
        made.writestr(name, data)
    return path.read_bytes()


GOOD = npy(np.arange(100, dtype=np.float32))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("data", [b"", b"hello", GOOD[:-1], GOOD + b"x", GOOD[:60]])
def test_bad_members(tmp_path: Path, data: bytes, method: int) -> None:
    archive(tmp_path / "m.npz", data, method)
    with pytest.raises(FormatError, match=r"w\.npy"):
        NpzReader(tmp_path / "m.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(tmp_path: Path, method: int) -> None:
    archive(tmp_path / "m.npz", GOOD, method)
    with pytest.raises(FormatError, match="method"):
        NpzReader(tmp_path / "m.npz")


def test_damage_is_found(tmp_path: Path) -> None:
    raw = bytearray(archive(tmp_path / "m.npz", GOOD))
    raw[raw.index(GOOD) + len(GOOD) - 3] ^= 1
    (tmp_path / "m.npz").write_bytes(raw)
    with NpzReader(tmp_path / "m.npz") as reader, pytest.raises(FormatError, match="CRC-32"):
        reader.check("w")


def test_damage_of_compressed_arrays_is_found_by_reading(tmp_path: Path) -> None:
    rough = npy(np.random.default_rng(0).standard_normal(5000))
    raw = bytearray(archive(tmp_path / "m.npz", rough, zipfile.ZIP_DEFLATED))
    raw[len(raw) // 2] ^= 1
    (tmp_path / "m.npz").write_bytes(raw)
    with NpzReader(tmp_path / "m.npz") as reader, pytest.raises(FormatError, match=r"w\.npy"):
        reader.read("w")


def sized(raw: bytes, size: int) -> bytes:
    """The same archive with another uncompressed size, in its directory and before its data."""
    changed = bytearray(raw)
    struct.pack_into("<I", changed, 22, size)
    struct.pack_into("<I", changed, raw.index(b"PK\x01\x02") + 24, size)
    return bytes(changed)


def test_bombs(tmp_path: Path) -> None:
    bomb = npy(np.zeros(1_000_000, np.float32))
    raw = archive(tmp_path / "m.npz", bomb, zipfile.ZIP_DEFLATED)
    assert len(raw) < 10_000
    with NpzReader(tmp_path / "m.npz") as reader:  # honest zeros are fine
        assert not reader.read("w").any()
    (tmp_path / "m.npz").write_bytes(sized(raw, 1 << 31))
    with pytest.raises(FormatError, match="bytes unpacked in a file of"):
        NpzReader(tmp_path / "m.npz")
    header = npy(np.zeros(10, np.float32))[:128]
    lying = archive(tmp_path / "m.npz", header + bytes(10_000_000), zipfile.ZIP_DEFLATED)
    (tmp_path / "m.npz").write_bytes(sized(lying, 168))
    with NpzReader(tmp_path / "m.npz") as reader, pytest.raises(FormatError, match="more than 168 bytes"):
        reader.read("w")
    archive(tmp_path / "m.npz", npy(np.zeros(20_000_000, np.float32)), zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="bytes unpacked in a file of"):
        NpzReader(tmp_path / "m.npz")


@pytest.mark.parametrize(
    "comment", [b"ckptkit:{", b"ckptkit:[]", b'ckptkit:{"a":1}', b"ckptkit:" + b"[" * 60000]
)
def test_bad_metadata(tmp_path: Path, comment: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as made:
        made.writestr("w.npy", GOOD)
        made.comment = comment
    with pytest.raises(FormatError, match="metadata"):
        NpzReader(tmp_path / "m.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_truncations_and_mutations(tmp_path: Path, method: int) -> None:
    path = tmp_path / "m.npz"
    raw = archive(path, GOOD, method)
    for stop in range(len(raw)):
        assert not survives(path, raw[:stop], NpzReader)
    opened = sum(survives(path, damaged, NpzReader) for damaged in mutations(raw, 800, seed=9))
    assert 0 < opened < 800


# -- writing -------------------------------------------------------------------------------------------------


def test_numpy_reads_ours(tmp_path: Path) -> None:
    held = arrays(without=WITHOUT)
    files, sums = write_all(NpzWriter(tmp_path / "m.npz", specs_of(held), META), held)
    assert files == [tmp_path / "m.npz"]
    with np.load(tmp_path / "m.npz", allow_pickle=False) as loaded:
        assert loaded.files == list(held)
        for name, wanted in held.items():
            assert same_bits(loaded[name], wanted)
            assert sums[name] == google_crc32c.value(wanted.tobytes())
    with zipfile.ZipFile(tmp_path / "m.npz") as made:
        assert made.testzip() is None
        assert all(zlib.crc32(made.read(row)) == row.CRC for row in made.infolist())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(held=some_arrays(without=WITHOUT))
def test_round_trip(tmp_path: Path, held: dict[str, Any]) -> None:
    write_all(NpzWriter(tmp_path / "m.npz", specs_of(held), META, force=True), held)
    with NpzReader(tmp_path / "m.npz") as reader:
        assert reader.metadata == META
        assert list(reader.specs) == list(held)
        assert all(same_bits(reader.read(name), array) and reader.check(name) for name, array in held.items())


def test_same_input_same_bytes(tmp_path: Path) -> None:
    held = arrays(without=WITHOUT)
    for name in ("a", "b"):
        write_all(NpzWriter(tmp_path / name, specs_of(held), dict(reversed(META.items()))), held)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_types_numpy_cannot_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"'w' as {name}: numpy has no name"):
        NpzWriter(tmp_path / "m.npz", [TensorSpec("w", DTYPES[name], (2,))], {})
    assert list(tmp_path.iterdir()) == []


def test_metadata_too_long(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="metadata"):
        NpzWriter(tmp_path / "m.npz", [], {"a": "x" * 66_000})


# -- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../../x", "leaves its folder"),
        ("a/../../x", "leaves its folder"),
        ("..\\x", "leaves its folder"),
        ("/etc/x", "absolute"),
        ("\\\\server\\x", "absolute"),
        ("C:\\x", "absolute"),
        ("a\0b", "zero byte"),
        ("a\ud800", "is not valid Unicode"),
        ("x" * 70_000, "too long"),
        ("b//c", "is the path of 'b/c' too"),
        ("b/./c", "is the path of 'b/c' too"),
    ],
)
def test_names_that_are_no_paths_in_an_archive_are_refused(tmp_path: Path, name: str, why: str) -> None:
    specs = [TensorSpec(one, DTYPES["float32"], (2,)) for one in ("b/c", name)]
    with pytest.raises(ConversionError, match=re.escape(why)) as caught:
        NpzWriter(tmp_path / "m.npz", specs, {})
    assert len(str(caught.value)) < 500
    assert not list(tmp_path.iterdir())


def test_names_with_the_marks_of_frameworks(tmp_path: Path) -> None:
    held = {name: np.ones(2, np.float32) for name in ("a/b:0", "a.b", "a..b", "A.B", "ü/w", "a b\\c")}
    write_all(NpzWriter(tmp_path / "m.npz", specs_of(held), {}), held)
    with np.load(tmp_path / "m.npz") as loaded:
        assert set(loaded.files) == set(held)


def test_a_header_that_says_something_twice(tmp_path: Path) -> None:
    text = "{'descr': '<f4', 'descr': '<f8', 'fortran_order': False, 'shape': (2,)}".ljust(117) + "\n"
    raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(16)
    archive(tmp_path / "m.npz", raw, zipfile.ZIP_STORED)
    with pytest.raises(FormatError, match="says something twice"):
        NpzReader(tmp_path / "m.npz")


def test_long_headers_are_on_a_budget(tmp_path: Path) -> None:
    fields = ",".join(f"('{number:x}','<f4')" for number in range(600))
    text = f"{{'descr':[{fields}],'fortran_order':False,'shape':(0,)}}"
    raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
    with zipfile.ZipFile(tmp_path / "m.npz", "w", zipfile.ZIP_DEFLATED) as made:
        for number in range(300):
            made.writestr(f"{number}.npy", raw)
    with pytest.raises(FormatError, match="steps of work"):
        NpzReader(tmp_path / "m.npz")


def test_members_that_numpy_takes_for_arrays(tmp_path: Path) -> None:
    """It strips the ending from names, and looks for arrays under any name."""
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "m.npz", "w", method) as made:
            made.writestr("w", npy(np.ones(3)))
            made.writestr("text", "no array")
        with NpzReader(tmp_path / "m.npz") as reader:
            assert reader.read("w").tolist() == np.load(tmp_path / "m.npz")["w"].tolist()
            assert list(reader.also) == ["text"]
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as made:
        made.writestr("w.npy", npy(np.zeros(3)))
    with pytest.raises(FormatError, match="'w' are one to numpy"):
        NpzReader(tmp_path / "m.npz")


def test_a_name_in_an_unknown_coding(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", **{"é": np.ones(3)})
    raw = bytearray((tmp_path / "m.npz").read_bytes())
    for place, mark in ((6, b"PK\x03\x04"), (8, b"PK\x01\x02")):
        at = raw.index(mark) + place
        raw[at : at + 2] = (int.from_bytes(raw[at : at + 2], "little") & ~0x800).to_bytes(2, "little")
    (tmp_path / "m.npz").write_bytes(raw)
    assert np.load(tmp_path / "m.npz").files != ["é"]
    with pytest.raises(FormatError, match="does not say how its name is coded"):
        NpzReader(tmp_path / "m.npz")
