"""Checkpoints of torch.distributed.checkpoint (DCP), as FSDP and others save them, read without torch.

A folder: the pickle ``.metadata`` says what every tensor is and which chunks it was cut into, and in which
file, ``__0_0.distcp`` and so on, each chunk is. A chunk is what torch.save writes, one after the other. What
is not a tensor (a step, a learning rate) is kept in the same way. Sources: ``metadata.py``,
``filesystem.py``, ``planner_helpers.py`` and ``_traverse.py`` in ``torch/distributed/checkpoint``.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from ckptkit.base.budget import LIMITS
from ckptkit.base.errors import FormatError, listed
from ckptkit.base.tensors import DTYPES, Array, DType, RawTensor, TensorSpec, copy_elements
from ckptkit.base.text import counted
from ckptkit.formats.base import Sample, Weights
from ckptkit.formats.far_path import as_path
from ckptkit.formats.json_text import parse_metadata
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile, MappedPart
from ckptkit.formats.pickle_machine import GlobalName, Inert
from ckptkit.formats.readers import whole_bytes
from ckptkit.formats.shards import is_plain_name
from ckptkit.formats.torch_pickle import (
    TORCH_DTYPES,
    PickledArray,
    StorageRef,
    TensorRef,
    UnsupportedTensor,
    describe,
    whole_number,
)
from ckptkit.formats.torch_reader import (
    MAX_METADATA_BYTES,
    METADATA_RECORD,
    Inside,
    StateDictReader,
    TorchFile,
)

METADATA, ENDING = ".metadata", ".distcp"
MODULE = "torch.distributed.checkpoint"
VERSION = "1.0.0"

_LIMITS = {**LIMITS, "steps": replace(LIMITS["steps"], ceiling=128_000_000)}
"""A checkpoint of hundreds of ranks has a million chunks; one takes some 240 steps and 150 bytes."""

_MAX_FILES = 20_000
_MAX_SPLIT = 6
"""Axes that a tensor is cut along: meshes have three or four."""

_MAX_OBJECTS = 1000
_MAX_PATH = 32
_OPTIMIZER = re.compile(
    r"^(?:optim|optimizers?)(?:_states?)?(?:[._]\d+)?\.|^state\..+\.(?:exp_avg|exp_avg_sq|step|momentum_buffer)$"
)
"""Names that DCP gives the tensors of an optimizer that was saved beside the model."""

_AGAIN = "fetch it again"
_PLAINLY = "save it with torch.distributed.checkpoint.save, without serialization_format"
_OWN = "load it with torch.distributed.checkpoint and save it again"


# -- .metadata -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where something that torch.save wrote is."""

    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: Place


@dataclass(frozen=True, eq=False, slots=True)
class ChunkedTensor:
    """A tensor, and the boxes that fill it; those without elements have a place alone."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    places: Sequence[Place]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, of which an unknown type has one each at least."""
        dtype = TORCH_DTYPES.get(self.dtype)
        return math.prod(self.shape) * max(dtype.itemsize if dtype else 1, 1)


@dataclass(frozen=True, eq=False, slots=True)
class StoredObject:
    """A value that is not a tensor."""

    place: Place

    @property
    def places(self) -> Sequence[Place]:
        """The one place, as tensors have several."""
        return [self.place]


Entries = Mapping[str, "ChunkedTensor | StoredObject"]


def read_metadata(root: object) -> tuple[Entries, Mapping[str, tuple[str, ...]]]:
    """Everything that ``.metadata`` lists, by its flat name, and the keys that led to each; or ValueError."""
    state = _state(root, "Metadata")
    version = state.get("version")
    if version is not None and not str(version).startswith("1."):
        raise ValueError(f"is version {describe(version, 40)} of torch.distributed.checkpoint, not {VERSION}")
    listed_, stored = state.get("state_dict_metadata"), state.get("storage_data")
    if not isinstance(listed_, dict) or not isinstance(stored, dict):
        raise ValueError("lacks the tables of what is in the checkpoint, and where")
    places = _places(stored)
    entries: dict[str, ChunkedTensor | StoredObject] = {}
    for name, entry in listed_.items():
        if not isinstance(name, str):
            raise ValueError(f"an entry without a name: {describe(name, 80)}")
        found = places.pop(name, {})
        try:
            kind = entry.name.rpartition(".")[2] if isinstance(entry, Inert) else ""
            if kind == "BytesStorageMetadata":
                entries[name] = StoredObject(_the_only(found))
            else:
                entries[name] = _tensor(_state(entry, "TensorStorageMetadata"), found)
        except ValueError as error:
            raise ValueError(f"{describe(name, 200)}: {error}") from error
    if places:
        raise ValueError(f"places {describe(next(iter(places)), 200)}, which it does not list")
    return entries, _paths(state.get("planner_data"), entries)


