"""PyTorch checkpoints, read without torch.

torch.save has used three containers over the years: zip archive, pickle stream, tar. Each loader gives the
same: the unpickled object, with `TensorRef` where tensors were, and where each storage is in the file. Then
the state dict is found, and its tensors are handed out. Sources: ``torch/serialization.py`` and
``caffe2/serialize/inline_container.cc``.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from ckptkit.base.budget import LIMITS, Budget, Limit
from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import DTYPES, Array, DType, RawTensor, TensorSpec, swapped
from ckptkit.base.text import counted
from ckptkit.formats.base import AVERAGING_COUNTERS, Copy, Weights
from ckptkit.formats.far_path import as_path
from ckptkit.formats.json_text import parse_metadata
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile
from ckptkit.formats.pickle_machine import Inert, PersistentLoad, PickleMachine, no_persistent_ids
from ckptkit.formats.readers import MappedReader, whole_bytes
from ckptkit.formats.tar import TAR_BLOCK, members_in_place
from ckptkit.formats.torch_modules import Modules, script_attributes
from ckptkit.formats.torch_pickle import (
    TORCH_DTYPES,
    TORCH_HANDLERS,
    PickledArray,
    StorageRef,
    TensorRef,
    UnsupportedTensor,
    array_or_number,
    describe,
    describe_extras,
    is_array,
    is_tensor,
    parse_storage,
    storage_dtype,
    whole_number,
)
from ckptkit.formats.torch_state_dicts import Table, find_state_dict
from ckptkit.formats.zip import STORED, CheckedMembers, ZipEntry, read_directory

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_HEAD_BYTES = 64
_LEGACY_PROTOCOL = 1001
METADATA_RECORD = "ckptkit.json"
MAX_METADATA_BYTES = 1 << 20
_MAX_SOURCE_BYTES = 16 << 20
_MAX_RECORDS = 1_000_000
_MAX_DIGITS = 30
_MAX_FILES = 20_000  # a process may have 65,530 maps
_MAX_LOOKED_INTO = 1_000_000
_MAX_BESIDE, _MAX_NOTED = 1000, 20
"""Values that are not tensors: how many are listed by name, and how many of a state dict are noted."""

_TYPE_NAME = re.compile("[a-z][a-z0-9_]{0,63}")
PREFIX = "module."
"""What data parallel models put before every name."""

_AGAIN = "fetch it again"


@dataclass(frozen=True)
class Extent:
    """Bytes of one storage, and the ``member`` that they are of a zip archive."""

    file: MappedFile
    offset: int
    nbytes: int
    member: ZipEntry | None = None


@dataclass(frozen=True)
class _Contents:
    """What a file holds: the object that was saved, its storages by key, and our own metadata."""

    root: object
    storages: Mapping[str, Extent]
    metadata: Mapping[str, str] = field(default_factory=dict)
    big_endian: bool = False  # whether each element's bytes in the storages run the other way
    kind: str = ""  # what the file is where torch.save did not write it
    notes: tuple[str, ...] = ()
    beside: Mapping[str, object] = field(default_factory=dict)  # attributes that are not of a state dict
    members: CheckedMembers | None = None  # of a zip archive


class _Stream:
    """Pickles and storages one after the other in a range of a file; all ranges share one budget of work."""

    def __init__(self, file: MappedFile, limits: Mapping[str, Limit] = LIMITS) -> None:
        self.file = file
        self.at, self.end = 0, file.size
        self._budget = Budget(file.size, partial(FormatError, file.path), limits)
        self.would_run: dict[str, None] = {}

    def within(self, start: int, nbytes: int) -> _Stream:
        """A stream over a part of the file."""
        part = copy(self)
        part.at, part.end = start, start + nbytes
        return part

    def pickle(self, persistent_load: PersistentLoad = no_persistent_ids) -> Any:
        """The value of the next pickle."""
        machine = PickleMachine(
            self.file.path,
            self.file.data,
            self.at,
            self.end,
            handlers=TORCH_HANDLERS,
            persistent_load=persistent_load,
            budget=self._budget,
            would_run=self.would_run,
        )
        value = machine.run()
        self.at = machine.position
        return value

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if self.at + count > self.end:
            raise self.error("the file ends before its tensors do", _AGAIN)
        self.at += count
        return self.file.data[self.at - count : self.at]

    def storage(self, itemsize: int) -> Extent:
        """The next storage: an 8-byte count, then the elements."""
        (count,) = struct.unpack("<q", self.take(8))
        extent = Extent(self.file, self.at, count * itemsize)
        if count < 0 or extent.nbytes > self.end - self.at:
            self.at -= 8
            reason = f"a storage of {counted(count, 'element')} reaches beyond the end of the file"
            raise self.error(reason, f"it is probably truncated: {_AGAIN}")
        self.at += extent.nbytes
        return extent

    def finish(self) -> None:
        """Refuse what follows the last thing that a reader takes: another may take that."""
        if self.at != self.end:
            raise self.error(f"{self.end - self.at:,} bytes after its end belong to nothing")

    def whole(self, persistent_load: PersistentLoad = no_persistent_ids) -> Any:
        """The value of a pickle that ends where the range does."""
        value = self.pickle(persistent_load)
        self.finish()
        return value

    def error(self, reason: str, hint: str | None = None) -> FormatError:
        """The refusal of what is at this place."""
        return self.file.fault(reason, self.at, hint)


def _load(stream: _Stream) -> _Contents:
    """What a file holds, with the state dicts of modules in their places."""
    attributes: dict[str, tuple[str, ...]] = {}
    contents = _load_container(stream, attributes)
    modules = Modules(stream.file.fault, attributes)
    root = modules.replaced(contents.root)
    notes = (*contents.notes, *modules.notes())
    return replace(contents, root=root, notes=notes, beside=modules.others)


def _load_container(stream: _Stream, attributes: dict[str, tuple[str, ...]]) -> _Contents:
    """Tell the container by its first bytes and read it; ``attributes`` get those of scripted modules."""
    file = stream.file
    if file.data[:2] == b"PK":
        return _load_zip(stream, attributes)
    if file.data[:1] in (b"\x80", b"L") and (start := legacy_start(file)):
        return _load_legacy(stream.within(start, file.size - start))
    if file.size >= TAR_BLOCK and file.data[257:262] == b"ustar":
        return _load_tar(stream)
    if is_pickle(file.data[:MAX_PICKLE_HEAD], file.data[file.size - 1 :]):
        return _Contents(stream.whole(), {}, kind="a plain Python pickle")  # of numpy arrays, or of no use
    raise file.fault("not a PyTorch checkpoint (no zip, pickle or tar header)", offset=0)


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


def _running(path: Path, would_run: Mapping[str, None], kind: str = "") -> FormatError:
    """The refusal of a file that runs code when it is loaded elsewhere."""
    names = list(would_run)
    listed = (
        " and ".join(names[:2]) if len(names) < 3 else f"{names[0]}, {names[1]} and {len(names) - 2} more"
    )
    reason = f"is a pickle that would run {listed} when loaded by {'pickle' if kind else 'torch'}.load"
    return FormatError(path, reason, hint="ckptkit does not run it")


# -- zip archive (torch >= 1.6), or what unzipping it leaves ------------------------------------------------


def _load_zip(stream: _Stream, attributes: dict[str, tuple[str, ...]]) -> _Contents:
    file = stream.file
    directory = read_directory(file, later=lambda name: name.partition("/")[2].startswith("data/"))
    entries = directory.entries
    root = _root_of(file.path, list(entries))
    prefix = root + "data/"
    members = CheckedMembers(file, directory, may_lack=True)
    for name, entry in entries.items():
        is_storage = name.startswith(prefix)
        if entry.method == STORED and not is_storage and entry.size <= MAX_METADATA_BYTES:
            members.require(entry)

    def record(name: str, limit: int) -> bytes | None:
        entry = entries.get(root + name)
        if entry is None:
            return None
        if entry.size > limit:
            raise file.fault(f"zip entry {entry.name!r} has {entry.size} bytes, more than {limit}")
        extent = _stored_extent(file, entry)
        return file.data[extent.offset : extent.offset + extent.nbytes]

    storages = {
        name.removeprefix(prefix): _stored_extent(file, entry)
        for name, entry in entries.items()
        if name.startswith(prefix)
    }
    pickle = _stored_extent(file, entries[root + "data.pkl"])
    members.require(entries[root + "data.pkl"])
    contents = _from_records(
        stream.within(pickle.offset, pickle.nbytes), file.path, record, storages, members
    )
    if root + "constants.pkl" not in entries:
        return contents
    attributes.update(script_attributes(_sources(file, entries, members, root)))
    constants = sum(name.startswith(root + "constants/") for name in entries)
    told = f"{counted(constants, 'constant')} of its code {'is' if constants == 1 else 'are'} not read"
    return replace(contents, notes=(told,)) if constants else contents


def _sources(
    file: MappedFile, entries: Mapping[str, ZipEntry], members: CheckedMembers, root: str
) -> Iterator[tuple[str, str]]:
    """The modules of a TorchScript archive's code, by name, and their texts."""
    left = _MAX_SOURCE_BYTES
    for name, entry in entries.items():
        if name.startswith(root + "code/") and name.endswith(".py"):
            left -= entry.size
            if left < 0:
                raise file.fault(f"more than {_MAX_SOURCE_BYTES:,} bytes of code")
            if entry.method == STORED:
                members.require(entry)
                text = file.data[entry.offset : entry.offset + entry.size]
            else:
                text = b"".join(members.inflated(entry))
            module = name.removeprefix(root + "code/").removesuffix(".py").replace("/", ".")
            yield module, text.decode("utf-8", "replace")


