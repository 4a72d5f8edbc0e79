"""What a file or folder is that is not a checkpoint ckptkit reads, and the way to one that is.

One table for whoever asks: opening, fetching, importing, unpacking. Content decides; a name does only where
the content has no mark of its own.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError
from ckptkit.formats.base import HEAD_BYTES, Sample
from ckptkit.formats.protobuf_wire import FIXED32, FIXED64, LENGTH_DELIMITED, VARINT, WireError, read_varint

_SCAN_BYTES = 256 << 20
_BLOCK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_SHOWN = 40
_PROTO_FIELDS = 64
_PROTO_HEAD = 64

LIKELY = (
    *(".safetensors", ".pth", ".pt", ".bin", ".pth.tar", ".pt.tar", ".ckpt", ".npz"),
    *(".weights.h5", ".h5", ".hdf5", ".keras", ".index", ".pkl"),
)
"""What checkpoints are usually called: only for saying which of an archive's members may be one."""


@dataclass(frozen=True)
class Foreign:
    """What something is, to be said after "x is", and what to do about it.

    Examples
    --------
    >>> head = b"<!DOCTYPE html><title>Sign in</title>"
    >>> Foreign.of(Sample(Path("m.pth"), head)).what
    "an HTML page ('Sign in')"
    """

    what: str
    hint: str | None = None

    @staticmethod
    def of(sample: Sample, *, texts: bool = True, containers: bool = False) -> Foreign | None:
        """What a file is; None where the table has nothing like it.

        Text and zeros only with ``texts``; containers that checkpoints have too only with ``containers``.
        """
        kinds = (*_TEXTS, *_MARKS, *_ANYTHING) if texts else _MARKS
        for kind in (*kinds, *(_CONTAINERS if containers else ())):
            found = kind(sample)
            if found is not None:
                return found
        return None

    def error(self, path: Path | str) -> FormatError:
        """The refusal of a file."""
        return FormatError(path, f"is {self.what}", hint=self.hint)


_Kind = Callable[[Sample], "Foreign | None"]
_AGAIN = "fetch it again"
_OTHER_SOURCE = "fetch it again, or from another source"


def quoted(path: Path | str) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def filled(hint: str | None, path: Path) -> str | None:
    """Fill a path into a hint; what comes behind ``python:`` is code, which may write an ``.npz``."""
    if hint is None:
        return None
    before, found, code = hint.partition("python: ")
    if not found:
        return hint.replace("{path}", quoted(path))
    result = path.with_suffix(".npz") if path.suffix else path.with_name(f"{path.name}.npz")
    for mark, filled in (("{path}", path), ("{absolute}", path.absolute()), ("{npz}", result)):
        code = code.replace(mark, json.dumps(str(filled)))
    return f"{before}python -c {shlex.quote(code)}"


def _starts(magic: bytes, what: str, hint: str | None = None) -> _Kind:
    def kind(sample: Sample) -> Foreign | None:
        return Foreign(what, filled(hint, sample.path)) if sample.head.startswith(magic) else None

    return kind


def _reads(
    beginnings: tuple[bytes, ...], what: str, hint: str | None = None, *, within: tuple[bytes, ...] = ()
) -> _Kind:
    """Text of a kind, told by how it begins and by words in it, one of which must be there."""

    def kind(sample: Sample) -> Foreign | None:
        fits = sample.text.startswith(beginnings) and _is_text(sample.head.removeprefix(_BOM))
        if fits and (not within or any(word in sample.text for word in within)):
            return Foreign(what, filled(hint, sample.path))
        return None

    return kind


# -- text ----------------------------------------------------------------------------------------------------


def _web_page(sample: Sample) -> Foreign | None:
    marks = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--")
    if not sample.text.startswith(marks):
        return None
    lower = sample.head.lower()
    begin = lower.find(b">", lower.find(b"<title")) + 1
    end = lower.find(b"</title>", begin)
    title = f" ({_quote(sample.head[begin:end])})" if b"<title" in lower and 0 < begin < end else ""
    return Foreign(
        f"an HTML page{title}", "the download gave a web page: fetch it again, or from another source"
    )


def _quote(raw: bytes) -> str:
    text = " ".join(raw.decode("utf-8", "replace").split())
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")


