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
from ckptkit.formats import detect
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
        "the HDF5 superblock of 9 bytes",
        lambda f: zip_of(f, ["metadata.json", "config.json", "model.weights.h5"]),
    ),
    "npy": ("single .npy array", lambda f: raw(f, b"\x93NUMPY\x01\x00" + bytes(100))),
    "GGML": ("GGML", lambda f: raw(f, b"lmgg\x03\0\0\0")),
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
    with pytest.raises(UsageError, match="choose from safetensors, torch, tf, keras, keras2, npz"):
        writer_for("xyz")


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
    """A stored member that has the mark of HDF5 where programs look for it after a user block."""
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
    with pytest.raises(FormatError, match="after a user block of 1024 bytes"):
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


# ----------------------------------------------------------------------------------------------------
# Which checkpoint a folder means.

Lay = Callable[[Path], object]


def write(format: str, name: str, *, value: float = 1.5) -> Lay:
    """A small checkpoint, by which its value is told."""

    def lay(folder: Path) -> None:
        held = {"w": np.array([value], np.float32)}
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_all(writer_for(format)(path, specs_of(held), {}), held)

    return lay


def raw_file(name: str, data: bytes = b"x") -> Lay:
    def lay(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return lay


def trainer(folder: Path) -> None:
    """What Hugging Face's Trainer leaves beside the weights."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"):
        write_zip(folder / name, whole(table(state=table(a=TENSOR))))
    (folder / "config.json").write_text('{"architectures": ["X"]}')
    (folder / "trainer_state.json").write_text("{}")


ONE: dict[str, tuple[list[Lay], str]] = {
    "torch": ([write("torch", "m.pth")], "torch"),
    "torch, legacy": ([lambda f: (f / "m.bin").write_bytes(legacy(whole(table(w=TENSOR))))], "torch"),
    "npz": ([write("npz", "m.npz")], "npz"),
    "keras": ([write("keras", "m.weights.h5")], "keras"),
    "safetensors": ([write("safetensors", "model.safetensors")], "safetensors"),
    "tf": ([write("tf", "m.ckpt")], "tf"),
    "without an ending": ([write("torch", "weights")], "torch"),
    "beside other things": (
        [
            write("torch", "m.pth"),
            raw_file("README.md"),
            raw_file("a.png", b"\x89PNG\r\n\x1a\n"),
            raw_file("._m.pth"),
            raw_file("x/y.txt"),
        ],
        "torch",
    ),
    "beside another's temporary file": (
        [write("npz", "m.npz"), write("npz", ".ckptkit-1-m.npz.part")],
        "npz",
    ),
    "one folder down": ([write("torch", "sub/m.pth"), raw_file("README.md")], "torch"),
    "three folders down": ([write("npz", "a/b/c/m.npz")], "npz"),
    "the upper one": ([write("npz", "m.npz"), write("torch", "old/m.pth")], "npz"),
    "Hugging Face": ([write("safetensors", "model.safetensors"), trainer], "safetensors"),
    "Hugging Face, PyTorch": ([write("torch", "pytorch_model.bin"), trainer], "torch"),
    "Hugging Face, several frameworks": (
        [
            write("torch", "pytorch_model.bin", value=9),
            write("safetensors", "model.safetensors"),
            write("keras", "tf_model.h5", value=9),
            write("torch", "consolidated.00.pth", value=9),
        ],
        "safetensors",
    ),
    "Keras' SavedModel": (
        [
            write("tf", "variables/variables"),
            raw_file("saved_model.pb"),
            raw_file("keras_metadata.pb"),
            raw_file("assets/v.txt"),
        ],
        "tf",
    ),
    "the newest of TensorFlow": (
        [
            write("tf", "m-1", value=9),
            write("tf", "m-2"),
            raw_file("checkpoint", b'model_checkpoint_path: "/home/x/m-2"\n'),
        ],
        "tf",
    ),
    "an archive": ([lambda f: tarred(f, "m.tar.gz")], "tf"),
}


def tarred(folder: Path, name: str) -> None:
    write("tf", "x/m.ckpt")(folder)
    with tarfile.open(folder / name, "w:gz") as archive:
        archive.add(folder / "x", "x")
    for file in (folder / "x").iterdir():
        file.unlink()
    (folder / "x").rmdir()


@pytest.mark.parametrize("kind", ONE)
def test_the_only_checkpoint(tmp_path: Path, kind: str) -> None:
    lays, format = ONE[kind]
    for lay in lays:
        lay(tmp_path)
    with open_reader(tmp_path) as reader:
        assert reader.format == format
        assert [*reader.specs] == ["w"]
        assert kind == "torch, legacy" or reader.read("w").tolist() == [1.5]


def test_a_saved_model_is_called_by_its_folder(tmp_path: Path) -> None:
    write("tf", "variables/variables")(tmp_path)
    raw_file("saved_model.pb", b"\x08\x01")(tmp_path)
    with open_reader(tmp_path) as by_folder, open_reader(tmp_path / "saved_model.pb") as by_graph:
        assert by_folder.path == by_graph.path == tmp_path
        assert by_graph.read("w").tolist() == [1.5]


def test_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for lay in (write("torch", "model/a.pth"), write("torch", "model/b.pth"), write("npz", "model/c.npz")):
        lay(tmp_path)
    with pytest.raises(UsageError) as caught:
        open_reader("model")
    assert str(caught.value) == "model/ holds 3 checkpoints; name one: a.pth, b.pth, c.npz"
    for name in ("a.pth", "b.pth", "c.npz"):
        open_reader(Path("model", name)).close()
    assert str(_refusal("model/")) == str(caught.value)
    with pytest.raises(UsageError, match=r"^\./ holds 3 checkpoints; name one: model/a\.pth, model/b"):
        open_reader(".")


def _refusal(path: str) -> CkptkitError:
    with pytest.raises(CkptkitError) as caught:
        open_reader(path)
    return caught.value


SEVERAL: dict[str, list[Lay]] = {
    "TensorFlow and PyTorch": [write("tf", "m.ckpt"), write("torch", "m.pth")],
    "two prefixes": [write("tf", "m-1"), write("tf", "m-2")],
    "Hugging Face and an own one": [write("safetensors", "model.safetensors"), write("torch", "ema.pth")],
    "below": [write("torch", "a/m.pth"), write("torch", "b/m.pth")],
    "eight": [write("npz", f"m{i}.npz") for i in range(8)],
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_of_a_kind(tmp_path: Path, kind: str) -> None:
    for lay in SEVERAL[kind]:
        lay(tmp_path)
    error = _refusal(str(tmp_path))
    assert isinstance(error, UsageError)
    assert error.message.endswith(f"holds {len(SEVERAL[kind])} checkpoints")
    assert str(error).endswith(" more") == (kind == "eight")


def test_a_folder_of_hugging_faces_cache(tmp_path: Path) -> None:
    """Blobs are named by their hash; the snapshot of ``main`` has the names, as links."""
    revision = "a" * 40
    write("safetensors", "blobs/model.safetensors")(tmp_path)
    (tmp_path / "blobs" / "model.safetensors").rename(tmp_path / "blobs" / ("b" * 64))
    (tmp_path / "snapshots" / revision).mkdir(parents=True)
    (tmp_path / "snapshots" / ("c" * 40)).mkdir()
    (tmp_path / "snapshots" / revision / "model.safetensors").symlink_to(f"../../blobs/{'b' * 64}")
    raw_file("refs/main", revision.encode())(tmp_path)
    with open_reader(tmp_path) as reader:
        assert reader.read("w").tolist() == [1.5]
    raw_file("refs/main", b"../../..")(tmp_path)
    with pytest.raises(UsageError, match="holds 2 checkpoints"):
        open_reader(tmp_path)


def test_a_shard_without_its_index_is_a_part(tmp_path: Path) -> None:
    write("safetensors", "model-00001-of-00002.safetensors")(tmp_path)
    with pytest.raises(
        FormatError, match=r"/ holds a shard without its index; fetch model\.safetensors\.index"
    ):
        open_reader(tmp_path)
    open_reader(tmp_path / "model-00001-of-00002.safetensors").close()


def test_shards_without_their_index(tmp_path: Path) -> None:
    for number in (1, 2):
        write("safetensors", f"model-0000{number}-of-00002.safetensors")(tmp_path)
    with pytest.raises(
        FormatError, match=r"/ holds 2 shards without their index; fetch model\.safetensors\.index"
    ):
        open_reader(tmp_path)


NONE: dict[str, tuple[list[Lay], str]] = {
    "empty": ([], "/ is empty"),
    "hidden files": ([raw_file(".DS_Store"), raw_file("._x")], "/ is empty"),
    "texts": ([raw_file("b.txt"), raw_file("a.txt")], "/ holds no checkpoint, only a.txt, b.txt"),
    "a pointer": (
        [
            raw_file("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
            raw_file("README.md"),
        ],
        "/ holds no checkpoint; model.safetensors is a Git LFS pointer",
    ),
    "another model": (
        [raw_file("config.json", b'{"model_type": "x"}'), raw_file("m.ggml", b"lmgg\x03\0\0\0")],
        "/ holds no checkpoint; m.ggml is a GGML file",
    ),
    "what the Trainer keeps": ([trainer], "/ holds no checkpoint, only config.json, optimizer.pt"),
}


@pytest.mark.parametrize("kind", NONE)
def test_no_checkpoint(tmp_path: Path, kind: str) -> None:
    lays, said = NONE[kind]
    for lay in lays:
        lay(tmp_path)
    error = _refusal(str(tmp_path))
    assert isinstance(error, FormatError)
    assert f"{tmp_path}{said}" in str(error)


def test_links_lead_round_in_no_circle(tmp_path: Path) -> None:
    write("npz", "a/m.npz")(tmp_path)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "linked.npz").symlink_to("a/m.npz")
    with open_reader(tmp_path) as reader:
        assert reader.read("w").tolist() == [1.5]


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_very_many_files_are_not_all_looked_at(
    tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "_MAX_ENTRIES", 50)
    for number in range(60):
        raw_file(Path(below, f"{number}.txt").as_posix())(tmp_path)
    with pytest.raises(UsageError, match=r"more than 50 files.*; name the checkpoint"):
        open_reader(tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    tmp_path.chmod(0)
    with pytest.raises(CkptkitError, match="permission denied"):
        open_reader(tmp_path)