def _root_of(path: Path, names: Sequence[str]) -> str:
    """The folder in a zip archive that everything is in."""
    if len({name.lower() for name in names}) < len(names):
        raise FormatError(path, "two zip entries that are one to torch, which ignores letter case")
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise FormatError(
            path, f"a zip archive with {len(pickles)} data.pkl records: not a PyTorch checkpoint"
        )
    root = pickles[0].removesuffix("data.pkl")
    if not names[0].startswith(root):  # which is where torch takes the folder's name from
        raise FormatError(path, f"a zip archive whose first entry is not in {root!r}, as torch expects")
    return root


def _stored_extent(file: MappedFile, entry: ZipEntry) -> Extent:
    if entry.method != STORED:
        raise file.fault(
            f"zip entry {entry.name!r} is compressed, which torch.load refuses too",
            hint="unpack it and save the state_dict with torch.save",
        )
    return Extent(file, entry.offset, entry.size, entry)


def _load_folder(stream: _Stream, folder: Path, files: list[MappedFile]) -> _Contents:
    """Read an unpacked archive, where each storage is a separate file, kept in ``files``."""
    if (folder / "constants.pkl").exists():
        raise FormatError(folder, "is a TorchScript archive, unpacked", hint="give the archive itself")

    def record(name: str, limit: int) -> bytes | None:
        path = folder / name
        if not path.is_file():
            return None
        with path.open("rb") as opened:
            raw = opened.read(limit + 1)
        if len(raw) > limit:
            raise FormatError(path, f"more than {limit} bytes")
        return raw

    storages: dict[str, Extent] = {}
    for path in sorted((folder / "data").iterdir()) if (folder / "data").is_dir() else []:
        if path.is_symlink() or not path.is_file() or len(storages) == _MAX_FILES:
            raise FormatError(folder, f"data{os.sep}{path.name} is not a file of its own, or one too many")
        if path.stat().st_size:
            files.append(MappedFile(path))
            storages[path.name] = Extent(files[-1], 0, files[-1].size)
        else:
            storages[path.name] = Extent(stream.file, 0, 0)
    return _from_records(stream, folder, record, storages)