def _is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are text; their last character may be cut."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if len(head) < HEAD_BYTES - 3 or error.start < len(head) - 4:
            return False
        text = head[: error.start].decode()
    return bool(text.strip()) and all(c.isprintable() or c.isspace() for c in text)


def _plain_text(sample: Sample) -> Foreign | None:
    head = sample.head.removeprefix(_BOM)
    if not _is_text(head):
        return None
    what = "a script" if head.startswith(b"#!") else "a text file"
    return Foreign(
        f"{what} that begins with {_quote(head)}",
        "if it was downloaded, the server sent text instead of the file",
    )


# -- damaged or lost -----------------------------------------------------------------------------------------


def _empty(sample: Sample) -> Foreign | None:
    return Foreign("empty", _AGAIN) if sample.size == 0 else None


def _zeros(sample: Sample) -> Foreign | None:
    """Zeros where content should be, as a disk leaves them after a power cut, or a broken download."""
    if sample.head.strip(b"\0") or not sample.head:
        return None
    zeros = 0
    while zeros < min(sample.size, _SCAN_BYTES):
        block = sample.read(zeros, _BLOCK_BYTES)
        kept = len(block) - len(block.lstrip(b"\0"))
        zeros += kept
        if kept < len(block) or not block:
            break
    begins = "" if zeros == sample.size else "a file that begins with "
    return Foreign(
        f"{begins}{_size(zeros)} of zeros", "the download or the disk lost its content: fetch it again"
    )


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


# -- protocol buffers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Message:
    """The fields of a protocol buffer at its top: numbers in order, with a number or the first bytes."""

    fields: tuple[tuple[int, int | bytes], ...]

    @property
    def numbers(self) -> set[int]:
        return {number for number, _ in self.fields}

    def first(self, number: int) -> int | bytes | None:
        return next((value for found, value in self.fields if found == number), None)


def _message(sample: Sample) -> _Message | None:
    """Walk over a file's fields, up to some number of them; None where it is not a message."""
    found: list[tuple[int, int | bytes]] = []
    position = 0
    try:
        while position < sample.size and len(found) < _PROTO_FIELDS:
            raw = sample.read(position, _PROTO_HEAD)
            tag, at = read_varint(raw)
            number, wire = tag >> 3, tag & 7
            if wire == VARINT:
                value, at = read_varint(raw, at)
                found.append((number, value))
            elif wire == LENGTH_DELIMITED:
                length, at = read_varint(raw, at)
                found.append((number, raw[at : at + length]))
                at += length
            elif wire in (FIXED32, FIXED64):
                at += 4 if wire == FIXED32 else 8
            else:
                return None
            position += at
            if number == 0 or position > sample.size:
                return None
    except WireError:
        return None
    return _Message(tuple(found)) if found else None


def _protocol_buffer(sample: Sample) -> Foreign | None:
    message = _message(sample) if sample.head[:1] in (b"\x08", b"\x0a") else None
    if message is None:
        return None
    first = message.first(1)
    return (
        _versioned(message, first, sample.path) if isinstance(first, int) else _of_parts(message, sample.path)
    )


def _versioned(message: _Message, version: int, path: Path) -> Foreign | None:
    """A message that begins with a number."""
    numbers = message.numbers
    if isinstance(message.first(7), bytes) and numbers <= {*range(1, 10), 14, 20, 25, 26}:
        return Foreign("an ONNX model", filled(_ONNX, path))
    if version == 1 and numbers == {1, 2}:
        return Foreign("the graph of a SavedModel, without its variables", filled(_SAVED_MODEL, path))
    if max(numbers) >= 200:
        return Foreign("a Core ML model", "give the checkpoint it was converted from")
    return None


def _of_parts(message: _Message, path: Path) -> Foreign | None:
    """A message that begins with a text or another message."""
    first, numbers = message.first(1), message.numbers
    if not isinstance(first, bytes):
        return None
    if numbers & {2, 100} and numbers <= {1, 2, 3, 4, 5, 6, 7, 8, 100} and _is_name(first):
        return Foreign("a Caffe model", filled(_BY_HAND.replace("{it}", "Caffe"), path))
    if first[:1] == b"\x0a" and _is_name(first[2 : 2 + first[1]] if len(first) > 1 else b""):
        return Foreign("a frozen TensorFlow graph", "give the checkpoint or the SavedModel it was made from")
    return _graph_of_checkpoint(path) if {1, 2} <= numbers <= set(range(1, 8)) else None


