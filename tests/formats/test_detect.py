"""Telling formats apart by their content, whatever the file is called."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import CkptkitError, FormatError, NotFoundError, UsageError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.formats.names import EXTENSIONS
from ckptkit.formats.safetensors import SafetensorsWriter
from tests.support.tensors import specs_of, write_all
from tests.support.torch_files import TENSOR, legacy, table, tar_members, whole, write_tar, write_zip

HELD = {"w": np.array([1.5, -2.0], np.float32)}
ANY_NAME = "m.bin"


def written(format: str, path: Path) -> Path:
    write_all(writer_for(format)(path, specs_of(HELD), {"a": "b"}), HELD)
    return path


def tf_archive(folder: Path, mode: Any) -> Path:
    written("tf", folder / "sub" / "m.ckpt")
    with tarfile.open(folder / ANY_NAME, mode) as archive:
        archive.add(folder / "sub", "sub")
    return folder / ANY_NAME


def shards(folder: Path) -> Path:
    held = {**HELD, "v": np.ones(3, np.float32)}
    write_all(SafetensorsWriter(folder / "m.safetensors", specs_of(held), {}, max_shard_size=8), held)
    return folder


def raw(folder: Path, data: bytes, name: str = ANY_NAME) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def savez(folder: Path, save: Any) -> Path:
    with (folder / ANY_NAME).open("wb") as file:
        save(file, **HELD)
    return folder / ANY_NAME


def keras_model(folder: Path) -> Path:
    weights = written("keras", folder / "x.weights.h5")
    with zipfile.ZipFile(folder / ANY_NAME, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.write(weights, "model.weights.h5")
    return folder / ANY_NAME


KINDS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "safetensors": ("safetensors", lambda f: written("safetensors", f / ANY_NAME)),
    "safetensors named .pth": ("safetensors", lambda f: written("safetensors", f / "m.pth")),
    "safetensors folder": ("safetensors", lambda f: written("safetensors", f / "m.safetensors").parent),
    "safetensors shards": ("safetensors", shards),
    "safetensors index": ("safetensors", lambda f: shards(f) / "m.safetensors.index.json"),
    "safetensors index of another name": (
        "safetensors",
        lambda f: (shards(f) / "m.safetensors.index.json").rename(f / "index.json"),
    ),
    "torch zip": ("torch", lambda f: written("torch", f / ANY_NAME)),
    "torch zip named .tar.gz": ("torch", lambda f: written("torch", f / "m.tar.gz")),
    "torch zip, pickle last": (
        "torch",
        lambda f: write_zip(raw(f, b""), whole(table(w=TENSOR)), records={"version": b"3"}),
    ),
    "torch stream": ("torch", lambda f: raw(f, legacy(whole(table(w=TENSOR))))),
    "torch tar": ("torch", lambda f: write_tar(f / ANY_NAME, tar_members())),
    "keras": ("keras", lambda f: written("keras", f / ANY_NAME)),
    "keras model": ("keras", keras_model),
    "npz": ("npz", lambda f: written("npz", f / ANY_NAME)),
    "numpy's npz": ("npz", lambda f: savez(f, np.savez)),
    "compressed npz": ("npz", lambda f: savez(f, np.savez_compressed)),
    "tf prefix": ("tf", lambda f: written("tf", f / "m.ckpt")),
    "tf prefix with dots": ("tf", lambda f: written("tf", f / "m.ckpt-1.5")),
    "tf index": ("tf", lambda f: written("tf", f / "m").with_name("m.index")),
    "tf data file": ("tf", lambda f: written("tf", f / "m").with_name("m.data-00000-of-00001")),
    "tf folder": ("tf", lambda f: written("tf", f / "m").parent),
    "tf in tar": ("tf", lambda f: tf_archive(f, "w")),
    "tf in tar.gz": ("tf", lambda f: tf_archive(f, "w:gz")),
    "tf in tar.bz2": ("tf", lambda f: tf_archive(f, "w:bz2")),
    "tf in tar.xz": ("tf", lambda f: tf_archive(f, "w:xz")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(tmp_path: Path, kind: str) -> None:
    format, make = KINDS[kind]
    with open_reader(make(tmp_path)) as reader:
        assert reader.format == format
        assert reader.specs
        if kind != "torch tar":
            assert reader.read("w").tolist() == [1.5, -2.0]
    with open_reader(str(make(_fresh(tmp_path)))) as reader:
        assert reader.format == format


def _fresh(folder: Path) -> Path:
    (folder / "again").mkdir()
    return folder / "again"


def test_a_header_length_that_looks_like_a_pickle(tmp_path: Path) -> None:
    """A safetensors file starts with its header's length: 128 is the first byte of every pickle."""
    for width in range(1, 60):
        path = tmp_path / f"{width}.bin"
        specs = [TensorSpec("w" * width, DTYPES["float32"], (2,))]
        write_all(SafetensorsWriter(path, specs, {}), {"w" * width: HELD["w"]})
        with open_reader(path) as reader:
            assert reader.format == "safetensors"
    lengths = {path.read_bytes()[0] for path in tmp_path.iterdir()}
    assert 0x80 in lengths


