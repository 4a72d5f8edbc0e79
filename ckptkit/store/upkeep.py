"""Looking after a cache: what is in it per entry, taking entries out, comparing it with what is known."""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

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
from ckptkit.base.home import is_writable
from ckptkit.base.locks import has_token, hold, is_gone, new_writer, release
from ckptkit.store.cache import IMPORTED, KINDS, Home, Record, safe_id
from ckptkit.store.expected import Digests, ExpectedChecksum, hash_file
from ckptkit.store.unpack import MARKER, archive_members, is_archive_name, read_marker

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
    """What one cache folder holds of one entry."""

    id: str
    home: Path  # the cache folder
    items: tuple[Item, ...]
    used: float  # When it was last used (fetched, converted, proven), in seconds since 1970
    by_hand: bool  # whether its file was imported by hand: no fetch brings it back

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
    """What is in every folder of a cache, by folder and id."""
    found = []
    for single in home.homes:
        for id in held_ids(single, patterns):
            items = tuple(_items(single, home, id, examine))
            used = last_used(home, single, id)
            found.append(Holding(id, single.path, items, used, _by_hand(single, id)))
    return [holding for holding in found if holding.items]


def own_holdings(home: Home, patterns: Sequence[str] = ()) -> list[Holding]:
    """What is in the folder it would be written to, and may be removed; conversions are not opened."""
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


# -- what is removed -----------------------------------------------------------------------------------------
#
# While others read and write there: the entry's lock is held, what somebody writes is left, and each folder
# gets another name before the first file of it goes: under its final name it is there whole or not at all,
# whenever the process is killed. Only what ckptkit put there goes, and nothing that a link leads to: each
# folder is held open from the look at what is in it until it is gone (`ckptkit.base.files.Folder`).


@dataclass(frozen=True)
class Removal:
    """What became of one entry."""

    id: str
    freed: int  # bytes that are gone, or would be
    removed: tuple[Path, ...] = ()  # Folders that are gone, or would be
    kept: tuple[str, ...] = ()  # Why something is still there, one sentence each


def remove(
    home: Home,
    id: str,
    *,
    converted_only: bool = False,
    dry_run: bool = False,
    unless_used_after: float | None = None,
) -> Removal:
    """Remove what a cache holds of one entry, in the folder that is written to."""
    single = home.at(id)
    wanted = ("converted",) if converted_only else KINDS
    kinds = [kind for kind in wanted if is_own(single, kind, id)]
    there = [single.path / kind / id for kind in kinds]
    foreign = [f"{id}: {said}" for said in _foreign(single, id, wanted, kinds)]
    if not there or single.links(kinds=("locks",)):
        return Removal(id, 0, kept=tuple(foreign))
    locked = regular_status(single.lock_path(id)) is not None
    if dry_run:
        if locked:
            with hold(single.lock_path(id), wait=False) as outcome:
                if outcome == "taken":
                    return Removal(id, 0, kept=(f"{id}: in use by another process; skipped",))
        kept = foreign + [f"{id}: {path} is being written" for path in there if _is_busy(path)]
        free = [path for path in there if not _is_busy(path)]
        return Removal(id, sum(map(tree_size, free)), tuple(free), tuple(kept))
    with hold(single.lock_path(id), wait=False) as outcome:
        if outcome == "taken":
            return Removal(id, 0, kept=(f"{id}: in use by another process; skipped",))
        if unless_used_after is not None and last_used(home, single, id) > unless_used_after:
            return Removal(id, 0, kept=(f"{id}: was used just now; left as it is",))
        taken = [_take_away(single, kind, id, locked) for kind in kinds]
    removal = Removal(
        id,
        sum(freed for freed, _ in taken),
        tuple(path for path, (_, fault) in zip(there, taken, strict=True) if not fault),
        (*foreign, *(f"{id}: {fault}" for _, fault in taken if fault)),
    )
    if not converted_only and not any(fault for _, fault in taken):
        with contextlib.suppress(OSError), Folder(single.path / "used", below=single.path) as used:
            used.remove(id)
    return removal


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


def _foreign(home: Home, id: str, wanted: Sequence[str], own: Sequence[str]) -> Iterator[str]:
    """Why something of an entry's name is left: it is a link, or nothing in it is of ckptkit."""
    for kind in wanted:
        path = home.path / kind / id
        if kind in own or not is_own_folder(path.parent) or not os.path.lexists(path):
            continue
        if path.is_symlink():
            yield f"{path} is a link; left as it is"
        elif path.is_dir() and any(path.iterdir()):
            yield f"{path} was not made by ckptkit; left as it is"


def _take_away(home: Home, kind: str, id: str, locked: bool) -> tuple[int, str]:
    """Rename a folder, then delete it; returns bytes freed and why something is still there, if so."""
    path = home.path / kind / id
    if _is_busy(path):
        return 0, f"{path} is being written; left as it is"
    writer = new_writer()
    try:
        with Folder(path.parent, below=home.path) as parent, parent.folder(id) as folder:
            if not bears_mark(folder, kind, id, locked=locked):
                return 0, f"{path} was not made by ckptkit; left as it is"
            return _take_out(parent, folder, id, f"{REMOVING}{id}-{writer}")
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

    for single in home.homes:
        for id in held_ids(single, patterns):
            records = single.records(id)
            for record in records:
                work.append(partial(_of_artefact, single, record, expected, read))
            for path in unrecorded(single, id, records):
                work.append(partial(_without_record, id, path, expected, read))
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


def _of_artefact(home: Home, record: Record, expected: Expected, read: Callable[[int], None]) -> Verdict:
    path = home.artefact(record)
    try:
        found = hash_file(path, ["sha256"], advance=read)
        faults = _faults(found, record, expected(record.id, record.file))
        newer = home.records(record.id)
        if faults and record not in newer and any(other.file == record.file for other in newer):
            # It was fetched again meanwhile: the bytes are judged by the record that came with them.
            return _of_artefact(home, next(r for r in newer if r.file == record.file), expected, read)
    except CkptkitError as error:
        there = os.path.lexists(path)
        return Verdict(record.id, path, False, str(error) if there else "is recorded, but not there any more")
    said = "the sha256 of its record" + "".join(
        f" and of {p.origin.partition(' (')[0]}" for p in expected(record.id, record.file)
    )
    return Verdict(record.id, path, not faults, "; ".join(faults) or said, found.size, found.sha256)


def _faults(found: Digests, record: Record, expected: Sequence[ExpectedChecksum]) -> list[str]:
    faults = []
    if found.size != record.size:
        faults.append(f"has {found.size:,} bytes, but {record.size:,} were fetched")
    known = [ExpectedChecksum("sha256", record.sha256, f"its record of {record.fetched_at}"), *expected]
    return faults + _differing(found.sha256, known)


def _differing(sha256: str, known: Sequence[ExpectedChecksum]) -> list[str]:
    return [f"sha256 is {sha256}, but {p.origin} says {p.value}" for p in known if p.value != sha256]


def _without_record(id: str, path: Path, expected: Expected, read: Callable[[int], None]) -> Verdict:
    try:
        found = hash_file(path, ["sha256"], advance=read)
    except CkptkitError as error:
        return Verdict(id, path, False, str(error))
    known = list(expected(id, path.name))
    if not known:
        said = f"has no sound record; 'ckptkit fetch {id}' makes one"
        return Verdict(id, path, False, said, found.size, found.sha256)
    wrong = _differing(found.sha256, known)
    said = "has no sound record, but the sha256 of " + " and of ".join(p.origin for p in known)
    return Verdict(id, path, not wrong, "; ".join(wrong) or said, found.size, found.sha256)


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
