"""PyTorch checkpoints, read without torch: finding the state dict and handing out its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from ckptkit.errors import FormatError, NotFoundError
from ckptkit.formats.base import Copy, Weights
from ckptkit.formats.mapped_file import MappedFile, MappedReader
from ckptkit.formats.restricted_pickle import Inert
from ckptkit.formats.torch_containers import Extent, TorchContents, load_contents
from ckptkit.formats.torch_pickle import TensorRef, UnsupportedTensor
from ckptkit.tensors import DTYPES, Array, RawTensor, TensorSpec

KNOWN_STATE_DICTS = ("state_dict", "state_dict_ema", "model", "model_ema", "module")
"""Where training code puts the weights, the usual choice first."""

_MOVING_AVERAGES = {"state_dict": "state_dict_ema", "model": "model_ema"}
"""Where timm-style code puts moving averages, by where it puts the weights they are of."""

_MAX_STATE_DICTS = 1000
_MAX_SKIPPED = 20
"""Notes on values that are no tensors; beyond that their number is told."""

_MAX_EXPANSION = 64
_FREE_EXPANSION = 256 << 20
_PREFIX = "module."


class TorchReader(MappedReader):
    """A file written by ``torch.save``: zip archive, legacy pickle stream, or the first tar layout.

    Nothing that the file names is imported or called (see `ckptkit.formats.restricted_pickle`).

    Parameters
    ----------
    path : str or Path
        The file.
    state_dict : str, optional
        Which state dict to read where there are several: a name out of ``state_dicts``. Default: by
        ``weights``, else the first.
    weights : {"auto", "ema", "raw"}, optional
        Which copy to read where moving averages have a state dict of their own; ``auto`` takes them.

    Attributes
    ----------
    state_dicts : tuple of str
        Keys under which the file holds state dicts; ``""`` for a file that is one.
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
    """

    format = "torch"

    def __init__(
        self, path: str | Path, *, state_dict: str | None = None, weights: Weights | None = None
    ) -> None:
        self.path = Path(path)
        file = MappedFile(self.path)
        self._file, self._files = file, [file]
        self._checked: dict[str, bool] = {}
        try:
            contents = load_contents(file)
            found = _find_state_dicts(self.path, contents.root)
            self.state_dicts: tuple[str, ...] = tuple(found)
            copies = _copies(self.state_dicts)
            wanted = (
                state_dict if state_dict is not None else copies.get("ema" if weights == "auto" else weights)
            )
            self.state_dict = _choose(self.path, self.state_dicts, wanted)
            self.weights: Copy | None = next((c for c, n in copies.items() if n == self.state_dict), None)
            self.metadata: Mapping[str, str] = contents.metadata
            self._storages = contents.storages
            self._tensors, notes = _named_tensors(self.path, found[self.state_dict])
            chosen = (*copies.values(), self.state_dict) if weights else (self.state_dict,)
            self.notes: Sequence[str] = notes + _notes_on_others(self.state_dicts, chosen)
            self.specs: Mapping[str, TensorSpec] = {
                name: self._spec(name, tensor) for name, tensor in self._tensors.items()
            }
            self._refuse_expansion(contents)
            self._root = contents.root
        except BaseException:
            self.close()
            raise

    @cached_property
    def extras(self) -> Mapping[str, str]:
        """What else the file holds (``epoch``, ``arch``, ``args.lr``, ``meta.time``, …), in plain text."""
        from ckptkit.formats.torch_describe import describe_extras

        return describe_extras(self._root, self.state_dicts)

    @cached_property
    def same(self) -> Mapping[str, str]:
        """Tensors that are the very same as an earlier one (tied weights), and which that is."""
        first: dict[object, str] = {}
        same = {}
        for name, tensor in self._tensors.items():
            if 0 not in tensor.shape:
                start, _ = self._span(tensor, DTYPES[tensor.dtype].itemsize)
                earlier = first.setdefault((start, tensor.dtype, tensor.shape, tensor.strides), name)
                if earlier != name:
                    same[name] = earlier
        return same

    @cached_property
    def overlapping(self) -> Sequence[str]:
        """Tensors whose bytes in the file touch those of one before them in the file: tied weights, views."""
        spans = sorted(
            (*self._span(tensor, DTYPES[tensor.dtype].itemsize), name)
            for name, tensor in self._tensors.items()
            if 0 not in tensor.shape
        )
        reached = 0
        overlapping = []
        for start, stop, name in spans:
            if start < reached:
                overlapping.append(name)
            reached = max(reached, stop)
        return overlapping

    def read(self, name: str) -> Array:
        """Read-only view of one tensor with the strides it was saved with.

        Raises
        ------
        NotFoundError
            No tensor of that name.
        """
        spec, tensor = self._spec_of(name), self._tensors[name]
        itemsize = spec.dtype.itemsize
        strides = [
            step * itemsize if size > 1 else itemsize
            for size, step in zip(spec.shape, tensor.strides, strict=True)
        ]
        return self._file.view(self._span(tensor, itemsize)[0], spec.dtype, spec.shape, strides)

    def raw(self, name: str) -> RawTensor | None:
        """The bytes of one tensor, without numpy; None where they do not lie in C order."""
        spec, tensor = self._spec_of(name), self._tensors[name]
        step = 1
        for size, stride in zip(reversed(spec.shape), reversed(tensor.strides), strict=True):
            if size != 1 and stride != step:
                return None
            step *= size
        start, stop = self._span(tensor, spec.dtype.itemsize)
        return RawTensor(spec.shape, self._file.raw(start, stop - start))

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
        self._spec_of(name)
        key = self._tensors[name].storage.key
        if key not in self._checked:
            extent = self._storages.get(key)
            if extent is not None and extent.crc32 is not None:
                found = self._file.crc32(extent.offset, extent.nbytes)
                if found != extent.crc32:
                    raise FormatError(
                        self.path,
                        f"tensor {name!r}: CRC-32 is {found:08x}, the archive says {extent.crc32:08x}",
                        offset=extent.offset,
                        hint="the file is damaged: fetch it again",
                    )
            self._checked[key] = extent is not None and extent.crc32 is not None
        return self._checked[key]

    def release(self, name: str) -> None:
        """Give back the memory pages of one tensor."""
        spec = self._spec_of(name)
        start, stop = self._span(self._tensors[name], spec.dtype.itemsize)
        self._file.release(start, stop - start)

    def _spec_of(self, name: str) -> TensorSpec:
        if name not in self.specs:
            raise NotFoundError(f"{self.path}: no tensor {name!r}")
        return self.specs[name]

    def _extent(self, name: str, tensor: TensorRef) -> Extent:
        extent = self._storages.get(tensor.storage.key)
        if extent is None:
            if 0 in tensor.shape:
                return Extent(0, 0)
            raise FormatError(
                self.path, f"tensor {name!r} needs storage {tensor.storage.key!r}, which is missing"
            )
        return extent

    def _span(self, tensor: TensorRef, itemsize: int) -> tuple[int, int]:
        """First and last byte (exclusive) of the file that a checked tensor touches."""
        if 0 in tensor.shape:
            return 0, 0
        start = self._storages[tensor.storage.key].offset + (tensor.storage.offset + tensor.offset) * itemsize
        return start, start + _reach(tensor) * itemsize

    def _spec(self, name: str, tensor: TensorRef) -> TensorSpec:
        """Check that a tensor lies inside its storage and its storage inside the file."""
        dtype = DTYPES.get(tensor.dtype)
        if dtype is None:
            raise FormatError(
                self.path, f"tensor {name!r} has elements of type {tensor.dtype}, not supported"
            )
        storage = tensor.storage
        storage_dtype = DTYPES.get(storage.dtype) if storage.dtype else DTYPES["uint8"]
        if storage_dtype is None:
            raise FormatError(
                self.path, f"tensor {name!r} lies in a storage of {storage.dtype}, not supported"
            )
        if storage.dtype is not None and storage_dtype is not dtype:
            raise FormatError(self.path, f"tensor {name!r} of {dtype} lies in a storage of {storage_dtype}")
        extent = self._extent(name, tensor)
        held = (storage.offset + storage.count) * storage_dtype.itemsize
        needed = (storage.offset + tensor.offset + _reach(tensor)) * dtype.itemsize
        if 0 not in tensor.shape and not needed <= held <= extent.nbytes:
            raise FormatError(
                self.path,
                f"tensor {name!r} needs {needed} bytes of storage {storage.key!r}, "
                f"which declares {held} and has {extent.nbytes}",
                hint="the file is damaged: fetch it again",
            )
        return TensorSpec(name, dtype, tensor.shape)

    def _refuse_expansion(self, contents: TorchContents) -> None:
        """A few bytes seen through zero strides can pretend to be any amount of data."""
        real = sum(extent.nbytes for extent in contents.storages.values())
        claimed = sum(spec.nbytes for spec in self.specs.values())
        if claimed > _FREE_EXPANSION + _MAX_EXPANSION * real:
            raise FormatError(self.path, f"tensors of {claimed} bytes in all, made of {real} bytes of data")


def _reach(tensor: TensorRef) -> int:
    """Elements from the first to the last one that a tensor touches, both included."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))


