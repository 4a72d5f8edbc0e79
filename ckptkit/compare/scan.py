"""A walk over a file and everything in it: what would run, or leave its folder, when it is loaded.

Containers are opened as the readers open them, and pickles are followed by ``formats.pickle_trace``; nothing
is imported, called or unpacked to the disk. What cannot be looked at is a finding itself.
"""

from __future__ import annotations

import bz2
import io
import itertools
import lzma
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from tarfile import HeaderError, TarInfo
from typing import Any, BinaryIO

from ckptkit.base.budget import LIMITS, Budget, Limit
from ckptkit.base.errors import FormatError, MissingDependencyError, NotFoundError
from ckptkit.base.files import storage_error
from ckptkit.base.tensors import DTYPES
from ckptkit.base.text import counted
from ckptkit.compare import scan_graphs
from ckptkit.compare.security import SEVERITIES, Finding, SecurityReport, Severity
from ckptkit.formats import pickle_trace
from ckptkit.formats.base import HDF5_MARK, PACKERS, Sample
from ckptkit.formats.builtin import BUILT_IN
from ckptkit.formats.dcp import ENDING
from ckptkit.formats.hdf5_reader import Hdf5File
from ckptkit.formats.mapped_file import MappedFile, MappedPart
from ckptkit.formats.members import DEFAULT_LIMITS, unsafe_name
from ckptkit.formats.npz import MAX_HEADER_BYTES, parse_header
from ckptkit.formats.onnx import is_onnx
from ckptkit.formats.pickle_machine import GlobalName
from ckptkit.formats.pickle_names import builds_a_value, what_it_does
from ckptkit.formats.pickle_trace import PICKLE_ENDINGS, UNPACKS, Held, Trace, Use, trace
from ckptkit.formats.protobuf_wire import WireError
from ckptkit.formats.tar import TAR_BLOCK, TarStream, decompressed, tar_entries
from ckptkit.formats.torch_pickle import UNDERSTOOD, storage_dtype
from ckptkit.formats.torch_reader import MAX_PICKLE_HEAD, is_pickle, legacy_start
from ckptkit.formats.zip import (
    CENTRAL_MAGIC,
    DEFLATED,
    END,
    END_MAGIC,
    LOCAL,
    LOCAL_MAGIC,
    STORED,
    ZipEntry,
    contents,
    read_directory,
)

_MAX_FINDINGS = 5000
_MAX_FILES, _MAX_FOLDERS = 20_000, 32
_MAX_NESTED = 6
_MAX_UNPACKED = 64 << 20
_NPY_MARK = b"\x93NUMPY"
_LEGACY_PICKLES = 4
"""Pickles after the magic number of a legacy file of torch: version, system, object, storages."""
_LIMITS = {**LIMITS, "steps": Limit("steps of work", 1_200_000, 10, 1 << 30)}
"""A pickle of any honest size is followed to its end: an opcode takes at most 8 steps a byte, and some."""
_MAX_LOCAL, _MAX_LINK, _MAX_TEXT, _HEAD = 10_000, 4096, 16 << 20, 4096
_LZMA_MEMORY, _MAX_BEHIND = 64 << 20, 256 << 20
_SHOWN = 200
_RECORDS = frozenset({"storages", "tensors"})
"""Members of torch's first format, a tar, that are pickles with other bytes between them."""
_PACKED = {
    b"7z\xbc\xaf\x27\x1c": "7-Zip archive",
    b"Rar!\x1a\x07": "RAR archive",
    b"\x04\x22\x4d\x18": "LZ4 file",
    b"]\0\0": "LZMA file",
}
_ZLIB_LEVELS = (b"\x01", b"\x5e", b"\x9c", b"\xda")
_OF_NUMBERS = frozenset({"", "pickle", "packed file", "ONNX model"})
"""What the bytes of a storage can look like by chance."""
_END_BYTES = END.size + 0xFFFF
_PROTOCOL = re.compile(rb"\x80[\x00-\x05]")
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_IMPORT = re.compile(
    rb"(?<![\w.])([\w.]{2,100})\n([\w.]{1,100})\n"
    rb"|\x8c.([\w.]{1,100})(?:\x94|q.|r....)?\x8c.([\w.]{1,100})(?:\x94|q.|r....)?\x93",
    re.DOTALL,
)
"""Bytes that import a name: two lines, of which the first follows an opcode, or two short texts."""
_NPY_HEAD = MAX_HEADER_BYTES + 12