def _state(value: object, kind: str) -> dict[Any, Any]:
    """The attributes of an object of one of DCP's classes."""
    if (
        not isinstance(value, Inert)
        or not value.name.startswith("torch.distributed.")
        or value.name.rpartition(".")[2] != kind
        or not isinstance(value.state, dict)
    ):
        raise ValueError(f"expected {kind} of {MODULE}, found {describe(value, 80)}")
    return value.state


def _places(stored: Mapping[object, object]) -> dict[str, dict[tuple[int, ...] | None, Place]]:
    """Where each chunk is, by the name of its tensor and its offsets there; objects have none."""
    places: dict[str, dict[tuple[int, ...] | None, Place]] = defaultdict(dict)
    files: dict[str, str] = {}
    for key, value in stored.items():
        index, info = _state(key, "MetadataIndex"), _state(value, "_StorageInfo")
        name, offset, file = index.get("fqn"), index.get("offset"), info.get("relative_path")
        if not isinstance(name, str) or not isinstance(file, str):
            raise ValueError("a chunk without a name, or without a file")
        if transforms := info.get("transform_descriptors"):
            raise ValueError(
                f"holds data packed by {describe(transforms, 80)}, which ckptkit does not unpack"
            )
        if file not in files and not (is_plain_name(file) and file.isprintable() and file != METADATA):
            raise ValueError(
                f"places {describe(name, 200)} in {describe(file, 200)}, which is not a file name"
            )
        at = None if offset is None else _axes(offset)
        if at in places[name]:
            raise ValueError(f"places {describe(name, 200)} at {list(at or ())} twice")
        places[name][at] = Place(
            files.setdefault(file, file),
            whole_number(info.get("offset"), "an offset in a file"),
            whole_number(info.get("length"), "a length in a file"),
        )
        if len(files) > _MAX_FILES:
            raise ValueError(f"names more than {_MAX_FILES:,} files")
    return places


def _axes(value: object) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > MAX_DIMS:
        raise ValueError(f"expected a shape of at most {MAX_DIMS} axes")
    return tuple(whole_number(number, "a size or offset") for number in value)


def _the_only(found: Mapping[tuple[int, ...] | None, Place]) -> Place:
    if len(found) != 1:
        raise ValueError(f"a value in {len(found)} places")
    return next(iter(found.values()))


def _tensor(state: Mapping[str, object], found: dict[tuple[int, ...] | None, Place]) -> ChunkedTensor:
    properties = state.get("properties")
    inner = properties.state if isinstance(properties, Inert) else None
    dtype = (
        inner.get("dtype")
        if isinstance(inner, dict)
        else inner[0]
        if isinstance(inner, tuple) and inner
        else None
    )
    if not isinstance(dtype, GlobalName) or not dtype.name.startswith("torch."):
        raise ValueError("a tensor without an element type")
    shape, listed_ = _axes(state.get("size")), state.get("chunks")
    if not isinstance(listed_, list):
        raise ValueError("a tensor without a list of chunks")
    chunks, used = [], 0
    for entry in listed_:
        box = _state(entry, "ChunkStorageMetadata")
        offsets, sizes = _axes(box.get("offsets")), _axes(box.get("sizes"))
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            raise ValueError(f"a chunk of {counted(len(sizes), 'axis')} of a tensor of {len(shape)}")
        place = found.get(offsets) or (found.get(None) if not any(offsets) else None)
        used += place is not None
        if 0 in sizes:
            continue
        if any(at + size > whole for at, size, whole in zip(offsets, sizes, shape, strict=True)):
            raise ValueError(f"a chunk of {list(sizes)} at {list(offsets)} is outside of {list(shape)}")
        if place is None:
            raise ValueError(f"its chunk at {list(offsets)} is in no file")
        chunks.append(Chunk(offsets, sizes, place))
    _require_whole(shape, chunks)
    if used < len(found):
        raise ValueError("a place in a file that is none of its chunks'")
    return ChunkedTensor(dtype.name.removeprefix("torch."), shape, tuple(chunks), tuple(found.values()))