def _graph_of_checkpoint(path: Path) -> Foreign:
    prefix = path.with_name(path.name.removesuffix(".meta"))
    needed = (
        ""
        if prefix != path and prefix.is_file()
        else f"put {prefix.name}.index and its data files beside it and "
    )
    return Foreign(
        "the graph of a TensorFlow checkpoint, without its variables", f"{needed}give {quoted(prefix)}"
    )


def _is_name(raw: bytes) -> bool:
    return bool(raw) and raw.isascii() and raw.decode().isprintable()


# -- other marks ---------------------------------------------------------------------------------------------

_BY_HAND = "load it with {it} and save its arrays with numpy.savez, which ckptkit reads"
_ONNX = (
    "save its weights by name: python: import numpy, onnx; from onnx.numpy_helper import to_array; "
    "numpy.savez({npz}, **{w.name: to_array(w) for w in onnx.load({path}).graph.initializer})"
)
_SAVED_MODEL = "give the folder that holds it and its variables/"
_NUMPY = "put it into an .npz by name: python: import numpy; numpy.savez({npz}, array=numpy.load({path}))"
_FLAX = (
    "save it by name: python: import numpy; from flax import serialization, traverse_util; "
    "numpy.savez({npz}, **traverse_util.flatten_dict(serialization.msgpack_restore("
    'open({path}, "rb").read()), sep="/"))'
)
_TF_V1 = (
    "save it by name: python: import numpy, tensorflow as tf; r = tf.train.load_checkpoint({path}); "
    "numpy.savez({npz}, **{n: r.get_tensor(n) for n in r.get_variable_to_shape_map()})"
)
_MATLAB = (
    "save it by name: python: import numpy, scipy.io; "
    'numpy.savez({npz}, **{k: v for k, v in scipy.io.loadmat({path}).items() if k[0] != "_"})'
)


def _picture(sample: Sample) -> Foreign | None:
    head = sample.head
    marks = {
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"\xff\xd8\xff": "JPEG",
        b"GIF8": "GIF",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
    }
    name = next((name for mark, name in marks.items() if head.startswith(mark)), None)
    if head[:4] == b"RIFF":
        name = "WebP" if head[8:12] == b"WEBP" else None
    if head[:2] == b"BM" and int.from_bytes(head[2:6], "little") == sample.size:
        name = "BMP"
    return Foreign(f"a {name} image", "check that it is the file you meant") if name else None


def _recording(sample: Sample) -> Foreign | None:
    marks = (b"RIFF", b"ID3", b"OggS", b"fLaC", b"\x1aE\xdf\xa3")
    if sample.head.startswith(marks) or sample.head[4:8] == b"ftyp":
        return Foreign("an audio or video file", "check that it is the file you meant")
    return None


def _flat_buffer(sample: Sample) -> Foreign | None:
    """FlatBuffers have their mark behind the first offset."""
    kinds = {b"TFL3": "a TensorFlow Lite model", b"ORTM": "an ONNX Runtime model (.ort)"}
    what = kinds.get(sample.head[4:8])
    if what is None and re.fullmatch(rb"ET\d\d", sample.head[4:8]):
        what = "an ExecuTorch program"
    return Foreign(what, "give the checkpoint it was converted from") if what else None


def _msgpack(sample: Sample) -> Foreign | None:
    """A table whose first key is a text: what Flax writes."""
    head = sample.head
    first = head[0] if head else 0
    at = 1 if 0x81 <= first <= 0x8F else {0xDE: 3, 0xDF: 5}.get(first, 0)
    if not at:
        return None
    kind, length, start = head[at : at + 1], 0, at + 1
    if kind and 0xA1 <= kind[0] <= 0xBF:
        length = kind[0] & 0x1F
    elif kind == b"\xd9":
        length, start = int.from_bytes(head[start : start + 1], "big"), start + 1
    if not length or not _is_name(head[start : start + length]):
        return None
    return Foreign("a msgpack file, as Flax writes its parameters", filled(_FLAX, sample.path))


def _events(sample: Sample) -> Foreign | None:
    if b"brain.Event:" not in sample.head[:64]:
        return None
    return Foreign("a TensorBoard event file", "give the checkpoint beside it")


