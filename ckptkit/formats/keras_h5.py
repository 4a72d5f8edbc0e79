"""Keras 3's weights files (``.weights.h5``), read and written without Keras and without libhdf5.

A tensor's name is its path in the file: ``blocks/moga_block_3/attn/gate/vars/0``. A whole Keras 3 model
(``.keras``, a zip archive) is read through the weights file in it. The files of Keras 1 and 2 have the same
container and other names: see `ckptkit.formats.keras_legacy_h5`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import Array, Piece, TensorSpec
from ckptkit.formats.base import Check
from ckptkit.formats.foreign import quoted, told
from ckptkit.formats.hdf5_attributes import Attributes, single
from ckptkit.formats.hdf5_building import Blueprint, blueprint
from ckptkit.formats.hdf5_bytes import MAX_DEPTH, MAX_NAME, Hdf5Bytes
from ckptkit.formats.hdf5_chunks import read_chunks
from ckptkit.formats.hdf5_datasets import Dataset, NotRead, parse_dataset, refuse_overlap
from ckptkit.formats.hdf5_objects import Header, Link, Objects
from ckptkit.formats.keras_legacy_h5 import NEITHER, Contents, is_legacy, legacy_weights
from ckptkit.formats.mapped_file import MappedFile, MappedReader
from ckptkit.formats.replacing import commit_checkpoint, staged_checkpoint
from ckptkit.formats.shards import index_beside, shards_of
from ckptkit.formats.tensor_writer import PlacedWriter, metadata_json, put_at
from ckptkit.formats.zip_directory import DEFLATED, STORED, CheckedMembers, read_directory

KERAS_MEMBER = "model.weights.h5"
"""The weights file in a ``.keras`` archive."""

_TEXTS, _MAX_TEXT = ("metadata.json", "config.json"), 16 << 20

_ATTRIBUTE = "ckptkit"
_VARIABLES = "vars"
_OTHER_HDF5 = {
    "_NCProperties": "a netCDF file",
    "PYTABLES_FORMAT_VERSION": "an HDF5 file of PyTables (pandas)",
    "encoding-type": "an HDF5 file of AnnData",
}
"""Attributes of the root by which other programs are known."""

_DATASETS = (
    "save its datasets by name: python: import h5py, numpy; found = {}; h5py.File({path}).visititems("
    "lambda n, d: found.update({n: d[()]} if isinstance(d, h5py.Dataset) else {})); "
    "numpy.savez({npz}, **found)"
)


class KerasH5Reader(MappedReader):
    """A file of weights as Keras wrote it.

    Contiguous tensors are mapped, those in chunks put together when read.

    Parameters
    ----------
    path : str or Path
        ``….weights.h5`` or ``….keras`` of Keras 3, or a ``….h5`` of Keras 1 or 2: weights or a whole model.
    is_shard : bool
        Whether it may be one of several files, whose index is being read.

    Raises
    ------
    FormatError
        Damaged or hostile, HDF5 that is not Keras', or one of several files opened by itself.
    NotFoundError
        No such file.
    """

    format = "keras"

    def __init__(self, path: str | Path, *, is_shard: bool = False) -> None:
        self.path = Path(path)
        self._file = MappedFile(self.path)
        self._files = [self._file]
        try:
            self._archive = _Archive(self._file) if self._file.data[:2] == b"PK" else None
            self._source = Hdf5Bytes(self._file) if self._archive is None else self._archive.weights()
            objects = Objects(self._source)
            root = objects.header(objects.root)
            attributes = Attributes(self._source)
            of_root = attributes.texts(root)
            found = _Walk(objects, attributes).contents()
            refuse_overlap(self._source, found.datasets)
            if is_legacy(of_root):
                found, metadata = legacy_weights(objects, attributes, of_root, found)
            else:
                metadata = self._metadata(single(of_root.get(_ATTRIBUTE)))
                if _ATTRIBUTE not in of_root and not is_shard:
                    self._refuse_shard(found)
                    self._refuse_other_hdf5(found.datasets, of_root)
        except BaseException:
            self.close()
            raise
        self._datasets: Mapping[str, Dataset] = found.datasets
        self._whole: set[str] = set()  # datasets whose chunks have been unpacked, and so compared
        self.specs: Mapping[str, TensorSpec] = {
            name: TensorSpec(name, dataset.dtype, dataset.shape) for name, dataset in self._datasets.items()
        }
        self.metadata: Mapping[str, str] = metadata
        self.notes: Sequence[str] = ()
        self.left_out: Mapping[str, str] = found.not_read(tensors=True)
        self._also = found.not_read(tensors=False)

    @property
    def extras(self) -> Mapping[str, str]:
        """Texts, empty places, the optimizer's state, and datasets that no layer lists."""
        return self._also

    @cached_property
    def same(self) -> Mapping[str, str]:
        """Tensors that are an earlier one under a second name (hard or soft links), and which that is."""
        first: dict[int, str] = {}
        earlier = {name: first.setdefault(id(dataset), name) for name, dataset in self._datasets.items()}
        return {name: other for name, other in earlier.items() if name != other}

    @property
    def overlapping(self) -> Sequence[str]:
        """Tensors whose bytes in the file are those of one before them: the ones of ``same``."""
        return list(self.same)

    def _refuse_shard(self, found: Contents) -> None:
        """One of several files has a part of the weights; only its name and its gaps tell so."""
        named = re.fullmatch(r"(.*)_(\d{5})\.weights\.h5", self.path.name)
        beside = index_beside(self.path) if named else None
        is_first = named is not None and int(named[2]) == 0
        is_later = _VARIABLES not in found.groups and (named is not None or _has_gap(found.datasets))
        if (beside is None and not is_first and not is_later) or (beside and len(shards_of(beside)) == 1):
            return
        index = beside or self.path.with_name(f"{named[1]}.weights.json" if named else "….weights.json")
        hint = f"give {index}"
        if beside is None:
            hint = f"put {index.name} and the other shards beside it and give {index.name}"
            if named is not None and is_first:
                whole = self.path.with_name(f"{named[1]}.weights.h5")
                hint += f"; if it is whole, rename it: mv {quoted(self.path)} {quoted(whole)}"
        raise FormatError(self.path, "is one of several shards of Keras weights", hint=hint)

    def _refuse_other_hdf5(self, datasets: Mapping[str, Dataset], of_root: Collection[str]) -> None:
        if not any(name.split("/")[-2:-1] == [_VARIABLES] for name in datasets):
            sample = ", ".join(sorted(datasets)[:3]) or "nothing that is a tensor"
            kind = next((kind for mark, kind in _OTHER_HDF5.items() if mark in of_root), "an HDF5 file")
            raise FormatError(
                self.path,
                f"is {kind}, not Keras weights (it holds {sample})",
                hint=told(_DATASETS, self.path) if datasets else "give the file with the model's weights",
            )

    def _metadata(self, text: str | None) -> dict[str, str]:
        if text is None:
            return {}
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(self.path, "ckptkit's metadata is not valid JSON") from error
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise FormatError(self.path, "ckptkit's metadata is no table of texts")
        return found

    def _read(self, name: str) -> Array:
        """A view of the file, or a copy where it is in chunks or big-endian."""
        import numpy

        dataset = self._datasets[name]
        if dataset.nbytes == 0 or dataset.address is not None:
            offset = self._source.start + (dataset.address or 0)
            array = self._file.view(offset, dataset.dtype, dataset.shape)
            if dataset.big_endian:
                array = array.byteswap()
        else:
            array = read_chunks(self._source, dataset, name).astype(dataset.dtype.numpy, copy=False)
            self._whole.add(name)
        array.flags.writeable = False
        return numpy.asarray(array)

    def check(self, name: str, known: int | None = None) -> bool:
        """Whether a tensor has checksums and they match; one that does not raises FormatError."""
        self._require(name)
        self._check_bytes(name)
        dataset = self._datasets[name]
        if dataset.is_checked and name not in self._whole:
            read_chunks(self._source, dataset, name)
            self._whole.add(name)
        return dataset.is_checked or self._archive is not None

    def check_rest(self) -> None:
        """Check every member of an archive that has not been checked."""
        if self._archive is not None:
            self._archive.members.require_all()

    def _check_bytes(self, _name: str) -> None:
        if self._archive is not None:
            self._archive.members.require(self._archive.held)

    def release(self, name: str) -> None:
        """Give back the memory pages of one tensor."""
        self._require(name)
        dataset = self._datasets[name]
        if dataset.address is not None:
            self._file.release(self._source.start + dataset.address, dataset.nbytes)