def scan_path(path: Path) -> SecurityReport:
    """Look for everything in a file, or in the files of a folder, that is not data."""
    scan = _Scan(path)
    if path.is_dir():
        for found in _files_of(path):
            scan.within = found.relative_to(path).as_posix()
            scan.path_of_one(found)
    else:
        prefix = path.with_name(path.name + ".index")
        scan.path_of_one(prefix if not path.exists() and prefix.exists() else path)
    return scan.report()


def _files_of(folder: Path) -> Iterator[Path]:
    """Regular files of a folder and those below, each folder once; of what a link leads to, files only."""
    count = 0
    for where, folders, names in os.walk(folder):
        folders.sort()
        if len(Path(where).relative_to(folder).parts) >= _MAX_FOLDERS:
            folders.clear()
        for name in sorted(names):
            path = Path(where, name)
            if path.is_file():
                count += 1
                if count > _MAX_FILES:
                    raise FormatError(
                        folder, f"more than {_MAX_FILES:,} files", hint="scan its folders one by one"
                    )
                yield path


class _InMemory(MappedFile):
    """Bytes in memory, of a member that was unpacked."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self.path, self.size, self.data = path, len(raw), raw  # type: ignore[assignment]

    def release(self, offset: int, nbytes: int) -> None:
        """Nothing is mapped."""

    def close(self) -> None:
        """Nothing is open."""


_Look = Callable[["_Scan", MappedFile, str, str, int], None]


class _Scan:
    """One run over a file or folder; ``within`` is the file of a folder that is looked at."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._findings: dict[Finding, None] = {}
        self._harmless: set[tuple[str, str]] = set()
        self._scanned: Counter[str] = Counter()
        self._omitted = 0
        self.within = ""

    def report(self) -> SecurityReport:
        findings = sorted(self._findings, key=lambda one: SEVERITIES.index(one.severity))
        return SecurityReport(self._path, tuple(findings), dict(self._scanned), self._omitted)

    def path_of_one(self, path: Path) -> None:
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise FormatError(path, "is not a regular file")
            if not path.stat().st_size:
                return
        except FileNotFoundError as error:
            raise NotFoundError(f"{path}: no such file") from error
        except OSError as error:
            raise storage_error(error, path) from error
        with closing(MappedFile(path)) as file:
            self._budget = Budget(file.size, ValueError, _LIMITS)
            self._file(file, self.within, path.name, 0)

    # -- findings ------------------------------------------------------------------------------------------

    def _add(self, finding: Finding) -> None:
        finding = replace(finding, file=self.within)
        if finding in self._findings:
            return
        if finding.severity == "harmless":  # a name that is known, once for each file
            key = self.within, finding.what
            if key in self._harmless:
                return
            self._harmless.add(key)
        if len(self._findings) < _MAX_FINDINGS:
            self._findings[finding] = None
            return
        self._omitted += 1
        if finding.severity != "harmless":  # which is worth more than a name that is known
            spare = next((one for one in reversed(self._findings) if one.severity == "harmless"), None)
            if spare is not None:
                del self._findings[spare]
                self._findings[finding] = None

    def _not_scanned(self, place: str, what: str, why: str, offset: int | None = None) -> None:
        self._add(Finding("suspicious", "not-scanned", place, offset, what, why))

    # -- files ---------------------------------------------------------------------------------------------

    def _file(self, file: MappedFile, place: str, name: str, depth: int, *, is_loaded: bool = False) -> None:
        """Tell what a file or member is by its first bytes, and look into it."""
        if not file.size:
            return
        head = file.data[: min(file.size, MAX_PICKLE_HEAD)]
        kind, look = self._kind(file, head, name)
        packer = next((what for mark, what in _PACKED.items() if head.startswith(mark)), None)
        if packer is not None:
            self._not_scanned(place, packer, "is packed in a way that is not looked into")
        if depth == 0 and kind != "zip archive" and _ends_as_zip(file):  # which is where some programs begin
            self._look("zip archive", _Scan._zip, file, place, name, depth=depth)
        if look is not None:
            self._look(kind, look, file, place, name, depth=depth)
        elif is_loaded:  # as a pickle, whatever it looks like
            self._look("pickle", _Scan._pickles, file, place, ".pkl", depth=depth)
        elif depth == 0 and packer is None:
            self._pickles(file, place, name, depth)

    def _look(self, kind: str, look: _Look, file: MappedFile, place: str, name: str, *, depth: int) -> None:
        """Look into a file of a known kind."""
        if depth > _MAX_NESTED:
            self._not_scanned(place, kind, "inside too many other files")
            return
        self._scanned[kind] += 1
        try:
            look(self, file, place, name, depth)
        except (FormatError, WireError, ValueError, MissingDependencyError) as error:
            reason = error.reason if isinstance(error, FormatError) else str(error)
            self._not_scanned(place, kind, f"cannot be looked through: {reason}"[:500])

    def _kind(self, file: MappedFile, head: bytes, name: str) -> tuple[str, _Look | None]:
        if head[:2] == b"PK":
            return "zip archive", _Scan._zip
        if head.startswith(_NPY_MARK):
            return "NumPy file", _Scan._npy
        if any(file.data[at : at + len(HDF5_MARK)] == HDF5_MARK for at in (0, 512, 1024, 2048)):
            return "HDF5 file", _Scan._hdf5
        if head[257:262] == b"ustar" or head.startswith(tuple(PACKERS.values())):
            return "archive", _Scan._tar
        if head[:1] == b"x" and head[1:2] in _ZLIB_LEVELS and not int.from_bytes(head[:2], "big") % 31:
            return "packed file", _Scan._zlib
        if is_pickle(head, file.data[file.size - 1 : file.size]) or name.lower().endswith(PICKLE_ENDINGS):
            return "pickle", _Scan._pickles
        if name == "saved_model.pb" or name.endswith(".pb"):
            return "TensorFlow graph", _Scan._saved_model
        if name.endswith(tuple(BUILT_IN["onnx"].endings)) or is_onnx(Sample(file.path, head)):
            return "ONNX model", _Scan._onnx
        if name.endswith(".json") and head.lstrip()[:1] == b"{":
            return "JSON text", _Scan._json
        return "", None

    # -- containers ----------------------------------------------------------------------------------------

    def _member(self, place: str, name: str, link: str | None = None) -> None:
        """Judge the name of a member, and what it links to."""
        for one, what in ((name, "a member that"), (link, f"a link to {link!r:.80}, which")):
            why = unsafe_name(one) if one is not None else None
            if why is not None:
                text = f"{what} {why}: unpacking writes outside the folder"
                self._add(Finding("dangerous", "archive-path", place, None, name[:_SHOWN], text))
                return
        if link is not None:
            text = f"a link to {link[:_SHOWN]}, which programs may follow"
            self._add(Finding("suspicious", "archive-path", place, None, name[:_SHOWN], text))

    def _zip(self, file: MappedFile, place: str, name: str, depth: int) -> None:
        try:
            entries = read_directory(file).entries
        except FormatError as error:
            in_a_row = name.endswith(ENDING)  # archives one after the other
            if not in_a_row:
                self._not_scanned(
                    place, "zip archive", f"programs may read it differently: {error.reason}"[:500]
                )
            self._local_members(file, place, in_a_row=in_a_row)
            return
        roots = {one.removesuffix("data.pkl") for one in entries if one.endswith("/data.pkl")}
        storages = tuple(f"{root}data/" for root in roots)
        for entry in entries.values():
            self._budget.spend(steps=16)
            mode = entry.attributes >> 16
            link = ""
            if stat.S_ISLNK(mode) and entry.size < _MAX_LINK:
                link = b"".join(contents(file, entry)).decode(errors="replace")
            self._member(_under(place, entry.name), entry.name, link or None)
            if not entry.size or (entry.name.startswith(storages) and self._is_numbers(file, entry, place)):
                continue
            if entry.method == STORED:
                self._content(MappedPart(file, entry.offset, entry.size), place, entry.name, depth)
            elif entry.method == DEFLATED or entry.method in _DECODERS:
                self._packed(file, entry, place, depth)
            else:
                self._not_scanned(_under(place, entry.name), entry.name, "is encrypted or packed unusually")

    def _is_numbers(self, file: MappedFile, entry: ZipEntry, place: str) -> bool:
        """Whether a storage of torch, which can begin with any bytes, is nothing that others would open."""
        if entry.method != STORED or entry.name.endswith(PICKLE_ENDINGS):
            return False
        inner = MappedPart(file, entry.offset, entry.size)
        kind = self._kind(inner, inner.data[: min(inner.size, MAX_PICKLE_HEAD)], "")[0]
        if kind == "pickle":
            self._follow(inner, _under(place, entry.name), "", _MAX_NESTED, at=0, most=1, is_certain=False)
        return kind in _OF_NUMBERS

    def _content(self, file: MappedFile, place: str, name: str, depth: int) -> None:
        """Look into a member."""
        inner = _under(place, name)
        if name.endswith(".py") and "code" in name.split("/"):
            self._scanned["TorchScript source"] += 1
            for finding in scan_graphs.torchscript(file.data[: min(file.size, _MAX_TEXT)], inner):
                self._add(finding)
            return
        self._file(file, inner, name.rpartition("/")[2], depth + 1)

    def _packed(self, file: MappedFile, entry: ZipEntry, place: str, depth: int) -> None:
        """Unpack a member, as far as it is of a kind that is looked into."""
        raw = bytearray()
        try:
            for piece in contents(file, entry) if entry.method == DEFLATED else _decoded(file, entry):
                raw += piece
                first = _InMemory(file.path, bytes(raw[:_NPY_HEAD]))
                name = entry.name.rpartition("/")[2]
                if len(raw) == len(piece) and not self._is_looked_into(first, entry.name, name):
                    return
                self._budget.spend(nbytes=len(piece))
                if len(raw) > _MAX_UNPACKED:
                    break
        except (FormatError, OSError, ValueError, EOFError, lzma.LZMAError) as error:
            reason = error.reason if isinstance(error, FormatError) else str(error)
            self._not_scanned(_under(place, entry.name), entry.name, reason)
        self._content(_InMemory(file.path, bytes(raw)), place, entry.name, depth)

    def _is_looked_into(self, file: MappedFile, name: str, last: str) -> bool:
        if name.endswith(".py"):
            return True
        kind, look = self._kind(file, file.data[:MAX_PICKLE_HEAD], last)
        return look is not None and (
            kind != "NumPy file" or _holds_objects(file.data[: min(file.size, _NPY_HEAD)])
        )

    def _local_members(self, file: MappedFile, place: str, *, in_a_row: bool) -> None:
        """Look into members by their own headers, where the directory cannot be trusted."""
        at = 0
        for _ in range(_MAX_LOCAL):
            at = file.data.find(LOCAL_MAGIC, at, file.size)
            if at < 0 or at + LOCAL.size > file.size:
                return
            _, _, flags, _, _, _, _, packed, _, named, extra = LOCAL.unpack(file.data[at : at + LOCAL.size])
            start = at + LOCAL.size + named + extra
            raw = file.data[at + LOCAL.size : at + LOCAL.size + named]
            name = raw.decode(errors="backslashreplace")
            at += 4
            if start >= file.size:
                continue
            size = _until_next(file, start, packed=0 if flags & 8 else packed)
            self._member(_under(place, name), name)
            self._budget.spend(steps=64)
            if size and not (in_a_row and "/data/" in name):
                self._local_member(file, (start, size), place, name)

    def _local_member(self, file: MappedFile, where: tuple[int, int], place: str, name: str) -> None:
        """Look into a pickle or an array; archives in it are found by the same search."""
        start, size = where
        inner: MappedFile = MappedPart(file, start, size)
        last = name.rpartition("/")[2]
        packed = file.data[start : start + min(size, _MAX_TEXT)]
        unpacked = b""
        with suppress(zlib.error):  # the method, too, may differ from the directory's
            unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, _MAX_TEXT)
        self._budget.spend(nbytes=_HEAD + len(unpacked))
        for one in (_InMemory(file.path, unpacked), inner):
            kind, look = self._kind(one, one.data[: min(one.size, MAX_PICKLE_HEAD)], last)
            if one.size and look in (_Scan._pickles, _Scan._npy):
                self._look(kind, look, one, _under(place, name), last, depth=_MAX_NESTED)

    def _zlib(self, file: MappedFile, place: str, name: str, depth: int) -> None:
        raw = bytearray()
        with suppress(ValueError):
            for piece in file.inflated(0, file.size):
                self._budget.spend(nbytes=len(piece))
                raw += piece
                if len(raw) > _MAX_UNPACKED:
                    break
        self._file(_InMemory(file.path, bytes(raw)), _under(place, "unpacked"), name, depth + 1)

    def _tar(self, file: MappedFile, place: str, name: str, depth: int) -> None:
        with ExitStack() as stack:
            if type(file) is MappedFile:
                raw: BinaryIO = stack.enter_context(file.path.open("rb"))
            else:
                raw = io.BytesIO(file.data[: min(file.size, _MAX_UNPACKED)])
            head = _read(decompressed(file.path, raw), TAR_BLOCK)
            raw.seek(0)
            if head[257:262] != b"ustar" and not _is_tar(head):
                unpacked = _read(decompressed(file.path, raw), _MAX_UNPACKED)
                self._budget.spend(nbytes=len(unpacked))
                inner = _under(place, "unpacked")
                self._file(_InMemory(file.path, unpacked), inner, name.rpartition(".")[0], depth + 1)
                return
            stream = TarStream(file.path, raw, decompressed(file.path, raw), DEFAULT_LIMITS)
            for count, entry in enumerate(tar_entries(file.path, stream, errors="surrogateescape")):
                if count >= DEFAULT_LIMITS.members:
                    raise FormatError(file.path, f"more than {DEFAULT_LIMITS.members:,} members")
                self._tar_member(stream, entry, file.path, place, depth)

    def _tar_member(self, stream: TarStream, entry: TarInfo, path: Path, place: str, depth: int) -> None:
        name = entry.name.encode(errors="backslashreplace").decode()
        link = entry.linkname.encode(errors="backslashreplace").decode()
        is_link = entry.issym() or entry.islnk()
        self._member(_under(place, name), name, link if is_link else None)
        if not entry.isfile() and not entry.isdir() and not is_link:
            why = "is neither a file nor a folder, but a device or a pipe"
            self._add(Finding("suspicious", "archive-path", _under(place, name), None, name[:_SHOWN], why))
        if not entry.isfile() or not entry.size:
            return
        head = stream.read_exactly(min(_NPY_HEAD, entry.size))
        first, last = _InMemory(path, head), name.rpartition("/")[2]
        if not self._is_looked_into(first, name, last):
            return
        raw = head + stream.read_exactly(min(entry.size, _MAX_UNPACKED) - len(head))
        if last in _RECORDS:
            self._records(_InMemory(path, raw), _under(place, name), last)
        else:
            self._content(_InMemory(path, raw), place, name, depth)

    # -- pickles -------------------------------------------------------------------------------------------

    def _npy(self, file: MappedFile, place: str, name: str, depth: int) -> None:
        head = file.data[: min(file.size, _NPY_HEAD)]
        if _holds_objects(head):
            self._follow(file, place, "", depth, at=_npy_start(head), most=1, is_certain=True)

    def _pickles(self, file: MappedFile, place: str, name: str, depth: int) -> None:
        tail = file.data[file.size - 1 : file.size]
        is_certain = is_pickle(file.data[: min(file.size, MAX_PICKLE_HEAD)], tail)
        legacy = legacy_start(file) if file.data[:1] in (b"\x80", b"L") else None
        most = _LEGACY_PICKLES if legacy else None
        self._follow(file, place, name, depth, at=legacy or 0, most=most, is_certain=is_certain)

    def _follow(
        self,
        file: MappedFile,
        place: str,
        name: str,
        depth: int,
        *,
        at: int,
        most: int | None,
        is_certain: bool,
    ) -> None:
        """Follow one pickle after the other, as far as a loader may go."""
        data, base = file.ground
        is_named, is_marked = name.lower().endswith(PICKLE_ENDINGS), True
        count = 0
        while count != most:
            count += 1
            found = trace(data, base + at, base + file.size, self._budget, base)
            is_pickle = is_certain and (is_marked or found.fault is None)
            self._judge(found, file, place, depth, is_certain=is_pickle or (is_named and bool(found.uses)))
            at = found.stop
            if found.fault or at >= file.size:
                return
            if most is None and not _PROTOCOL.match(file.data[at : at + 2]):
                is_named = is_marked = False  # a pickle of an old protocol, or other bytes

    def _records(self, file: MappedFile, place: str, kind: str) -> None:
        """Pickles of torch's first format, between which there are sizes and storages."""
        self._scanned["pickle"] += 1
        at = 0
        for number in itertools.count():
            found = trace(file.data, at, file.size, self._budget)
            self._judge(found, file, place, _MAX_NESTED, is_certain=True)
            at = found.stop
            if found.fault or at >= file.size:
                return
            if number and kind == "storages":
                itemsize = max((_itemsize(name) for name in found.uses), default=0)
                at += 8 + itemsize * int.from_bytes(file.data[at : at + 8], "little")
            elif number:
                at += 16 + 16 * int.from_bytes(file.data[at : at + 4], "little")
            if at >= file.size:
                return

    def _judge(self, found: Trace, file: MappedFile, place: str, depth: int, *, is_certain: bool) -> None:
        """Make findings of what a pickle does; of what may be other bytes, of what is plain to see."""
        for use in found.uses.values():
            severity, why = _verdict(use)
            is_likely = found.fault is None and _NAME.fullmatch(use.name) is not None
            if is_certain or is_likely or severity == "dangerous":
                self._add(
                    Finding(severity, "pickle-name", place, use.offset, use.name, f"{why}; {_ways(use)}")
                )
        if is_certain:
            for what, at in found.oddities.items():
                self._add(Finding("suspicious", "pickle-unclear", place, at, "import", what))
            if found.fault is not None:
                why, at = found.fault
                self._add(
                    Finding("suspicious", "pickle-unclear", place, at, "pickle", f"cannot be followed: {why}")
                )
                self._behind(file, place, at)
            if found.omitted:
                why = counted(found.omitted, "more name", "are")
                self._add(Finding("suspicious", "pickle-unclear", place, None, "pickle", f"{why} not listed"))
        for held in found.held:
            inner = f"{place or file.path.name}, at {held.start}"
            self._file(_part(file, held), inner, "", depth + 1, is_loaded=held.is_loaded)

    def _behind(self, file: MappedFile, place: str, start: int) -> None:
        """Look for dangerous names behind a part that cannot be followed, such as an array of joblib."""
        for at in range(start, min(file.size, start + _MAX_BEHIND), _MAX_TEXT):
            window = file.data[at : min(at + _MAX_TEXT + _HEAD, file.size)]
            self._budget.spend(steps=len(window) // 16)
            for found in _IMPORT.finditer(window):
                self._budget.spend(steps=16 + len(found[0]))
                for name in _names(found):
                    does = what_it_does(name)
                    if does is not None:
                        why = f"{does}; named behind a part that cannot be followed"
                        self._add(Finding("dangerous", "pickle-name", place, at + found.start(), name, why))

    # -- others --------------------------------------------------------------------------------------------

    def _hdf5(self, file: MappedFile, place: str, name: str, depth: int) -> None:
        for finding in scan_graphs.hdf5(Hdf5File(file), place, self._budget):
            self._add(finding)

    def _onnx(self, file: MappedFile, place: str, name: str, depth: int) -> None:
        for finding in scan_graphs.onnx(file, place, self._budget):
            self._add(finding)

    def _saved_model(self, file: MappedFile, place: str, name: str, depth: int) -> None:
        for finding in scan_graphs.saved_model(file, place):
            self._add(finding)

    def _json(self, file: MappedFile, place: str, name: str, depth: int) -> None:
        if max(file.data.find(mark, 0, file.size) for mark in (b'"class_name"', b"\\u00")) < 0:
            return
        if file.size > _MAX_TEXT:
            raise ValueError(f"more than {_MAX_TEXT} bytes")
        text = file.data[: file.size].decode("utf-8", "replace")
        for finding in scan_graphs.keras_config(text, place, self._budget):
            self._add(finding)


# -- judgement ---------------------------------------------------------------------------------------------


def _verdict(use: Use) -> tuple[Severity, str]:
    """How severe it is that a pickle uses a name, and why."""
    does = what_it_does(use.name)
    if does is not None:
        return "dangerous", does
    if pickle_trace.ALTERED in use.ways:
        return "suspicious", "what it names is changed itself, for everything that uses it"
    if use.name == UNPACKS and use.holds:
        return "harmless", "loads bytes that are looked through as well"
    if use.name in UNDERSTOOD or builds_a_value(use.name):
        return "harmless", "builds a value"
    if use.name.startswith(("__torch__.", "torch.jit._pickle.")):
        return "harmless", "of TorchScript, which runs in torch's own interpreter"
    called = pickle_trace.CALLED in use.ways or pickle_trace.MADE in use.ways
    return "suspicious", f"imports{' and calls' * called} code that is not known here"


def _ways(use: Use) -> str:
    ways = []
    for way, at in use.ways.items():
        called = way in (pickle_trace.CALLED, pickle_trace.MADE) and use.arguments
        ways.append(f"{way} at {at}" + (f" with {use.arguments}" if called else ""))
    return ", ".join(ways)


# -- helpers -----------------------------------------------------------------------------------------------


def _under(place: str, name: str) -> str:
    name = name[:_SHOWN]
    return f"{place}:{name}" if place else name


def _part(file: MappedFile, held: Held) -> MappedFile:
    """What a pickle holds; in a text, each character is a byte."""
    if not held.coding:
        return MappedPart(file, held.start, held.stop - held.start)
    raw = file.data[held.start : min(held.stop, held.start + _MAX_UNPACKED)]
    return _InMemory(file.path, pickle_trace.decoded(raw, held.coding))


def _lzma_decoder(packed: bytes) -> Any:
    """That of the stream in a member, which has its own kind of header before it."""
    alone = packed[4:9] + b"\xff" * 8  # as a file of its own begins: its properties, and no size
    decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY)
    decoder.decompress(alone)
    return decoder


