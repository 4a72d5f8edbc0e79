"""PyTorch checkpoints, read without torch: finding the state dict and handing out its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from ckptkit.base.budget import LIMITS
from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import DTYPES, Array, DType, RawTensor, TensorSpec, swapped
from ckptkit.formats.base import AVERAGING_COUNTERS, Copy, Weights
from ckptkit.formats.mapped_file import MappedFile, MappedReader, whole_bytes
from ckptkit.formats.pickle_values import PickledArray, is_array, is_scalar, pickled_array
from ckptkit.formats.restricted_pickle import Inert
from ckptkit.formats.torch_containers import Extent, TorchContents, load_contents
from ckptkit.formats.torch_pickle import TORCH_DTYPES, StorageRef, TensorRef, UnsupportedTensor
from ckptkit.formats.torch_state_dicts import find_state_dict

_MAX_LOOKED_INTO = 1_000_000
_MAX_BESIDE, _MAX_NOTED = 1000, 20
"""Values that are no tensors: how many are told by name, and how many of those of a state dict are noted."""

_TYPE_NAME = re.compile("[a-z][a-z0-9_]{0,63}")
PREFIX = "module."
"""What data parallel models put before every name."""


class TorchReader(MappedReader):
    """A file written by ``torch.save``: zip archive, legacy pickle stream, or the first tar layout.

    Nothing that the file names is imported or called (see `ckptkit.formats.restricted_pickle`).

    Parameters
    ----------
    path : str or Path
        The file.
    state_dict : str, optional
        Which state dict to read: the keys that lead to it, joined by dots. Default: the only one that can be
        meant, see `ckptkit.formats.torch_state_dicts`.
    weights : {"auto", "ema", "raw"}, optional
        Which copy to read where moving averages have a state dict of their own; ``auto`` takes them where
        published figures are known to belong to them, and else asks.
    as_saved : bool
        Leave ``module.``, which data parallel and averaged models put before every name, where it is.

    Attributes
    ----------
    state_dicts : tuple of str
        The state dicts of the file, each by the keys that lead to it; ``""`` for a file that is one.
    state_dict : str
        The one being read.
    weights : "ema", "raw" or None
        Which copy that is, where the file has both in state dicts of their own.

    Raises
    ------
    FormatError
        Damaged, hostile or unsupported file.
    NotFoundError
        No such file, or no state dict of that name.
    UsageError
        The file holds averages only, and ``weights`` asks for others.
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
                    said=lambda value: _described(value, 120),
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
        from ckptkit.formats.torch_describe import describe_extras

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
        """Compare the storage of a tensor with the CRC-32 of its zip entry.

        Returns
        -------
        bool
            False where no checksum is stored: legacy files, and archives saved without checksums.

        Raises
        ------
        FormatError
            The checksum differs.
        """
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
        """Check that a tensor lies inside its storage and its storage inside the file.

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
            raise FormatError(self.path, f"tensor {name!r} of {dtype} lies in a storage of {storage_dtype}")
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
    """Whether its elements lie one after the other in C order."""
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _reach(tensor: TensorRef) -> int:
    """Elements from the first to the last one that a tensor touches, both included."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))


def _described(value: object, limit: int) -> str:
    from ckptkit.formats.torch_describe import describe  # few files need it to be opened

    return describe(value, limit)


def _tensor(value: object, inside: _Inside) -> TensorRef | PickledArray | str | None:
    """The tensor that a value of a state dict is, or why it cannot be carried; None where it is no tensor."""
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
    """Looks into values that are no tensors themselves for tensors, such as packed parameters of a layer."""

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
                found.notes.append(f"{_described(name, 80)} is no tensor ({_described(value, 80)}): skipped")
            if others <= _MAX_BESIDE:
                found.beside[_described(name, 200)] = value
    if others > _MAX_NOTED:
        found.notes.append(f"{others - _MAX_NOTED} more values are no tensors: skipped")
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
