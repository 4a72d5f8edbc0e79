"""A checkpoint written as one file or, where it exceeds a size, as several files and their index.

The shards get their names first and the index last, so a set of shards exists if and only if its index does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ckptkit.base.errors import UsageError
from ckptkit.base.files import StagedFile, refuse_existing, refuse_streams, sync_checked
from ckptkit.base.tensors import Piece, TensorSpec
from ckptkit.base.text import counted
from ckptkit.formats.base import Check
from ckptkit.formats.writing import TensorWriter, put_at, put_in_place, refuse_existing_checkpoint

_MAX_SHARDS = 500

Shards = Sequence[Sequence[TensorSpec]]


class ShardedWriter(TensorWriter):
    """Writes one file or some shards, each of which is a file of the format by itself.

    A subclass refuses in ``__init__`` what it cannot hold, then calls `stage_shards`, and gives the rest.
    """

    ending: str
    """Of each file's name, also while it is temporary, so that the whole can be opened before."""
    index_ending: str

    @abstractmethod
    def index_path(self) -> Path:
        """Where the index will be."""

    @abstractmethod
    def shard_path(self, number: int, count: int) -> Path:
        """Where a shard will be; ``number`` counts from 0."""

    @abstractmethod
    def begin(self, file: StagedFile, number: int) -> Mapping[str, int]:
        """Write what comes before the tensors of a shard; returns the offset of each that has one."""

    @abstractmethod
    def index_bytes(self, homes: Mapping[str, str]) -> bytes:
        """The index of tensors in files of these names."""

    def end(self, file: StagedFile, number: int) -> None:
        """Write what comes after the tensors of a shard."""

    def stage_shards(self, shards: Shards, limit: int | None, *, force: bool) -> None:
        """Begin every file; UsageError where a checkpoint is there already, without ``force``."""
        count = len(shards)
        if count > _MAX_SHARDS:
            raise UsageError(
                f"{self.path}: {counted(count, 'shard')} of at most {limit} bytes, more than {_MAX_SHARDS}",
                hint="allow larger ones",
            )
        self._force = force
        self.shards = shards
        self._places: dict[str, tuple[StagedFile, int]] = {}
        self._staged: list[StagedFile] = []
        paths = [self.path] if count == 1 else [self.shard_path(number, count) for number in range(count)]
        refuse_existing_checkpoint(self.path, force=force)
        if count > 1:
            refuse_streams(self.path)
            for target in [*paths, self.index_path()]:
                refuse_existing(target, force=force)
        self.order = [spec.name for shard in shards for spec in shard]
        try:
            for number, target in enumerate(paths):
                file = StagedFile(target, force=force, ending=self.ending, plain=count > 1)
                self._staged.append(file)
                offsets = self.begin(file, number)
                self._places.update({s.name: (file, offsets.get(s.name, 0)) for s in shards[number]})
        except BaseException:
            self.discard()
            raise

    def put(self, spec: TensorSpec, pieces: Iterable[Piece]) -> int:
        """Write a tensor at its place."""
        file, offset = self._places[spec.name]
        return put_at(file, pieces, offset)

    def _settle(self, late: Mapping[str, str]) -> None:
        super()._settle(late)
        for number, file in enumerate(self._staged):
            self.begin(file, number)

    def _commit(self, check: Check | None) -> list[Path]:
        for number, file in enumerate(self._staged):
            self.end(file, number)
        if len(self.shards) == 1:
            sync_checked(self._staged, check, self._staged[0].temporary)
            return put_in_place(self._staged, self.path)
        self._sync_shards(check)
        index = self._stage_index([file.final.name for file in self._staged])
        index.sync()
        return put_in_place(self._staged, self.path)

    def _sync_shards(self, check: Check | None) -> None:
        """Sync the shards, and check the whole meanwhile, through an index of their temporary names."""
        with self._stage_index([file.temporary.name for file in self._staged]) as index:
            sync_checked(self._staged, check, index.temporary)
            self._staged.remove(index)

    def _stage_index(self, names: Sequence[str]) -> StagedFile:
        """Write the index, with the names of the shards as given, under a temporary name."""
        index = StagedFile(self.index_path(), force=self._force, ending=self.index_ending, plain=True)
        self._staged.append(index)
        shards = zip(self.shards, names, strict=True)
        index.append(self.index_bytes({spec.name: name for shard, name in shards for spec in shard}))
        return index

    def discard(self) -> None:
        """Remove every temporary file; harmless after `finish`."""
        for file in self._staged:
            file.discard()


def cut(groups: Iterable[Sequence[TensorSpec]], limit: int | None) -> list[list[TensorSpec]]:
    """Cut tensors, in their order, into shards of at most ``limit`` bytes.

    A group stays together; one that is larger than the limit gets a shard of its own.
    """
    if limit is not None and limit <= 0:
        raise UsageError(f"a shard size of {limit} bytes", hint="give a positive size")
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for group in groups:
        nbytes = sum(spec.nbytes for spec in group)
        if limit is not None and shards[-1] and size + nbytes > limit:
            shards.append([])
            size = 0
        shards[-1] += group
        size += nbytes
    return shards
