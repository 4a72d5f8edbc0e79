"""Looking after a cache: what is in it per entry, taking entries out, comparing it with what is known."""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from ckptkit.base.checksums import ExpectedChecksum, hash_file
from ckptkit.base.errors import CkptkitError, IntegrityError
from ckptkit.base.files import (
    PIECE_BYTES,
    TEMPORARY,
    UNSUPPORTED,
    Folder,
    files_below,
    is_held,
    is_own_folder,
    is_temporary,
    open_regular,
    regular_status,
    storage_error,
    translated,
)
from ckptkit.base.folders import NEW, OLD
from ckptkit.base.home import is_writable
from ckptkit.base.locks import hold
from ckptkit.base.writers import has_token, is_gone, new_writer, release
from ckptkit.formats.shards import index_names, whole_of
from ckptkit.store.cache import IMPORTED, KINDS, Home, Record, safe_id
from ckptkit.store.unpack import MARKER, UNPACKING, archive_members, is_archive_name, read_marker

Kind = Literal["artefact", "unpacked", "converted", "unfinished", "graph", "evaluation"]
State = Literal[
    "intact", "touched", "damaged", "missing", "no record", "stale", "unfinished", "being written"
]
REMOVING = f"{TEMPORARY}removing-"
"""What the name of a folder begins with while it is being removed."""
SHARED: dict[str, tuple[Kind, re.Pattern[str]]] = {
    "onnx": ("graph", re.compile(r".+-[0-9a-f]{32}(?:\.part)?")),
    "eval": ("evaluation", re.compile(r".+-[0-9a-f]{16}\.json(?:\.rank\d+)?")),
}
"""Folders of what is kept for no single entry, and what it is called there: graphs that
`ckptkit.models.onnx_model` exported, and evaluations that were not finished. Here each is ``onnx/<name>``."""
_EVALUATION_HEAD = (b'{"format": ', b'"identity": ')
_HEAD_BYTES = 4096
_CONVERSION = re.compile(r".+-(?:float(?:16|32|64)|bfloat16|float8\w+|mixed)\..*|.+-mixed")
"""What `Home.converted_path` is called."""
_RECORD_BYTES = 1 << 20
_SILENT_SECONDS = 600.0
"""Where no lock can tell whether a file is being written: how long one that is may pause."""


@dataclass(frozen=True)
class Item:
    """One thing in the cache."""

    kind: Kind
    path: Path  # file or folder; of a conversion in several files what other commands take
    size: int  # bytes, of all its files
    # ``intact`` as far as size and time tell; ``touched`` since it was hashed; ``damaged`` (another size,
    # files missing, cannot be opened); ``missing`` although recorded; ``no record``; ``stale``: made from
    # other bytes than the entry's file has now; ``unfinished`` and ``being written`` temporary files
    state: State


@dataclass(frozen=True)
class Holding:
    """What one cache folder holds of one entry, or one thing that is kept for no single entry."""

    id: str
    home: Path  # the cache folder
    items: tuple[Item, ...]
    used: float  # when it was last used (fetched, converted, proven), in seconds since 1970
    by_hand: bool = False  # whether its file was imported by hand: no fetch brings it back

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
    """What is in every folder of a cache, by folder and id; what is kept for no single entry comes last."""
    found, shared = [], []
    for single in home.homes:
        for id in held_ids(single, patterns):
            items = tuple(_items(single, home, id, examine))
            by_hand = any(record.note == IMPORTED for record in single.records(id))
            found.append(Holding(id, single.path, items, last_used(home, single, id), by_hand))
        shared += [_shared_holding(single, id) for id in shared_ids(single, patterns)]
    return [holding for holding in found if holding.items] + shared


def _shared_holding(home: Home, id: str) -> Holding:
    path, folder = home.path / id, id.partition("/")[0]
    state: State = "intact"
    if path.suffix == ".part":
        state = "being written" if is_held(_lock_path(home, id) or path) else "unfinished"
    item = Item(SHARED[folder][0], path, tree_size(path), state)
    return Holding(id, home.path, (item,), last_used(home, home, id))


