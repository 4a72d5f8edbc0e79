"""Writing a checkpoint: its tensors to their places, and then the whole to its name, or nothing.

``m.safetensors`` may be one file, or an index and its shards; a TensorFlow prefix an index and any number of
data files. Whatever leads to a checkpoint of the name is set aside before the new one gets its names, and
what went with it is removed afterwards. So what opens is the old one, nothing, or the new one: never a
mixture, and never the old one once the new one is there. A removal that was cut off is ended by the next run.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from ckptkit.base.checksums import crc32c
from ckptkit.base.errors import CkptkitError, ConversionError
from ckptkit.base.files import (
    TEMPORARY,
    StagedFile,
    alone_in,
    aside_path,
    aside_paths,
    move,
    new_token,
    refuse_existing,
    sync_checked,
    sync_folder,
    translated,
)
from ckptkit.base.tensors import Array, Piece, RawTensor, TensorSpec, byte_pieces
from ckptkit.base.text import counted
from ckptkit.formats.base import TABLE_MARK, Check

if TYPE_CHECKING:
    from typing_extensions import Self


class TensorWriter(ABC):
    """A checkpoint in which every tensor's place is known beforehand: any order, any number of threads.

    Attributes
    ----------
    path : Path
        Where the checkpoint will be.
    specs : dict of str to TensorSpec
        What was announced, by name; names are distinct, and valid Unicode.
    metadata : dict of str to str
        What the container shall say about itself.
    most : int
        Tensors of one file that ckptkit's own reader takes within its budget.
    """

    order: Sequence[str]
    concurrent = True
    most = 1 << 62

    def __init__(self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> None:
        self.path = path
        self.metadata = dict(metadata)
        self.specs: dict[str, TensorSpec] = {}
        for spec in specs:
            if spec.name in self.specs:
                raise ConversionError(f"{path}: two tensors have the name {spec.name!r}")
            if not is_unicode(spec.name):
                raise ConversionError(f"{path}: the tensor name {spec.name!r} is not valid Unicode")
            self.specs[spec.name] = spec
        self.order = list(self.specs)
        self._begun: set[str] = set()
        self._written = 0
        self._lock = threading.Lock()

    def refuse_excess(self, tensors: int, hint: str = "choose safetensors") -> None:
        """Refuse more tensors in one file than are read."""
        if tensors > self.most:
            raise ConversionError(
                f"{self.path}: {counted(tensors, 'tensor')}; such a file is read with {self.most:,} at most",
                hint=hint,
            )

    def write(self, name: str, array: Array | RawTensor) -> int:
        """Write one tensor at its place, cast to its spec's dtype; returns the crc32c of its bytes."""
        with self._lock:
            if name not in self.specs or name in self._begun:
                raise ValueError(f"{name!r} is not to be written to {self.path}, or was before")
            spec = self.specs[name]
            if array.shape != spec.shape:
                raise ValueError(f"{name!r} has shape {array.shape}, announced was {spec.shape}")
            self._begun.add(name)
        crc = self.put(spec, byte_pieces(array, spec.dtype))
        with self._lock:
            self._written += 1
        return crc

    def finish(self, check: Check | None = None, late: Mapping[str, str] | None = None) -> list[Path]:
        """Sync, check and rename; see `ckptkit.formats.base.Writer.finish`."""
        missing = len(self.order) - self._written
        if missing:
            raise ValueError(f"{counted(missing, 'tensor', 'were')} never written to {self.path}")
        if late and not late.items() <= self.metadata.items():
            self._settle(late)
        return self._commit(check)

    def _settle(self, late: Mapping[str, str]) -> None:
        """Put late values into the metadata; containers that write it at the end need no more."""
        settled = {**self.metadata, **late}
        if len(metadata_json(settled)) != len(metadata_json(self.metadata)):
            raise ValueError(f"late metadata of {self.path} must take the places of values of their length")
        self.metadata = settled

    @abstractmethod
    def put(self, spec: TensorSpec, pieces: Iterable[Piece]) -> int:
        """Write a tensor's bytes (uint8) at their place; returns their crc32c."""

    @abstractmethod
    def _commit(self, check: Check | None) -> list[Path]:
        """Bring everything to its final name."""

    @abstractmethod
    def discard(self) -> None:
        """Remove every temporary file; harmless after `finish`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


class SingleFileWriter(TensorWriter):
    r"""A checkpoint of one file, which has a temporary name until it is whole: the base of most writers.

    A subclass refuses in ``__init__`` what it cannot hold, then calls `stage`, and gives `put` and `end`.

    Attributes
    ----------
    file : StagedFile
        The file from `stage` on: ``append(data)`` writes at its end, ``write_at(data, offset)`` anywhere.

    Examples
    --------
    A file of float32 values after a mark, in the order in which they were announced:

    >>> import numpy, tempfile
    >>> from ckptkit.base.tensors import DTYPES
    >>> class ColumnWriter(SingleFileWriter):
    ...     def __init__(self, path, specs, metadata, *, force=False):
    ...         super().__init__(path, specs, metadata)
    ...         self.stage(force=force)
    ...         self.at = {}
    ...         for spec in self.specs.values():
    ...             self.at[spec.name] = 6 + sum(self.specs[name].nbytes for name in self.at)
    ...
    ...     def put(self, spec, pieces):
    ...         return put_at(self.file, pieces, self.at[spec.name])
    ...
    ...     def end(self):
    ...         self.file.write_at(b"COLUMN", 0)
    >>> path = Path(tempfile.mkdtemp(), "a.column")
    >>> with ColumnWriter(path, [TensorSpec("x", DTYPES["float32"], (2,))], {}) as writer:
    ...     _ = writer.write("x", numpy.float32([1, 2]))
    ...     files = writer.finish()
    >>> path.read_bytes()[:10]
    b'COLUMN\x00\x00\x80?'
    """

    file: StagedFile

    def stage(self, *, force: bool) -> None:
        """Begin the file; UsageError where a checkpoint is there already, without ``force``."""
        self.refuse_excess(len(self.specs))
        refuse_existing_checkpoint(self.path, force=force)
        self.file = StagedFile(self.path, force=force)

    @abstractmethod
    def end(self) -> None:
        """Write what comes before and after the tensors."""

    def _commit(self, check: Check | None) -> list[Path]:
        self.end()
        sync_checked([self.file], check, self.file.temporary)
        return put_in_place([self.file], self.file.final)

    def discard(self) -> None:
        """Remove the temporary file; harmless after `finish`."""
        self.file.discard()


def put_at(file: StagedFile, pieces: Iterable[Piece], offset: int) -> int:
    """Write pieces one after the other from ``offset`` on; returns crc32c of all of them."""
    crc = 0
    for piece in pieces:
        crc = crc32c(piece, crc)
        file.write_at(piece, offset)
        offset += piece.nbytes
    return crc


def metadata_json(metadata: Mapping[str, str]) -> bytes:
    """Metadata as JSON that is the same for the same content."""
    import json

    return json.dumps(dict(sorted(metadata.items())), ensure_ascii=False, separators=(",", ":")).encode()


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded (lone surrogates cannot)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ----------------------------------------------------------------------------------------------------
# The names of a checkpoint: what an earlier result of the same name consists of, and how it makes room.


def refuse_existing_checkpoint(path: Path, *, force: bool) -> None:
    """Refuse, before any work, to write a checkpoint where one of that name exists."""
    refuse_existing(path, force=force)
    for leader in (path.with_name(path.name + ".index"), *_leaders(path)):
        if leader != path and os.path.lexists(leader):  # not where that name would be too long
            refuse_existing(leader, force=force)


def files_at(path: Path) -> Iterator[Path]:
    """Every file that a checkpoint written to a path replaces or removes."""
    yield path
    for leader in _leaders(path):
        yield leader
        yield from _followers(leader, leader)


class Renamed(Protocol):
    """A file of a checkpoint, on its way to its final name."""

    @property
    def final(self) -> Path:
        """Its final name."""

    @property
    def is_stream(self) -> bool:
        """Whether it is written into a device or a pipe, and replaces nothing."""

    def rename(self) -> Path:
        """Give it its final name."""

    def take_back(self) -> None:
        """Take the final name away again."""


def put_in_place(files: Sequence[Renamed], path: Path) -> list[Path]:
    """Give the synced files of one checkpoint their names, what leads to the others last."""
    (*_, last) = files
    if last.is_stream:
        return [last.rename()]
    if len(files) == 1 and not _others(path, last.final) and not _begun(path):
        done = [last.rename()]
        if not _others(path, last.final):
            return done
        with alone_in(path.parent):  # another writer's came at the same moment: the later one stays
            if path.exists():
                _remove(_set_aside(_others(path, last.final)))
        return done
    with translated(path), alone_in(path.parent) as alone:
        if alone:
            _remove([(aside, leader) for leader, aside in _begun(path)])
        old = _set_aside(_others(path, None if len(files) > 1 else last.final))
        done = _renamed(files, old)
        _remove(old)
    return done


def _renamed(files: Sequence[Renamed], old: Sequence[tuple[Path, Path]]) -> list[Path]:
    """Rename all files or none; if none, earlier ones get their names back unless a part of them is gone."""
    done: list[Path] = []
    lost = {follower.name for aside, leader in old for follower in _followers(aside, leader)}
    try:
        for file in files:
            done.append(file.rename())
    except BaseException:  # Ctrl+C too
        for file in files[: len(done)]:
            file.take_back()
        if lost.isdisjoint(path.name for path in done):
            for aside, leader in old:
                move(aside, leader)
        raise
    return done


def _leaders(path: Path) -> list[Path]:
    """The files by which a checkpoint of that name is opened, as far as they exist."""
    from ckptkit.formats.shards import index_names, shards_of

    name = path.name
    *indexes, keras = map(path.with_name, index_names(name))
    found = [index for index in indexes if os.path.lexists(index)]
    if _is_file(keras) and shards_of(keras):
        found.append(keras)
    table = path.with_name(name + ".index")
    if _is_table(table):
        found.append(table)
    return [*found, path] if _is_file(path) else found


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 (pathlib's raises where the name is too long)


def _others(path: Path, final: Path | None) -> list[Path]:
    """The leaders but for the one that the new file replaces."""
    return [leader for leader in _leaders(path) if leader != final]


def _followers(index: Path, leader: Path) -> list[Path]:
    """The files of an index that are its own; ``index`` is where the leader is now."""
    if leader.name.endswith(".json"):
        return _shards(index, leader)
    if leader.name.endswith(".index"):
        return _data_files(index, leader)
    return []


def _shards(index: Path, leader: Path) -> list[Path]:
    """The shards that an index names, are called after it, and no other index in the folder names."""
    from ckptkit.formats.shards import INDEX_ENDINGS, KERAS_INDEX, index_of, numbered, shards_of

    stem = leader.name.removesuffix(KERAS_INDEX)
    own = {
        name
        for name in shards_of(index)
        if index_of(name) == leader.name or (numbered(name) and name[: -len("_00000.weights.h5")] == stem)
    }
    if own:
        for other in leader.parent.iterdir():
            temporary = other.name.startswith(TEMPORARY)
            if other.name.endswith(INDEX_ENDINGS) and not temporary and other != leader:
                own -= shards_of(other)
        if index != leader and leader.is_file():  # a new checkpoint is there already
            own -= shards_of(leader)
    return [leader.with_name(name) for name in sorted(own)]


def _data_files(index: Path, leader: Path) -> list[Path]:
    """The data files that the index of a TensorFlow prefix names."""
    from ckptkit.formats.tf_index import count_of_data_files

    prefix = leader.name.removesuffix(".index")
    try:
        counts = {count_of_data_files(index)}
        if index != leader and leader.is_file():  # a new checkpoint is there already
            counts.discard(count_of_data_files(leader))
    except CkptkitError:  # whatever is wrong with it, nothing is known to be its own
        return []
    wanted = re.compile(rf"{re.escape(prefix)}\.data-\d{{5}}-of-(\d{{5}})")
    found = ((path, wanted.fullmatch(path.name)) for path in leader.parent.iterdir())
    return sorted(path for path, match in found if match and int(match[1]) in counts)


def _is_table(path: Path) -> bool:
    """Whether a file is the index of a TensorFlow checkpoint, by its end."""
    from ckptkit.base.files import open_regular

    try:
        with open_regular(path) as file:
            file.seek(-len(TABLE_MARK), os.SEEK_END)
            return file.read() == TABLE_MARK
    except OSError:
        return False


def _begun(path: Path) -> list[tuple[Path, Path]]:
    """Leaders of that name whose removal was begun: what they were called, and where they are."""
    from ckptkit.formats.shards import index_names

    names = [path.name, path.name + ".index", *index_names(path.name)]
    return [(leader, aside) for leader in map(path.with_name, names) for aside in aside_paths(leader)]


def _set_aside(leaders: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Take the names of earlier results away; returns where each is, and what it was called."""
    old: list[tuple[Path, Path]] = []
    try:
        for leader in leaders:
            refuse_existing(leader, force=True)
            aside = aside_path(leader, new_token())
            with contextlib.suppress(FileNotFoundError):  # without locks another writer may be quicker
                move(leader, aside)
                old.append((aside, leader))
    except BaseException:
        for aside, leader in old:
            move(aside, leader)
        raise
    if old:
        sync_folder(old[0][1].parent)
    return old


def _remove(old: Sequence[tuple[Path, Path]]) -> None:
    """Remove earlier results, first what went with them; what stays for now opens no more."""
    for aside, leader in old:
        with contextlib.suppress(OSError):
            for path in (*_followers(aside, leader), aside):
                mode = path.lstat().st_mode if os.path.lexists(path) else 0
                if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
                    path.unlink()