def _from_records(
    pickle: _Stream,
    path: Path,
    record: Callable[[str, int], bytes | None],
    storages: Mapping[str, Extent],
    members: CheckedMembers | None = None,
) -> _Contents:
    order = record("byteorder", 16)
    if order not in (None, b"little", b"big"):
        raise FormatError(path, f"a byte order {order!r}, which is neither little nor big")
    root = pickle.whole(parse_storage)
    ours = record(METADATA_RECORD, MAX_METADATA_BYTES)
    metadata = {} if ours is None else parse_metadata(path, ours)
    return _Contents(root, storages, metadata, big_endian=order == b"big", members=members)


# -- pickle stream (torch < 1.6, and mmcv's publish tools) ---------------------------------------------------


def legacy_start(file: MappedFile) -> int | None:
    """Where the magic number of a legacy file ends, whatever pickle protocol it is written in."""
    head = _Stream(file).within(0, min(file.size, _LEGACY_HEAD_BYTES))
    try:
        number = head.pickle()
    except FormatError:
        return None
    return head.at if type(number) is int and number == LEGACY_MAGIC else None


def _load_legacy(stream: _Stream) -> _Contents:
    """Pickles of the version, the system, the object and the storages' keys; then the storages."""
    path, start = stream.file.path, stream.at
    if stream.pickle() != _LEGACY_PROTOCOL:
        raise FormatError(path, "unknown version of the legacy PyTorch format", offset=start)
    start = stream.at
    system = stream.pickle()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise FormatError(
            path,
            "saved on a machine of big-endian byte order, in the format before torch 1.6, or damaged",
            offset=start,
            hint="load it with torch and save it again",
        )
    sizes: dict[str, int] = {}

    def storage(identifier: object) -> object:
        if isinstance(identifier, tuple) and len(identifier) == 4 and identifier[0] == "module":
            return identifier[1]  # (…, class, file, source): code saved beside a module
        found = parse_storage(identifier)
        # The stream does not say how long an element is; the pickle, which comes first, does.
        known = DTYPES.get(found.dtype) if found.dtype else DTYPES["uint8"]
        if known is None:
            raise ValueError(f"a storage of {found.dtype}, which cannot be skipped over")
        if sizes.setdefault(found.key, known.itemsize) != known.itemsize:
            raise ValueError(f"storage {found.key} has two element types")
        return found

    root = stream.pickle(storage)
    start = stream.at
    keys = stream.pickle()
    if not isinstance(keys, list) or not all(isinstance(key, (str, int)) for key in keys):
        raise FormatError(path, "the list of storages is damaged", offset=start)
    storages: dict[str, Extent] = {}
    for key in map(str, keys):
        if key not in sizes or key in storages:
            raise stream.error(f"storage {key!r} is listed but belongs to no tensor, or twice")
        storages[key] = stream.storage(sizes[key])
    stream.finish()
    return _Contents(root, storages)