def own_holdings(home: Home, patterns: Sequence[str] = ()) -> list[Holding]:
    """What is in the folder it would be written to, and may be removed; conversions are not opened."""
    held = holdings(home, patterns, examine=False)
    return [holding for holding in held if holding.home == written_to(home, holding.id).path]


def held_ids(home: Home, patterns: Sequence[str] = ()) -> list[str]:
    """Ids of which a single cache folder has a folder of its own, not a link, sorted."""
    names = {
        name
        for kind in KINDS
        if is_own_folder(home.path / kind)
        for name in _names(home.path / kind)
        if is_own_folder(home.path / kind / name)
    }
    return sorted(name for name in names if _is_id(name) and _is_meant(name, patterns))


def shared_ids(home: Home, patterns: Sequence[str] = ()) -> list[str]:
    """Names of what a single cache folder keeps for no single entry, sorted: ``onnx/…``, ``eval/…``."""
    return [
        f"{folder}/{name}"
        for folder in sorted(SHARED)
        for name in _names(home.path / folder)
        if _is_meant(f"{folder}/{name}", patterns) and _is_own(home, home.path / folder / name)
    ]


def _is_meant(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def written_to(home: Home, id: str) -> Home:
    """The single cache folder that something is written to, and may be removed from."""
    folder, slash, _ = id.partition("/")
    if not slash:
        return home.at(id)
    place = home.writable(folder)
    return next(single for single in home.homes if single.path / folder == place)


def _lock_path(home: Home, id: str) -> Path | None:
    """The lock of whoever writes something; an evaluation has none, and is saved again within seconds."""
    folder, slash, _ = id.partition("/")
    if not slash:
        return home.lock_path(id)
    return home.path / folder / "lock" if folder == "onnx" else None


def _is_own(home: Home, path: Path) -> bool:
    """Whether a single cache folder holds something that ckptkit put there, by no link."""
    try:
        with Folder(path.parent, below=home.path) as parent:
            return _bears_mark(parent, path.name, locked=_was_locked(home, path))
    except (OSError, ValueError):
        return False


def _bears_mark(parent: Folder, id: str, *, locked: bool) -> bool:
    """Whether something has what only ckptkit puts there: a record, a marker, a part of a file.

    Where ckptkit has locked the entry before, a damaged record will do.
    """
    kind = parent.path.name
    if kind in SHARED and SHARED[kind][1].fullmatch(id) is None:
        return False
    if kind == "eval":
        head = parent.read(id, _HEAD_BYTES, whole=False)
        return head.startswith(_EVALUATION_HEAD[0]) and _EVALUATION_HEAD[1] in head
    with parent.folder(id) as folder:
        return _has_mark(folder, kind, id, locked)


def _has_mark(folder: Folder, kind: str, id: str, locked: bool) -> bool:
    names = folder.names()
    if kind == "onnx":
        return all(name.startswith("model.onnx") for name in names)
    if kind == "unpacked":
        return folder.has_file(MARKER)
    if any(is_temporary(Path(name)) or (name.startswith(".") and has_token(Path(name))) for name in names):
        return True
    if kind == "converted":
        return any(_CONVERSION.fullmatch(whole_of(name)) for name in names)
    ending = ".record" if kind == "logs" else ".json"
    records = [name for name in names if name.endswith(ending) and folder.has_file(name)]
    if kind == "logs":
        return any(name.removesuffix(ending) in names for name in records)
    return any(locked or _is_record(folder, name, id) for name in records)


def _is_record(folder: Folder, name: str, id: str) -> bool:
    try:
        record = Record.from_json(folder.read(name, _RECORD_BYTES))
    except OSError:
        return False
    return record is not None and record.id == id and f"{record.file}.json" == name


def _was_locked(home: Home, path: Path) -> bool:
    return path.parent.name in KINDS and regular_status(home.lock_path(path.name)) is not None


def last_used(home: Home, single: Home, id: str) -> float:
    """When an entry was last used: by its stamp, else when it was fetched or converted."""
    if "/" in id:
        return _mtime(single.path / id)
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
        for kind in (*KINDS, "onnx")
        if is_own_folder(home.path / kind)
        for path in _paths(home.path / kind)
        if path.name.startswith((REMOVING, NEW, OLD, UNPACKING))
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
        size, state = _seen(folder / file, record)
        if record.part_of and record.part_of not in records:
            state = "unfinished"
        yield Item("artefact", folder / file, size, state)
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
    return "stale" if record and source and source != record.identity else "intact"


def _conversions(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Every conversion in a folder: what other commands take, and its files."""
    groups: dict[str, list[Path]] = {}
    for path in _visible(folder):
        groups.setdefault(_group(path.name), []).append(path)
    for name, files in groups.items():
        indexes = map(folder.joinpath, index_names(name))
        yield next((index for index in indexes if index in files), folder / name), files


def _group(name: str) -> str:
    """Name of the conversion that a file is of."""
    if name.endswith(".index"):
        return name.removesuffix(".index")
    return whole_of(re.sub(r"\.data-\d{5}-of-\d{5}$", "", name))


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


# -- what is removed -----------------------------------------------------------------------------------------
#
# While others read and write there: the entry's lock is held, what somebody writes is left, and each folder
# gets another name before the first file of it goes: under its final name it is there whole or not at all,
# whenever the process is killed. Only what ckptkit put there goes, and nothing that a link leads to: each
# folder is held open from the look at what is in it until it is gone (`ckptkit.base.files.Folder`).


@dataclass(frozen=True)
class Removal:
    """What became of one entry, or of one thing that is kept for none."""

    id: str
    freed: int  # bytes that are gone, or would be
    removed: tuple[Path, ...] = ()  # what is gone, or would be
    kept: tuple[str, ...] = ()  # why something is still there, one sentence each


def remove(
    home: Home,
    id: str,
    *,
    converted_only: bool = False,
    dry_run: bool = False,
    unless_used_after: float | None = None,
) -> Removal:
    """Remove what a cache holds of one entry (or of ``onnx/…``, ``eval/…``), where it is written to."""
    single = written_to(home, id)
    kinds = ("converted",) if converted_only else KINDS
    paths = [single.path / id] if "/" in id else [single.path / kind / id for kind in kinds]
    own = [path for path in paths if _is_own(single, path)]
    foreign = [f"{id}: {reason}" for path in paths if path not in own and (reason := _why_foreign(path))]
    lock = _lock_path(single, id)
    if not own or (lock is not None and lock.parent.is_symlink()):
        return Removal(id, 0, kept=tuple(foreign))
    is_locked = lock is not None and regular_status(lock) is not None
    with hold(lock, wait=False) if lock and (is_locked or not dry_run) else nullcontext() as outcome:
        if outcome == "taken":
            return Removal(id, 0, kept=(f"{id}: in use by another process; skipped",))
        if unless_used_after is not None and last_used(home, single, id) > unless_used_after:
            return Removal(id, 0, kept=(f"{id}: was used just now; left as it is",))
        taken = [_take_away(single, path, locked=is_locked, dry_run=dry_run) for path in own]
    faults = [fault for _, fault in taken]
    if not ("/" in id or converted_only or dry_run or any(faults)):
        with contextlib.suppress(OSError), Folder(single.path / "used", below=single.path) as used:
            used.remove(id)
    return Removal(
        id,
        sum(freed for freed, _ in taken),
        tuple(path for path, fault in zip(own, faults, strict=True) if not fault),
        (*foreign, *(f"{id}: {fault}" for fault in faults if fault)),
    )


def prune(
    home: Home,
    *,
    older_than: float | None = None,
    max_size: int | None = None,
    by_hand: bool = False,
    dry_run: bool = False,
    now: Callable[[], float] = time.time,
) -> Iterator[Removal]:
    """Remove whole entries, least recently used first, from the folders they are written to."""
    held = own_holdings(home)
    total = sum(entry.size for entry in held)
    for entry in sorted(held, key=lambda entry: entry.used):
        is_old = older_than is not None and now() - entry.used > older_than
        if not is_old and (max_size is None or total <= max_size):
            return
        if entry.by_hand and not by_hand:
            yield Removal(entry.id, 0, kept=(f"{entry.id}: was imported by hand; left as it is",))
            continue
        removal = remove(home, entry.id, dry_run=dry_run, unless_used_after=entry.used)
        total -= min(removal.freed, entry.size)  # records count nothing in an entry's size
        yield removal


def sweep(home: Home) -> int:
    """Remove what processes left that were killed while removing or unpacking; returns bytes freed."""
    freed = 0
    for single in home.homes:
        for path in leftovers(single) if is_writable(single.path) else ():
            size = tree_size(path)
            with contextlib.suppress(OSError), Folder(path.parent, below=single.path) as folder:
                folder.remove(path.name)
            freed += size - tree_size(path)
    return freed


def _why_foreign(path: Path) -> str:
    """Why something with an entry's name is left: it is a link, or nothing in it is of ckptkit."""
    if is_own_folder(path.parent) and path.is_symlink():
        return f"{path} is a link; left as it is"
    if is_own_folder(path.parent) and path.is_dir() and any(path.iterdir()):
        return f"{path} was not made by ckptkit; left as it is"
    return ""


def _take_away(home: Home, path: Path, *, locked: bool, dry_run: bool) -> tuple[int, str]:
    """Rename a folder, then delete it; returns bytes freed and why something is still there, if so."""
    if _is_busy(path):
        return 0, f"{path} is being written; left as it is"
    if dry_run:
        return tree_size(path), ""
    writer = new_writer()
    try:
        with Folder(path.parent, below=home.path) as parent:
            if not _bears_mark(parent, path.name, locked=locked):
                return 0, f"{path} was not made by ckptkit; left as it is"
            if parent.has_file(path.name):
                size = parent.status(path.name).st_size
                parent.remove(path.name)
                return size, ""
            with parent.folder(path.name) as folder:
                return _take_out(parent, folder, path.name, f"{REMOVING}{path.name}-{writer}")
    except FileNotFoundError:
        return 0, ""
    except OSError as error:  # on Windows: a file in it is open somewhere
        return 0, f"{storage_error(error, path).message}; left as it is"
    finally:
        release(writer)


def _take_out(parent: Folder, folder: Folder, id: str, aside: str) -> tuple[int, str]:
    """Rename and delete a folder that is held open."""
    path = parent.path / id
    try:
        parent.rename(id, aside)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        aside = id  # nothing can be renamed here: it goes where it is
    if not parent.holds(aside, folder):
        if aside != id and not parent.has(id):
            parent.rename(aside, id)
        return 0, f"{path} was replaced in the meantime; left as it is"
    if _is_busy(parent.path / aside) and aside != id and not parent.has(id):  # somebody began in between
        parent.rename(aside, id)
        return 0, f"{path} is being written; left as it is"
    size = tree_size(parent.path / aside)
    with contextlib.suppress(OSError):
        parent.remove(aside)
    left = tree_size(parent.path / aside)
    fault = (
        f"{parent.path / aside} could not be removed whole: {left:,} bytes are left"
        if parent.has(aside)
        else ""
    )
    return size - left, fault


def _is_busy(folder: Path) -> bool:
    """Whether a temporary file directly in a folder is being written."""
    return any(is_being_written(path) for path in folder.glob(".*") if path.is_file())


# -- what is read again --------------------------------------------------------------------------------------

_MOST_THREADS = 8

Expected = Callable[[str, str], Sequence[ExpectedChecksum]]
"""What is known of a file (entry id, file name) beside its record: the registry's pin, the lock file."""


@dataclass(frozen=True)
class Verdict:
    """What reading one thing again showed."""

    id: str
    path: Path  # the file as published, or the folder it was unpacked to
    ok: bool
    detail: str  # what holds, or what does not
    size: int = 0  # bytes
    sha256: str | None = None  # of the file; None of a folder or of what is not there


def verify_cache(
    home: Home,
    patterns: Sequence[str] = (),
    *,
    expected: Expected = lambda _id, _file: (),
    threads: int | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> Iterator[Verdict]:
    """Hash every file in a cache, compare every unpacked folder with its archive.

    Each file must have the sha256 of its record and every expected one. Conversions carry no checksum of the
    whole: they are not read.
    """
    stop = threading.Event()
    work: list[Callable[[], Verdict]] = []

    def read(count: int) -> None:
        if stop.is_set():
            raise _StoppedError
        advance(count)

    judge = partial(_of_file, expected=expected, read=read)
    for single in home.homes:
        for id in held_ids(single, patterns):
            records = single.records(id)
            for record in records:
                work.append(partial(judge, single, id, single.artefact(record), record))
            for path in unrecorded(single, id, records):
                work.append(partial(judge, single, id, path, None))
            folder = single.unpacked_folder(id)
            if is_own_folder(folder):
                work.append(partial(_of_unpacked, home, id, folder, read))
    with ThreadPoolExecutor(threads or min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(job) for job in work]
        try:
            for future in futures:
                yield future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


class _StoppedError(Exception):
    """Nobody wants the rest of the verdicts."""


def _of_file(
    home: Home,
    id: str,
    path: Path,
    record: Record | None,
    *,
    expected: Expected,
    read: Callable[[int], None],
) -> Verdict:
    """Hash a file, and compare it with its record and whatever else is known of it."""
    others = list(expected(id, path.name))
    try:
        found = hash_file(path, {"sha256", *(one.algorithm for one in others)}, advance=read)
    except CkptkitError as error:
        is_lost = record is not None and not os.path.lexists(path)
        return Verdict(id, path, False, "is recorded, but not there any more" if is_lost else str(error))
    known, faults = others, []
    if record is not None:
        known = [ExpectedChecksum("sha256", record.sha256, f"its record of {record.fetched_at}"), *others]
        if found.size != record.size:
            faults.append(f"has {found.size:,} bytes, but {record.size:,} were fetched")
    faults += [
        f"{p.algorithm} is {found.of(p.algorithm)}, but {p.origin} says {p.value}"
        for p in known
        if p.value != found.of(p.algorithm)
    ]
    if record is not None and faults:
        now = next((other for other in home.records(id) if other.file == record.file), record)
        if now != record:  # fetched again meanwhile: the bytes are judged by the record that came with them
            return _of_file(home, id, path, now, expected=expected, read=read)
    held = "the sha256 of its record" + "".join(f" and of {p.origin.partition(' (')[0]}" for p in others)
    if record is None:
        held = "has no sound record, but the sha256 of " + " and of ".join(p.origin for p in others)
    if not known:
        faults = [f"has no sound record; 'ckptkit fetch {id}' makes one"]
    return Verdict(id, path, not faults, "; ".join(faults) or held, found.size, found.sha256)


def _of_unpacked(home: Home, id: str, folder: Path, read: Callable[[int], None]) -> Verdict:
    """Compare an unpacked folder with its archive, byte by byte: no checksum of its files is kept."""
    marker = read_marker(folder)
    if marker is None:
        return Verdict(
            id, folder, False, f"does not say what it was unpacked from; 'ckptkit fetch {id}' does it"
        )
    record = next((record for record in home.records(id) if record.sha256 == marker.sha256), None)
    if record is None:
        return Verdict(id, folder, True, "stale: its archive is not here any more, so nothing uses it")
    archive, size = home.artefact(record), 0
    try:
        for member, content in archive_members(archive):
            if content is None:
                continue
            path = folder.joinpath(*member.name.split("/"))
            with translated(path), open_regular(path) as stream:
                while piece := content.read(PIECE_BYTES):
                    if stream.read(len(piece)) != piece:
                        raise IntegrityError(f"{path} differs from what {record.file} holds")
                    size += len(piece)
                    read(len(piece))
                if stream.read(1):
                    raise IntegrityError(f"{path} is longer than in {record.file}")
    except CkptkitError as error:
        hint = f"remove the folder, and 'ckptkit fetch {record.id}' unpacks it again"
        return Verdict(record.id, folder, False, f"{error}; {hint}", size)
    return Verdict(record.id, folder, True, f"every byte as in {record.file}", size)