_DECODERS: dict[int, tuple[Callable[[bytes], Any], int]] = {
    12: (lambda _: bz2.BZ2Decompressor(), 0),
    14: (_lzma_decoder, 9),
}
"""What unpacks other methods of zip that Python's zipfile reads, and the bytes before what is packed."""


def _decoded(file: MappedFile, entry: ZipEntry) -> Iterator[bytes]:
    """Bytes of a member that is packed by one of them."""
    make, start = _DECODERS[entry.method]
    packed = file.data[entry.offset : entry.offset + min(entry.packed, _MAX_UNPACKED)]
    decoder = make(packed)
    piece, left = decoder.decompress(packed[start:], _HEAD), entry.size
    while piece:
        yield piece[:left]
        left -= len(piece)
        piece = b"" if decoder.eof or left <= 0 else decoder.decompress(b"", 256 << 10)


def _until_next(file: MappedFile, start: int, *, packed: int) -> int:
    """How long a member may be: as its own header has it, or up to the next one, whichever is more."""
    stops = (file.data.find(mark, start, file.size) for mark in (LOCAL_MAGIC, CENTRAL_MAGIC))
    stop = min((stop for stop in stops if stop >= 0), default=file.size)
    return min(max(packed, stop - start), file.size - start)


def _ends_as_zip(file: MappedFile) -> bool:
    """Whether a file ends with the end record of a zip archive and its comment."""
    tail = file.data[max(0, file.size - _END_BYTES) : file.size]
    at = tail.rfind(END_MAGIC)
    return (
        at >= 0 and at + END.size <= len(tail) and at + END.size + END.unpack_from(tail, at)[-1] == len(tail)
    )


