"""The three containers torch.save has used over the years: zip archive, pickle stream, tar.

Each loader gives the same thing: the unpickled object, with `TensorRef` where tensors were, and where each
storage lies in the file. Sources: ``torch/serialization.py`` and ``caffe2/serialize/inline_container.cc``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import DTYPES
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile
from ckptkit.formats.restricted_pickle import PersistentLoad, PickleMachine
from ckptkit.formats.torch_pickle import (
    TORCH_HANDLERS,
    StorageRef,
    TensorRef,
    parse_storage,
    storage_dtype,
    whole_number,
)
from ckptkit.formats.zip_directory import STORED, CheckedMembers, ZipEntry, read_directory

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_HEAD_BYTES = 64
_LEGACY_PROTOCOL = 1001
METADATA_RECORD = "ckptkit.json"
_MAX_METADATA_BYTES = 1 << 20
_TAR_BLOCK = 512
_ZEROS_AT_ONCE = 1 << 20
_MAX_RECORDS = 1_000_000
_MAX_DIGITS = 30
_MAX_FILES = 20_000  # a process may have 65,530 maps


@dataclass(frozen=True)
class Extent:
    """Bytes of one storage in the file; the ``member`` that they are of a zip archive.

    In an unpacked archive each storage is a ``file`` of its own, and offsets count as if all of them were one
    file: it begins at ``offset``.
    """

    offset: int
    nbytes: int
    member: ZipEntry | None = None
    file: MappedFile | None = None


@dataclass(frozen=True)
class TorchContents:
    """What a file holds: the object that was saved, its storages by key, and our own metadata.

    ``members`` checks the storages of a zip archive.

    ``big_endian`` says that each element's bytes in the storages run the other way, ``kind`` what the file is
    where torch.save did not write it, ``would_run`` what loading it elsewhere runs.
    """

    root: object
    storages: Mapping[str, Extent]
    metadata: Mapping[str, str] = field(default_factory=dict)
    big_endian: bool = False
    kind: str = ""
    would_run: tuple[str, ...] = ()
    members: CheckedMembers | None = None

    def refusal(self, path: Path) -> FormatError:
        """What is said of a file that holds no weights and runs code when it is loaded."""
        return _running(path, self.would_run, "pickle" if self.kind else "torch")


def load_contents(file: MappedFile, folder: Path | None = None) -> TorchContents:
    """Tell the container by its first bytes and read it.

    Parameters
    ----------
    file : MappedFile
    folder : Path, optional
        The folder that ``file`` is the pickle of, where an archive has been unpacked.

    Raises
    ------
    FormatError
        No PyTorch file, or a damaged one.
    """
    unpickler = _Unpickler(file)
    try:
        contents = _load(file, unpickler) if folder is None else _load_folder(folder, file, unpickler)
    except FormatError as error:
        if not unpickler.would_run:
            raise
        raise _running(file.path, unpickler.would_run, "torch") from error
    return replace(contents, would_run=unpickler.would_run)


def _load(file: MappedFile, unpickler: _Unpickler) -> TorchContents:
    if file.data[:2] == b"PK":
        return _load_zip(file, unpickler)
    if file.data[:1] in (b"\x80", b"L") and (start := _legacy_start(file)):
        return _load_legacy(file, start, unpickler)
    if is_tar(file):
        return _load_tar(file, unpickler)
    if is_pickle(
        file.data[:MAX_PICKLE_HEAD], file.data[file.size - 1 :]
    ):  # of numpy arrays, or of no use here
        return TorchContents(unpickler.whole(0, file.size), {}, kind="a plain Python pickle")
    raise FormatError(file.path, "not a PyTorch checkpoint (no zip, pickle or tar header)", offset=0)


MAX_PICKLE_HEAD = 512
_OLD_PICKLE = re.compile(
    rb"L\d{9,30}L\n\.|\(dp\d+\n|\(lp\d+\n|[}\]]q.|\(?[ci][A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n", re.DOTALL
)
"""How pickles of protocols 0 and 1 begin, which have no mark: a number, a table, a list, a name."""


def is_pickle(head: bytes, tail: bytes) -> bool:
    r"""Whether a file begins as a pickle does, and, where that is mere text, ends as one.

    Examples
    --------
    >>> is_pickle(b"cos\nsystem\n", b"."), is_pickle(b"cat\ndog\n", b"\n"), is_pickle(b"\x80\x02", b"?")
    (True, False, True)
    """
    old = _OLD_PICKLE.match(head)
    return head[:1] == b"\x80" or (old is not None and (tail[-1:] == b"." or old[0].endswith(b"L\n.")))


def _running(path: Path, names: Sequence[str], loader: str) -> FormatError:
    listed = (
        " and ".join(names[:2]) if len(names) < 3 else f"{names[0]}, {names[1]} and {len(names) - 2} more"
    )
    return FormatError(
        path,
        f"is a pickle that would run {listed} when loaded by {loader}.load",
        hint="ckptkit does not run it",
    )


# -- zip archive (torch >= 1.6) ------------------------------------------------------------------------------


def _load_zip(file: MappedFile, unpickler: _Unpickler) -> TorchContents:
    directory = read_directory(file)
    entries = directory.entries
    if len({name.lower() for name in entries}) < len(entries):
        raise FormatError(file.path, "two zip entries that are one to torch, which ignores letter case")
    roots = [
        name.removesuffix("data.pkl")
        for name in entries
        if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(roots) != 1:
        raise FormatError(
            file.path, f"a zip archive with {len(roots)} data.pkl records: not a PyTorch checkpoint"
        )
    root = roots[0]
    if not next(iter(entries)).startswith(root):  # which is where torch takes the folder's name from
        raise FormatError(file.path, f"a zip archive whose first entry is not in {root!r}, as torch expects")
    if root + "constants.pkl" in entries:
        raise _torch_script(file.path)
    prefix = root + "data/"
    members = CheckedMembers(file, directory, may_lack=True)
    for name, entry in entries.items():
        is_storage = name.startswith(prefix)
        if entry.method == STORED and not is_storage and entry.size <= _MAX_METADATA_BYTES:
            members.require(entry)
    order = _record(file, entries.get(root + "byteorder"), 16)
    if order not in (None, b"little", b"big"):
        raise FormatError(file.path, f"a byte order {order!r}, which is neither little nor big")
    storages = {
        name.removeprefix(prefix): _stored_extent(file, entry)
        for name, entry in entries.items()
        if name.startswith(prefix)
    }
    pickle = _stored_extent(file, entries[root + "data.pkl"])
    members.require(entries[root + "data.pkl"])
    value = unpickler.whole(pickle.offset, pickle.offset + pickle.nbytes, parse_storage)
    metadata = parse_metadata(file, _record(file, entries.get(root + METADATA_RECORD), _MAX_METADATA_BYTES))
    return TorchContents(value, storages, metadata, big_endian=order == b"big", members=members)


def _torch_script(path: Path) -> FormatError:
    code = f"import torch; torch.save(torch.jit.load({json.dumps(str(path))}).state_dict(), "
    code += f"{json.dumps(f'{path}.pth')})"
    return FormatError(
        path, "is a TorchScript archive", hint=f"save its weights: python -c {shlex.quote(code)}"
    )


def _load_folder(folder: Path, file: MappedFile, unpickler: _Unpickler) -> TorchContents:
    """What unzipping an archive leaves: its records as files."""
    if (folder / "constants.pkl").exists():
        raise FormatError(folder, "is a TorchScript archive, unpacked", hint="give the archive itself")
    order = _small_file(folder / "byteorder", 16)
    if order not in (None, b"little", b"big"):
        raise FormatError(folder, f"a byte order {order!r}, which is neither little nor big")
    storages: dict[str, Extent] = {}
    position = 0
    try:
        for path in sorted((folder / "data").iterdir()) if (folder / "data").is_dir() else []:
            if path.is_symlink() or not path.is_file() or len(storages) == _MAX_FILES:
                raise FormatError(
                    folder, f"data{os.sep}{path.name} is not a file of its own, or one too many"
                )
            nbytes = path.stat().st_size
            storages[path.name] = Extent(position, nbytes, file=MappedFile(path) if nbytes else None)
            position += nbytes
        value = unpickler.whole(0, file.size, parse_storage)
    except BaseException:
        for extent in storages.values():
            if extent.file is not None:
                extent.file.close()
        raise
    metadata = parse_metadata(file, _small_file(folder / METADATA_RECORD, _MAX_METADATA_BYTES))
    return TorchContents(value, storages, metadata, big_endian=order == b"big")


def _small_file(path: Path, limit: int) -> bytes | None:
    if not path.is_file():
        return None
    with path.open("rb") as opened:
        raw = opened.read(limit + 1)
    if len(raw) > limit:
        raise FormatError(path, f"more than {limit} bytes")
    return raw


def _stored_extent(file: MappedFile, entry: ZipEntry) -> Extent:
    if entry.method != STORED:
        raise FormatError(
            file.path,
            f"zip entry {entry.name!r} is compressed, which torch.load refuses too",
            hint="unpack it and save the state_dict with torch.save",
        )
    return Extent(entry.offset, entry.size, entry)


def _record(file: MappedFile, entry: ZipEntry | None, limit: int) -> bytes | None:
    if entry is None:
        return None
    extent = _stored_extent(file, entry)
    if extent.nbytes > limit:
        raise FormatError(file.path, f"zip entry {entry.name!r} has {extent.nbytes} bytes, more than {limit}")
    return file.data[extent.offset : extent.offset + extent.nbytes]


def parse_metadata(file: MappedFile, raw: bytes | None) -> dict[str, str]:
    """Read the JSON object of texts that ckptkit's writers leave in a file ({} for None)."""
    if raw is None:
        return {}
    try:
        found = json.loads(raw)
        json.dumps(found, ensure_ascii=False).encode()  # refuses halves of surrogate pairs
    except (ValueError, RecursionError) as error:
        raise FormatError(file.path, "ckptkit's metadata record is not valid JSON") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise FormatError(file.path, "ckptkit's metadata record is no table of texts")
    return found