def _has_gap(datasets: Mapping[str, Dataset]) -> bool:
    """Whether a layer's variables begin with another number than 0."""
    first: dict[str, int] = {}
    for name in datasets:
        group, _, number = name.rpartition("/")
        if group.endswith(f"/{_VARIABLES}") and number.isascii() and number.isdecimal() and len(number) < 9:
            first[group] = min(first.get(group, int(number)), int(number))
    return any(first.values())


class _Walk:
    """Finds every object under the root group of a file, by each of the names that links give it."""

    def __init__(self, objects: Objects, attributes: Attributes) -> None:
        self._objects = objects
        self._attributes = attributes
        self._headers: dict[int, Header] = {}
        self._links: dict[int, dict[str, Link]] = {}
        self._parsed: dict[int, Dataset | NotRead] = {}
        self._followed: dict[tuple[int, str], int | None] = {}

    def contents(self) -> Contents:
        """Walk from the root, depth first."""
        found = Contents()
        root = self._objects.root
        waiting: list[tuple[str, tuple[int, ...]]] = [("", (root,))]
        while waiting:
            prefix, above = waiting.pop()
            below: list[tuple[str, tuple[int, ...]]] = []
            for link in self._members(above[-1]).values():
                path = prefix + link.name
                self._count(path, above[-1])
                address = self._address(link, above[-1])
                if address is None:
                    why = f"a soft link to {link.target}, which is not in the file"
                    found.objects[path] = NotRead(why)
                elif address in above:
                    found.objects[path] = NotRead("a link back to a group around it")
                elif self._header(address).is_group:
                    found.groups[path] = self._header(address)
                    below.append((path + "/", (*above, address)))
                else:
                    self._take(found, path, address)
            waiting += reversed(below)
        return found

    def _take(self, found: Contents, path: str, address: int) -> None:
        if address not in self._parsed:
            header = self._header(address)
            self._parsed[address] = (
                parse_dataset(self._objects, self._attributes, header, path) if header.is_dataset else NEITHER
            )
        found.objects[path] = self._parsed[address]

    def _count(self, path: str, address: int) -> None:
        """Links can lead to one group by very many ways."""
        self._objects.source.budget.spend(nodes=1, names=len(path), steps=8)
        if path.count("/") >= MAX_DEPTH or len(path) > MAX_NAME:
            raise self._objects.source.error("groups inside each other deeper than any model's", address)

    def _header(self, address: int) -> Header:
        if address not in self._headers:
            self._headers[address] = self._objects.header(address)
        return self._headers[address]

    def _members(self, group: int) -> dict[str, Link]:
        if group not in self._links:
            self._links[group] = self._objects.links(self._header(group))
        return self._links[group]

    def _address(self, link: Link, group: int, hops: int = 16) -> int | None:
        """Where a link of a group leads; None for a soft link to something that is not there."""
        if link.address is not None or (group, link.name) in self._followed:
            return self._followed.get((group, link.name), link.address)
        self._followed[group, link.name] = None
        at = self._objects.root if link.target.startswith("/") else group
        for step in link.target.split("/"):
            self._objects.source.budget.spend(steps=1)
            if step in ("", "."):
                continue
            following = self._members(at).get(step) if self._header(at).is_group else None
            reached = self._address(following, at, hops - 1) if following and hops else None
            if reached is None:
                return None
            at = reached
        self._followed[group, link.name] = at
        return at


