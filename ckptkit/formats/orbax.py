"""Orbax checkpoints (JAX): zarr arrays in folders, or in one OCDBT store, through ``tensorstore``.

What is opened is put together here, never taken from a file: a store in the folder, and an array in it by its
name. A tensor is called by the keys that lead to it, as in Flax (``params/Dense_0/kernel``); ``_METADATA``
tells them, and what else the tree holds. Source: orbax/checkpoint/_src/metadata/tree.py of google/orbax.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError, MissingDependencyError, NotFoundError, UsageError, listed
from ckptkit.base.files import storage_error
from ckptkit.base.tensors import DTYPES, OPAQUE, Array, TensorSpec
from ckptkit.base.text import counted, escaped
from ckptkit.formats.base import Reader
from ckptkit.formats.json_text import strict_json, utf8
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile

_STORE, _TREE, _TEXTS, _AGGREGATE = "manifest.ocdbt", "_METADATA", "_strings.json", "checkpoint"
_ARRAYS = {"/.zarray": "zarr", "/zarr.json": "zarr3"}
"""What describes an array, and the driver of tensorstore for it."""
_MAX_FILES = 200_000
_SHOWN = 200


def _item(folder: Path) -> Path:
    """The folder in which the arrays are: a step of a CheckpointManager has a folder for each item."""
    if (folder / _TREE).is_file() or (folder / _STORE).is_file():
        return folder
    items = [one for one in sorted(folder.iterdir()) if one.is_dir() and not one.is_symlink()]
    found = [one for one in items if (one / _TREE).is_file() or (one / _STORE).is_file()]
    if len(found) > 1:
        names = listed([one.name for one in found], 5)
        raise UsageError(f"{folder}: {counted(len(found), 'item')} with arrays", hint=f"name one: {names}")
    return found[0] if found else folder


class OrbaxReader(Reader):
    """A step of a CheckpointManager, or what a Checkpointer saved."""

    format = "orbax"

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._folder = _item(path)
            size = sum(self._sizes(self._folder))
        except OSError as error:
            raise storage_error(error, path) from error
        self._budget = Budget(size, self._fault)
        try:
            import tensorstore
        except ImportError as error:
            raise MissingDependencyError("reading an Orbax checkpoint", "tensorstore") from error
        self._library = tensorstore
        self._arrays: dict[str, Any] = {}
        self.specs: dict[str, TensorSpec] = {}
        self.left_out: dict[str, str] = {}
        self._also: dict[str, str] = {}
        self._open()

    def _fault(self, reason: str) -> FormatError:
        return FormatError(self.path, reason)

    def _sizes(self, folder: Path, most: int = _MAX_FILES) -> Iterator[int]:
        """Sizes of the files in a folder and below; a link is refused, for it may lead out of it."""
        folders = [folder]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    most -= 1
                    if most < 0:
                        raise self._fault(f"more than {_MAX_FILES:,} files")
                    if entry.is_symlink():
                        raise FormatError(entry.path, "is a link in an Orbax checkpoint; not followed")
                    if entry.is_dir():
                        folders.append(Path(entry.path))
                    elif entry.is_file():
                        yield entry.stat().st_size
                    else:
                        raise FormatError(entry.path, "neither a file nor a folder")

    @property
    def extras(self) -> dict[str, str]:
        """What else the tree holds."""
        return self._also

    # -- what there is ---------------------------------------------------------------------------------------

    def _kvstore(self, name: str = "") -> dict[str, Any]:
        """The store of the arrays, or of one of them."""
        base = {"driver": "file", "path": f"{self._folder.absolute()}/"}
        if (self._folder / _STORE).is_file():
            return {"driver": "ocdbt", "base": base, "path": name and f"{name}/"}
        return {**base, "path": base["path"] + (name and f"{name}/")}

    def _asked(self, what: str, future: Any) -> Any:
        """What tensorstore answers; FormatError where it refuses."""
        try:
            return future.result()
        except (ValueError, OSError, OverflowError, MemoryError, NotImplementedError, RuntimeError) as error:
            text = escaped(" ".join(str(error).split()))[: 2 * _SHOWN]
            raise self._fault(f"{what}: {text}") from error

    def _open(self) -> None:
        library = self._library
        # no cache, and few threads: one tensor at a time is read
        context = {"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": 2}}
        self._context = library.Context({**context, "file_io_concurrency": {"limit": 4}})
        store = self._asked("its store", library.KvStore.open(self._kvstore(), context=self._context))
        keys = [key.decode("utf-8", "backslashreplace") for key in self._asked("its list", store.list())]
        self._budget.spend(nodes=len(keys), names=sum(map(len, keys)))
        found = {
            key.removesuffix(end): driver
            for key in keys
            for end, driver in _ARRAYS.items()
            if key.endswith(end)
        }
        names = self._names({*found})
        options = {"open": True, "read": True, "context": self._context}
        asked = {
            key: library.open({"driver": driver, "kvstore": self._kvstore(key)}, **options)
            for key, driver in sorted(found.items())
        }
        for key, future in asked.items():
            name = names.get(key, key)
            self._take(name, self._asked(f"tensor {name[:_SHOWN]!r}", future))
        if (self._folder / _AGGREGATE).is_file():
            self.left_out[_AGGREGATE] = "an aggregate file of older versions of Orbax, which is not read"
        if not self.specs and not self.left_out:
            raise FormatError(self.path, "an Orbax checkpoint without arrays")

    def _take(self, name: str, array: Any) -> None:
        dtype, shape = {**OPAQUE, **DTYPES}.get(array.dtype.name), tuple(array.shape)
        if dtype is None or not dtype.itemsize:
            self.left_out[name] = f"elements of type {array.dtype.name}, which is not known here"
            return
        size = dtype.itemsize * math.prod(max(axis, 1) for axis in shape)
        chunk = dtype.itemsize * math.prod(array.chunk_layout.write_chunk.shape or ())
        if len(shape) > MAX_DIMS or max(size, chunk) >= 1 << 62:
            raise self._fault(f"tensor {name[:_SHOWN]!r} has the shape {list(shape)[:40]}")
        self._budget.spend(nodes=3, nbytes=max(size, chunk))
        self._arrays[name] = array
        self.specs[name] = TensorSpec(name, dtype, shape)

    def _json(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        if not path.is_file() or not path.stat().st_size:
            return {}
        file = MappedFile(path)
        try:
            return strict_json(path, utf8(file, 0, file.size), self._budget)
        finally:
            file.close()

    def _names(self, found: set[str]) -> dict[str, str]:
        """The names of arrays by their keys in the store; what else the tree holds is noted."""
        tree = self._json(_TREE).get("tree_metadata", {})
        names: dict[str, str] = {}
        for one in tree.values() if isinstance(tree, dict) else ():
            try:
                keys = [str(part["key"]) for part in one["key_metadata"]]
                kind = str(one["value_metadata"]["value_type"])
            except (TypeError, KeyError) as error:
                raise FormatError(self._folder / _TREE, "a tree of another version of Orbax") from error
            key, name = ".".join(keys), "/".join(keys)
            if key in found:
                names[key] = name
            elif kind == "string":
                self._also[name] = "a text"
            elif kind in ("None", "Dict", "List", "Tuple", "NamedTuple"):
                self._also[name] = "None" if kind == "None" else f"an empty {kind}"
            else:
                self.left_out[name] = f"its array ({kind}) is not there"[:_SHOWN]
        for key, text in self._json(_TEXTS).items():
            self._also[key.replace(".", "/")] = str(text)[:_SHOWN]
        if len({*names.values()}) < len(names):
            raise FormatError(self._folder / _TREE, "two tensors have one name")
        return names

    # -- elements --------------------------------------------------------------------------------------------

    def read(self, name: str) -> Array:
        """Read-only array of one tensor, unpacked from its chunks."""
        if name not in self.specs:
            raise NotFoundError(f"{self.path}: no tensor {name!r}")
        import numpy

        spec = self.specs[name]
        found = self._asked(f"tensor {name[:_SHOWN]!r}", self._arrays[name].read())
        array: Array = numpy.ascontiguousarray(numpy.asarray(found), spec.dtype.numpy).reshape(spec.shape)
        array.flags.writeable = False
        return array