# -- pickle stream (torch < 1.6, and mmcv's publish tools) ---------------------------------------------------


@dataclass(frozen=True)
class _Unpickled:
    value: Any
    stop: int


class _Unpickler:
    """Reads the pickles of one file, all on one budget of work."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._budget = Budget(file.size, lambda reason: FormatError(file.path, reason))
        self._would_run: dict[str, None] = {}

    @property
    def would_run(self) -> tuple[str, ...]:
        """What the pickles read so far would have Python run."""
        return tuple(self._would_run)

    def load(self, start: int, end: int, persistent_load: PersistentLoad | None = None) -> _Unpickled:
        options: dict[str, Any] = {} if persistent_load is None else {"persistent_load": persistent_load}
        machine = PickleMachine(
            self._file.path,
            self._file.data,
            start,
            end,
            handlers=TORCH_HANDLERS,
            budget=self._budget,
            would_run=self._would_run,
            **options,
        )
        return _Unpickled(machine.run(), machine.position)

    def whole(self, start: int, end: int, persistent_load: PersistentLoad | None = None) -> Any:
        """The value of a pickle that ends where it should."""
        found = self.load(start, end, persistent_load)
        self.ends(found.stop, end)
        return found.value

    def ends(self, stop: int, end: int) -> None:
        """Refuse what is behind the last thing that a reader takes: another may take that."""
        if stop != end:
            raise FormatError(
                self._file.path, f"{end - stop:,} bytes behind its end belong to nothing", offset=stop
            )


def _legacy_start(file: MappedFile) -> int | None:
    """Where the magic number of a legacy file ends, whatever pickle protocol it is written in."""
    try:
        head = _Unpickler(file).load(0, min(file.size, _LEGACY_HEAD_BYTES))
    except FormatError:
        return None
    return head.stop if type(head.value) is int and head.value == LEGACY_MAGIC else None


def _load_legacy(file: MappedFile, start: int, unpickler: _Unpickler) -> TorchContents:
    protocol = unpickler.load(start, file.size)
    if protocol.value != _LEGACY_PROTOCOL:
        raise FormatError(file.path, "unknown version of the legacy PyTorch format", offset=start)
    system = unpickler.load(protocol.stop, file.size)
    if not isinstance(system.value, dict) or system.value.get("little_endian") is not True:
        raise FormatError(
            file.path,
            "saved on a machine of big-endian byte order, in the format before torch 1.6, or damaged",
            offset=protocol.stop,
            hint="load it with torch and save it again",
        )
    sizes: dict[str, int] = {}

    def storage(identifier: object) -> StorageRef:
        found = parse_storage(identifier)
        # The stream does not say how long an element is; the pickle, which comes first, does.
        known = DTYPES.get(found.dtype) if found.dtype else DTYPES["uint8"]
        if known is None:
            raise ValueError(f"a storage of {found.dtype}, which cannot be skipped over")
        if sizes.setdefault(found.key, known.itemsize) != known.itemsize:
            raise ValueError(f"storage {found.key} has two element types")
        return found

    content = unpickler.load(system.stop, file.size, storage)
    keys = unpickler.load(content.stop, file.size)
    if not isinstance(keys.value, list) or not all(isinstance(key, (str, int)) for key in keys.value):
        raise FormatError(file.path, "the list of storages is damaged", offset=content.stop)
    storages, stop = _raw_storages(file, [str(k) for k in keys.value], sizes, keys.stop)
    unpickler.ends(stop, file.size)
    return TorchContents(content.value, storages)


def _raw_storages(
    file: MappedFile, keys: list[str], sizes: Mapping[str, int], start: int
) -> tuple[dict[str, Extent], int]:
    """Walk over the storages behind the pickles: an 8-byte count, then the elements."""
    storages: dict[str, Extent] = {}
    position = start
    for key in keys:
        if key not in sizes or key in storages:
            raise FormatError(
                file.path, f"storage {key!r} is listed but belongs to no tensor, or twice", offset=position
            )
        storages[key] = extent = _counted_storage(file, position, file.size, sizes[key])
        position = extent.offset + extent.nbytes
    return storages, position


def _counted_storage(file: MappedFile, position: int, end: int, itemsize: int) -> Extent:
    if position + 8 > end:
        raise FormatError(
            file.path, "the file ends before its storages do", offset=position, hint="fetch it again"
        )
    (count,) = struct.unpack("<q", file.data[position : position + 8])
    if not 0 <= count <= (end - position - 8) // itemsize:
        raise FormatError(
            file.path,
            f"a storage of {count} elements reaches beyond the end of the file",
            offset=position,
            hint="it is probably truncated: fetch it again",
        )
    return Extent(position + 8, count * itemsize)


# -- tar (before torch 0.1.10) -------------------------------------------------------------------------------


def is_tar(file: MappedFile) -> bool:
    """Whether the file starts with a tar header."""
    return file.size >= _TAR_BLOCK and file.data[257:262] == b"ustar"


def tar_members(file: MappedFile) -> dict[str, Extent]:
    """Name and place of the regular files of an uncompressed tar, header by header, behind end marks too.

    Raises
    ------
    FormatError
        A damaged header, or a member that reaches beyond the file.
    """
    members: dict[str, Extent] = {}
    position = 0
    while header := file.data[position : position + _TAR_BLOCK]:
        if not header.strip(b"\0"):
            piece = file.data[position : position + _ZEROS_AT_ONCE]
            zeros = len(piece) - len(piece.lstrip(b"\0"))
            position += max(zeros // _TAR_BLOCK, 1) * _TAR_BLOCK
            continue
        try:
            size = int(header[124:136].strip(b" \0") or b"0", 8)
        except ValueError:
            size = -1
        start = position + _TAR_BLOCK
        if header[257:262] != b"ustar" or not 0 <= size <= file.size - start:
            raise FormatError(file.path, "damaged or truncated tar header", offset=position)
        if header[156:157] in (b"0", b"\0"):
            name = header[:100].split(b"\0")[0].decode("utf-8", "replace").removeprefix("./")
            if name in members:
                raise FormatError(file.path, f"two tar members are called {name!r}", offset=position)
            members[name] = Extent(start, size)
        position = start + -(-size // _TAR_BLOCK) * _TAR_BLOCK
    return members


def _load_tar(file: MappedFile, unpickler: _Unpickler) -> TorchContents:
    members = tar_members(file)
    missing = [name for name in ("pickle", "storages", "tensors") if name not in members]
    if missing:
        raise FormatError(file.path, f"a tar without {', '.join(missing)}: not a PyTorch checkpoint")
    extents, objects = _tar_storages(file, unpickler, members["storages"])
    _tar_tensors(file, unpickler, members["tensors"], objects)

    def load(identifier: object) -> object:
        if isinstance(identifier, tuple) and identifier:  # (class, file, source): code saved beside a module
            return identifier[0]
        if isinstance(identifier, str) and len(identifier) > _MAX_DIGITS:
            raise ValueError(f"a key of {len(identifier)} characters")
        key = _tar_key(int(identifier) if isinstance(identifier, str) else identifier)
        if key not in objects:
            raise ValueError(f"tensor {key} is not in the file")
        return objects[key]

    body = members["pickle"]
    return TorchContents(unpickler.whole(body.offset, body.offset + body.nbytes, load), extents)


def _tar_key(value: object) -> int:
    """Addresses of the writing process serve as keys."""
    return whole_number(value, "a key")


def _bounded(value: object, what: str) -> int:
    count = whole_number(value, f"the number of {what}")
    if count > _MAX_RECORDS:
        raise ValueError(f"{count} {what}")
    return count


def _fields(file: MappedFile, value: object, count: int, where: int) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)) or len(value) != count:
        raise FormatError(file.path, "damaged record of a tensor or storage", offset=where)
    return tuple(value)


def _tar_storages(
    file: MappedFile, unpickler: _Unpickler, member: Extent
) -> tuple[dict[str, Extent], dict[int, object]]:
    end = member.offset + member.nbytes
    extents: dict[str, Extent] = {}
    objects: dict[int, object] = {}
    total = unpickler.load(member.offset, end)
    position = total.stop
    try:
        for _ in range(_bounded(total.value, "storages")):
            record = unpickler.load(position, end)
            key, _, kind = _fields(file, record.value, 3, position)
            dtype = DTYPES[storage_dtype(kind) or "uint8"]
            extent = _counted_storage(file, record.stop, end, dtype.itemsize)
            extents[str(_tar_key(key))] = extent
            objects[_tar_key(key)] = StorageRef(str(key), dtype.name, extent.nbytes // dtype.itemsize)
            position = extent.offset + extent.nbytes
        views = unpickler.whole(position, end)
        for view in views if isinstance(views, list) else []:
            target, root, offset, count = (
                whole_number(v, "a view") for v in _fields(file, view, 4, position)
            )
            base = objects[root]
            if not isinstance(base, StorageRef) or offset + count > base.count:
                raise ValueError("a view beyond its storage")
            objects[target] = StorageRef(base.key, base.dtype, count, base.offset + offset)
    except (KeyError, ValueError) as error:
        raise FormatError(file.path, f"damaged list of storages: {error}", offset=position) from error
    return extents, objects


def _tar_tensors(file: MappedFile, unpickler: _Unpickler, member: Extent, objects: dict[int, object]) -> None:
    end = member.offset + member.nbytes
    total = unpickler.load(member.offset, end)
    position = total.stop
    try:
        for _ in range(_bounded(total.value, "tensors")):
            record = unpickler.load(position, end)
            key, storage, _ = _fields(file, record.value, 3, position)
            number, base = _tar_key(key), objects[_tar_key(storage)]
            if not isinstance(base, StorageRef) or base.dtype is None:
                raise ValueError(f"tensor {number} has no storage")
            tensor, position = _tar_tensor(file, record.stop, end, base)
            objects[number] = tensor
        unpickler.ends(position, end)
    except (KeyError, ValueError, struct.error) as error:
        raise FormatError(file.path, f"damaged list of tensors: {error}", offset=position) from error


def _tar_tensor(file: MappedFile, position: int, end: int, storage: StorageRef) -> tuple[TensorRef, int]:
    """Read one tensor: number of axes (as 8 bytes), sizes, strides, offset."""
    axes = int.from_bytes(file.data[position : position + 4], "little")
    stop = position + 8 + 16 * axes + 8
    if axes > MAX_DIMS or stop > end:
        raise ValueError(f"a tensor of {axes} axes")
    numbers = struct.unpack(f"<{2 * axes + 1}q", file.data[position + 8 : stop])
    for number in numbers:
        whole_number(number, "a size, stride or offset")
    assert storage.dtype is not None
    tensor = TensorRef(storage, storage.dtype, numbers[-1], numbers[:axes], numbers[axes : 2 * axes])
    return tensor, stop
