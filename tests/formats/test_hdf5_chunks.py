"""Datasets in chunks: what h5py packs is unpacked, and no more than was promised."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptkit.errors import FormatError
from ckptkit.formats.keras_h5 import KerasH5Reader
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
