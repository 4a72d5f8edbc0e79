"""What a file or folder is that is not a checkpoint ckptkit reads, and the way to one that is.

One table for whoever asks: opening, fetching, importing, unpacking. Content decides; a name does only where
the content has no mark of its own.
"""

from __future__ import annotations

import json
import re
import shlex
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ckptkit.base.errors import FormatError, listed
from ckptkit.base.text import counted
from ckptkit.formats.base import HEAD_BYTES, Sample
from ckptkit.formats.protobuf_wire import FIXED32, FIXED64, LENGTH_DELIMITED, VARINT, WireError, read_varint

_SCAN_BYTES = 256 << 20
_BLOCK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_SHOWN = 40
_PROTO_FIELDS = 64
_PROTO_HEAD = 64
_PADDLE_REACH = 4 << 20

LIKELY = (
    *(".safetensors", ".pth", ".pt", ".bin", ".pth.tar", ".pt.tar", ".ckpt", ".weights.h5", ".npz"),
    *(
        ".h5",
        ".hdf5",
        ".keras",
        ".index",
        ".pkl",
        ".msgpack",
        ".onnx",
        ".gguf",
        ".pdparams",
        ".pdopt",
        ".dcp",
        ".pb",
    ),
)
"""What checkpoints are usually called: only for saying which of an archive's members may be one."""


