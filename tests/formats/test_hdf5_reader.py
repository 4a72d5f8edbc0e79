"""HDF5 read from its bytes: pieces, element types, attributes, chunks, against h5py and libhdf5."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.errors import ConversionError, FormatError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.formats.hdf5_reader import (
    MAX_NAME,
    UNDEFINED,
    ElementType,
    Hdf5Bytes,
    Hdf5File,
    Piece,
    lookup3,
    parse_type,
)
from ckptkit.formats.hdf5_writer import VARIABLE_TEXT, type_message
from ckptkit.formats.keras import KerasH5Reader, KerasH5Writer
from ckptkit.formats.mapped_file import MappedFile
from tests.support.damage import survives
from tests.support.hdf5_files import h5py, keras_file
from tests.support.tensors import same_bits


def part(path: Path, raw: bytes, start: int = 0, size: int | None = None) -> Hdf5Bytes:
    path.write_bytes(raw)
    return Hdf5Bytes(MappedFile(path), start, size)


def test_a_piece_is_read_to_its_end_and_not_beyond(tmp_path: Path) -> None:
    piece = part(tmp_path / "m", b"headabcdef\x01\x02tail", start=4, size=8).piece(0, 8, "it")
    assert piece.raw(3) == b"abc"
    inner = piece.part(3)
    assert (inner.address, inner.left, inner.raw(3)) == (3, 3, b"def")
    assert piece.number(2) == 0x0201
    with pytest.raises(FormatError, match="at byte 12: a structure is shorter"):
        piece.number(1)


@pytest.mark.parametrize(("address", "length"), [(0, 9), (8, 1), (9, 0), (UNDEFINED, 1), (1, UNDEFINED)])
def test_pieces_outside_are_refused(tmp_path: Path, address: int, length: int) -> None:
    with pytest.raises(FormatError, match=r"m: at byte \d+: it of \d+ bytes reaches outside"):
        part(tmp_path / "m", bytes(20), start=4, size=8).piece(address, length, "it")


def test_reading_the_same_again_and_again_is_noticed(tmp_path: Path) -> None:
    source = part(tmp_path / "m", bytes(100))
    for _ in range(2):
        source.piece(0, 100, "it")
    with pytest.raises(FormatError, match="structures that overlap"):
        source.piece(0, 1, "it")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(b"abc\0", b"abc"), (b"\0", b""), (b"abc", None), (b"x" * MAX_NAME + b"\0", b"x" * MAX_NAME)],
)
def test_texts_end_with_a_zero(tmp_path: Path, raw: bytes, expected: bytes | None) -> None:
    source = part(tmp_path / "m", b"12" + raw + b"more\0", start=2, size=len(raw) + 5)
    if expected is None:
        with pytest.raises(FormatError, match="a name without an end"):
            source.text(0, len(raw))
    else:
        assert source.text(0, len(raw)) == expected


def test_texts_longer_than_any_name(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="longer than any"):
        part(tmp_path / "m", b"x" * (MAX_NAME + 1) + b"\0").text(0, MAX_NAME + 2)


# ----------------------------------------------------------------------------------------------------
# HDF5's datatype messages, against those of libhdf5.

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


# ----------------------------------------------------------------------------------------------------
# Attributes of HDF5 objects as h5py writes them.


def attributes_of_root(path: Path, method: str = "attributes") -> dict[str, Any]:
    file = Hdf5File(MappedFile(path))
    return dict(getattr(file, method)(file.header(file.root)))


VALUES: dict[str, tuple[Any, str | None]] = {
    "text": ("hällo", "hällo"),
    "long": ("x" * 50_000, "x" * 50_000),
    "empty text": ("", ""),
    "bytes": (np.bytes_(b"abc"), "abc"),
    "padded bytes": (np.array(b"abc", "S8"), "abc"),
    "one in a list": (["abc"], "abc"),
    "bytes that are no text": (np.bytes_(b"\xff\xfe"), None),
    "several": (["a", "b"], None),
    "number": (7, None),
    "array": (np.ones((3, 4)), None),
    "nothing": (h5py.Empty("f4"), None),
}


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("kind", VALUES)
def test_single_texts_are_read_and_everything_else_is_named(tmp_path: Path, kind: str, libver: str) -> None:
    value, expected = VALUES[kind]
    path = keras_file(tmp_path / "m.h5", lambda f: f.attrs.__setitem__("näme", value), libver=libver)
    assert attributes_of_root(path) == {"näme": expected}


def test_many_texts_in_one_collection(tmp_path: Path) -> None:
    path = keras_file(
        tmp_path / "m.h5", lambda f: [f.attrs.__setitem__(f"a{i}", f"text {i}") for i in range(40)]
    )
    assert attributes_of_root(path) == {f"a{i}": f"text {i}" for i in range(40)}


@pytest.mark.parametrize("count", [9, 500])
def test_attributes_in_a_heap(tmp_path: Path, count: int) -> None:
    """More than eight, or long ones, where their order is tracked."""
    wanted = {f"a{i}": f"text {i} " * (i % 7) ** 4 for i in range(count)}
    path = keras_file(tmp_path / "m.h5", lambda f: f.attrs.update(wanted), track_order=True)
    assert attributes_of_root(path) == wanted


def test_whole_numbers(tmp_path: Path) -> None:
    values = {"a": np.int64(-7), "b": np.uint8(200), "c": np.array(300, ">i2"), "d": "8", "e": [9], "f": 1.0}
    path = keras_file(tmp_path / "m.h5", lambda f: f.attrs.update(values))
    file = Hdf5File(MappedFile(path))
    root = file.header(file.root)
    found = {name: file.attribute_number(root, name) for name in [*values, "gone"]}
    assert found == {"a": -7, "b": 200, "c": 300, "d": None, "e": None, "f": None, "gone": None}


LISTS: dict[str, tuple[Any, tuple[str, ...] | None]] = {
    "one text": ("hällo", ("hällo",)),
    "any length": ([b"a", b"", "dü".encode()], ("a", "", "dü")),
    "fixed length": (np.array([b"a", b"", b"abc"]), ("a", "", "abc")),
    "no elements": ([], ()),
    "null": (h5py.Empty("S3"), ()),
    "table": (np.array([[b"a"]]), None),
    "not all UTF-8": (np.array([b"a", b"\xff"]), None),
    "numbers": ([1, 2], None),
    "too long": ("x" * 1_100_000, None),
}


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_texts(tmp_path: Path, kind: str, libver: str) -> None:
    value, expected = LISTS[kind]
    path = keras_file(tmp_path / "m.h5", lambda f: f.attrs.__setitem__("list", value), libver=libver)
    assert attributes_of_root(path, "attribute_texts") == {"list": expected}


def test_two_attributes_of_one_name(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.h5", lambda f: f.attrs.update({"name_1": 1, "name_2": 2}))
    raw = path.read_bytes()
    assert raw.count(b"name_2") == 1
    path.write_bytes(raw.replace(b"name_2", b"name_1"))
    with pytest.raises(FormatError, match="two attributes 'name_1'"):
        attributes_of_root(path)


# ----------------------------------------------------------------------------------------------------
# Datasets in chunks: what h5py packs is unpacked, and no more than was promised.

PACKINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gzip": {"compression": "gzip"},
    "shuffle": {"shuffle": True},
    "checksum": {"fletcher32": True},
    "gzip and shuffle": {"compression": "gzip", "shuffle": True},
    "all": {"compression": "gzip", "shuffle": True, "fletcher32": True},
}
SHAPES = [((30, 31), (7, 11)), ((5,), (5,)), ((5,), (8,)), ((3, 3, 4, 9), (1, 3, 2, 4)), ((2000,), (3,))]
KERNEL = np.random.default_rng(0).standard_normal((20, 30)).astype("f4")


def chunked(path: Path, values: Any, chunks: tuple[int, ...], **packing: Any) -> Path:
    def more(file: Any) -> None:
        made = file["dense/vars"].create_dataset(
            "1", data=values, chunks=chunks, maxshape=tuple(2 * n for n in values.shape), **packing
        )
        if values.dtype == ml_dtypes.bfloat16:
            made.attrs["dtype"] = "bfloat16"

    return keras_file(path, more)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("shape", "chunks"), SHAPES)
def test_chunks_are_put_together(
    tmp_path: Path, packing: str, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> None:
    wanted = np.random.default_rng(1).standard_normal(shape).astype("f4")
    path = chunked(tmp_path / "m.h5", wanted, chunks, **PACKINGS[packing])
    with KerasH5Reader(path) as reader:
        got = reader.read("dense/vars/1")
        assert same_bits(got, wanted)
        assert not got.flags.writeable
        assert reader.check("dense/vars/1") is ("fletcher32" in PACKINGS[packing])
        reader.release("dense/vars/1")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("place", ["before it", "behind it", "without a name"])
def test_an_element_type_with_a_name_is_followed(tmp_path: Path, libver: str, place: str) -> None:
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w", libver=libver) as file:
        if place == "behind it":
            file.create_group("dense/vars")
        file["kind"] = np.dtype(">f8")
        file["dense/vars/0"] = KERNEL
        file.create_dataset("dense/vars/1", data=KERNEL, dtype=file["kind"])
        if place == "without a name":
            del file["kind"]
    with KerasH5Reader(path) as reader:
        got = reader.read("dense/vars/1")
    assert got.dtype == np.float64
    assert got.tolist() == KERNEL.tolist()


def test_a_named_type_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w") as file:
        file["kind"] = np.dtype("<f4")
        address = h5py.h5o.get_info(file["kind"].id).addr.to_bytes(8, "little")
        made = file.create_dataset("dense/vars/0", data=KERNEL, dtype=file["kind"])
        itself = h5py.h5o.get_info(made.id).addr.to_bytes(8, "little")
    raw = path.read_bytes()
    place = raw.rindex(b"\2\2" + address)
    for there in (itself, bytes(8), b"\xff" * 8):
        path.write_bytes(raw[: place + 2] + there + raw[place + 10 :])
        with pytest.raises(FormatError, match="at byte"):
            KerasH5Reader(path)
    path.write_bytes(raw[:place] + b"\3\1" + raw[place + 2 :])
    with pytest.raises(FormatError, match="several objects share: not supported; write it again"):
        KerasH5Reader(path)


@pytest.mark.parametrize("dtype", ["<f2", ">f8", "<i1", ">i8", "<u2", "bfloat16"])
def test_element_types(tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    values = np.arange(60).reshape(6, 10).astype(kind)
    with KerasH5Reader(chunked(tmp_path / "m.h5", values, (4, 3), **PACKINGS["gzip and shuffle"])) as reader:
        got = reader.read("dense/vars/1")
    assert got.astype("f8").tolist() == np.arange(60).reshape(6, 10).tolist()
    assert got.dtype.name == values.dtype.name
    assert got.dtype.isnative


def test_odd_lengths_agree_with_the_checksum(tmp_path: Path) -> None:
    values = np.arange(35, dtype="u1")
    with KerasH5Reader(chunked(tmp_path / "m.h5", values, (5,), fletcher32=True)) as reader:
        assert reader.check("dense/vars/1")


@pytest.mark.parametrize("packing", ["checksum", "all"])
def test_a_flipped_bit_is_found_by_the_checksum(tmp_path: Path, packing: str) -> None:
    path = chunked(tmp_path / "m.h5", KERNEL, (20, 30), **PACKINGS[packing])
    raw = bytearray(path.read_bytes())
    start = raw.index(KERNEL.tobytes()[:64]) if packing == "checksum" else _deflated(raw)
    raw[start + 40] ^= 4
    path.write_bytes(raw)
    with KerasH5Reader(path) as reader:
        for method in (reader.check, reader.read):
            with pytest.raises(FormatError, match="dense/vars/1: a chunk"):
                method("dense/vars/1")


def _deflated(raw: bytes) -> int:
    """Where the only deflated piece of a file begins."""
    starts = [
        place for place in range(len(raw)) if raw[place : place + 2] == b"\x78\x5e" and _opens(raw[place:])
    ]
    (start,) = starts
    return start


def _opens(raw: bytes) -> bool:
    try:
        return len(zlib.decompressobj().decompress(raw)) > 0
    except zlib.error:
        return False


def test_a_chunk_unpacks_to_no_more_than_it_may(tmp_path: Path) -> None:
    """Zeros of 4 MB are put where 4 KB belong."""
    values = np.random.default_rng(0).integers(0, 255, 8192).astype("u1")
    path = chunked(tmp_path / "m.h5", values, (8192,), compression="gzip")
    raw = bytearray(path.read_bytes())
    bomb = zlib.compress(bytes(4 << 20), 9)
    start = _start_of(raw, values)
    raw[start : start + len(bomb)] = bomb
    path.write_bytes(raw)
    with KerasH5Reader(path) as reader, pytest.raises(FormatError, match="does not unpack to 8192 bytes"):
        reader.read("dense/vars/1")


def _start_of(raw: bytes, values: Any) -> int:
    return raw.index(zlib.compress(values.tobytes(), 4)[:40])


def test_two_chunks_at_one_place(tmp_path: Path) -> None:
    values = np.arange(16, dtype="f8")
    path = chunked(tmp_path / "m.h5", values, (8,))
    raw = path.read_bytes()
    key = b"".join(n.to_bytes(8, "little") for n in (64, 8, 0))  # bytes of the chunk, its corner, its element
    assert raw.count(key) == 1
    path.write_bytes(raw.replace(key, key[:8] + bytes(16)))
    with pytest.raises(FormatError, match="a tree that is not in order"):
        KerasH5Reader(path)


# -- elements that were never written ------------------------------------------------------------------------


@pytest.mark.parametrize("libver", ["earliest", "v108"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8", ">i2", "<f2"])
@pytest.mark.parametrize("fill", [None, 0, 7])
@pytest.mark.parametrize("chunks", [None, (3, 4)])
def test_what_was_never_written_is_the_fill_value(
    tmp_path: Path, chunks: Any, fill: Any, dtype: str, libver: str
) -> None:
    """As h5py reads it: nothing written, some chunks written, and more room made later."""
    with h5py.File(
        tmp_path / "m.weights.h5", "w", libver=(libver, "latest" if libver == "earliest" else libver)
    ) as file:
        options = {"dtype": dtype, "fillvalue": fill, "chunks": chunks}
        file.create_dataset("dense/vars/0", (5, 6), **options)
        if chunks:
            some = file.create_dataset("dense/vars/1", (5, 6), maxshape=(None, None), **options)
            some[4:, 2:] = 3
            some.resize((8, 9))
            file["dense/vars/2"] = np.arange(3)
    with h5py.File(tmp_path / "m.weights.h5") as file, KerasH5Reader(tmp_path / "m.weights.h5") as reader:
        for name in reader.specs:
            found = reader.read(name)
            assert found.tolist() == file[name][()].tolist(), name
            assert found.dtype == file[name].dtype.newbyteorder("<")
            assert reader.check(name) is False
        assert reader.read("dense/vars/0").reshape(-1)[0] == (fill or 0)


def test_checksums_of_a_dataset_without_chunks(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file.create_dataset("dense/vars/0", (5,), "f4", chunks=(2,), fletcher32=True)
    with KerasH5Reader(tmp_path / "m.weights.h5") as reader:
        assert reader.check("dense/vars/0") is False


# -- order, and checksums of structures ----------------------------------------------------------------------


def swapped(raw: bytes, one: bytes, other: bytes) -> bytes:
    """The same bytes with two parts of one length in each other's place."""
    assert raw.count(one) == raw.count(other) == 1
    mark = b"\xaa" * len(one)
    return raw.replace(one, mark).replace(other, one).replace(mark, other)