def _named(sample: Sample) -> Foreign | None:
    """What has no mark of its own."""
    name, head = sample.path.name, sample.head
    if name.endswith(".weights") and head[:12] in _DARKNET:
        return Foreign(
            "a Darknet weights file", filled(_BY_HAND.replace("{it}", "a Darknet reader"), sample.path)
        )
    prefix, found, _ = name.rpartition(".data-")
    if found and re.fullmatch(r"\d{5}-of-\d{5}", name[len(prefix) + len(found) :]):
        return Foreign(
            "the data of a TensorFlow checkpoint, without its index", f"put {prefix}.index beside it"
        )
    if not head[:16].strip(b"\0") and head[20:21] == b"\x08" and name.endswith(".pdiparams"):
        return Foreign(
            "the parameters of a Paddle inference model", "give the .pdparams it was exported from"
        )
    return None


_DARKNET = {
    b"".join(number.to_bytes(4, "little") for number in version)
    for version in ((0, 1, 0), (0, 2, 0), (0, 2, 5))
}
_PACKERS: Mapping[str, tuple[str, str]] = {
    "gzip": (".gz", "gunzip -k"),
    "bzip2": (".bz2", "bunzip2 -k"),
    "xz": (".xz", "unxz -k"),
    "zstd": (".zst", "unzstd"),
    "lz4": (".lz4", "unlz4 -k"),
}


def packed(path: Path, packer: str, inside: bytes) -> Foreign:
    """A single file packed by gzip or the like: what is in it decides what to do.

    Examples
    --------
    >>> packed(Path("m.pth.gz"), "gzip", b"PK").hint
    'unpack it first: gunzip -k m.pth.gz'
    """
    ending, command = _PACKERS[packer]
    if path.name.endswith(ending):
        unpack = f"{command} {quoted(path)}"
    else:
        unpack = f"{packer} -dc {quoted(path)} > {quoted(f'{path}.unpacked')}"
    found = Foreign.of(Sample(path, inside)) if inside else None
    if found is not None and found.hint and "fetch" in found.hint:
        return Foreign(f"{found.what}, packed with {packer}", found.hint)
    return Foreign(f"a single file packed with {packer}", f"unpack it first: {unpack}")


def _zlib(sample: Sample) -> Foreign | None:
    if sample.head[:2] not in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"):
        return None
    import zlib

    try:
        inside = zlib.decompressobj().decompress(sample.head, 64)
    except zlib.error:
        return None
    if inside.startswith(b"\x80"):
        return Foreign("a pickle packed with zlib, as joblib writes it", filled(_JOBLIB, sample.path))
    return Foreign("a single file packed with zlib", filled(_ZLIB, sample.path))


_JOBLIB = _BY_HAND.replace("{it}", "joblib")
_ZLIB = (
    "unpack it first: python: import zlib; "
    'open({path} + ".unpacked", "wb").write(zlib.decompress(open({path}, "rb").read()))'
)


def foreign_pickle(sample: Sample) -> Foreign | None:
    """Pickles of libraries whose arrays are not where a pickle has them."""
    if sample.head[:1] != b"\x80":
        return None
    start = sample.read(0, 64 << 10)
    if b"joblib.numpy_pickle" in start:
        return Foreign("a joblib pickle", filled(_JOBLIB, sample.path))
    return None


def is_tf_v1(path: Path) -> bool:
    """Whether a sorted table is a whole TensorFlow checkpoint of the first format, not the index of one."""
    from ckptkit.formats.mapped_file import MappedFile
    from ckptkit.formats.tf_index import read_table

    file = MappedFile(path)
    try:
        budget = Budget(file.size, lambda reason: FormatError(path, reason))
        key, value = next(read_table(path, file.data, budget), (b"?", b""))  # type: ignore[arg-type]
    except FormatError:
        return False
    finally:
        file.close()
    return key == b"" and value[:1] == b"\x0a"  # the slices of all tensors, where an index has its header


def _table(sample: Sample) -> Foreign | None:
    if len(sample.head) < 48 or not sample.is_table:
        return None
    return tf_v1(sample.path) if is_tf_v1(sample.path) else None


def tf_v1(path: Path) -> Foreign:
    """A whole checkpoint of TensorFlow's first format."""
    return Foreign("a TensorFlow V1 checkpoint", filled(_TF_V1, path))


