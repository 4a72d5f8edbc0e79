"""What lies in a cache folder: per entry the file as published, its unpacked archive, its conversions."""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ckptkit.base.errors import CkptkitError
from ckptkit.base.files import (
    TEMPORARY,
    Folder,
    files_below,
    is_held,
    is_own_folder,
    is_temporary,
    regular_status,
)
from ckptkit.base.locks import has_token, is_gone
from ckptkit.store.archive import MARKER, is_archive_name, read_marker
from ckptkit.store.cache import KINDS, Home, Record, safe_id

Kind = Literal["artefact", "unpacked", "converted", "unfinished"]
State = Literal[
    "intact", "touched", "damaged", "missing", "no record", "stale", "unfinished", "being written"
]
REMOVING = f"{TEMPORARY}removing-"
"""What the name of a folder begins with while it is being removed."""
_UNPACKING = f"{TEMPORARY}unpacking-"
_CONVERSION = re.compile(r".+-(?:float(?:16|32|64)|bfloat16|float8\w+|mixed)(?:\.|-\d{5}-of-).*|.+-mixed")
"""What `Home.converted_path` and its shards are called."""
_RECORD_BYTES = 1 << 20
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(?P<ending>\.safetensors)")
_SILENT_SECONDS = 600.0
"""Where no lock can tell whether a file is being written, one that nobody wrote to for so long is not."""


@dataclass(frozen=True)
class Item:
    """One thing in the cache.

    Attributes
    ----------
    kind : {"artefact", "unpacked", "converted", "unfinished"}
    path : Path
        File or folder; of a conversion in several files what other commands take.
    size : int
        Bytes, of all its files.
    state : str
        ``intact`` as far as size and time tell; ``touched`` since it was hashed; ``damaged`` (another size,
        files missing, cannot be opened); ``missing`` although recorded; ``no record``; ``stale``: made from
        other bytes than the entry's file has now; ``unfinished`` and ``being written`` temporary files.
    """

    kind: Kind
    path: Path
    size: int
    state: State


@dataclass(frozen=True)
class Holding:
    """What one cache folder holds of one entry.

    Attributes
    ----------
    id : str
    home : Path
        The cache folder.
    items : tuple of Item
    used : float
        When it was last used (fetched, converted, proven), in seconds since 1970.
    by_hand : bool
        Whether its file was imported by hand: no fetch brings it back.
    """

    id: str
    home: Path
    items: tuple[Item, ...]
    used: float
    by_hand: bool

    @property
    def size(self) -> int:
        """Bytes of everything."""
        return sum(item.size for item in self.items)

    def size_of(self, kind: Kind) -> int:
        """Bytes of everything of one kind."""
        return sum(item.size for item in self.items if item.kind == kind)

    def of(self, kind: Kind) -> list[Item]:
        """Everything of one kind."""
        return [item for item in self.items if item.kind == kind]

    @property
    def is_intact(self) -> bool:
        """Whether nothing is wrong as far as size and time tell."""
        fine = ("intact", "touched", "unfinished", "being written")
        return all(item.state in fine for item in self.items)


def holdings(home: Home, patterns: Sequence[str] = (), *, examine: bool = True) -> list[Holding]:
    """What lies in every folder of a cache, by folder and id.

    Parameters
    ----------
    home : Home
    patterns : sequence of str
        Ids or globs; none: everything.
    examine : bool
        Open the conversions to see whether they are sound and of the file that lies here.
    """
    found = []
    for single in home.homes:
        for id in held_ids(single, patterns):
            items = tuple(_items(single, home, id, examine))
            used = last_used(home, single, id)
            found.append(Holding(id, single.path, items, used, _by_hand(single, id)))
    return [holding for holding in found if holding.items]


def own_holdings(home: Home, patterns: Sequence[str] = ()) -> list[Holding]:
    """What lies in the folder it would be written to, and may be removed; conversions are not opened."""
    held = holdings(home, patterns, examine=False)
    return [holding for holding in held if holding.home == home.at(holding.id).path]