def words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in numbers)


def row_of(raw: bytes, name: bytes) -> bytes:
    """The beginning of a member's row in a symbol table: where its name is in the heap."""
    heap = raw.index(b"HEAP")
    start = int.from_bytes(raw[heap + 24 : heap + 32], "little")
    return words(raw.index(b"\0" + name + b"\0", start) + 1 - start)


def test_members_of_a_group_must_be_in_order(tmp_path: Path) -> None:
    """libhdf5 looks for a member by halving, so it finds what stands elsewhere, or nothing."""
    with h5py.File(tmp_path / "m.h5", "w") as file:
        for name in ("aa", "bb", "cc"):
            file[f"{name}/vars/0"] = np.ones(3, "f4")
    raw = (tmp_path / "m.h5").read_bytes()
    table = raw.index(b"SNOD") + 8
    rows = [raw[table + 40 * n : table + 40 * (n + 1)] for n in range(3)]
    assert rows[0][:8] == row_of(raw, b"aa")
    changed = raw.replace(rows[0] + rows[1], rows[1] + rows[0])
    assert changed != raw
    (tmp_path / "m.h5").write_bytes(changed)
    with pytest.raises(FormatError, match="not in order, at b'aa'"):
        KerasH5Reader(tmp_path / "m.h5")


def test_chunks_must_be_in_order(tmp_path: Path) -> None:
    values = np.arange(32, dtype="f8")
    path = chunked(tmp_path / "m.h5", values, (8,))
    raw = path.read_bytes()
    path.write_bytes(swapped(raw, words(64, 8, 0), words(64, 16, 0)))
    with pytest.raises(FormatError, match="a tree that is not in order"):
        KerasH5Reader(path)


