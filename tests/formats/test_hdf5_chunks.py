"""Datasets in chunks: what h5py packs is unpacked, and no more than was promised."""

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
from ckptkit.formats.hdf5_bytes import lookup3
from ckptkit.formats.keras_h5 import KerasH5Reader, KerasH5Writer
from tests.support.damage import survives
from tests.support.hdf5_files import h5py, keras_file
from tests.support.tensors import same_bits

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
    with pytest.raises(FormatError, match="several objects share: not supported; write it anew"):
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
    with pytest.raises(FormatError, match="2 bytes behind the end of the HDF5 file"):
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
        found = 0
        for place in [at.start() for at in re.finditer(re.escape(mark), raw)][:4]:
            changed = bytearray(raw)
            changed[place + 21] ^= 4
            found += not survives(tmp_path / "m.h5", bytes(changed), KerasH5Reader)
        assert found, mark  # a structure that the file has no use for any more may come first


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
