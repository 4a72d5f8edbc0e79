"""Reading everything in a cache again, and comparing it with what is known of it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ckptkit.base.errors import CkptkitError, IntegrityError
from ckptkit.base.files import is_own_folder, open_regular, translated
from ckptkit.store.archive import archive_members, read_marker
from ckptkit.store.cache import Home, Record
from ckptkit.store.integrity import Promise
from ckptkit.store.inventory import held_ids, unrecorded

_PIECE = 1 << 20
_MOST_THREADS = 8

Promises = Callable[[str, str], Sequence[Promise]]
"""What is known of a file (entry id, file name) beside its record: the registry's pin, the lock file."""


@dataclass(frozen=True)
class Verdict:
    """What reading one thing again showed.

    Attributes
    ----------
    id : str
    path : Path
        The file as published, or the folder it was unpacked to.
    ok : bool
    detail : str
        What holds, or what does not.
    size : int
        Bytes.
    sha256 : str or None
        Of the file; None of a folder or of what is not there.
    """

    id: str
    path: Path
    ok: bool
    detail: str
    size: int = 0
    sha256: str | None = None


def verify_cache(
    home: Home,
    patterns: Sequence[str] = (),
    *,
    promises: Promises = lambda _id, _file: (),
    threads: int | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> Iterator[Verdict]:
    """Hash every file in a cache, compare every unpacked folder with its archive.

    Each file must have the sha256 of its record and of every promise. Conversions carry no checksum of the
    whole: they are not read.

    Parameters
    ----------
    home : Home
    patterns : sequence of str
        Ids or globs; none: everything.
    promises : callable
        See `Promises`.
    threads : int, optional
        Default: one a processor, at most eight.
    advance : callable
        Called with the bytes read, from any thread.

    Yields
    ------
    Verdict
        In order of folder, id and file.
    """
    stop = threading.Event()
    work: list[Callable[[], Verdict]] = []
    reading = _Reading(advance, stop)

    for single in home.homes:
        for id in held_ids(single, patterns):
            records = single.records(id)
            for record in records:
                work.append(partial(_of_artefact, single, record, promises, reading))
            for path in unrecorded(single, id, records):
                work.append(partial(_without_record, id, path, promises, reading))
            folder = single.unpacked_folder(id)
            if is_own_folder(folder):
                work.append(partial(_of_unpacked, home, id, folder, reading))
    with ThreadPoolExecutor(threads or min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(job) for job in work]
        try:
            for future in futures:
                yield future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Reading:
    """How pieces are read: counted, and given up when the whole is."""

    advance: Callable[[int], None]
    stop: threading.Event

    def sha256(self, path: Path) -> tuple[str, int]:
        """sha256 and size of a file."""
        digest, size = hashlib.sha256(), 0
        buffer = memoryview(bytearray(_PIECE))
        with translated(path), open_regular(path, buffering=0) as stream:
            while count := stream.readinto(buffer):  # type: ignore[attr-defined]
                if self.stop.is_set():
                    break
                digest.update(buffer[:count])
                size += count
                self.advance(count)
        return digest.hexdigest(), size


def _of_artefact(home: Home, record: Record, promises: Promises, reading: _Reading) -> Verdict:
    path = home.artefact(record)
    try:
        found, size = reading.sha256(path)
        faults = _faults(found, size, record, promises(record.id, record.file))
        newer = home.records(record.id)
        if faults and record not in newer and any(other.file == record.file for other in newer):
            # It was fetched again meanwhile: the bytes are judged by the record that came with them.
            return _of_artefact(home, next(r for r in newer if r.file == record.file), promises, reading)
    except CkptkitError as error:
        there = os.path.lexists(path)
        return Verdict(record.id, path, False, str(error) if there else "is recorded, but not there any more")
    said = "the sha256 of its record" + "".join(
        f" and of {p.origin.partition(' (')[0]}" for p in promises(record.id, record.file)
    )
    return Verdict(record.id, path, not faults, "; ".join(faults) or said, size, found)


def _faults(found: str, size: int, record: Record, promises: Sequence[Promise]) -> list[str]:
    faults = []
    if size != record.size:
        faults.append(f"has {size:,} bytes, but {record.size:,} were fetched")
    known = [Promise("sha256", record.sha256, f"its record of {record.fetched_at}"), *promises]
    return faults + [f"sha256 is {found}, but {p.origin} says {p.value}" for p in known if p.value != found]


def _without_record(id: str, path: Path, promises: Promises, reading: _Reading) -> Verdict:
    try:
        found, size = reading.sha256(path)
    except CkptkitError as error:
        return Verdict(id, path, False, str(error))
    known = list(promises(id, path.name))
    if not known:
        return Verdict(id, path, False, f"has no sound record; 'ckptkit fetch {id}' makes one", size, found)
    wrong = [f"sha256 is {found}, but {p.origin} says {p.value}" for p in known if p.value != found]
    said = "has no sound record, but the sha256 of " + " and of ".join(p.origin for p in known)
    return Verdict(id, path, not wrong, "; ".join(wrong) or said, size, found)


def _of_unpacked(home: Home, id: str, folder: Path, reading: _Reading) -> Verdict:
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
                while piece := content.read(_PIECE):
                    if reading.stop.is_set():
                        return Verdict(record.id, folder, False, "was not read to its end")
                    if stream.read(len(piece)) != piece:
                        raise IntegrityError(f"{path} differs from what {record.file} holds")
                    size += len(piece)
                    reading.advance(len(piece))
                if stream.read(1):
                    raise IntegrityError(f"{path} is longer than in {record.file}")
    except CkptkitError as error:
        hint = f"remove the folder, and 'ckptkit fetch {record.id}' unpacks it anew"
        return Verdict(record.id, folder, False, f"{error}; {hint}", size)
    return Verdict(record.id, folder, True, f"every byte as in {record.file}", size)