def _require_whole(shape: tuple[int, ...], chunks: Sequence[Chunk]) -> None:
    """Refuse boxes that leave a gap or overlap.

    A box is known by its corners, with the sign of a difference: those of boxes that fill another exactly
    cancel each other but for its own. Axes that nothing is cut along have no part in it.
    """
    if 0 in shape:
        return
    if len(chunks) == 1 and chunks[0].sizes == shape:
        return
    split = [axis for axis in range(len(shape)) if any(chunk.sizes[axis] != shape[axis] for chunk in chunks)]
    if len(split) > _MAX_SPLIT:
        raise ValueError(f"cut along {counted(len(split), 'axis')}, more than {_MAX_SPLIT}")
    corners: dict[tuple[int, ...], int] = defaultdict(int)
    whole = (tuple(0 for _ in shape), shape, -1)
    for offsets, sizes, sign in [*((chunk.offsets, chunk.sizes, 1) for chunk in chunks), whole]:
        ends = [((offsets[axis], 1), (offsets[axis] + sizes[axis], -1)) for axis in split]
        for corner in product(*ends):
            corners[tuple(at for at, _ in corner)] += sign * math.prod(one for _, one in corner)
    if any(corners.values()):
        difference = sum(math.prod(chunk.sizes) for chunk in chunks) - math.prod(shape)
        what = "leave a gap" if difference < 0 else "overlap" if difference > 0 else "overlap and leave a gap"
        raise ValueError(f"its {counted(len(chunks), 'chunk')} {what}" if chunks else "it has no chunks")


def _paths(planned: object, entries: Entries) -> Mapping[str, tuple[str, ...]]:
    """The keys that a flat name was made of, as DCP's planner keeps them; the name itself for others."""
    known = planned if isinstance(planned, dict) else {}
    paths = {}
    for name in entries:
        path = known.get(name)
        keys = [name] if not isinstance(path, (tuple, list)) else path[: _MAX_PATH + 1]
        paths[name] = tuple(str(key) for key in keys if isinstance(key, (str, int)))
        if len(keys) > _MAX_PATH or ".".join(paths[name]) != name:
            raise ValueError(f"{describe(name, 200)} is to be loaded as {describe(path, 200)}")
    return paths


def nested(entries: Entries, paths: Mapping[str, tuple[str, ...]]) -> dict[object, object]:
    """What was saved: tables in tables, with a `TensorRef` for each tensor, whose key is its flat name."""
    root: dict[object, object] = {}
    for name, entry in entries.items():
        table = root
        *outer, last = paths[name]
        for key in outer:
            inner = table.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{describe(name, 200)} is inside of a value")
            table = inner
        if last in table:
            raise ValueError(f"{describe(name, 200)} is a value and a table")
        table[last] = entry if isinstance(entry, StoredObject) else _stand_in(name, entry)
    return root


def _stand_in(name: str, tensor: ChunkedTensor) -> TensorRef:
    return TensorRef(StorageRef(name, tensor.dtype, 0), tensor.dtype, 0, tensor.shape, ())


# -- the reader ----------------------------------------------------------------------------------------------