def test_bytes_behind_the_end(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.h5")
    path.write_bytes(path.read_bytes() + b"PK")
    with pytest.raises(FormatError, match="2 bytes after the end of the HDF5 file"):
        KerasH5Reader(path)


def test_two_places_of_the_roots_members(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.h5")
    raw = bytearray(path.read_bytes())
    raw[80] ^= 8  # what the superblock repeats of the root group: where its tree is
    path.write_bytes(raw)
    with pytest.raises(FormatError, match="members at two places"):
        KerasH5Reader(path)


@pytest.mark.parametrize("length", [0, 1, 11, 12, 13, 24, 25, 1000])
def test_the_hash_of_names_and_structures(tmp_path: Path, length: int) -> None:
    """As libhdf5 puts it behind the list of attributes of an object: a name's hash, in the tree of names."""
    name = "n" * max(length, 1)
    with h5py.File(tmp_path / "m.h5", "w", libver=("v108", "v108")) as file:
        for number in range(9):
            file.attrs[f"k{number}"] = number
        file.attrs[name] = 0
    assert lookup3(name.encode()).to_bytes(4, "little") in (tmp_path / "m.h5").read_bytes()


def dense(path: Path) -> bytes:
    """Groups and attributes in every newer structure that carries a checksum."""
    with h5py.File(path, "w", libver=("v108", "v108"), track_order=True) as file:
        for number in range(30):
            file[f"layers/dense_{number}/vars/0"] = np.full(3, number, "f4")
        for number in range(20):
            file["layers"].attrs[f"note {number}"] = "x" * 200
        for number in range(5):
            file["layers/dense_0/vars/0"].attrs[f"note {number}"] = "x" * 60
        for number in range(1500):
            file[f"more/{number:05}/vars/0"] = h5py.SoftLink("/layers/dense_1/vars/0")
    return path.read_bytes()


def test_a_flipped_bit_in_any_structure_with_a_checksum_is_found(tmp_path: Path) -> None:
    raw = dense(tmp_path / "m.h5")
    with KerasH5Reader(tmp_path / "m.h5") as reader:
        assert len(reader.specs) == 1530
    for mark in (b"OHDR", b"OCHK", b"BTHD", b"BTLF", b"BTIN", b"FRHP", b"FHIB", b"FHDB", b"\x89HDF"):
        for place in [at.start() for at in re.finditer(re.escape(mark), raw)][:4]:
            changed = bytearray(raw)
            changed[place + 21] ^= 4
            if not survives(tmp_path / "m.h5", bytes(changed), KerasH5Reader):
                break
        else:  # a structure that the file has no use for any more may come first
            raise AssertionError(mark)


def test_a_name_under_the_hash_of_another(tmp_path: Path) -> None:
    """Found by those that list a group, and not by those that look for a member."""
    raw = bytearray(dense(tmp_path / "m.h5"))
    raw[raw.index(b"dense_7")] ^= 1
    block = raw.rindex(b"FHDB", 0, raw.index(b"eense_7"))
    head = int.from_bytes(raw[block + 5 : block + 13], "little")
    assert raw[head : head + 4] == b"FRHP"
    size = int.from_bytes(raw[head + 112 : head + 120], "little")
    offset_bytes = -(-int.from_bytes(raw[head + 128 : head + 130], "little") // 8)
    hole = block + 13 + offset_bytes
    body = bytes(raw[block:hole]) + bytes(4) + bytes(raw[hole + 4 : block + size])
    raw[hole : hole + 4] = lookup3(body).to_bytes(4, "little")
    (tmp_path / "m.h5").write_bytes(raw)
    with pytest.raises(FormatError, match="under the hash of another name"):
        KerasH5Reader(tmp_path / "m.h5")


# -- by chance -----------------------------------------------------------------------------------------------

TYPES = ("f4", "f8", "f2", "i1", "i8", "u2", ">f4", ">i2", "c8", "bool")


def random_file(path: Path, seed: int) -> None:
    """Datasets with chunks, filters, fill values, parts that were never written, other sizes later; links."""
    rng = np.random.default_rng(seed)
    newer = {"libver": ("v108", "v108")} if rng.integers(2) else {}
    with h5py.File(path, "w", track_order=bool(rng.integers(2)), **newer) as file:
        made = []
        for number in range(int(rng.integers(1, 8))):
            shape = tuple(int(n) for n in rng.integers(1, 9, size=rng.integers(0, 4)))
            dtype = np.dtype(str(rng.choice(TYPES)))
            options: dict[str, Any] = {}
            if shape and rng.random() < 0.8:
                options["chunks"] = tuple(int(rng.integers(1, size + 1)) for size in shape)
                options["maxshape"] = (None,) * len(shape)
                options["compression"] = "gzip" if rng.random() < 0.5 else None
                options["shuffle"], options["fletcher32"] = bool(rng.integers(2)), bool(rng.integers(2))
            if dtype.kind in "fiu" and rng.random() < 0.4:
                options["fillvalue"] = int(rng.integers(1, 5))
            name = f"{rng.choice(['a', 'b/c', 'layers/dense'])}/{number}/vars/0"
            dataset = file.create_dataset(name, shape, dtype, **options)
            made.append(name)
            values = (rng.standard_normal(shape) * 50).astype(dtype)
            if rng.random() < 0.5:
                dataset[...] = values
            elif shape:
                dataset[tuple(slice(0, int(rng.integers(0, size + 1))) for size in shape)] = 1
            for _ in range(int(rng.integers(0, 3)) if "chunks" in options else 0):
                dataset.resize(tuple(int(n) for n in rng.integers(1, 14, size=len(shape))))
                dataset[..., -1:] = 1
        for number, name in enumerate(made[:3]):
            file[f"links/{number}/vars/0"] = h5py.SoftLink(f"/{name}") if rng.integers(2) else file[name]


@pytest.mark.parametrize("seed", range(60))
def test_random_files_are_read_as_h5py_reads_them(tmp_path: Path, seed: int) -> None:
    random_file(tmp_path / "m.h5", seed)
    wanted: dict[str, Any] = {}

    def walk(group: Any, prefix: str) -> None:
        for name, member in group.items():
            if isinstance(member, h5py.Dataset):
                wanted[prefix + name] = member[()]
            else:
                walk(member, f"{prefix}{name}/")

    with h5py.File(tmp_path / "m.h5") as file:
        walk(file, "")
    with KerasH5Reader(tmp_path / "m.h5", is_shard=True) as reader:
        assert reader.specs.keys() == wanted.keys()
        for name, values in wanted.items():
            found = reader.read(name)
            assert found.shape == np.shape(values), name
            assert found.tobytes() == np.asarray(values).astype(found.dtype).tobytes(), name


@pytest.mark.parametrize("name", ["../../x", "a/../vars/0", "a//b", "./a", "a\0b"])
def test_names_that_lead_elsewhere_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConversionError, match="HDF5 cannot hold a tensor called"):
        KerasH5Writer(tmp_path / "m.weights.h5", [TensorSpec(name, DTYPES["float32"], (2,))], {})
    assert not list(tmp_path.iterdir())