# -- tar (before torch 0.1.10) -------------------------------------------------------------------------------


def tar_members(file: MappedFile) -> dict[str, tuple[int, int]]:
    """Where each file of an uncompressed tar begins, and its bytes, by name."""
    members: dict[str, tuple[int, int]] = {}
    with file.path.open("rb") as raw:
        for entry in members_in_place(file.path, raw, most=_MAX_FILES):
            name = entry.name.removeprefix("./")
            if name in members:
                raise file.fault(f"two tar members are called {name!r}", offset=entry.offset)
            members[name] = (entry.offset_data, entry.size)
    return members


def _load_tar(stream: _Stream) -> _Contents:
    """Lists of storages and of tensors, and an object that refers to them; addresses serve as keys."""
    path = stream.file.path
    members = tar_members(stream.file)
    missing = [name for name in ("pickle", "storages", "tensors") if name not in members]
    if missing:
        raise FormatError(path, f"a tar without {', '.join(missing)}: not a PyTorch checkpoint")
    objects: dict[int, object] = {}
    storages = _tar_storages(stream.within(*members["storages"]), objects)
    _tar_tensors(stream.within(*members["tensors"]), objects)

    def load(identifier: object) -> object:
        if isinstance(identifier, tuple) and identifier:  # (class, file, source): code saved beside a module
            return identifier[0]
        if isinstance(identifier, str) and len(identifier) > _MAX_DIGITS:
            raise ValueError(f"a key of {counted(len(identifier), 'character')}")
        key = whole_number(int(identifier) if isinstance(identifier, str) else identifier, "a key")
        if key not in objects:
            raise ValueError(f"tensor {key} is not in the file")
        return objects[key]

    return _Contents(stream.within(*members["pickle"]).whole(load), storages)