@dataclass(frozen=True)
class Foreign:
    """What something is, for messages such as "x is an HTML page", and what to do about it.

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
        """What a file is; None where the tables have nothing like it.

        Text and zeros only with ``texts``; containers that checkpoints have too only with ``containers``.
        """
        kinds = (*_TEXT_KINDS, *_KINDS, _zeros, _plain_text) if texts else _KINDS
        found = next((found for kind in kinds if (found := kind(sample))), None)
        return found or (_row(_CONTAINERS, sample.head, sample.path) if containers else None)

    def error(self, path: Path | str) -> FormatError:
        """The refusal of a file."""
        return FormatError(path, f"is {self.what}", hint=self.hint)


_Kind = Callable[[Sample], "Foreign | None"]
_Table = tuple[tuple[bytes, str, "str | None"], ...]
"""Rows of a pattern that the first bytes match, what the file is, and a hint."""


# -- hints ---------------------------------------------------------------------------------------------------


def quoted(path: Path | str) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def filled(hint: str | None, path: Path) -> str | None:
    """Fill a path into a hint; what follows ``python:`` is code, which may write an ``.npz``."""
    if hint is None:
        return None
    before, is_code, code = hint.partition("python: ")
    filled = code if is_code else hint
    quote = json.dumps if is_code else shlex.quote
    paths = {"path": path, "absolute": path.absolute(), "npz": path.parent / f"{path.stem}.npz"}
    for mark, value in {**paths, "unpacked": f"{path}.unpacked"}.items():
        filled = filled.replace(f"{{{mark}}}", quote(str(value)))
    return f"{before}python -c {shlex.quote(filled)}" if is_code else filled


def _by_hand(tool: str) -> str:
    return f"load it with {tool} and save its arrays with numpy.savez, which ckptkit reads"


_AGAIN = "fetch it again"
_CHECK = "check that it is the file you meant"
_OTHER_SOURCE = "fetch it again, or from another source"
_SOURCE = "give the checkpoint it was converted from"
_UNZIP = "unpack it first: unzip {path} -d {unpacked}"
_UNTAR = "unpack it first: mkdir {unpacked} && tar -xf {path} -C {unpacked}"
_NUMPY = "put it into an .npz by name: python: import numpy; numpy.savez({npz}, array=numpy.load({path}))"
_MATLAB = (
    "save it by name: python: import numpy, scipy.io; "
    'numpy.savez({npz}, **{k: v for k, v in scipy.io.loadmat({path}).items() if k[0] != "_"})'
)
_ZLIB = (
    "unpack it first: python: import zlib; "
    'open({path} + ".unpacked", "wb").write(zlib.decompress(open({path}, "rb").read()))'
)
_EXPORTED = (
    "save its weights: python: import torch; "
    'torch.save(torch.export.load({path}).state_dict, {path} + ".pth")'
)
_PACKAGE = "load it with torch.package.PackageImporter and save its state_dict with torch.save"


# -- tables --------------------------------------------------------------------------------------------------

_TEXTS: _Table = (
    (
        rb"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "run 'git lfs pull' in its repository, or fetch the file itself",
    ),
    (rb"(?=.*<net name=)(<\?xml|<net)", "an OpenVINO model's graph", None),
    (rb"<\?xml|<error", "an XML document, such as servers send for an error", _OTHER_SOURCE),
    (
        rb'[{\[].*("modeltopology"|"weightsmanifest")',
        "a TensorFlow.js model",
        "convert it back: tensorflowjs_converter --input_format tfjs_layers_model --output_format keras "
        "{path} model.h5",
    ),
    (rb'[{\[].*"class_name"', "the architecture of a Keras model, without weights", _CHECK),
    (
        rb'[{\[].*("model_type"|"architectures"|"_class_name")',
        "a model's configuration, without weights",
        "give the folder, or the file with the weights",
    ),
    (rb"[{\[]", "a JSON text, such as servers send for an error", _OTHER_SOURCE),
)
"""What lower-case text is; a web page comes before."""

_MARKS: _Table = (
    (rb"\x93NUMPY", "a single .npy array", _NUMPY),
    (rb"lmgg|fmgg|tjgg|algg", "a GGML file (llama.cpp, whisper.cpp)", _SOURCE),
    (rb"....TFL3", "a TensorFlow Lite model", _SOURCE),
    (rb"....ORTM", "an ONNX Runtime model (.ort)", _SOURCE),
    (rb"....ET\d\d", "an ExecuTorch program", _SOURCE),
    (rb"MATLAB 5\.0 MAT-file", "a MATLAB file", _MATLAB),
    (rb"MATLAB 7\.3 MAT-file", "a MATLAB file (version 7.3)", "save it in MATLAB with '-v7' first"),
    (rb"\x12\x01\0{6}", "an MXNet parameter file", _by_hand("MXNet")),
    (rb"\xba\x16O/", "a fastText model", _by_hand("fasttext")),
    (rb"\x89PNG\r\n\x1a\n", "a PNG image", _CHECK),
    (rb"\xff\xd8\xff", "a JPEG image", _CHECK),
    (rb"GIF8", "a GIF image", _CHECK),
    (rb"II\*\0|MM\0\*", "a TIFF image", _CHECK),
    (rb"RIFF....WEBP", "a WebP image", _CHECK),
    (rb"RIFF|ID3|OggS|fLaC|\x1aE\xdf\xa3|....ftyp", "an audio or video file", _CHECK),
    (rb"%PDF-", "a PDF document", _CHECK),
    (rb"7z\xbc\xaf'\x1c", "a 7z archive", "unpack it first: 7z x {path}"),
    (rb"Rar!\x1a\x07", "a RAR archive", "unpack it first: unrar x {path}"),
    (rb'\x04"M\x18', "a single file packed with lz4", "unpack it first: unlz4 -k {path}"),
    (rb"\x1f\x9d", "a file packed with compress", "unpack it first: uncompress {path}"),
    (rb"SQLite format 3\0", "an SQLite database", _CHECK),
    (rb"PAR1", "a Parquet table", _CHECK),
    (rb"ARROW1", "an Arrow table", _CHECK),
    (rb"ptrt|ftrt", "a TensorRT engine", "give the checkpoint it was built from"),
    (rb"\x7fELF|MZ|\xcf\xfa\xed\xfe", "a program or library", _CHECK),
    (rb".{,52}brain\.Event:", "a TensorBoard event file", "give the checkpoint beside it"),
)

_CONTAINERS: _Table = (
    (rb"PK\x03\x04", "a zip archive", None),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", None),
    (rb"\x80", "a pickle", None),
)

_ZIPS = (
    (r".*/archive_format", "a program saved by torch.export", _EXPORTED),
    (r".*/\.data/extern_modules", "a torch.package archive", _PACKAGE),
    (r"MAR-INF/MANIFEST\.json", "a TorchServe archive", _UNZIP),
    (r"schema\.json", "a skops file (scikit-learn)", _by_hand("skops")),
    (r"\[Content_Types\]\.xml", "an Office document", _CHECK),
    (r"META-INF/MANIFEST\.MF", "a Java archive", _CHECK),
)
"""What a zip archive is that has a member of this name."""

_PACKERS: Mapping[str, tuple[str, str]] = {
    "gzip": (".gz", "gunzip -k"),
    "bzip2": (".bz2", "bunzip2 -k"),
    "xz": (".xz", "unxz -k"),
    "zstd": (".zst", "unzstd"),
}
"""What the packers call their files, and what undoes them."""


def _row(table: _Table, begin: bytes, path: Path) -> Foreign | None:
    """The row of a table whose pattern the first bytes match."""
    for pattern, what, hint in table:
        if re.match(pattern, begin, re.DOTALL):
            return Foreign(what, filled(hint, path))
    return None


# -- text, and what is damaged or lost -----------------------------------------------------------------------


def _empty(sample: Sample) -> Foreign | None:
    return Foreign("empty", _AGAIN) if sample.size == 0 else None


def _web_page(sample: Sample) -> Foreign | None:
    if not re.match(rb"<(!doctype html|html|head|body|script|!--)", sample.text):
        return None
    lower = sample.head.lower()
    begin = lower.find(b">", lower.find(b"<title")) + 1
    end = lower.find(b"</title>", begin)
    title = f" ({_quote(sample.head[begin:end])})" if b"<title" in lower and 0 < begin < end else ""
    return Foreign(
        f"an HTML page{title}",
        "if it was downloaded, the server sent a page instead of the file: fetch it again, "
        "or from another source",
    )


def _text(sample: Sample) -> Foreign | None:
    found = _row(_TEXTS, sample.text, sample.path)
    return found if found and _is_text(sample.head.removeprefix(_BOM)) else None


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
    hint = "if it was downloaded, the server sent text instead of the file"
    return Foreign(f"{what} that begins with {_quote(head)}", hint)


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
    hint = "the download or the disk lost its content: fetch it again"
    return Foreign(f"{begins}{_size(zeros)} of zeros", hint)


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


# -- protocol buffers ----------------------------------------------------------------------------------------


def message_of(sample: Sample, *, cut: bool = False) -> dict[int, int | bytes]:
    """First value of each field of a protocol buffer, a number or its first bytes; none of other files.

    ``cut`` says that its last field may end beyond it.
    """
    found: dict[int, int | bytes] = {}
    position = 0
    try:
        for _ in range(_PROTO_FIELDS):
            if position >= sample.size:
                break
            raw = sample.read(position, _PROTO_HEAD)
            tag, at = read_varint(raw)
            number, wire = tag >> 3, tag & 7
            if wire == VARINT:
                value, at = read_varint(raw, at)
                found.setdefault(number, value)
            elif wire == LENGTH_DELIMITED:
                length, at = read_varint(raw, at)
                found.setdefault(number, raw[at : at + length])
                at += length
            elif wire in (FIXED32, FIXED64):
                at += 4 if wire == FIXED32 else 8
            else:
                return {}
            position += at
            if number == 0 or (position > sample.size and not cut):
                return {}
    except WireError:
        return {}
    return found


def _protocol_buffer(sample: Sample) -> Foreign | None:
    message = message_of(sample) if sample.head[:1] in (b"\x08", b"\x0a") else {}
    numbers, first = message.keys(), message.get(1)
    if isinstance(first, int):
        return Foreign("a Core ML model", _SOURCE) if max(numbers) >= 200 else None
    if first is None:
        return None
    if numbers & {2, 100} and numbers <= {*range(1, 9), 100} and _is_name(first):
        return Foreign("a Caffe model", _by_hand("Caffe"))
    return _graph_of_checkpoint(sample.path) if {1, 2} <= numbers <= set(range(1, 8)) else None


def _graph_of_checkpoint(path: Path) -> Foreign:
    prefix = path.with_name(path.name.removesuffix(".meta"))
    hint = f"give {quoted(prefix)}"
    if prefix == path or not prefix.is_file():
        hint = f"put {prefix.name}.index and its data files beside it and {hint}"
    return Foreign("the graph of a TensorFlow checkpoint, without its variables", hint)


def _is_name(raw: bytes) -> bool:
    return bool(raw) and raw.isascii() and raw.decode().isprintable()


# -- other files ---------------------------------------------------------------------------------------------


def _mark(sample: Sample) -> Foreign | None:
    if sample.head[:2] == b"BM" and int.from_bytes(sample.head[2:6], "little") == sample.size:
        return Foreign("a BMP image", _CHECK)
    return _row(_MARKS, sample.head, sample.path)


def _named(sample: Sample) -> Foreign | None:
    """Recognise what has no magic number."""
    name, head = sample.path.name, sample.head
    if name.endswith(".weights") and re.match(rb"\0{4}(\x01\0{7}|\x02\0{7}|\x02\0{3}\x05\0{3})", head):
        return Foreign("a Darknet weights file", _by_hand("a Darknet reader"))
    data = re.fullmatch(r"(.*)\.data-\d{5}-of-\d{5}", name, re.DOTALL)
    if data:
        hint = f"put {data[1]}.index beside it"
        return Foreign("the data of a TensorFlow checkpoint, without its index", hint)
    if name.endswith(".pdiparams") and not head[:16].strip(b"\0") and head[20:21] == b"\x08":
        hint = "give the .pdparams it was exported from"
        return Foreign("the parameters of a Paddle inference model", hint)
    return None


def packed(path: Path, packer: str, inside: bytes) -> Foreign:
    """A single file packed by gzip or the like: what is in it decides what to do.

    Examples
    --------
    >>> packed(Path("m.pth.gz"), "gzip", b"PK").hint
    'unpack it first: gunzip -k m.pth.gz'
    """
    ending, command = _PACKERS[packer]
    unpack = f"{command} {{path}}" if path.name.endswith(ending) else f"{packer} -dc {{path}} > {{unpacked}}"
    found = Foreign.of(Sample(path, inside)) if inside else None
    if found is not None and found.hint and "fetch" in found.hint:
        return Foreign(f"{found.what}, packed with {packer}", found.hint)
    return Foreign(f"a single file packed with {packer}", filled(f"unpack it first: {unpack}", path))


def _zlib(sample: Sample) -> Foreign | None:
    if sample.head[:2] not in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"):
        return None
    try:
        inside = zlib.decompressobj().decompress(sample.head, 64)
    except zlib.error:
        return None
    if inside.startswith(b"\x80"):
        return Foreign("a pickle packed with zlib, as joblib writes it", _by_hand("joblib"))
    return Foreign("a single file packed with zlib", filled(_ZLIB, sample.path))


PADDLE_NAMES = "StructuredToParameterName@@"
"""Key of the table, at the end of a file of Paddle, of the names that its program has for parameters."""


def is_paddle(sample: Sample) -> bool:
    """Whether a pickle has Paddle's table of names; nested state dicts have none, so the name counts."""
    if not sample.is_pickle or sample.is_torch_pickle:
        return False
    named = sample.path.name.lower().endswith((".pdparams", ".pdopt"))
    return named or PADDLE_NAMES.encode() in sample.read(max(0, sample.size - _PADDLE_REACH), _PADDLE_REACH)