def held_ids(home: Home, patterns: Sequence[str] = ()) -> list[str]:
    """Ids of which a single cache folder has a folder of its own, not a link, sorted."""
    names = {
        name
        for kind in KINDS
        if is_own_folder(home.path / kind)
        for name in _names(home.path / kind)
        if is_own_folder(home.path / kind / name)
    }
    return sorted(
        name
        for name in names
        if _is_id(name) and (not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns))
    )


def is_own(home: Home, kind: str, id: str) -> bool:
    """Whether a single cache folder holds something of an entry that ckptkit put there, by no link."""
    try:
        with Folder(home.path / kind / id, below=home.path) as folder:
            return bears_mark(folder, kind, id, locked=_was_locked(home, id))
    except (OSError, ValueError):
        return False


def bears_mark(folder: Folder, kind: str, id: str, *, locked: bool) -> bool:
    """Whether an entry's folder has what only ckptkit puts there: a record, a marker, a part of a file.

    Where ckptkit has locked the entry before, a damaged record will do.
    """
    names = folder.names()
    if kind == "unpacked":
        return MARKER in names and _is_file(folder, MARKER)
    if any(is_temporary(Path(name)) or (name.startswith(".") and has_token(Path(name))) for name in names):
        return True
    if kind == "converted":
        return any(_CONVERSION.fullmatch(name) for name in names)
    ending = ".record" if kind == "logs" else ".json"
    records = [name for name in names if name.endswith(ending) and _is_file(folder, name)]
    if kind == "logs":
        return any(name.removesuffix(ending) in names for name in records)
    return any(locked or _is_record(folder, name, id) for name in records)


def _is_record(folder: Folder, name: str, id: str) -> bool:
    try:
        record = Record.from_json(folder.read(name, _RECORD_BYTES))
    except OSError:
        return False
    return record is not None and record.id == id and f"{record.file}.json" == name


def _is_file(folder: Folder, name: str) -> bool:
    try:
        return stat.S_ISREG(folder.status(name).st_mode)
    except OSError:
        return False


def _was_locked(home: Home, id: str) -> bool:
    return regular_status(home.lock_path(id)) is not None


def last_used(home: Home, single: Home, id: str) -> float:
    """When an entry was last used: by its stamp, else when it was fetched or converted."""
    times = [_mtime(folder.path / "used" / id) for folder in home.homes]
    for record in single.records(id):
        with contextlib.suppress(ValueError, OverflowError):
            fetched = datetime.datetime.fromisoformat(record.fetched_at)
            times.append(fetched.timestamp())
    times += [_mtime(path) for path in _visible(single.converted_folder(id))]
    return max(times) or max(_mtime(single.path / folder / id) for folder in KINDS)


def leftovers(home: Home) -> list[Path]:
    """Folders of a single cache that were being removed or unpacked when their process ended."""
    return [
        path
        for kind in KINDS
        if is_own_folder(home.path / kind)
        for path in _paths(home.path / kind)
        if path.name.startswith((REMOVING, _UNPACKING))
        and has_token(path)
        and is_own_folder(path)
        and is_gone(path)
    ]


def is_being_written(path: Path) -> bool:
    """Whether a file is a temporary one that somebody writes right now."""
    if has_token(path):
        return not is_gone(path)
    if not is_temporary(path) or regular_status(path) is None:
        return False
    held = is_held(path)
    return time.time() - _mtime(path) < _SILENT_SECONDS if held is None else held


def tree_size(path: Path) -> int:
    """Bytes of a file, or of all files under a folder; what cannot be seen counts nothing."""
    try:
        if not is_own_folder(path):
            return path.lstat().st_size
    except OSError:
        return 0
    total = 0
    for entry in files_below(path):
        with contextlib.suppress(OSError):
            total += entry.stat(follow_symlinks=False).st_size
    return total


