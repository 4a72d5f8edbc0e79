"""One conversion by several processes, each of which writes some of the shards.

They share a file system and nothing else. Finished shards wait in a hidden folder beside the result, whose
name has a digest of everything that decides the bytes: the plan, the source's files, the version. So shards
of another run are never taken for this one's, and a process that starts again finds what was done. Whoever
writes the last missing shard gives all of them their names, what leads to them last, under a lock.

Without locks two processes may do that at once. Their files are the same, and each step of it finds what the
other has done: the result is the same, and one of them may report that shards are missing.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit._version import __version__
from ckptkit.base.errors import UsageError
from ckptkit.base.files import (
    TEMPORARY,
    StagedFile,
    files_below,
    make_folders,
    read_regular,
    remove_tree,
    translated,
)
from ckptkit.base.folders import short_name
from ckptkit.base.locks import hold
from ckptkit.base.parse import Turn
from ckptkit.convert.execution import Converted, RoundingLoss, Target, execute
from ckptkit.convert.planning import Join, Move, Plan
from ckptkit.formats.base import Reader
from ckptkit.formats.sharded_writing import FinishedShard, Share
from ckptkit.formats.shards import INDEX_ENDINGS, shards_of

if TYPE_CHECKING:
    from ckptkit.base.progress import Advance

_MAX_NOTE_BYTES = 10_000
_FOLDER = f"{TEMPORARY}shards-"


@dataclass(frozen=True)
class Shared:
    """What one process of several did, and what is still to be done."""

    turn: Turn
    own: int  # shards that are this process's
    missing: Sequence[str]  # names of the shards that nobody has written yet
    total: int  # shards of the whole
    folder: Path  # where finished ones wait
    others: Sequence[Path] = ()  # where those of other conversions to the same name wait
    converted: Converted | None = None  # the whole, where this process finished it

    @property
    def is_complete(self) -> bool:
        """Whether the checkpoint has its name."""
        return not self.missing


class SharedConversion:
    """A fitted plan, of which this process carries out a part."""

    def __init__(self, plan: Plan, target: Target, output: Path, turn: Turn, source: Path) -> None:
        if target.max_shard_size is None:
            raise UsageError(
                f"--shard {turn} needs a result in shards", hint="give --max-shard-size too, such as 5GB"
            )
        if not target.kind.shares:
            raise UsageError(f"--shard does not apply to {target.format}")
        self._plan, self._target, self._output, self._turn = plan, target, output, turn
        digest = _digest(plan, target, source)
        place = Path(os.path.abspath(output))  # noqa: PTH100 - a link there is refused, not followed
        self.folder = place.with_name(f"{_FOLDER}{digest}+{short_name(place.name)}")
        self._files = self.folder / "files"
        layout = self._writer(plan, force=True)
        self._finals: list[Path] = layout.paths
        self._names = [[spec.name for spec in shard] for shard in layout.shards]
        self._own = turn.of(range(len(self._finals)))

    def _writer(self, plan: Plan, *, force: bool) -> Any:
        return self._target.writer(plan, self._output, force=force, share=Share(self._files))

    @property
    def has_begun(self) -> bool:
        """Whether shards of this very conversion are there, of this process or another."""
        return self.folder.is_dir()

    def own_plan(self) -> Plan:
        """The part of the plan that is this process's."""
        return self._part(name for number in self._own for name in self._names[number])

    def _part(self, names: Iterable[str]) -> Plan:
        held = set(names)
        return replace(self._plan, moves=tuple(move for move in self._plan.moves if move.target.name in held))

    def state(self, converted: Converted | None = None, *, complete: bool = False) -> Shared:
        """What is done by now."""
        missing = [path.name for number, path in enumerate(self._finals) if not self._is_done(number)]
        here = f"+{short_name(self._output.name)}"
        others = [
            folder
            for folder in self.folder.parent.glob(f"{_FOLDER}*")
            if folder.name.endswith(here) and folder != self.folder
        ]
        return Shared(
            self._turn,
            len(self._own),
            [] if complete else missing,
            len(self._finals),
            self.folder,
            others,
            converted,
        )

    def run(
        self,
        reader: Reader,
        late: Callable[[], Mapping[str, str]],
        *,
        force: bool,
        check: bool,
        progress: Advance | None = None,
    ) -> Shared:
        """Write the shards of this process that are missing; then finish the whole, if nothing else is."""
        if not self._own and not self.has_begun:
            return self.state()
        with translated(self._output):
            make_folders(self._files)
        settled = _Once(self.folder / "source.json", late)
        losses: dict[str, RoundingLoss] = {}
        checksums: dict[str, int] = {}
        for number in self._own:
            if self._is_done(number):
                if progress:
                    progress(self._part(self._names[number]).nbytes)
                continue
            written = execute(
                self._plan,
                reader,
                self._target,
                self._output,
                check=check,
                progress=progress,
                late=settled,
                share=Share(self._files, number),
            )
            self._record(number)
            checksums |= written.checksums
            losses |= {loss.name: loss for loss in written.losses}
        files = self._finish(settled, force=force)
        if files is None:
            return self.state()
        index = next((file for file in files if file.name.endswith(INDEX_ENDINGS)), self._output)
        ordered = tuple(losses[spec.name] for spec in self._plan.specs if spec.name in losses)
        return self.state(Converted(index, tuple(files), checksums, ordered), complete=True)

    def _finish(self, late: Callable[[], Mapping[str, str]], *, force: bool) -> list[Path] | None:
        """Give all shards their names; None where some are missing yet."""
        if not self._all_done():
            return None if self.has_begun else self._finals
        lock = self.folder / "lock"
        with hold(lock):
            if not lock.exists():  # another process finished meanwhile, and took it away
                return self._finals
            if not self._all_done():
                return None
            writer = self._writer(self._plan.with_metadata(late()), force=force)
            shards = [FinishedShard(self._files / path.name, path) for path in self._finals]
            if any(shard.path.exists() for shard in shards) or not writer.is_gathered():
                files: list[Path] = writer.gather(shards)
            else:  # a process was killed after the last name, and before it removed the folder
                files = self._finals
            remove_tree(self.folder)
            return files

    def _all_done(self) -> bool:
        return all(self._is_done(number) for number in range(len(self._finals)))

    def _record(self, number: int) -> None:
        """Note that a shard is whole, and which file it is."""
        status = (self._files / self._finals[number].name).stat()
        with StagedFile(self._note(number), force=True, own=True) as file:
            file.append(json.dumps([status.st_size, status.st_mtime_ns]).encode())
            file.commit()

    def _is_done(self, number: int) -> bool:
        """Whether a shard is whole: among the finished ones, or at its final name already."""
        final = self._finals[number]
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(read_regular(self._note(number), _MAX_NOTE_BYTES))
            for path in (self._files / final.name, final):
                with contextlib.suppress(OSError):
                    status = path.lstat()
                    if [status.st_size, status.st_mtime_ns] == known:
                        return True
        return False

    def _note(self, number: int) -> Path:
        return self.folder / f"{number}.json"