class DcpReader(StateDictReader):
    """A folder that ``torch.distributed.checkpoint.save`` wrote, on one rank or on many.

    Chunks are looked at when their tensor is read. Nothing that a file names is imported or called.
    """

    format = "dcp"

    def __init__(
        self,
        path: str | Path,
        *,
        state_dict: str | None = None,
        weights: Weights | None = None,
        as_saved: bool = False,
    ) -> None:
        self._mapped: dict[str, MappedFile] = {}
        self._opened: dict[str, list[tuple[Chunk, TorchFile, TensorRef]]] = {}
        folder = as_path(path)
        is_part = folder.name == METADATA or folder.suffix == ENDING
        folder = folder.parent if is_part and not folder.is_dir() else folder
        self._folder = folder
        super().__init__(path, folder / METADATA, state_dict=state_dict, weights=weights, as_saved=as_saved)

    def _open(self) -> None:
        pickle = TorchFile(self._file, limits=_LIMITS)
        with pickle.running():
            try:
                self._entries, paths = read_metadata(pickle.root)
                root = nested(self._entries, paths)
            except ValueError as error:
                raise FormatError(self._file.path, str(error), hint=_OWN) from error
            table = self._find(root, "a torch.distributed checkpoint")
        self.notes += pickle.note_running()
        self._require_files()
        self.metadata = self._own_metadata()
        self._take(self._values({key: self._looked_into(key, value) for key, value in table.items()}))

    def _own_metadata(self) -> Mapping[str, str]:
        path = self._folder / METADATA_RECORD
        if not path.is_file():
            return {}
        return parse_metadata(path, Sample(path).read(0, MAX_METADATA_BYTES + 1))

    def _require_files(self) -> None:
        """Every place must be in its file, and none in another's; says what else is there."""
        places: dict[str, list[Place]] = defaultdict(list)
        for entry in self._entries.values():
            for place in entry.places:
                places[place.file].append(place)
        unused = real = 0
        for name, held in places.items():
            size = self._size_of(name, held)
            unused += size - sum(place.nbytes for place in held)
            real += size
        claimed = sum(entry.nbytes for entry in self._entries.values() if isinstance(entry, ChunkedTensor))
        if claimed > LIMITS["nbytes"].of(real):
            raise FormatError(self.path, f"its tensors claim {claimed} bytes, but share {real} bytes of data")
        if unused:
            self.notes.append(f"{unused:,} bytes of its files belong to nothing")
        others = {path.name for path in self._folder.glob(f"*{ENDING}")} - places.keys()
        if others:
            self.notes.append(f"{listed(sorted(others), 3)}: not named by .metadata, left from another save")

    def _size_of(self, name: str, held: list[Place]) -> int:
        """Bytes of a file that is there and holds what it should, nothing of it twice."""
        path = self._folder / name
        if not path.is_file():
            raise FormatError(self.path, f"its file {name} is missing", hint="fetch the missing file")
        held.sort(key=lambda place: (place.offset, place.nbytes))
        size = path.stat().st_size
        reached = max(place.offset + place.nbytes for place in held)
        if reached > size:
            reason = f"has {size} bytes, and .metadata places data up to {reached}"
            raise FormatError(path, reason, hint=f"it is probably truncated: {_AGAIN}")
        if any(one.offset + one.nbytes > other.offset for one, other in pairwise(held)):
            with path.open("rb") as file:
                is_safetensors = file.read(9)[8:] == b"{"
            if is_safetensors:  # SerializationFormat.SAFETENSORS, of which torch writes no usable places
                raise FormatError(path, "is a safetensors file in a DCP checkpoint", hint=_PLAINLY)
            raise FormatError(path, "two tensors or values share bytes of it", hint=_AGAIN)
        return size

    def _looked_into(self, key: object, value: object) -> object:
        """A value of the state dict; one that holds tensors all the same cannot be carried."""
        if not isinstance(value, StoredObject):
            return value
        if isinstance(key, str) and _OPTIMIZER.search(key):
            return GlobalName("of the optimizer")
        held = self._object(value)
        tensor = Inside().tensor(held)
        return held if tensor is None else UnsupportedTensor(f"saved as an object: {describe(held, 80)}")

    def _object(self, stored: StoredObject) -> object:
        """A value that is not a tensor."""
        file = self._torch_file(stored.place, "a value")
        with file.running():
            self.notes += [note for note in file.note_running() if note not in self.notes]
        return file.root

    def _torch_file(self, place: Place, what: str) -> TorchFile:
        """What torch.save wrote at a place."""
        if place.file not in self._mapped:
            self._mapped[place.file] = MappedFile(self._folder / place.file)
            self._files.append(self._mapped[place.file])
        whole = self._mapped[place.file]
        if place.offset + place.nbytes > whole.size:
            raise FormatError(whole.path, "became shorter while it was open")
        try:
            return TorchFile(MappedPart(whole, place.offset, place.nbytes))
        except FormatError as error:
            raise FormatError(
                whole.path, f"{what}: {error.reason}", offset=place.offset, hint=error.hint
            ) from error

    def _take(self, values: Mapping[str, TensorRef | PickledArray | str]) -> None:
        """Name the tensors that can be carried, and those that cannot."""
        self._tensors: dict[str, ChunkedTensor] = {}
        specs: dict[str, TensorSpec] = {}
        left_out: dict[str, str] = {}
        for name, value in values.items():
            if not isinstance(value, TensorRef):
                left_out[name] = value if isinstance(value, str) else "an array saved as an object"
                continue
            dtype = TORCH_DTYPES.get(value.dtype)
            if dtype is None and not value.dtype.isprintable():
                raise FormatError(self.path, f"tensor {name!r} has elements of type {value.dtype!r}")
            if dtype is None:
                left_out[name] = f"elements of type {value.dtype}, which is not known here"
            elif dtype.bits is not None and not value.shape:
                left_out[name] = f"a single byte of packed {dtype}, which has no shape"
            else:
                last = (
                    [size * 8 // dtype.bits for size in value.shape[-1:]] if dtype.bits else value.shape[-1:]
                )
                specs[name] = TensorSpec(name, dtype, (*value.shape[:-1], *last))
                entry = self._entries[value.storage.key]
                assert isinstance(entry, ChunkedTensor)
                self._tensors[name] = entry
        self.specs, self.left_out = specs, left_out
        if self._wanted[0] is None:
            self.optimizer = frozenset(filter(_OPTIMIZER.search, specs))

    def _chunks(self, name: str) -> list[tuple[Chunk, TorchFile, TensorRef]]:
        """The chunks of a tensor, each compared with what ``.metadata`` says of it."""
        if name not in self._opened:
            self._opened[name] = [self._chunk(name, chunk) for chunk in self._tensors[name].chunks]
        return self._opened[name]

    def _chunk(self, name: str, chunk: Chunk) -> tuple[Chunk, TorchFile, TensorRef]:
        tensor, place = self._tensors[name], chunk.place
        what = f"tensor {name!r}"
        file = self._torch_file(place, what)
        ref = file.root
        if not isinstance(ref, TensorRef) or ref.shape != chunk.sizes or ref.dtype != tensor.dtype:
            reason = f"{what}: expected {tensor.dtype} {list(chunk.sizes)}, found {describe(ref, 80)}"
            raise FormatError(self._mapped[place.file].path, reason, offset=place.offset, hint=_AGAIN)
        spec = file.spec(name, ref)
        if isinstance(spec, str):
            raise FormatError(self._mapped[place.file].path, f"{what}: {spec}", offset=place.offset)
        return chunk, file, ref

    def _read(self, name: str) -> Array:
        """A view of the mapped file, or a copy where a tensor is in several chunks."""
        dtype = whole_bytes(self.path, self.specs[name])
        return self._assembled(name, dtype)

    def _assembled(self, name: str, dtype: DType) -> Array:
        shape, chunks = self._tensors[name].shape, self._chunks(name)
        if not chunks:
            return self._file.view(0, dtype, shape)
        if len(chunks) == 1:
            _, file, ref = chunks[0]
            return file.read(ref, dtype)
        import numpy

        whole = numpy.empty(shape, dtype.numpy)
        for chunk, file, ref in chunks:
            file.check(ref, f"tensor {name!r}")  # here, so that no more than one chunk's pages are in memory
            box = tuple(slice(at, at + size) for at, size in zip(chunk.offsets, chunk.sizes, strict=True))
            copy_elements(file.read(ref, dtype), whole[box])
            self._let_go(chunk.place)
        whole.flags.writeable = False
        return whole

    def _raw(self, name: str) -> RawTensor | None:
        """None where a tensor is in several chunks."""
        spec, chunks = self.specs[name], self._chunks(name)
        if len(chunks) == 1:
            _, file, ref = chunks[0]
            return file.raw(ref, spec)
        if not chunks:
            return RawTensor(spec.shape, memoryview(b""))
        if spec.dtype.bits is None:
            return None
        return RawTensor(spec.shape, self._assembled(name, DTYPES["uint8"]).reshape(-1).data)

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare every chunk of a tensor with the CRC-32 of its zip entry."""
        self._require(name)
        have = [file.check(ref, f"tensor {name!r}") for _, file, ref in self._chunks(name)]
        return all(have)

    def _check_bytes(self, name: str) -> None:
        if len(self._tensors[name].chunks) == 1:
            self.check(name)

    def check_rest(self) -> None:
        """Check everything that was saved beside these tensors."""
        own = {id(tensor) for tensor in self._tensors.values()}
        for name, entry in self._entries.items():
            if id(entry) not in own:
                for place in entry.places:
                    self._torch_file(place, repr(name)).check_rest()
                    self._let_go(place)

    def release(self, name: str) -> None:
        """Give back the memory pages of one tensor."""
        self._require(name)
        self._opened.pop(name, None)
        for chunk in self._tensors[name].chunks:
            self._let_go(chunk.place)

    def _let_go(self, place: Place) -> None:
        if place.file in self._mapped:
            self._mapped[place.file].release_around(place.offset, place.nbytes)

    @cached_property
    def _content(self) -> object:
        """What was saved, with as many of its values as are worth reading."""
        left = iter(range(_MAX_OBJECTS))

        def shown(value: object) -> object:
            if isinstance(value, dict):
                return {key: shown(inner) for key, inner in value.items()}
            if not isinstance(value, StoredObject):
                return value
            try:
                return GlobalName("…") if next(left, None) is None else self._object(value)
            except FormatError as error:  # `check_rest` says it
                return GlobalName(f"damaged ({error.reason})")

        return shown(self._root)