def _items(single: Home, home: Home, id: str, examine: bool) -> Iterator[Item]:
    yield from _artefacts(single, id)
    folder = single.unpacked_folder(id)
    if is_own_folder(folder):
        yield Item("unpacked", folder, tree_size(folder), _state_of_unpacked(folder, home.records(id)))
    record = home.record(id)
    for path, files in _conversions(single.converted_folder(id)):
        size = sum(tree_size(file) for file in files)
        yield Item("converted", path, size, _state_of_conversion(path, record) if examine else "intact")
    for place in (single.artefact_folder(id), single.converted_folder(id)):
        for path in _paths(place):
            if path.name.startswith("."):
                state: State = "being written" if is_being_written(path) else "unfinished"
                yield Item("unfinished", path, tree_size(path), state)


def _artefacts(home: Home, id: str) -> Iterator[Item]:
    folder = home.artefact_folder(id)
    records = {record.file: record for record in home.records(id)}
    for file, record in records.items():
        yield Item("artefact", folder / file, *_seen(folder / file, record))
    for path in unrecorded(home, id, list(records.values())):
        yield Item("artefact", path, tree_size(path), "no record")


def unrecorded(home: Home, id: str, records: Sequence[Record]) -> list[Path]:
    """Files in an entry's folder that none of its sound records describes."""
    recorded = {record.file for record in records}
    found = []
    for path in _visible(home.artefact_folder(id)):
        described = path.with_suffix("") if path.suffix == ".json" else None
        is_record = described is not None and (described.name in recorded or described.exists())
        if path.name not in recorded and not is_record:
            found.append(path)
    return found


def _seen(path: Path, record: Record) -> tuple[int, State]:
    status = regular_status(path)
    if status is None:
        return 0, "damaged" if os.path.lexists(path) else "missing"
    if status.st_size != record.size:
        return status.st_size, "damaged"
    return status.st_size, "intact" if status.st_mtime_ns == record.mtime_ns else "touched"


def _state_of_unpacked(folder: Path, records: Sequence[Record]) -> State:
    marker = read_marker(folder)
    if marker is None:
        return "damaged"
    if marker.sha256 not in {record.sha256 for record in records if is_archive_name(record.file)}:
        return "stale"
    return "intact" if marker.is_whole(folder) else "damaged"


def _state_of_conversion(path: Path, record: Record | None) -> State:
    """Open it, which is quick, and ask which bytes it was made from."""
    from ckptkit.formats.detect import open_reader

    try:
        with open_reader(path) as reader:
            source = reader.metadata.get("source_sha256")
    except CkptkitError:
        return "damaged"
    return "stale" if record and source and source != record.sha256 else "intact"


def _conversions(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Every conversion in a folder: what other commands take, and its files."""
    groups: dict[str, list[Path]] = {}
    for path in _visible(folder):
        groups.setdefault(_group(path.name), []).append(path)
    for name, files in groups.items():
        index = folder / f"{name}.index.json"
        yield (index if index in files else folder / name), files


def _group(name: str) -> str:
    """Name of the conversion that a file is of."""
    if shard := _SHARD.fullmatch(name):
        return shard["stem"] + shard["ending"]
    if name.endswith(".safetensors.index.json"):
        return name.removesuffix(".index.json")
    if name.endswith(".index"):
        return name.removesuffix(".index")
    return re.sub(r"\.data-\d{5}-of-\d{5}$", "", name)


def _by_hand(home: Home, id: str) -> bool:
    from ckptkit.store.job import IMPORTED

    return any(record.note == IMPORTED for record in home.records(id))


def _is_id(name: str) -> bool:
    try:
        return safe_id(name) == name
    except CkptkitError:
        return False


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return []


def _paths(folder: Path) -> list[Path]:
    return [folder / name for name in _names(folder)]


def _visible(folder: Path) -> list[Path]:
    return [path for path in _paths(folder) if not path.name.startswith(".")]


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