_CHECK = "check that it is the file you meant"
_JSON = (b"{", b"[")
_TEXTS: tuple[_Kind, ...] = (
    _empty,
    _reads(
        (b"version https://git-lfs",),
        "a Git LFS pointer, which stands for the real file",
        "run 'git lfs pull' in its repository, or fetch the file itself",
    ),
    _web_page,
    _reads((b"<?xml", b"<net"), "an OpenVINO model's graph", within=(b"<net name=",)),
    _reads((b"<?xml", b"<error"), "an XML document, such as servers send for an error", _OTHER_SOURCE),
    _reads(
        _JSON,
        "a TensorFlow.js model",
        "convert it back: tensorflowjs_converter --input_format tfjs_layers_model --output_format keras "
        "{path} model.h5",
        within=(b'"modeltopology"', b'"weightsmanifest"'),
    ),
    _reads(_JSON, "the architecture of a Keras model, without weights", _CHECK, within=(b'"class_name"',)),
    _reads(
        _JSON,
        "a model's configuration, without weights",
        "give the folder, or the file with the weights",
        within=(b'"model_type"', b'"architectures"', b'"_class_name"'),
    ),
    _reads(_JSON, "a JSON text, such as servers send for an error", _OTHER_SOURCE),
)
_ANYTHING: tuple[_Kind, ...] = (_zeros, _plain_text)
_MARKS: tuple[_Kind, ...] = (
    _starts(b"\x93NUMPY", "a single .npy array", _NUMPY),
    _starts(b"GGUF", "a GGUF file (llama.cpp)", "give the checkpoint it was converted from"),
    *(
        _starts(mark, "a GGML file (llama.cpp, whisper.cpp)", "give the checkpoint it was converted from")
        for mark in (b"lmgg", b"fmgg", b"tjgg", b"algg")
    ),
    _flat_buffer,
    _starts(b"MATLAB 5.0 MAT-file", "a MATLAB file", _MATLAB),
    _starts(b"MATLAB 7.3 MAT-file", "a MATLAB file (version 7.3)", "save it in MATLAB with '-v7' first"),
    _starts((0x112).to_bytes(8, "little"), "an MXNet parameter file", _BY_HAND.replace("{it}", "MXNet")),
    _starts(b"\xba\x16O/", "a fastText model", _BY_HAND.replace("{it}", "fasttext")),
    _picture,
    _recording,
    _starts(b"%PDF-", "a PDF document", _CHECK),
    _starts(b"7z\xbc\xaf'\x1c", "a 7z archive", "unpack it first: 7z x {path}"),
    _starts(b"Rar!\x1a\x07", "a RAR archive", "unpack it first: unrar x {path}"),
    _starts(b'\x04"M\x18', "a single file packed with lz4", "unpack it first: unlz4 -k {path}"),
    _starts(b"\x1f\x9d", "a file packed with compress", "unpack it first: uncompress {path}"),
    _zlib,
    foreign_pickle,
    _starts(b"SQLite format 3\0", "an SQLite database", _CHECK),
    _starts(b"PAR1", "a Parquet table", _CHECK),
    _starts(b"ARROW1", "an Arrow table", _CHECK),
    *(
        _starts(mark, "a TensorRT engine", "give the checkpoint it was built from")
        for mark in (b"ptrt", b"ftrt")
    ),
    *(_starts(mark, "a program or library", _CHECK) for mark in (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe")),
    _events,
    _table,
    _named,
    _protocol_buffer,
    _msgpack,
)
_CONTAINERS: tuple[_Kind, ...] = (
    _starts(b"PK\x03\x04", "a zip archive"),
    _starts(b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    _starts(b"\x80", "a pickle"),
)


# -- archives and folders ------------------------------------------------------------------------------------


def of_zip(path: Path, names: Collection[str]) -> Foreign:
    """What a zip archive is in which no format's reader found its own."""
    if any(name.endswith("/archive_format") for name in names):
        return Foreign("a program saved by torch.export", filled(_EXPORTED, path))
    if "MAR-INF/MANIFEST.json" in names:
        return Foreign("a TorchServe archive", f"unpack it first: {_unzip(path)}")
    if "schema.json" in names:
        return Foreign("a skops file (scikit-learn)", filled(_BY_HAND.replace("{it}", "skops"), path))
    if "[Content_Types].xml" in names:
        return Foreign("an Office document", _CHECK)
    if "META-INF/MANIFEST.MF" in names:
        return Foreign("a Java archive", _CHECK)
    return _archive("zip archive", path, names, _unzip(path))


def of_archive(path: Path, names: Collection[str]) -> Foreign:
    """What a tar archive without a TensorFlow checkpoint is."""
    folder = path.with_name(f"{path.name}.unpacked")
    unpack = f"mkdir {quoted(folder)} && tar -xf {quoted(path)} -C {quoted(folder)}"
    return _archive("tar archive", path, names, unpack)


def _archive(kind: str, path: Path, names: Collection[str], unpack: str) -> Foreign:
    files = [name for name in names if not name.endswith("/")]
    likely = [PurePosixPath(name).name for name in files if name.lower().endswith(LIKELY)]
    if likely:
        return Foreign(f"a {kind} that holds {_listed(likely)}", f"unpack it first: {unpack}")
    if not files:
        return Foreign(f"an empty {kind}", _AGAIN)
    plural = "1 file" if len(files) == 1 else f"{len(files)} files"
    return Foreign(f"a {kind} of {plural} without a checkpoint ({_listed(sorted(files))})", _CHECK)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _unzip(path: Path) -> str:
    return f"unzip {quoted(path)} -d {quoted(path.with_name(f'{path.name}.unpacked'))}"


_EXPORTED = (
    "save its weights: python: import torch; "
    'torch.save(torch.export.load({path}).state_dict, {path} + ".pth")'
)
_ORBAX_RESTORED = (
    "save it by name: python: import numpy, orbax.checkpoint as o; numpy.savez({npz}, "
    '**o.utils.to_flat_dict(o.PyTreeCheckpointer().restore({absolute}), sep="/"))'
)
_ORBAX = frozenset({"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"})
_ZARR = frozenset({".zarray", ".zgroup", "zarr.json"})


def of_distcp(path: Path) -> Foreign:
    """One file of a torch.distributed checkpoint, which is several zip archives behind each other."""
    return Foreign("a part of a torch.distributed checkpoint (DCP)", _dcp(path.parent))


def _dcp(folder: Path) -> str:
    folder = folder.absolute() if folder.name == "" else folder
    target = folder.with_name(f"{folder.name}.pth")
    command = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
    return f"make one file of it: {command} {quoted(folder)} {quoted(target)}"


def of_folder(folder: Path, names: Collection[str]) -> Foreign | None:
    """What a folder of these names is; None where a checkpoint may be in it."""
    parts = any(name.endswith(".distcp") for name in names)
    if parts and ".metadata" in names:
        return Foreign("a torch.distributed checkpoint (DCP)", _dcp(folder))
    if parts:
        return Foreign("a torch.distributed checkpoint (DCP) without its .metadata", _AGAIN)
    if not _ORBAX.isdisjoint(names):
        return Foreign("an Orbax checkpoint (JAX)", filled(_ORBAX_RESTORED, _orbax_item(folder, names)))
    if not _ZARR.isdisjoint(names):
        return Foreign("a checkpoint of zarr arrays (T5X)", _BY_HAND.replace("{it}", "zarr"))
    if "Manifest.json" in names and "Data" in names:
        return Foreign("a Core ML model", "give the checkpoint it was converted from")
    return None


def _orbax_item(folder: Path, names: Collection[str]) -> Path:
    """The folder of an Orbax checkpoint in which the arrays are: a step of a CheckpointManager has items."""
    if "_METADATA" in names:
        return folder
    return next((folder / name for name in sorted(names) if (folder / name / "_METADATA").is_file()), folder)


def of_training_folder(folder: Path, names: Collection[str]) -> Foreign | None:
    """What a folder without a whole checkpoint at its top is, where training left its parts there."""
    if "zero_to_fp32.py" in names or any(name.endswith("_optim_states.pt") for name in names):
        script = folder / "zero_to_fp32.py"
        target = folder.with_name(f"{folder.name}-fp32")
        return Foreign(
            "a DeepSpeed ZeRO checkpoint, in parts",
            f"put them together: python {quoted(script)} {quoted(folder)} {quoted(target)}"
            if script.name in names
            else "put them together with DeepSpeed's zero_to_fp32.py",
        )
    if "saved_model.pb" in names:
        return Foreign("a SavedModel without variables", "give the checkpoint it was made from")
    return None