def unloadable(names: Iterable[str]) -> list[str]:
    """Names of tensors that Keras' ``model.load_weights`` would find in no layer.

    It looks for a layer's variables by number in the group ``vars`` under the layer's place in the model; a
    layer that saves them by keys of its own has those there. Source: keras/src/saving/saving_lib.py,
    ``H5IOStore.get``, and ``Layer.load_own_variables``.

    Examples
    --------
    >>> unloadable(["layers/dense/vars/0", "vars/mean", "dense/kernel", "layers/norm/vars/1"])
    ['dense/kernel', 'layers/norm/vars/1']
    """
    keys: dict[str, set[str]] = {}
    for name in names:
        group, _, key = name.rpartition("/")
        keys.setdefault(group, set()).add(key)
    found = []
    for group, held in keys.items():
        numbered = all(key.isdecimal() for key in held)
        whole = not numbered or held == {str(number) for number in range(len(held))}
        if group.rpartition("/")[2] != _VARIABLES or not whole:
            found += [f"{group}/{key}" if group else key for key in sorted(held)]
    return found


class _Archive:
    """A ``.keras`` archive, whose short members are checked at once and the weights before they are read."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        directory = read_directory(file)
        held = directory.entries.get(KERAS_MEMBER)
        if held is None:
            raise FormatError(file.path, f"a zip archive without {KERAS_MEMBER}")
        if held.method != STORED:
            hint = f"unpack the archive and give {KERAS_MEMBER}"
            raise FormatError(file.path, f"its {KERAS_MEMBER} is compressed", hint=hint)
        self.held = held
        self.members = CheckedMembers(file, directory)
        for name in _TEXTS:
            text = directory.entries.get(name)
            if text is not None and text.size <= _MAX_TEXT and text.method in (STORED, DEFLATED):
                self.members.require(text)

    def weights(self) -> Hdf5Bytes:
        """The HDF5 file in it."""
        return Hdf5Bytes(self._file, self.held.offset, self.held.size)


class KerasH5Writer(PlacedWriter):
    """A Keras 3 weights file being written; see `ckptkit.formats.base.Writer`.

    Keras' ``model.load_weights`` takes it when its names are those of the model, which is for a layout to
    say, and when its own name ends with ``.weights.h5``.

    Parameters
    ----------
    path : Path
        The file.
    specs : iterable of TensorSpec
        Every tensor; slashes in names lead through groups.
    metadata : Mapping of str to str
        Kept in an attribute of the root group, which Keras does not look at.
    force : bool
        Whether an existing file may be replaced.

    Raises
    ------
    UsageError
        The file exists and ``force`` is false; an element type that Keras could not read; or metadata of
        more than 60000 bytes.
    ConversionError
        Two tensors of one name, or names that HDF5 cannot hold.
    StorageError
        The disk refuses.
    """

    def __init__(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], *, force: bool = False
    ) -> None:
        super().__init__(Path(path), specs, metadata)
        self._plan = self._blueprint()
        self._file = staged_checkpoint(self.path, force=force)

    def _blueprint(self) -> Blueprint:
        attribute = (_ATTRIBUTE, metadata_json(self._metadata))
        return blueprint(self.path, self._specs.values(), attribute)

    def _put(self, spec: TensorSpec, pieces: Iterable[Piece]) -> int:
        return put_at(self._file, pieces, self._plan.offsets.get(spec.name, 0))  # an empty one has no place

    def _settle(self, late: Mapping[str, str]) -> None:
        super()._settle(late)
        self._plan = self._blueprint()

    def _commit(self, check: Check | None) -> list[Path]:
        self._file.write_at(self._plan.head, 0)
        self._file.skip_to(self._plan.tail_offset)
        self._file.append(self._plan.tail)
        return commit_checkpoint(self._file, check)

    def discard(self) -> None:
        """Remove the temporary file; harmless after `finish`."""
        self._file.discard()