def test_state_dict_is_passed_on(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m", whole(table(state_dict=table(a=TENSOR), model_ema=table(b=TENSOR))))
    assert list(open_reader(path).specs) == ["a"]
    assert list(open_reader(path, state_dict="model_ema").specs) == ["b"]


def zip_of(folder: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(folder / ANY_NAME, "w") as archive:
        for name in names:
            archive.writestr(name, b"data")
    return folder / ANY_NAME


def tar_of(folder: Path, data: bytes) -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        info = tarfile.TarInfo("readme.txt")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return memory.getvalue()


NOT_CHECKPOINTS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "empty": ("is empty", lambda f: raw(f, b"")),
    "HTML": ("an HTML page", lambda f: raw(f, b"<!DOCTYPE html><html>", "m.tar.gz")),
    "HTML after a blank line": (
        "an HTML page",
        lambda f: raw(f, b"\xef\xbb\xbf\r\n  <HTML lang=en>", "m.pth"),
    ),
    "LFS": (
        "Git LFS pointer",
        lambda f: raw(f, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    ),
    "XML": (
        "XML document",
        lambda f: raw(f, b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"),
    ),
    "JSON": ("JSON text", lambda f: raw(f, b'{"error": "not found"}', "m.safetensors")),
    "JSON list": ("JSON text", lambda f: raw(f, b"[]")),
    "HDF5": (
        "HDF5 file with addresses of other",
        lambda f: raw(f, b"\x89HDF\r\n\x1a\n" + bytes(100), "m.weights.h5"),
    ),
    "Keras": (
        "the superblock of 9 bytes",
        lambda f: zip_of(f, ["metadata.json", "config.json", "model.weights.h5"]),
    ),
    "npy": ("single .npy array", lambda f: raw(f, b"\x93NUMPY\x01\x00" + bytes(100))),
    "GGUF": ("GGUF", lambda f: raw(f, b"GGUF\x03\0\0\0")),
    "zip of texts": ("a zip archive of 1 file without a checkpoint (a.txt)", lambda f: zip_of(f, ["a.txt"])),
    "truncated zip": ("truncated", lambda f: raw(f, written("torch", f / "x").read_bytes()[:-30])),
    "zip header alone": ("truncated", lambda f: raw(f, b"PK\x03\x04" + bytes(40))),
    "plain pickle": ("plain Python pickle", lambda f: raw(f, pickle.dumps({"a": 1}))),
    "truncated safetensors": (
        "truncated",
        lambda f: raw(f, written("safetensors", f / "x").read_bytes()[:-3]),
    ),
    "text": ("a text file that begins with 'hello'", lambda f: raw(f, b"hello")),
    "anything": ("it starts with e9 00 01 02", lambda f: raw(f, b"\xe9\x00\x01\x02" * 20)),
    "tar of texts": (ANY_NAME, lambda f: raw(f, tar_of(f, b"hello"))),
    "damaged tar": (ANY_NAME, lambda f: raw(f, tar_of(f, b"hello")[:400])),
    "gzip of text": (ANY_NAME, lambda f: raw(f, gzip.compress(b"hello"))),
    "empty folder": ("/ is empty", lambda f: f),
}


@pytest.mark.parametrize("kind", NOT_CHECKPOINTS)
def test_what_is_none_is_named(tmp_path: Path, kind: str) -> None:
    said, make = NOT_CHECKPOINTS[kind]
    with pytest.raises(FormatError) as caught:
        open_reader(make(tmp_path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["missing.pth", "folder/missing", "missing.index"])
def test_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match="missing"):
        open_reader(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="neither a file nor a folder"):
        open_reader(tmp_path / "pipe")


def test_random_beginnings_are_refused_properly(tmp_path: Path) -> None:
    source = np.random.default_rng(2)
    for _ in range(300):
        path = raw(tmp_path, source.bytes(int(source.integers(1, 600))))
        with pytest.raises(CkptkitError):
            open_reader(path)


@pytest.mark.parametrize("format", EXTENSIONS)
def test_writers_of_every_format(tmp_path: Path, format: str) -> None:
    target = tmp_path / f"m{EXTENSIONS[format]}"
    files, _ = write_all(writer_for(format)(target, specs_of(HELD), {"entry": "x"}), HELD)
    assert all(file.is_file() for file in files)
    with open_reader(target) as reader:
        assert reader.format == format
        assert reader.metadata["entry"] == "x"
        assert reader.read("w").tolist() == [1.5, -2.0]
    with pytest.raises(UsageError, match="--force"):
        writer_for(format)(target, specs_of(HELD), {})
    write_all(writer_for(format)(target, specs_of(HELD), {}, force=True), HELD)


def test_an_unknown_format() -> None:
    with pytest.raises(UsageError, match="one of safetensors, torch, tf, keras, npz"):
        writer_for("onnx")


def test_index_of_shards_needs_its_shards(tmp_path: Path) -> None:
    index = raw(tmp_path, json.dumps({"weight_map": {"w": "a.safetensors"}}).encode(), "x.json")
    with pytest.raises(FormatError, match=r"a\.safetensors is missing"):
        open_reader(index)


# -- files of two kinds --------------------------------------------------------------------------------------


def npz_bytes(**options: Any) -> bytes:
    raw = io.BytesIO()
    np.savez(raw, **{"w": np.ones(300, np.float32), **options})
    return raw.getvalue()


def safetensors_around(inner: bytes) -> bytes:
    head = json.dumps({"w": {"dtype": "U8", "shape": [len(inner)], "data_offsets": [0, len(inner)]}}).encode()
    return len(head).to_bytes(8, "little") + head + inner


def tar_that_is_a_zip() -> bytes:
    info = zipfile.ZipInfo("w.npy")
    info.extra = b"xx" + (400).to_bytes(2, "little") + bytes(257 - 39) + b"ustar" + bytes(400 - 223)
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as made:
        made.writestr(info, b"")
    return raw.getvalue()


def hdf5_in_a_zip() -> bytes:
    """A stored member that has the mark of HDF5 where programs look for it behind a user block."""
    mark = b"\x89HDF\r\n\x1a\n"
    raw = npz_bytes(w=np.zeros(400, np.uint8), v=np.zeros(2000, np.uint8))
    at = 512 - raw.index(bytes(300))
    data = bytearray(400)
    data[at : at + 8] = mark
    return npz_bytes(w=np.frombuffer(bytes(data), np.uint8), v=np.zeros(2000, np.uint8))


TWO_KINDS: dict[str, tuple[bytes, str]] = {
    "safetensors, zip": (safetensors_around(npz_bytes()), "a zip archive and a safetensors file"),
    "legacy torch, zip": (legacy(table(w=TENSOR)) + npz_bytes(), "a zip archive and a pickle"),
    "zip, index": (npz_bytes()[:-2] + b"\x08\x00" + bytes.fromhex("57fb808b247547db"), "a TensorFlow index"),
    "tar, zip": (tar_that_is_a_zip(), "a zip archive and a tar archive"),
    "zip, HDF5": (hdf5_in_a_zip(), "a zip archive and an HDF5 file"),
}


@pytest.mark.parametrize("kind", TWO_KINDS)
def test_files_of_two_kinds_are_refused(tmp_path: Path, kind: str) -> None:
    content, said = TWO_KINDS[kind]
    with pytest.raises(FormatError, match=r"is both") as caught:
        open_reader(raw(tmp_path, content, "m.bin"))
    assert said in str(caught.value)


def test_an_hdf5_file_behind_a_user_block(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "m.h5", "w", userblock_size=1024) as file:
        file["dense/vars/0"] = np.ones(3)
    with pytest.raises(FormatError, match="behind a user block of 1024 bytes"):
        open_reader(tmp_path / "m.h5")


def test_weights_of_a_keras_model_may_lie_where_hdf5_is_looked_for(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones(3)
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as made:
        made.writestr("config.json", " " * (1024 - 30 - 11 - 30 - len("model.weights.h5")))
        made.write(tmp_path / "x.h5", "model.weights.h5")
    assert (tmp_path / "m.keras").read_bytes()[1024:1028] == b"\x89HDF"
    with open_reader(tmp_path / "m.keras") as reader:
        assert reader.read("layers/dense/vars/0").tolist() == [1, 1, 1]