def _is_tar(head: bytes) -> bool:
    try:
        TarInfo.frombuf(head.ljust(TAR_BLOCK, b"\0"), "utf-8", "surrogateescape")
    except HeaderError:
        return False
    return True


def _read(stream: Any, most: int) -> bytes:
    """What can be unpacked, no more than some bytes."""
    raw = bytearray()
    with suppress(EOFError, OSError, ValueError, zlib.error):
        while len(raw) < most and (piece := stream.read(min(256 << 10, most - len(raw)))):
            raw += piece
    return bytes(raw)


def _npy_start(head: bytes) -> int:
    """Where the elements of an array begin."""
    if head[6:7] == b"\1":
        return 10 + int.from_bytes(head[8:10], "little")
    return 12 + int.from_bytes(head[8:12], "little")


def _holds_objects(head: bytes) -> bool:
    """Whether an array may be one of Python objects, which are pickled behind its header."""
    try:
        header = parse_header(head)
    except ValueError:
        return True  # numpy may read it all the same
    return header.dtype is None and not header.is_text


def _names(found: re.Match[bytes]) -> Iterator[str]:
    """The names that bytes may import; what is before the opcode in a first line can look like a letter."""
    lines, attribute = (found[1] or b"").decode("latin-1"), (found[2] or found[4]).decode("latin-1")
    if found[3] is not None:
        yield f"{found[3].decode('latin-1')}.{attribute}"
    for at, letter in enumerate(lines):
        if letter in "ci":
            yield f"{lines[at + 1 :]}.{attribute}"


def _itemsize(name: str) -> int:
    try:
        dtype = storage_dtype(GlobalName(name))
    except ValueError:
        return 0
    return DTYPES[dtype or "uint8"].itemsize if (dtype or "uint8") in DTYPES else 0