def _described(value: object, limit: int) -> str:
    from ckptkit.formats.torch_describe import describe  # few files need it to be opened

    return describe(value, limit)


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and any(
        isinstance(v, (TensorRef, UnsupportedTensor)) for v in value.values()
    )


def _find_state_dicts(path: Path, root: object) -> dict[str, dict[object, object]]:
    """Every state dict at the root or one level below, the well-known places first."""
    if not isinstance(root, dict):
        raise _no_state_dict(path, root)
    # One value may stand under very many keys: each is looked through once.
    tables = {id(value): value for value in root.values() if isinstance(value, dict)}
    state_dicts = {key for key, value in tables.items() if _is_state_dict(value)}
    order = [key for key in KNOWN_STATE_DICTS if key in root]
    known = {key: root[key] for key in order if id(root[key]) in state_dicts}
    if not known and _is_state_dict(root):
        return {"": root}
    others = {
        key: value
        for key, value in root.items()
        if isinstance(key, str) and key not in known and id(value) in state_dicts
    }
    if len(others) > _MAX_STATE_DICTS:
        raise FormatError(path, f"{len(others)} tables of tensors, more than {_MAX_STATE_DICTS}")
    found = {**known, **others}
    if not found:
        raise _no_state_dict(path, root)
    return found


def _copies(names: tuple[str, ...]) -> dict[Copy | None, str]:
    """Where the moving averages and the weights they are of stand, if the file has both."""
    plain = next((name for name in _MOVING_AVERAGES if {name, _MOVING_AVERAGES[name]} <= set(names)), None)
    return {} if plain is None else {"raw": plain, "ema": _MOVING_AVERAGES[plain]}