@contextlib.contextmanager
def _list_of(what: str, stream: _Stream) -> Iterator[range]:
    """A counted list in a member of a tar; what goes wrong in it is damage."""
    try:
        count = whole_number(stream.pickle(), f"the number of {what}")
        if count > _MAX_RECORDS:
            raise ValueError(f"{count} {what}")
        yield range(count)
    except (KeyError, ValueError, struct.error) as error:
        raise stream.error(f"damaged list of {what}: {error}") from error


def _record(value: object, count: int) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)) or len(value) != count:
        raise ValueError("a malformed record of a tensor or storage")
    return tuple(value)


def _tar_storages(stream: _Stream, objects: dict[int, object]) -> dict[str, Extent]:
    extents: dict[str, Extent] = {}
    with _list_of("storages", stream) as numbers:
        for _ in numbers:
            key, _, kind = _record(stream.pickle(), 3)
            dtype = DTYPES[storage_dtype(kind) or "uint8"]
            name = str(whole_number(key, "a key"))
            extents[name] = stream.storage(dtype.itemsize)
            objects[key] = StorageRef(name, dtype.name, extents[name].nbytes // dtype.itemsize)
        views = stream.whole()
        for view in views if isinstance(views, list) else []:
            target, root, offset, count = (whole_number(number, "a view") for number in _record(view, 4))
            base = objects[root]
            if not isinstance(base, StorageRef) or offset + count > base.count:
                raise ValueError("a view beyond its storage")
            objects[target] = StorageRef(base.key, base.dtype, count, base.offset + offset)
    return extents


def _tar_tensors(stream: _Stream, objects: dict[int, object]) -> None:
    """Each tensor is a record, and its number of axes (as 8 bytes), sizes, strides and offset."""
    with _list_of("tensors", stream) as numbers:
        for _ in numbers:
            key, storage, _ = _record(stream.pickle(), 3)
            base = objects[whole_number(storage, "a key")]
            if not isinstance(base, StorageRef) or base.dtype is None:
                raise ValueError(f"tensor {whole_number(key, 'a key')} has no storage")
            axes = int.from_bytes(stream.take(8)[:4], "little")
            if axes > MAX_DIMS:
                raise ValueError(f"a tensor of {counted(axes, 'axis')}")
            values = struct.unpack(f"<{2 * axes + 1}q", stream.take(16 * axes + 8))
            for number in values:
                whole_number(number, "a size, stride or offset")
            tensor = TensorRef(base, base.dtype, values[-1], values[:axes], values[axes : 2 * axes])
            objects[whole_number(key, "a key")] = tensor
        stream.finish()


# -- one file ------------------------------------------------------------------------------------------------


class TorchFile:
    """What torch.save wrote: an object, and where the bytes of its tensors are.

    ``folder`` is an unpacked archive, whose other files are opened and added to ``files``.
    """

    def __init__(
        self,
        file: MappedFile,
        folder: Path | None = None,
        files: list[MappedFile] | None = None,
        *,
        limits: Mapping[str, Limit] = LIMITS,
    ) -> None:
        self.path = folder or file.path
        self._file = file
        stream = _Stream(file, limits)
        self.would_run = stream.would_run
        self.kind = ""
        with self.running():
            contents = (
                _load_folder(stream, folder, [] if files is None else files) if folder else _load(stream)
            )
        self.root, self.metadata, self.kind = contents.root, contents.metadata, contents.kind
        self._storages, self._big_endian = contents.storages, contents.big_endian
        self._members = contents.members
        self.told, self.beside = contents.notes, contents.beside
        self._met: dict[tuple[str, int], DType] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Refuse a file, for whatever reason, as one that runs code where it does."""
        try:
            yield
        except FormatError as error:
            if self.would_run:
                raise _running(self.path, self.would_run, self.kind) from error
            raise

    def note_running(self) -> list[str]:
        """A sentence on what a file runs that is read all the same."""
        if not self.would_run:
            return []
        warning = _running(self.path, self.would_run, self.kind)
        return [f"this {warning.reason}; {warning.hint}"]

    def spec(self, name: str, tensor: TensorRef) -> TensorSpec | str:
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
        extent = self._storages.get(storage.key)
        if extent is None and 0 not in tensor.shape:
            raise FormatError(self.path, f"tensor {name!r} needs storage {storage.key!r}, which is missing")
        itemsize = _itemsize(dtype)
        held = (storage.offset + storage.count) * storage_dtype.itemsize
        needed = (storage.offset + tensor.offset + _reach(tensor)) * itemsize
        if extent and 0 not in tensor.shape and not needed <= held <= extent.nbytes:
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

    def refuse_expansion(self, claimed: int) -> None:
        """A few bytes seen through zero strides can pretend to be any amount of data."""
        real = sum(extent.nbytes for extent in self._storages.values())
        if claimed > LIMITS["nbytes"].of(real):
            raise FormatError(self.path, f"its tensors claim {claimed} bytes, but share {real} bytes of data")

    def read(self, tensor: TensorRef, dtype: DType) -> Array:
        """A view with the strides a checked tensor was saved with."""
        array = self._view(tensor, dtype)
        return swapped(array, dtype) if self._big_endian else array

    def _view(self, tensor: TensorRef, dtype: DType) -> Array:
        strides = [
            step * dtype.itemsize if size > 1 else dtype.itemsize
            for size, step in zip(tensor.shape, tensor.strides, strict=True)
        ]
        file, start, _ = self.span(tensor, dtype)
        return file.view(start, dtype, tensor.shape, strides)

    def raw(self, tensor: TensorRef, spec: TensorSpec) -> RawTensor | None:
        """The bytes of a checked tensor, where they are in C order, or there are no whole elements."""
        if self._big_endian and spec.dtype.itemsize > 1:
            return None
        if not _is_contiguous(tensor):
            if spec.dtype.itemsize:
                return None
            packed = self._view(tensor, DTYPES["uint8"]).copy(order="C").reshape(-1)
            return RawTensor(spec.shape, packed.data)
        file, start, stop = self.span(tensor, spec.dtype)
        return RawTensor(spec.shape, file.raw(start, stop - start))

    def check(self, tensor: TensorRef, what: str) -> bool:
        """Compare the storage of a tensor with the CRC-32 of its zip entry."""
        extent = self._storages.get(tensor.storage.key)
        if extent is None or extent.member is None or self._members is None:
            return False
        return self._members.require(extent.member, what)

    def check_rest(self) -> None:
        """Check every member of a zip archive that has not been checked."""
        if self._members is not None:
            self._members.require_all()

    def release(self, tensor: TensorRef, dtype: DType) -> None:
        """Give back the memory pages of one tensor."""
        file, start, stop = self.span(tensor, dtype)
        file.release(start, stop - start)

    def span(self, tensor: TensorRef, dtype: DType) -> tuple[MappedFile, int, int]:
        """The file that a checked tensor is in, and its first and last byte (exclusive) there."""
        if 0 in tensor.shape:
            return self._file, 0, 0
        extent = self._storages[tensor.storage.key]
        start = extent.offset + (tensor.storage.offset + tensor.offset) * _itemsize(dtype)
        return extent.file, start, start + _reach(tensor) * _itemsize(dtype)


# -- the readers ---------------------------------------------------------------------------------------------


class StateDictReader(MappedReader):
    """The state dict that is wanted of an object, and what else the object holds."""

    _root: object

    def __init__(
        self,
        path: str | Path,
        file: Path | None = None,
        *,
        state_dict: str | None = None,
        weights: Weights | None = None,
        as_saved: bool = False,
    ) -> None:
        self._wanted = (state_dict, weights)
        self._as_saved = as_saved
        self.notes: list[str] = []
        self._beside: dict[str, object] = {}
        super().__init__(path, file)

    def _find(self, root: object, kind: str = "") -> Table:
        """The state dict to read."""
        wanted, weights = self._wanted
        found = find_state_dict(self.path, root, wanted=wanted, weights=weights, kind=kind)
        self.state_dicts, self.state_dict = found.names, found.name
        self.weights: Copy | None = found.copy
        self._root = root
        return found.table

    def _values(self, table: Mapping[object, object]) -> dict[str, TensorRef | PickledArray | str]:
        """The tensors of a state dict by name, or why one cannot be carried."""
        values: dict[str, TensorRef | PickledArray | str] = {}
        others, inside = 0, Inside()
        for key, value in table.items():
            name = key if isinstance(key, str) else describe(key, 200)
            tensor = inside.tensor(value)
            if tensor is None:
                others += 1
                self._set_aside(name, value, others)
            elif name in values:
                raise FormatError(self.path, f"two tensors are called {name!r}")
            elif isinstance(tensor, str) and not tensor.isprintable():
                raise FormatError(self.path, f"tensor {name!r} is {describe(value, 200)}")
            else:
                values[name] = tensor
        if others > _MAX_NOTED:
            self.notes.append(f"{counted(others - _MAX_NOTED, 'more value', 'are')} not tensors: skipped")
        if self._as_saved or not _all_have_prefix(values.keys()):
            return values
        self.notes.append(f"the prefix '{PREFIX}' of every name is left out")
        return {name.removeprefix(PREFIX): tensor for name, tensor in values.items()}

    def _set_aside(self, name: str, value: object, count: int) -> None:
        """Keep a value that is not a tensor for `also` and `extras`."""
        if count <= _MAX_NOTED:
            self.notes.append(f"{describe(name, 80)} is not a tensor ({describe(value, 80)}): skipped")
        if count <= _MAX_BESIDE:
            self._beside[describe(name, 200)] = value

    @property
    def _content(self) -> object:
        """The object that was saved."""
        return self._root

    @cached_property
    def extras(self) -> Mapping[str, str]:
        """What else the file holds (``epoch``, ``arch``, ``args.lr``, ``meta.time``, …), in plain text."""
        return {**self._in_state_dict(), **describe_extras(self._content, self.state_dicts)}

    @cached_property
    def also(self) -> Mapping[str, str]:
        """What else the file holds, one line for each key at the top or in the state dict."""
        others = dict.fromkeys(
            (name for name in self.state_dicts if name != self.state_dict), "another state dict"
        )
        content = self._content
        root = content if isinstance(content, dict) and "" not in self.state_dicts else {}
        values: dict[str, str] = {}
        for key, value in islice(root.items(), _MAX_BESIDE):
            way = [name for name in self.state_dicts if f"{name}.".startswith(f"{key}.")]
            inner = value.items() if way and isinstance(value, dict) else ()
            if not way:
                values[describe(key, 80)] = describe(value, 80)
            for field_, held in islice(inner, _MAX_BESIDE) if key not in way else ():
                if not any(f"{name}.".startswith(f"{key}.{field_}.") for name in way):
                    values[describe(f"{key}.{field_}", 80)] = describe(held, 80)
        return {**self._in_state_dict(), **others, **values}

    def _in_state_dict(self) -> dict[str, str]:
        return {name: describe(value, 80) for name, value in self._beside.items()}


class TorchReader(StateDictReader):
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
        self._folder = folder if (folder := as_path(path)).is_dir() else None
        file = self._folder and self._folder / "data.pkl"
        super().__init__(path, file, state_dict=state_dict, weights=weights, as_saved=as_saved)

    def _open(self) -> None:
        self._torch = TorchFile(self._file, self._folder, self._files)
        with self._torch.running():
            table = self._find(self._torch.root, self._torch.kind)
        self.metadata: Mapping[str, str] = self._torch.metadata
        self.notes += [*self._torch.told, *self._torch.note_running()]
        self._beside.update(self._torch.beside)
        self._take(self._values(table))
        self._torch.refuse_expansion(sum(self.specs[name].nbytes for name in self._tensors))

    def _take(self, values: Mapping[str, TensorRef | PickledArray | str]) -> None:
        """Check every tensor; what cannot be carried is left out."""
        self._tensors: dict[str, TensorRef] = {}
        self._arrays: dict[str, PickledArray] = {}
        specs: dict[str, TensorSpec] = {}
        left_out: dict[str, str] = {}
        for name, value in values.items():
            spec = self._torch.spec(name, value) if isinstance(value, TensorRef) else value
            if isinstance(spec, str):
                left_out[name] = spec
            elif isinstance(spec, PickledArray):
                self._arrays[name] = spec
                specs[name] = TensorSpec(name, spec.dtype, spec.shape)
            elif isinstance(value, TensorRef):
                self._tensors[name] = value
                specs[name] = spec
        self.specs: Mapping[str, TensorSpec] = specs
        self.left_out: Mapping[str, str] = left_out

    @cached_property
    def same(self) -> Mapping[str, str]:
        """Tensors that are the very same as an earlier one (tied weights), and which that is."""
        first: dict[object, str] = {}
        same = {}
        for name, tensor in self._tensors.items():
            if 0 not in tensor.shape:
                file, start, _ = self._span(name)
                earlier = first.setdefault((file, start, tensor.dtype, tensor.shape, tensor.strides), name)
                if earlier != name:
                    same[name] = earlier
        return same

    @cached_property
    def overlapping(self) -> Sequence[str]:
        """Tensors whose bytes in the file touch those of one before them in the file: tied weights, views."""
        spans = []
        for name, tensor in self._tensors.items():
            if 0 not in tensor.shape:
                file, start, stop = self._span(name)
                spans.append((str(file.path), start, stop, name))
        reached = ("", 0)
        overlapping = []
        for path, start, stop, name in sorted(spans):
            if (path, start) < reached:
                overlapping.append(name)
            reached = max(reached, (path, stop))
        return overlapping

    def _read(self, name: str) -> Array:
        """A view with the strides the tensor was saved with."""
        dtype = whole_bytes(self.path, self.specs[name])
        if name in self._arrays:
            return self._arrays[name].read(self._file)
        return self._torch.read(self._tensors[name], dtype)

    def _raw(self, name: str) -> RawTensor | None:
        spec = self.specs[name]
        if name in self._arrays:
            content = self._arrays[name].plain(self._file)
            return None if content is None else RawTensor(spec.shape, content)
        return self._torch.raw(self._tensors[name], spec)

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare the storage of a tensor with the CRC-32 of its zip entry."""
        self._require(name)
        return name in self._tensors and self._torch.check(self._tensors[name], f"tensor {name!r}")

    def check_rest(self) -> None:
        """Check every member of a zip archive that has not been checked."""
        self._torch.check_rest()

    def _check_bytes(self, name: str) -> None:
        self.check(name)

    def release(self, name: str) -> None:
        """Give back the memory pages of one tensor."""
        self._require(name)
        if name in self._arrays:
            self._arrays[name].release(self._file)
        else:
            self._torch.release(self._tensors[name], self.specs[name].dtype)

    def _span(self, name: str) -> tuple[MappedFile, int, int]:
        return self._torch.span(self._tensors[name], self.specs[name].dtype)


class Inside:
    """Tells tensors, and other values that hold some, such as packed parameters of a layer."""

    def __init__(self) -> None:
        self._left = _MAX_LOOKED_INTO

    def tensor(self, value: object) -> TensorRef | PickledArray | str | None:
        """The tensor that a value of a state dict is, or why it cannot be carried; None for other values."""
        if isinstance(value, TensorRef):
            return value
        if isinstance(value, UnsupportedTensor):
            return value.kind
        found = array_or_number(value)
        if found is None and self._holds_tensors(value):
            return f"tensors in {describe(value, 80)}"
        return found

    def _holds_tensors(self, value: object) -> bool:
        """Whether there are any in a value, or it is too large to be looked through."""
        pending, seen = [value], set()
        while pending:
            inner = pending.pop()
            if is_tensor(inner) or isinstance(inner, StorageRef) or is_array(inner):
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


def _all_have_prefix(names: Collection[str]) -> bool:
    """Whether the ``module.`` of data parallel and averaged models is before all names but of counters."""
    inner = set(names).difference(AVERAGING_COUNTERS)
    counters = set(names) - inner
    return (
        bool(inner)
        and all(name.startswith(PREFIX) and len(name) > len(PREFIX) for name in inner)
        and not any(PREFIX + counter in inner for counter in counters)
    )


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
