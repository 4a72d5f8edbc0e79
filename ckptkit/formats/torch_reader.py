"""PyTorch checkpoints, read without torch.

torch.save has used three containers over the years: zip archive, pickle stream, tar. Each loader gives the
same: the unpickled object, with `TensorRef` where tensors were, and where each storage is in the file. Then
the state dict is found, and its tensors are handed out. Sources: ``torch/serialization.py`` and
``caffe2/serialize/inline_container.cc``.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from ckptkit.base.budget import LIMITS, Budget
from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import DTYPES, Array, DType, RawTensor, TensorSpec, swapped
from ckptkit.formats.base import AVERAGING_COUNTERS, Copy, Weights
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile
from ckptkit.formats.pickle_machine import Inert, PersistentLoad, PickleMachine
from ckptkit.formats.readers import MappedReader, whole_bytes
from ckptkit.formats.tar import TAR_BLOCK, members_in_place
from ckptkit.formats.torch_pickle import (
    TORCH_DTYPES,
    TORCH_HANDLERS,
    PickledArray,
    StorageRef,
    TensorRef,
    UnsupportedTensor,
    is_array,
    is_scalar,
    parse_storage,
    pickled_array,
    storage_dtype,
    whole_number,
)
from ckptkit.formats.torch_state_dicts import find_state_dict
from ckptkit.formats.zip import STORED, CheckedMembers, ZipEntry, read_directory

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_HEAD_BYTES = 64
_LEGACY_PROTOCOL = 1001
METADATA_RECORD = "ckptkit.json"
_MAX_METADATA_BYTES = 1 << 20
_MAX_RECORDS = 1_000_000
_MAX_DIGITS = 30
_MAX_FILES = 20_000  # a process may have 65,530 maps
_MAX_LOOKED_INTO = 1_000_000
_MAX_BESIDE, _MAX_NOTED = 1000, 20
"""Values that are not tensors: how many are listed by name, and how many of a state dict are noted."""

_TYPE_NAME = re.compile("[a-z][a-z0-9_]{0,63}")
PREFIX = "module."
"""What data parallel models put before every name."""


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
        """The refusal of a file without weights that runs code when it is loaded."""
        return _running(path, self.would_run, "pickle" if self.kind else "torch")


def load_contents(file: MappedFile, folder: Path | None = None) -> TorchContents:
    """Tell the container by its first bytes and read it."""
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
        raise FormatError(file.path, "ckptkit's metadata record is not a table of texts")
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
                self._file.path, f"{end - stop:,} bytes after its end belong to nothing", offset=stop
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
    return file.size >= TAR_BLOCK and file.data[257:262] == b"ustar"


def tar_members(file: MappedFile) -> dict[str, Extent]:
    """Name and place of the files of an uncompressed tar."""
    members: dict[str, Extent] = {}
    with file.path.open("rb") as raw:
        for entry in members_in_place(file.path, raw, most=_MAX_FILES):
            name = entry.name.removeprefix("./")
            if name in members:
                raise FormatError(file.path, f"two tar members are called {name!r}", offset=entry.offset)
            members[name] = Extent(entry.offset_data, entry.size)
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


# -- the tensors of a state dict ---------------------------------------------------------------------------


def _described(value: object, limit: int) -> str:
    from ckptkit.formats.torch_extras import describe  # few files need it to be opened

    return describe(value, limit)


def _tensor(value: object, inside: _Inside) -> TensorRef | PickledArray | str | None:
    """The tensor that a value of a state dict is, or why it cannot be carried; None for other values."""
    if isinstance(value, TensorRef):
        return value
    if isinstance(value, UnsupportedTensor):
        return value.kind
    if isinstance(value, Inert) and (is_array(value) or is_scalar(value)):
        try:
            return pickled_array(value)
        except ValueError as error:
            return str(error)
    return f"tensors in {_described(value, 80)}" if inside.holds_tensors(value) else None


class _Inside:
    """Looks for tensors inside other values, such as packed parameters of a layer."""

    def __init__(self) -> None:
        self._left = _MAX_LOOKED_INTO

    def holds_tensors(self, value: object) -> bool:
        """Whether there are any in a value, or it is too large to be looked through."""
        pending, seen = [value], set()
        while pending:
            inner = pending.pop()
            if isinstance(inner, (TensorRef, UnsupportedTensor, StorageRef)) or is_array(inner):
                return True
            if not isinstance(inner, (dict, list, tuple, Inert)) or id(inner) in seen:
                continue
            seen.add(id(inner))
            self._left -= 1 if isinstance(inner, Inert) else 1 + len(inner)
            if self._left < 0:
                return True
            if isinstance(inner, Inert):
                pending += [*inner.args, inner.state, inner.content]
            else:
                pending += inner.values() if isinstance(inner, dict) else inner
        return False


@dataclass(frozen=True)
class _Named:
    """What a state dict holds, by name."""

    tensors: dict[str, TensorRef | PickledArray] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    beside: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _named_tensors(path: Path, state: dict[object, object], *, as_saved: bool) -> _Named:
    """Take the tensors out of a state dict."""
    found = _Named()
    others = 0
    inside = _Inside()
    for key, value in state.items():
        name = key if isinstance(key, str) else _described(key, 200)
        tensor = _tensor(value, inside)
        if tensor is not None:
            if name in found.tensors or name in found.left_out:
                raise FormatError(path, f"two tensors are called {name!r}")
            if not isinstance(tensor, str):
                found.tensors[name] = tensor
            elif tensor.isprintable():
                found.left_out[name] = tensor
            else:
                raise FormatError(path, f"tensor {name!r} is {_described(value, 200)}")
        else:
            others += 1
            if others <= _MAX_NOTED:
                found.notes.append(
                    f"{_described(name, 80)} is not a tensor ({_described(value, 80)}): skipped"
                )
            if others <= _MAX_BESIDE:
                found.beside[_described(name, 200)] = value
    if others > _MAX_NOTED:
        found.notes.append(f"{others - _MAX_NOTED} more values are not tensors: skipped")
    return found if as_saved else _without_prefix(found)


def _without_prefix(found: _Named) -> _Named:
    """The same less the ``module.`` of data parallel and averaged models, where it is before every name."""
    names = {*found.tensors, *found.left_out}
    inner = names.difference(AVERAGING_COUNTERS)
    if not all(name.startswith(PREFIX) and len(name) > len(PREFIX) for name in inner):
        return found
    if not inner or any(PREFIX + counter in names for counter in names - inner):
        return found
    return _Named(
        {name.removeprefix(PREFIX): tensor for name, tensor in found.tensors.items()},
        {name.removeprefix(PREFIX): why for name, why in found.left_out.items()},
        found.beside,
        [*found.notes, f"the prefix '{PREFIX}' of every name is left out"],
    )


# -- the reader --------------------------------------------------------------------------------------------


class TorchReader(MappedReader):
    """A file written by ``torch.save``: zip archive, legacy pickle stream, or the first tar layout.

    Nothing that the file names is imported or called (see `ckptkit.formats.pickle_machine`).
    """

    format = "torch"

    def __init__(
        self,
        path: str | Path,
        *,
        state_dict: str | None = None,
        weights: Weights | None = None,
        as_saved: bool = False,
    ) -> None:
        self.path = Path(path)
        folder = self.path if self.path.is_dir() else None
        file = MappedFile(self.path if folder is None else folder / "data.pkl")
        self._file, self._files = file, [file]
        self._met: dict[tuple[str, int], DType] = {}
        try:
            contents = load_contents(file, folder)
            self._files += [extent.file for extent in contents.storages.values() if extent.file is not None]
            try:
                found = find_state_dict(
                    self.path,
                    contents.root,
                    wanted=state_dict,
                    weights=weights,
                    described=lambda value: _described(value, 120),
                    kind=contents.kind,
                )
            except FormatError as error:
                if not contents.would_run:
                    raise
                raise contents.refusal(self.path) from error
            self.state_dicts: tuple[str, ...] = found.names
            self.state_dict: str | None = found.name
            self.weights: Copy | None = found.copy
            self.metadata: Mapping[str, str] = contents.metadata
            self._storages, self._big_endian = contents.storages, contents.big_endian
            self._members = contents.members
            named = _named_tensors(self.path, found.table, as_saved=as_saved)
            self._tensors: dict[str, TensorRef] = {}
            self._arrays: dict[str, PickledArray] = {}
            self.specs: Mapping[str, TensorSpec] = self._specs(named)
            self.left_out: Mapping[str, str] = named.left_out
            warning = contents.refusal(self.path)
            warned = [f"this {warning.reason}; {warning.hint}"] if contents.would_run else []
            self.notes: Sequence[str] = [*warned, *named.notes]
            self._refuse_expansion(contents)
            self._root = contents.root
            self._others = [name for name in self.state_dicts if name != self.state_dict]
            self._beside = named.beside
        except BaseException:
            self.close()
            raise

    @cached_property
    def extras(self) -> Mapping[str, str]:
        """What else the file holds (``epoch``, ``arch``, ``args.lr``, ``meta.time``, …), in plain text."""
        from ckptkit.formats.torch_extras import describe_extras

        return {**self._in_state_dict(), **describe_extras(self._root, self.state_dicts)}

    @cached_property
    def also(self) -> Mapping[str, str]:
        """What else the file holds, one line for each key at the top or in the state dict."""
        others = dict.fromkeys(self._others, "another state dict")
        root = self._root if isinstance(self._root, dict) and "" not in self.state_dicts else {}
        values: dict[str, str] = {}
        for key, value in islice(root.items(), _MAX_BESIDE):
            way = [name for name in self.state_dicts if f"{name}.".startswith(f"{key}.")]
            inner = value.items() if way and isinstance(value, dict) else ()
            if not way:
                values[_described(key, 80)] = _described(value, 80)
            for field_, held in islice(inner, _MAX_BESIDE) if key not in way else ():
                if not any(f"{name}.".startswith(f"{key}.{field_}.") for name in way):
                    values[_described(f"{key}.{field_}", 80)] = _described(held, 80)
        return {**self._in_state_dict(), **others, **values}

    def _in_state_dict(self) -> dict[str, str]:
        return {name: _described(value, 80) for name, value in self._beside.items()}

    @cached_property
    def same(self) -> Mapping[str, str]:
        """Tensors that are the very same as an earlier one (tied weights), and which that is."""
        first: dict[object, str] = {}
        same = {}
        for name, tensor in self._tensors.items():
            if 0 not in tensor.shape:
                start, _ = self._span(name)
                earlier = first.setdefault((start, tensor.dtype, tensor.shape, tensor.strides), name)
                if earlier != name:
                    same[name] = earlier
        return same

    @cached_property
    def overlapping(self) -> Sequence[str]:
        """Tensors whose bytes in the file touch those of one before them in the file: tied weights, views."""
        spans = sorted(
            (*self._span(name), name) for name, tensor in self._tensors.items() if 0 not in tensor.shape
        )
        reached = 0
        overlapping = []
        for start, stop, name in spans:
            if start < reached:
                overlapping.append(name)
            reached = max(reached, stop)
        return overlapping

    def _read(self, name: str) -> Array:
        """A view with the strides the tensor was saved with."""
        dtype = whole_bytes(self.path, self.specs[name])
        if name in self._arrays:
            return self._arrays[name].read(self._file)
        array = self._view(name, dtype)
        return swapped(array, dtype) if self._big_endian else array

    def _view(self, name: str, dtype: DType) -> Array:
        tensor = self._tensors[name]
        strides = [
            step * dtype.itemsize if size > 1 else dtype.itemsize
            for size, step in zip(tensor.shape, tensor.strides, strict=True)
        ]
        file, start, _ = self._place(name)
        return file.view(start, dtype, tensor.shape, strides)

    def _raw(self, name: str) -> RawTensor | None:
        spec = self.specs[name]
        if name in self._arrays:
            content = self._arrays[name].plain(self._file)
            return None if content is None else RawTensor(spec.shape, content)
        tensor = self._tensors[name]
        if self._big_endian and spec.dtype.itemsize > 1:
            return None
        if not _is_contiguous(tensor):
            if spec.dtype.itemsize:
                return None
            packed = self._view(name, DTYPES["uint8"]).copy(order="C").reshape(-1)
            return RawTensor(spec.shape, packed.data)
        file, start, stop = self._place(name)
        return RawTensor(spec.shape, file.raw(start, stop - start))

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare the storage of a tensor with the CRC-32 of its zip entry."""
        self._require(name)
        if name in self._arrays:
            return False
        extent = self._storages.get(self._tensors[name].storage.key)
        if extent is None or extent.member is None or self._members is None:
            return False
        return self._members.require(extent.member, f"tensor {name!r}")

    def check_rest(self) -> None:
        """Check every member of a zip archive that has not been checked."""
        if self._members is not None:
            self._members.require_all()

    def _check_bytes(self, name: str) -> None:
        self.check(name)

    def release(self, name: str) -> None:
        """Give back the memory pages of one tensor."""
        self._require(name)
        if name in self._tensors:
            file, start, stop = self._place(name)
            file.release(start, stop - start)
        else:
            self._arrays[name].release(self._file)

    def _extent(self, name: str, tensor: TensorRef) -> Extent:
        extent = self._storages.get(tensor.storage.key)
        if extent is None:
            if 0 in tensor.shape:
                return Extent(0, 0)
            raise FormatError(
                self.path, f"tensor {name!r} needs storage {tensor.storage.key!r}, which is missing"
            )
        return extent

    def _place(self, name: str) -> tuple[MappedFile, int, int]:
        """The file that a checked tensor is in, and its first and last byte (exclusive) there."""
        start, stop = self._span(name)
        extent = self._storages.get(self._tensors[name].storage.key)
        if extent is None or extent.file is None or start == stop:
            return self._file, start, stop
        return extent.file, start - extent.offset, stop - extent.offset

    def _span(self, name: str) -> tuple[int, int]:
        """First and last byte (exclusive) of the file that a checked tensor touches."""
        tensor, itemsize = self._tensors[name], _itemsize(self.specs[name].dtype)
        if 0 in tensor.shape:
            return 0, 0
        start = self._storages[tensor.storage.key].offset + (tensor.storage.offset + tensor.offset) * itemsize
        return start, start + _reach(tensor) * itemsize

    def _specs(self, named: _Named) -> dict[str, TensorSpec]:
        """Check every tensor; one of a type that cannot be carried is left out."""
        specs = {}
        for name, tensor in named.tensors.items():
            if isinstance(tensor, PickledArray):
                specs[name] = TensorSpec(name, tensor.dtype, tensor.shape)
                self._arrays[name] = tensor
                continue
            spec = self._spec(name, tensor)
            if isinstance(spec, str):
                named.left_out[name] = spec
            else:
                specs[name] = spec
                self._tensors[name] = tensor
        return specs

    def _spec(self, name: str, tensor: TensorRef) -> TensorSpec | str:
        """Check that a tensor is inside its storage and its storage inside the file.

        A text says why it cannot be carried.
        """
        storage = tensor.storage
        dtype = TORCH_DTYPES.get(tensor.dtype) or self._unknown_type(tensor)
        storage_dtype = TORCH_DTYPES.get(storage.dtype) if storage.dtype else DTYPES["uint8"]
        if dtype is None or storage_dtype is None:
            unknown = tensor.dtype if dtype is None else str(storage.dtype)
            if not unknown.isprintable():
                raise FormatError(self.path, f"tensor {name!r} has elements of type {unknown!r}")
            return f"elements of type {unknown}, which is not known here"
        if storage.dtype is not None and storage_dtype is not dtype:
            raise FormatError(self.path, f"tensor {name!r} of {dtype} is in a storage of {storage_dtype}")
        if dtype.bits is not None and not tensor.shape:
            return f"a single byte of packed {dtype}, which has no shape"
        extent = self._extent(name, tensor)
        itemsize = _itemsize(dtype)
        held = (storage.offset + storage.count) * storage_dtype.itemsize
        needed = (storage.offset + tensor.offset + _reach(tensor)) * itemsize
        if 0 not in tensor.shape and not needed <= held <= extent.nbytes:
            raise FormatError(
                self.path,
                f"tensor {name!r} needs {needed} bytes of storage {storage.key!r}, "
                f"which declares {held} and has {extent.nbytes}",
                hint="the file is damaged: fetch it again",
            )
        if self._big_endian and dtype.is_opaque and itemsize > 1:
            return f"elements of type {dtype} in big-endian byte order"
        if dtype.bits is None:
            return TensorSpec(name, dtype, tensor.shape)
        return TensorSpec(name, dtype, (*tensor.shape[:-1], tensor.shape[-1] * 8 // dtype.bits))

    def _unknown_type(self, tensor: TensorRef) -> DType | None:
        """A type that only its name is known of, where a tensor fills its storage and so tells its size."""
        if tensor.storage.dtype is not None or tensor.storage.offset or tensor.offset:
            return None
        size = math.prod(tensor.shape)
        width, rest = divmod(tensor.storage.count, size) if size else (0, 1)
        if rest or not width or not _is_contiguous(tensor) or not _TYPE_NAME.fullmatch(tensor.dtype):
            return None
        return self._met.setdefault(
            (tensor.dtype, width), DType(tensor.dtype, width, "opaque", torch=tensor.dtype)
        )

    def _refuse_expansion(self, contents: TorchContents) -> None:
        """A few bytes seen through zero strides can pretend to be any amount of data."""
        real = sum(extent.nbytes for extent in contents.storages.values())
        claimed = sum(self.specs[name].nbytes for name in self._tensors)
        if claimed > LIMITS["nbytes"].of(real):
            raise FormatError(self.path, f"tensors of {claimed} bytes in all, made of {real} bytes of data")


def _itemsize(dtype: DType) -> int:
    """Bytes of what torch counts as an element: of packed types, a byte."""
    return dtype.itemsize or 1


def _is_contiguous(tensor: TensorRef) -> bool:
    """Whether its elements follow each other in C order."""
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _reach(tensor: TensorRef) -> int:
    """Elements from the first to the last one that a tensor touches, both included."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