def _no_state_dict(path: Path, root: object) -> FormatError:
    hint = "save model.state_dict() with torch.save"
    if isinstance(root, Inert):
        return FormatError(
            path, f"a whole pickled object ({_described(root, 60)}), not a state dict", hint=hint
        )
    return FormatError(path, f"no state dict in it, only {_described(root, 120)}", hint=hint)


def _choose(path: Path, names: tuple[str, ...], wanted: str | None) -> str:
    if wanted is None:
        if names[0] in KNOWN_STATE_DICTS or len(names) == 1:
            return names[0]
        listed = ", ".join(names)
        raise FormatError(
            path, f"several tables of tensors ({listed})", hint="say which one is the state dict"
        )
    if wanted not in names:
        listed = ", ".join(repr(name) for name in names)
        raise NotFoundError(f"{path}: no state dict {wanted!r}, it has {listed}")
    return wanted


def _named_tensors(path: Path, state: dict[object, object]) -> tuple[dict[str, TensorRef], list[str]]:
    """Take the tensors out of a state dict, less the ``module.`` that DataParallel prefixes."""
    tensors: dict[str, TensorRef] = {}
    notes: list[str] = []
    skipped = 0
    for key, value in state.items():
        name = key if isinstance(key, str) else _described(key, 200)
        if isinstance(value, UnsupportedTensor):
            raise FormatError(
                path,
                f"tensor {name!r} is {value.kind}, not supported",
                hint="save it as a plain dense tensor",
            )
        if isinstance(value, TensorRef):
            if name in tensors:
                raise FormatError(path, f"two tensors are called {name!r}")
            tensors[name] = value
        elif (skipped := skipped + 1) <= _MAX_SKIPPED:
            notes.append(f"{_described(name, 80)} is no tensor ({_described(value, 80)}): skipped")
    if skipped > _MAX_SKIPPED:
        notes.append(f"{skipped - _MAX_SKIPPED} more values are no tensors: skipped")
    if all(name.startswith(_PREFIX) and len(name) > len(_PREFIX) for name in tensors):
        notes.append(f"the prefix '{_PREFIX}' of every name is left out")
        tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    return tensors, notes


def _notes_on_others(names: tuple[str, ...], chosen: tuple[str, ...]) -> list[str]:
    return [f"holds another state dict, {name!r}, not read here" for name in names if name not in chosen]
