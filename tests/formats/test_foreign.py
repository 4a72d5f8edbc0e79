"""What is not a checkpoint is called what it is, with a way out that works when it is typed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckptkit.base.errors import FormatError
from ckptkit.formats.base import Sample
from ckptkit.formats.detect import open_reader
from ckptkit.formats.foreign import Foreign, packed
from ckptkit.formats.protobuf_wire import bytes_field, number_field

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def node(name: bytes, op: bytes) -> bytes:
    """A node of a TensorFlow graph."""
    return bytes_field(1, bytes_field(1, name) + bytes_field(2, op))


def numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


FILES: dict[str, tuple[str, bytes, str, str | None]] = {
    "empty": ("m.pth", b"", "empty", "fetch it again"),
    "LFS": ("m.pth", b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer", "git lfs pull"),
    "page": ("m.pth", b"<!DOCTYPE html><html>", "an HTML page", "another source"),
    "page with a title": (
        "m.pth",
        b"\xef\xbb\xbf \r\n<HTML><head><title>\n Quota\n exceeded </title>",
        "an HTML page ('Quota exceeded')",
        "another source",
    ),
    "script in a page": ("m.pth", b"<script>location='/login'", "an HTML page", "another source"),
    "XML": ("m.pth", b"<?xml version='1.0'?><Error><Code>AccessDenied", "an XML document", "another source"),
    "OpenVINO": ("m.xml", b'<?xml version="1.0"?>\n<net name="m" version="11">', "an OpenVINO model's", None),
    "JSON": ("m.pth", b'{"error": "not found"}', "a JSON text", "another source"),
    "TensorFlow.js": (
        "model.json",
        b'{"format": "layers-model", "modelTopology": {"class_name": "Sequential"}}',
        "a TensorFlow.js model",
        "tensorflowjs_converter",
    ),
    "Keras architecture": (
        "m.json",
        b'{"module": "keras", "class_name": "Sequential"}',
        "the architecture of a Keras",
        None,
    ),
    "configuration": (
        "config.json",
        b'{"architectures": ["ViTModel"]}',
        "a model's configuration",
        "the folder",
    ),
    "text": (
        "m.pth",
        b"404: Not Found\n",
        "a text file that begins with '404: Not Found'",
        "the server sent",
    ),
    "long text": ("m.pth", "é".encode() * 3000, "a text file that begins with 'ééé", "the server sent"),
    "a script": ("m", b"#!/bin/sh\necho", "a script that begins", None),
    "zeros": ("m.pth", bytes(1_200_000), "1.2 MB of zeros", "fetch it again"),
    "few zeros": ("m.pth", bytes(700), "700 bytes of zeros", "fetch it again"),
    "zeros first": (
        "m.pth",
        bytes(8200) + b"\xff" * 9,
        "a file that begins with 8.2 kB of zeros",
        "fetch it",
    ),
    "npy": ("m.npy", b"\x93NUMPY\x01\0" + bytes(99), "a single .npy array", "numpy.savez"),
    "GGML": ("m.bin", numbers(0x67676D6C) + bytes(range(9)), "a GGML file", "converted from"),
    "GGJT": ("m.bin", numbers(0x67676A74) + bytes(range(9)), "a GGML file", "converted from"),
    "TFLite": ("m", b"\x1c\0\0\0TFL3\x14\0", "a TensorFlow Lite model", "converted from"),
    "ExecuTorch": ("m.pte", b"\x1c\0\0\0ET12\x14\0", "an ExecuTorch program", "converted from"),
    "ONNX Runtime": ("m.ort", b"\x1c\0\0\0ORTM\x14\0", "an ONNX Runtime model", "converted from"),
    "SavedModel's graph": (
        "saved_model.pb",
        number_field(1, 1) + bytes_field(2, bytes_field(2, node(b"v", b"VarHandleOp"))),
        "the graph of a SavedModel, without its variables",
        "the folder",
    ),
    "graph of a checkpoint": (
        "m.ckpt.meta",
        bytes_field(1, bytes_field(2, b"ops")) + bytes_field(2, node(b"a", b"Const")) + bytes_field(3, b"s"),
        "the graph of a TensorFlow checkpoint",
        "m.ckpt.index",
    ),
    "Core ML": (
        "m.mlmodel",
        number_field(1, 5) + bytes_field(2, b"d") + bytes_field(500, b"net"),
        "a Core ML model",
        None,
    ),
    "Caffe": ("m", bytes_field(1, b"VGG_16") + bytes_field(100, b"l") * 3, "a Caffe model", "Caffe"),
    "MXNet": ("m.params", (0x112).to_bytes(8, "little") + bytes(8), "an MXNet parameter file", "MXNet"),
    "Darknet": (
        "yolo.weights",
        numbers(0, 2, 5, 320, 0) + b"\x11" * 40,
        "a Darknet weights file",
        "numpy.savez",
    ),
    "fastText": ("m.bin", numbers(793712314, 12), "a fastText model", "fasttext"),
    "Paddle": ("m.pdiparams", bytes(16) + numbers(7) + b"\x08\x05\x10", "the parameters of a Paddle", None),
    "MATLAB": ("m.mat", b"MATLAB 5.0 MAT-file, Platform", "a MATLAB file", "loadmat"),
    "MATLAB 7.3": ("m.mat", b"MATLAB 7.3 MAT-file, Platform", "a MATLAB file (version 7.3)", "-v7"),
    "joblib": ("m.pkl", b"\x80\x04cjoblib.numpy_pickle\nNumpyArrayWrapper\n", "a joblib pickle", "joblib"),
    "packed joblib": ("m.pkl", zlib.compress(pickle.dumps({"a": 1})), "a pickle packed with zlib", "joblib"),
    "zlib": ("m", zlib.compress(b"hello"), "a single file packed with zlib", "zlib.decompress"),
    "PNG": ("m.pth", PNG, "a PNG image", None),
    "JPEG": ("m", b"\xff\xd8\xff\xe0", "a JPEG image", None),
    "WebP": ("m", b"RIFF\x10\0\0\0WEBPVP8 ", "a WebP image", None),
    "BMP": ("m", b"BM" + numbers(20) + bytes(14), "a BMP image", None),
    "video": ("m", bytes(3) + b"\x20ftypisom", "an audio or video file", None),
    "PDF": ("m", b"%PDF-1.7\n", "a PDF document", None),
    "7z": ("my models.7z", b"7z\xbc\xaf'\x1c\0", "a 7z archive", "7z x 'my models.7z'"),
    "RAR": ("m", b"Rar!\x1a\x07\x01\0", "a RAR archive", "unrar x m"),
    "lz4": ("m.lz4", b'\x04"M\x18', "a single file packed with lz4", "unlz4 -k m.lz4"),
    "SQLite": ("m", b"SQLite format 3\0", "an SQLite database", None),
    "events": (
        "events.out",
        numbers(24, 0, 99) + b"\x09" + bytes(8) + b"\x1a\x0dbrain.Event:2",
        "a TensorBoard event file",
        None,
    ),
    "program": ("m", b"\x7fELF\x02", "a program or library", None),
    "data without index": ("m.data-00000-of-00002", b"\xe9" * 9, "the data of a TensorFlow", "m.index"),
    "a part of DCP": ("__0_0.distcp", b"PK\x03\x04", "a torch.distributed checkpoint (DCP) without", "fetch"),
}
"""What a file is called, its bytes, what is said of it, and a part of what to do."""


@pytest.mark.parametrize("kind", FILES)
def test_files(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, raw, what, hint = FILES[kind]
    Path(name).write_bytes(raw)
    start = time.process_time()
    with pytest.raises(FormatError) as caught:
        open_reader(Path(name))
    assert time.process_time() - start < 1
    message = str(caught.value)
    assert message.startswith(f"{name} is {what}")
    assert "\n" not in message
    assert hint is None or hint in (caught.value.hint or "")


def test_a_damaged_file_is_not_called_something_else(tmp_path: Path) -> None:
    """Nothing in the table may be told from chance: random bytes have no name."""
    source = np.random.default_rng(11)
    named = 0
    for size in (20, 300, 5000):
        for _ in range(300):
            named += Foreign.of(Sample(tmp_path, source.bytes(size))) is not None
    assert named <= 5


def test_the_graph_beside_a_checkpoint_of_the_first_format(tmp_path: Path) -> None:
    graph = (
        bytes_field(1, bytes_field(2, b"ops")) + bytes_field(2, node(b"a", b"Const")) + bytes_field(3, b"s")
    )
    (tmp_path / "m.ckpt.meta").write_bytes(graph)
    (tmp_path / "m.ckpt").write_bytes(b"table")
    with pytest.raises(FormatError) as caught:
        open_reader(tmp_path / "m.ckpt.meta")
    assert caught.value.hint == f"give {tmp_path / 'm.ckpt'}"


# -- hints that are commands ---------------------------------------------------------------------------------

HELD = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


def refused(path: Path) -> str:
    """What to type, out of the hint of a refusal."""
    with pytest.raises(FormatError) as caught:
        open_reader(path)
    assert caught.value.hint is not None
    return (
        caught.value.hint.rpartition(": ")[2] if "python -c" not in caught.value.hint else caught.value.hint
    )


def run_code(hint: str) -> None:
    """Run the Python that a hint gives to a shell."""
    *_, interpreter, flag, code = shlex.split(hint)
    assert (interpreter, flag) == ("python", "-c")
    exec(code, {})


def type_it(command: str, folder: Path) -> None:
    """Run a command as a shell does."""
    tool = shlex.split(command)[0]
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} here")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, shell=True, check=True, cwd=folder, env=env, capture_output=True, timeout=120)


def assert_held(path: Path) -> None:
    with open_reader(path) as reader:
        assert {name: reader.read(name).tolist() for name in reader.specs} == {"w": HELD["w"].tolist()}


def test_a_single_array_becomes_an_npz(tmp_path: Path) -> None:
    path = tmp_path / 'it\'s a "file" $HOME.npy'
    np.save(path, HELD["w"])
    run_code(refused(path))
    with open_reader(path.with_suffix(".npz")) as reader:
        assert reader.read("array").tolist() == HELD["w"].tolist()


PACKERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": (".gz", gzip.compress),
    "bzip2": (".bz2", bz2.compress),
    "xz": (".xz", lzma.compress),
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("packer", PACKERS)
def test_a_packer_around_a_single_file(tmp_path: Path, packer: str, named: bool) -> None:
    ending, pack = PACKERS[packer]
    np.savez(tmp_path / "m.npz", **HELD)
    path = tmp_path / ("my model.npz" + (ending if named else ""))
    path.write_bytes(pack((tmp_path / "m.npz").read_bytes()))
    command = refused(path)
    assert command.startswith(packer if not named else PACKERS_OF[packer])
    type_it(command, tmp_path)
    assert_held(path.with_suffix("") if named else path.with_name("my model.npz.unpacked"))
    assert path.is_file()


PACKERS_OF = {"gzip": "gunzip -k", "bzip2": "bunzip2 -k", "xz": "unxz -k"}


def test_a_web_page_packed_with_gzip_is_to_be_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "m.tar.gz").write_bytes(gzip.compress(b"<!DOCTYPE html><html>" * 99))
    with pytest.raises(FormatError, match=r"is an HTML page, packed with gzip; .* fetch it again"):
        open_reader(tmp_path / "m.tar.gz")


def test_zstd_is_named_without_its_package() -> None:
    assert packed(Path("m.pth.zst"), "zstd", b"") == Foreign(
        "a single file packed with zstd", "unpack it first: unzstd m.pth.zst"
    )


def test_zlib_around_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", **HELD)
    (tmp_path / "m.z").write_bytes(zlib.compress((tmp_path / "m.npz").read_bytes()))
    run_code(refused(tmp_path / "m.z"))
    assert_held(tmp_path / "m.z.unpacked")


def zipped(path: Path, names: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in names.items():
            archive.writestr(name, raw)
    return path


ZIPS: dict[str, tuple[list[str], str]] = {
    "exported": (["m/archive_format", "m/models/model.json"], "a program saved by torch.export"),
    "TorchServe": (["MAR-INF/MANIFEST.json", "m.pth"], "a TorchServe archive"),
    "skops": (["schema.json", "1.npy.bin"], "a skops file"),
    "document": (["[Content_Types].xml"], "an Office document"),
    "Java": (["META-INF/MANIFEST.MF"], "a Java archive"),
    "a checkpoint inside": (["x/m.pth", "x/readme.txt"], "a zip archive that holds m.pth"),
    "nothing": ([], "an empty zip archive"),
    "others": (
        ["b.txt", "a.txt", "c", "d"],
        "a zip archive of 4 files without a checkpoint (a.txt, b.txt, c and 1 more)",
    ),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_zip_archives(tmp_path: Path, kind: str) -> None:
    names, what = ZIPS[kind]
    path = zipped(tmp_path / "m.zip", dict.fromkeys(names, b"x"))
    with pytest.raises(FormatError) as caught:
        open_reader(path)
    assert str(caught.value).startswith(f"{path} is {what}")


def test_archives_that_hold_a_checkpoint(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", **HELD)
    raw = (tmp_path / "m.npz").read_bytes()
    zipped(tmp_path / "a.zip", {"x/m.npz": raw})
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "m.npz", "x/m.npz")
    for name in ("a.zip", "a.tar.gz"):
        type_it(refused(tmp_path / name), tmp_path)
        assert_held(tmp_path / f"{name}.unpacked")


# -- folders -------------------------------------------------------------------------------------------------

FOLDERS: dict[str, tuple[list[str], str, str | None]] = {
    "parts of DCP": (["__0_0.distcp"], "(DCP) without its .metadata", "fetch it again"),
    "T5X": (["checkpoint", "target.w/.zarray"], "holds a checkpoint of zarr arrays", "zarr"),
    "Core ML": (["Manifest.json", "Data/com.apple.CoreML/model.mlmodel"], "is a Core ML model", None),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names, what, hint = FOLDERS[kind]
    for name in names:
        Path("m", name).parent.mkdir(parents=True, exist_ok=True)
        Path("m", name).write_bytes(b"\x07x")
    with pytest.raises(FormatError) as caught:
        open_reader("m")
    message = str(caught.value)
    assert message.startswith("m/ ")
    assert what in message
    assert hint is None or hint in (caught.value.hint or "")
