"""A checkpoint written as one file or, where it exceeds a size, as several files and their index.

The shards get their names first and the index last, so a set of shards exists if and only if its index does.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptkit.base.errors import UsageError
from ckptkit.base.files import (
    StagedFile,
    move,
    read_regular,
    refuse_existing,
    refuse_streams,
    sync_checked,
    translated,
)
from ckptkit.base.tensors import Piece, TensorSpec
from ckptkit.base.text import counted
from ckptkit.formats.base import Check
from ckptkit.formats.writing import TensorWriter, put_at, put_in_place, refuse_existing_checkpoint

_MAX_SHARDS = 500

Shards = Sequence[Sequence[TensorSpec]]


@dataclass(frozen=True)
class Share:
    """What one of several processes writes of a checkpoint: a shard, or (number None) nothing yet."""

    folder: Path  # where finished shards wait for the others, in the file system of the result
    number: int | None = None


@dataclass(frozen=True)
class FinishedShard:
    """A shard that some process wrote, on its way to its final name; one that has it already stays there."""

    path: Path
    final: Path
    is_stream = False

    def rename(self) -> Path:
        """Give it its final name, unless that was done."""
        with translated(self.final):
            if self.path.exists():
                move(self.path, self.final)
        return self.final

    def take_back(self) -> None:
        """Keep it for the next attempt."""
        if not self.path.exists():
            move(self.final, self.path)


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
        """Begin a shard; returns the offset of each of its tensors that has one."""

    @abstractmethod
    def end(self, file: StagedFile, number: int) -> None:
        """Write what comes before and after the tensors of a shard."""

    def index_bytes(self, homes: Mapping[str, str]) -> bytes:
        """The index of tensors in files of these names, as Hugging Face's libraries write it."""
        total = sum(self.specs[name].nbytes for shard in self.shards for name in self.own_names(shard))
        table = {"metadata": {"total_size": total}, "weight_map": dict(sorted(homes.items()))}
        text = json.dumps(table, ensure_ascii=False, indent=2) + "\n"
        return text.encode(errors="backslashreplace")  # a file's name may not be UTF-8; JSON writes it so

    def own_names(self, shard: Sequence[TensorSpec]) -> list[str]:
        """The tensors of a shard that are written, less those that are another one's second name."""
        return [spec.name for spec in shard]

    def stage_shards(
        self, shards: Shards, limit: int | None, *, force: bool, share: Share | None = None
    ) -> None:
        """Begin every file; UsageError where a checkpoint is there already, without ``force``.

        Of a ``share``, only its own file, in its folder: what is at the final names is for `gather` to see.
        """
        count = len(shards)
        self.refuse_excess(max(map(len, shards)), "cut it into more shards")
        if count > _MAX_SHARDS:
            raise UsageError(
                f"{self.path}: {counted(count, 'shard')} of at most {limit} bytes, more than {_MAX_SHARDS}",
                hint="allow larger ones",
            )
        self._force = force
        self.shards = shards
        self._places: dict[str, tuple[StagedFile, int]] = {}
        self._staged: list[StagedFile] = []
        self._share = share
        self.paths = (
            [self.path] if count == 1 else [self.shard_path(number, count) for number in range(count)]
        )
        paths = dict(enumerate(self.paths))
        if share is None:
            refuse_existing_checkpoint(self.path, force=force)
            if count > 1:
                refuse_streams(self.path)
                for target in [*self.paths, self.index_path()]:
                    refuse_existing(target, force=force)
        else:
            paths = {number: share.folder / at.name for number, at in paths.items() if number == share.number}
        self._numbers = list(paths)
        self.order = [name for number in paths for name in self.own_names(shards[number])]
        try:
            for number, target in paths.items():
                force, plain = force or share is not None, count > 1 or share is not None
                file = StagedFile(target, force=force, ending=self.ending, plain=plain)
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

    def _commit(self, check: Check | None) -> list[Path]:
        for number, file in zip(self._numbers, self._staged, strict=True):
            self.end(file, number)
        if self._share is not None:
            (shard,) = self._staged
            self._sync_shards(check)
            return [shard.rename()]
        self._sync_shards(check)
        if len(self.shards) > 1:
            self._stage_index(self._final_names()).sync()
        return put_in_place(self._staged, self.path)

    def gather(self, shards: Sequence[FinishedShard]) -> list[Path]:
        """Give all shards their names, and write what leads to them last."""
        if not self._force:
            ours = {shard.final for shard in shards if not shard.path.exists()}
            refuse_existing_checkpoint(self.path, force=False)
            for target in {shard.final for shard in shards} - ours:
                refuse_existing(target, force=False)
        if len(shards) == 1:
            return put_in_place(shards, self.path)
        with self._stage_index(self._final_names()) as index:
            index.sync()
            return put_in_place([*shards, index], self.path)

    def is_gathered(self) -> bool:
        """Whether what leads to the shards is there, and leads to these."""
        if len(self.paths) == 1:
            return self.paths[0].is_file()
        return holds_bytes(self.index_path(), self._index_of(self._final_names()))

    def _sync_shards(self, check: Check | None) -> None:
        """Sync the shards, and check the whole meanwhile, through an index of their temporary names."""
        if len(self.shards) == 1:
            sync_checked(self._staged, check, self._staged[0].temporary)
            return
        names = {
            number: file.temporary.name for number, file in zip(self._numbers, self._staged, strict=True)
        }
        with self._stage_index(names) as index:
            sync_checked(self._staged, check, index.temporary)
            self._staged.remove(index)

    def _stage_index(self, names: Mapping[int, str]) -> StagedFile:
        """Write the index of these shards, with the names given, under a temporary name beside them."""
        path, alone = self.index_path(), False
        if self._share is not None and self._share.number is not None:  # one shard, opened to be checked
            path, alone = self._share.folder / path.name, True
        index = StagedFile(path, force=self._force or alone, ending=self.index_ending, plain=True)
        self._staged.append(index)
        index.append(self._index_of(names))
        return index

    def _index_of(self, names: Mapping[int, str]) -> bytes:
        named = ((spec.name, name) for number, name in names.items() for spec in self.shards[number])
        return self.index_bytes(dict(named))

    def _final_names(self) -> dict[int, str]:
        return {number: path.name for number, path in enumerate(self.paths)}

    def discard(self) -> None:
        """Remove every temporary file; harmless after `finish`."""
        for file in self._staged:
            file.discard()


def holds_bytes(path: Path, wanted: bytes) -> bool:
    """Whether a regular file has this content."""
    try:
        return read_regular(path, len(wanted)) == wanted
    except OSError:
        return False


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