def foreign_pickle(sample: Sample) -> Foreign | None:
    """Pickles of libraries whose arrays are not where a pickle has them."""
    is_joblib = sample.is_pickle and b"joblib.numpy_pickle" in sample.read(0, 64 << 10)
    return Foreign("a joblib pickle", _by_hand("joblib")) if is_joblib else None


_TEXT_KINDS: tuple[_Kind, ...] = (_empty, _web_page, _text)
_KINDS: tuple[_Kind, ...] = (_mark, _zlib, foreign_pickle, _named, _protocol_buffer)


# -- archives and folders ------------------------------------------------------------------------------------


def of_zip(path: Path, names: Collection[str]) -> Foreign:
    """What a zip archive is in which no format's reader found its own."""
    for pattern, what, hint in _ZIPS:
        if any(re.fullmatch(pattern, name, re.DOTALL) for name in names):
            return Foreign(what, filled(hint, path))
    return _archive("zip archive", path, names, _UNZIP)


def of_archive(path: Path, names: Collection[str]) -> Foreign:
    """What a tar archive without a TensorFlow checkpoint is."""
    return _archive("tar archive", path, names, _UNTAR)


def _archive(kind: str, path: Path, names: Collection[str], unpack: str) -> Foreign:
    files = [name for name in names if not name.endswith("/")]
    likely = [PurePosixPath(name).name for name in files if name.lower().endswith(LIKELY)]
    if likely:
        return Foreign(f"a {kind} that holds {listed(likely, 3)}", filled(unpack, path))
    if not files:
        return Foreign(f"an empty {kind}", _AGAIN)
    return Foreign(
        f"a {kind} of {counted(len(files), 'file')} without a checkpoint ({listed(sorted(files), 3)})", _CHECK
    )


def of_distcp(folder: Path) -> Foreign:
    """A file of a torch.distributed checkpoint that lacks what says what is in it."""
    if any(folder.glob("__*.metadata")):
        what = "a torch.distributed checkpoint (DCP) that each rank saved by itself"
        return Foreign(what, "load it with torch on as many ranks, and save it with use_collectives=True")
    lacks = "whose .metadata is damaged" if (folder / ".metadata").is_file() else "without its .metadata"
    return Foreign(f"a torch.distributed checkpoint (DCP) {lacks}", _AGAIN)


def of_folder(folder: Path, names: Collection[str]) -> Foreign | None:
    """What a folder of these names is; None where a checkpoint may be in it."""
    found = set(names)
    if any(name.endswith(".distcp") for name in names):
        return of_distcp(folder)
    if found & {".zarray", ".zgroup", "zarr.json"}:
        return Foreign("a checkpoint of zarr arrays (T5X)", _by_hand("zarr"))
    return Foreign("a Core ML model", _SOURCE) if found >= {"Manifest.json", "Data"} else None