class _Once:
    """Late metadata, which the first process that knows them leaves for the others."""

    def __init__(self, path: Path, find: Callable[[], Mapping[str, str]]) -> None:
        self._path, self._find = path, find

    def __call__(self) -> Mapping[str, str]:
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, str] = json.loads(read_regular(self._path, _MAX_NOTE_BYTES))
            return found
        found = dict(self._find())
        with StagedFile(self._path, force=True, own=True) as file:
            file.append(json.dumps(found).encode())
            file.commit()
        return found


def _digest(plan: Plan, target: Target, source: Path) -> str:
    """What tells this conversion from any other: whatever decides a byte of the result."""
    digest = hashlib.sha256()

    def add(*values: object) -> None:
        digest.update(json.dumps(values, default=str).encode() + b"\n")

    add(__version__, target.format, target.max_shard_size, plan.layout, sorted(plan.metadata.items()))
    add(sorted(plan.shared.items()))
    for path in _files_of(source):
        status = path.stat()
        add(os.fsencode(path.name).hex(), status.st_size, status.st_mtime_ns)
    for move in plan.moves:
        spec = move.target
        add(spec.name, spec.dtype.name, spec.shape, move.op, move.sources)
        if isinstance(move, Move):
            add(repr(move.cut))
        elif isinstance(move, Join):
            add(
                [
                    (repr(piece.cut), repr(place))
                    for piece, place in zip(move.pieces, move.places, strict=True)
                ]
            )
    return digest.hexdigest()[:16]


def _files_of(source: Path) -> list[Path]:
    """The files that a checkpoint consists of."""
    if source.is_dir():
        return [Path(entry.path) for entry in files_below(source)]
    prefix = source.with_suffix("") if source.suffix == ".index" else source
    files = [source, prefix.with_name(prefix.name + ".index")]
    files += sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*-of-*"))
    if source.name.endswith(INDEX_ENDINGS):
        files += [source.with_name(shard) for shard in sorted(shards_of(source))]
    return [path for path in dict.fromkeys(files) if path.is_file()]
