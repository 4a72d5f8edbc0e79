"""What the cache has of an entry, and when what arrived may have its final name there."""

from __future__ import annotations

import codecs
import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ckptkit._version import __version__
from ckptkit.base.checksums import Digests, ExpectedChecksum, as_mapping, compare, hash_file
from ckptkit.base.errors import (
    CkptkitError,
    ConversionError,
    FormatError,
    IntegrityError,
    StorageError,
    command,
)
from ckptkit.base.files import regular_status, translated
from ckptkit.base.folders import StagedFolder
from ckptkit.base.net import Policy, SourceError
from ckptkit.base.progress import Progress, Say, say_nothing
from ckptkit.base.urls import host_of, without_secrets
from ckptkit.formats.builtin import may_begin
from ckptkit.store.cache import FOUND, IMPORTED, Home, Record, read_record, write_json
from ckptkit.store.expected import GitHub, NoDigestError
from ckptkit.store.lockfile import ENVIRONMENT as TRUST_ENVIRONMENT
from ckptkit.store.lockfile import LockEntry, LockFile, in_words
from ckptkit.store.openers import file_path
from ckptkit.store.partial import Partial
from ckptkit.store.sources import Mirror, PlannedSource, plan_sources
from ckptkit.store.unpack import (
    EarlyUnpack,
    UnpackedFolder,
    checkpoint_in,
    checkpoint_of,
    is_archive_name,
    remove_folder,
    unpack,
)

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry

Checked = tuple[tuple[ExpectedChecksum, ...], bool]
"""The checksums that held, and whether one was known before, from elsewhere than the download."""
_QUOTED = 200
_HEAD = 512
_MOST_KEPT = 100
"""Earlier checksums that a record keeps; the lock file keeps all."""


@dataclass(frozen=True)
class Fetched:
    """What a fetch or an import gives."""

    path: Path  # what convert and load take: the folder with the checkpoint for an archive, else the artefact
    artefact: Path  # the file as published
    record: Record
    from_cache: bool  # whether it was there already
    # The checksums it was compared with when it came: those of the registry, of servers, of the lock file
    held: tuple[ExpectedChecksum, ...] = ()
    companions: tuple[Record, ...] = ()  # of the files beside it that belong to it

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in (self.record, *self.companions))


class Fits(Protocol):
    """Looks into a file that no checksum vouches for: whether it is what an entry publishes."""

    def __call__(self, path: Path, entry: Entry, *, deep: bool = True) -> bool | None:
        """Whether the file holds BatchNorm's moving statistics; None where that is unknown.

        ``deep`` compares the checksums that the container stores of its contents as well.
        """


class UnfitError(SourceError):
    """A source gave something else than the entry's file."""

    def __init__(self, error: CkptkitError, path: Path, head: bytes, *, can_be_kept: bool = True) -> None:
        text = _text(head)
        super().__init__(_without_path(error, path) + (f": {text!r}" if text else ""))
        self.is_another = isinstance(error, ConversionError)
        self.is_text = bool(text)
        self.can_be_kept = can_be_kept


@dataclass
class Beside:
    """A companion that is here, or that has arrived and waits until somebody has looked into the whole."""

    job: Job
    source: PlannedSource
    held: tuple[ExpectedChecksum, ...]
    record: Record | None = None
    partial: Partial | None = None


@dataclass
class Job:
    """One entry on its way into the cache, what is asked of it, and who hears of it."""

    entry: Entry
    home: Home
    fits: Fits
    offline: bool = False
    mirrors: Sequence[Mirror] = ()
    force: bool = False  # fetch it although it is cached; import a file although it does not fit
    accept_new: bool = False  # whether bytes may be others than those of an earlier fetch
    verify: bool = False  # hash what is cached
    require_checksum: bool = False  # whether one must be known before the download that brings the bytes
    note: str = ""  # how the file gets here when not by download
    policy: Policy = field(default_factory=Policy)
    trust: LockFile | None = None  # the lock file; default: the user's own
    github: GitHub = field(default_factory=GitHub)
    progress: Progress | None = None
    notes: Say = say_nothing
    warn: Say = say_nothing
    part_of: str = ""  # name of the main file, where the entry is one of its companions alone

    @cached_property
    def lock_file(self) -> LockFile:
        """What is known of files that were fetched before."""
        return self.trust or LockFile.default(self.home.path)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the entry's lock."""
        waiting = f"waiting for another process that is fetching {self.entry.id}"
        return self.home.lock(self.entry.id, waiting=lambda: self.notes(waiting))

    @property
    def is_one_of_several(self) -> bool:
        """Whether the file is not the whole checkpoint."""
        return bool(self.part_of or self.entry.companions)

    def of(self, companion: str, main: str) -> Job:
        """The same for one companion of the entry."""
        entry = self.entry.of_companion(companion)
        assert entry is not None
        return replace(self, entry=entry, part_of=main)

    def each(self, source: PlannedSource) -> list[tuple[Job, PlannedSource]]:
        """Every file of a source with the job for it alone, the main one last."""
        return [*((self.of(one.file, source.file), one) for one in source.beside), (self, source)]

    def _all(self, record: Record) -> list[tuple[Job, Record]]:
        """The records of a main file and of the entry's companions; FileNotFoundError where one has none."""
        here = self.home.beside(record) if self.entry.companions else {}
        found = [(self, record)]
        for companion in self.entry.companions:
            if (one := here.get(companion.name)) is None:
                raise FileNotFoundError(companion.name)
            found.append((self.of(companion.name, record.file), one))
        return found

    def untouched(self) -> Fetched | None:
        """Return what is cached if it was not touched since it was hashed; needs no lock."""
        record = self.home.record(self.entry.id)
        if record is None:
            return None
        artefact = self.home.artefact(record)
        try:
            files = self._all(record)
        except FileNotFoundError:
            return None
        for job, one in files:
            if job._objection(one) is not None or not _is_untouched(artefact.with_name(one.file), one):
                return None
        path = checkpoint_of(self.home, record)
        return None if path is None or self._misfit(files, path) else self._found(path, artefact, files)

    def intact(self, *, quiet: bool = False) -> Fetched | None:
        """Return what is cached if its bytes are still the recorded ones; unpacks it again if necessary."""
        notes = say_nothing if quiet else self.notes
        record = self.home.record(self.entry.id) or self._adopt(notes)
        if record is None:
            return None
        artefact, path = self.home.artefact(record), checkpoint_of(self.home, record)
        try:
            files = []
            for job, one in self._all(record):
                file = artefact.with_name(one.file)
                if objection := job._objection(one):
                    raise IntegrityError(f"{file}: {objection}")
                files.append((job, job._checked(file, one, verify=self.verify)))
            if path is None:
                folder = self.home.unpacked_folder(self.entry.id)
                path = checkpoint_in(unpack(artefact, folder, sha256=record.sha256))
            if misfit := self._misfit(files, path):
                raise IntegrityError(f"{artefact}: {misfit}")
        except FileNotFoundError:
            return None
        except IntegrityError as error:
            if self.offline and not quiet:
                raise IntegrityError(error.message, hint="run without --offline to fetch it again") from error
            notes(f"{error.message}; fetching it again")
            return None
        return self._found(path, artefact, files)

    def kept(self, source: PlannedSource) -> Record | None:
        """The record of one file of several that is here, if a checksum known from elsewhere holds."""
        final = self.home.artefact_folder(self.entry.id) / source.file
        is_fresh = self.force or self.note == IMPORTED
        record = None if is_fresh else read_record(_record_path(final))
        if record is None or record.id != self.entry.id or not self._vouches(record):
            return None
        try:
            return self._checked(final, record, verify=self.verify)
        except (FileNotFoundError, IntegrityError):
            return None

    def _found(self, path: Path, artefact: Path, files: Sequence[tuple[Job, Record]]) -> Fetched:
        self.home.touch(self.entry.id)
        (_, record), *companions = files
        for job, one in files:
            job._remember(one, unwritable=say_nothing)  # fetched before, with another lock file
        if record.bn_statistics is False:
            self.warn(_no_statistics(self.entry.id, record.file))
        beside = tuple(one for _, one in companions)
        return Fetched(path, artefact, record, from_cache=True, companions=beside)

    def is_tied(self, file: str) -> bool:
        """Whether a checksum of the file is known from elsewhere than the download that brings it."""
        return self.entry.sha256 is not None or self.lock_file.get(self.entry.id, file) is not None

    def tells_apart(self, file: str) -> bool:
        """Whether something is known by which damaged bytes are told from the right ones."""
        return self.is_tied(file) or bool(self.entry.expected)

    def decides(self, file: str) -> bool:
        """Whether only bytes of a known checksum are taken."""
        return self.entry.sha256 is not None or (self.is_tied(file) and not self.accept_new)

    def refuse_unknown(self, files: Sequence[str]) -> None:
        """Refuse, before anything is asked of anybody, what ``--require-checksum`` forbids."""
        if any(self.is_tied(file) for file in files):
            return
        pins = "has only its MD5, which can be forged" if self.entry.md5 else "pins none"
        raise IntegrityError(
            f"{self.entry.id}: no checksum is known before the file is fetched",
            details=[f"the registry {pins}", f"the lock file {self.lock_file.path} has none"],
            hint="fetch it once without --require-checksum and look at it, then run "
            f"'ckptkit registry pin {self.entry.id}' or keep the lock file",
        )

    def _objection(self, record: Record) -> str | None:
        """Why cached bytes are not to be taken: the pin decides, else the lock file."""
        if self.entry.sha256 is not None:
            fits, says = self.entry.sha256 == record.sha256, self.entry.expected[0].origin
            return None if fits else f"sha256 is {record.sha256}, but {says} says {self.entry.sha256}"
        known = self.lock_file.expected(self.entry.id, record.file)
        if known is not None and known.value != record.sha256 and not self.accept_new:
            return f"sha256 is {record.sha256}, but {known.origin} says {known.value}"
        if known is None and self.require_checksum:
            return f"no checksum of it is known from elsewhere, and {self.lock_file.path} has none"
        return None

    def known(self, file: str) -> tuple[ExpectedChecksum, ...]:
        """What is known of a file from elsewhere than the download that brings it; the pin decides."""
        trusted = None if self.entry.sha256 else self.lock_file.expected(self.entry.id, file)
        return (*self.entry.expected, *([trusted] if trusted else []))

    def _vouches(self, record: Record) -> bool:
        """Whether a checksum that is known from elsewhere is that of cached bytes."""
        return record.sha256 in [one.value for one in self.known(record.file)]

    def _misfit(self, files: Sequence[tuple[Job, Record]], path: Path) -> str | None:
        """Why cached bytes that no checksum vouches for are not the entry's checkpoint."""
        record = files[0][1]
        if record.overruled or all(job._vouches(one) for job, one in files):
            return None
        try:
            self.fits(path, self.entry, deep=record.note == FOUND)
        except (FormatError, ConversionError) as error:
            return _without_path(error, path)
        return None

    def _checked(self, artefact: Path, record: Record, *, verify: bool) -> Record:
        """Compare the artefact with its record, hashing it only if it was touched or ``verify`` asks."""
        status = regular_status(artefact)
        if status is None:
            raise FileNotFoundError(artefact)
        if status.st_size != record.size:
            raise IntegrityError(f"{artefact}: {status.st_size:,} bytes, but {record.size:,} were fetched")
        if status.st_mtime_ns == record.mtime_ns and not verify:
            return record
        found = hash_file(artefact)
        recorded = ExpectedChecksum("sha256", record.sha256, "its record")
        compare(str(artefact), found, [recorded, *self.entry.expected], hint="")
        if status.st_mtime_ns == record.mtime_ns:
            return record
        record = replace(record, mtime_ns=status.st_mtime_ns)
        if artefact.is_relative_to(self.home.artefact_folder(self.entry.id)):
            with suppress(StorageError):  # of a read-only cache: it is hashed again the next time
                write_json(_record_path(artefact), record.to_json())
        return record

    def _adopt(self, notes: Say) -> Record | None:
        """Make a new record for an artefact that lost its own; a pinned checksum must fit."""
        folder = self.home.artefact_folder(self.entry.id)
        for source in plan_sources(self.entry, ()):
            artefact = folder / source.file
            if not artefact.is_file():
                continue
            found, status = hash_file(artefact), artefact.stat()
            record = self._record(source, found, FOUND, status.st_mtime_ns, Partial(folder, source.file, ""))
            objection = self._objection(record)
            try:
                compare("", found, self.entry.expected, hint="")
            except IntegrityError as error:
                objection = error.message.removeprefix(": ")
            if objection:
                notes(f"{artefact}: no sound record, and {objection}; fetching it again")
                continue
            beside = [job._recorded(one, notes) for job, one in self.each(source)[:-1]]
            if None in beside:
                continue
            record = replace(record, companions={one.file: one.sha256 for one in beside if one})
            notes(f"{artefact}: its record was missing or damaged; hashed again, sha256 {found.sha256}")
            write_json(_record_path(artefact), record.to_json())
            return record
        return None

    def _recorded(self, source: PlannedSource, notes: Say) -> Record | None:
        """The record of a companion that is here, made new where it is missing or damaged."""
        record = read_record(_record_path(self.home.artefact_folder(self.entry.id) / source.file))
        return record if record and record.part_of == self.part_of else self._adopt(notes)

    def warn_lacks_bn_statistics(self, source: PlannedSource) -> None:
        """Warn that a copy without BatchNorm's statistics is about to be taken."""
        lacks = _no_statistics(self.entry.id, source.file)
        self.warn(f"falling back to {without_secrets(source.url)}: {lacks}")

    def may_begin(self, head: bytes) -> bool:
        """Whether a file of the entry's format, packed or not, can begin so; texts are judged when whole."""
        return (
            self.is_one_of_several
            or len(head) < _HEAD
            or may_begin(self.entry.format, head)
            or bool(_text(head))
        )

    def check(self, source: PlannedSource, partial: Partial) -> Checked:
        """Compare what came with every checksum that is known of it.

        Returns those that held, and whether one of them is older than this download and cannot be forged:
        what a server says of its own answer shows only that it came whole, and so does an MD5.
        """
        found = partial.digests()
        where = f"{source.file} from {host_of(source.used_url)}"
        stated = self.entry.expected
        compare(where, found, stated, hint="the file is not the published one; nothing was kept")
        if self.entry.sha256:
            return stated, True
        compare(where, found, partial.expected, hint="it was damaged on the way; run the same command again")
        earlier = self._earlier(source.file)
        if self.accept_new:
            earlier = [checksum for checksum in earlier if checksum.value == found.of(checksum.algorithm)]
        compare(where, found, earlier, hint=self._take_back(source))
        return (*stated, *partial.expected, *earlier), bool(earlier)

    def _take_back(self, source: PlannedSource) -> str:
        """What to do where the bytes are not those of an earlier record, which may be the wrong one."""
        if self.note == IMPORTED:
            run = command("import", self.entry.id, file_path(source.used_url), "--accept-new")
        else:
            run = command("fetch", self.entry.id, "--force", "--accept-new")
        return f"Either may be the wrong one. If it is the earlier record, replace it. {run}"

    def _earlier(self, file: str) -> list[ExpectedChecksum]:
        """What an earlier fetch found: the lock file says it, else the cache's own records."""
        known = self.lock_file.expected(self.entry.id, file)
        if known is not None:
            return [known]
        return [
            ExpectedChecksum("sha256", record.sha256, f"its record ({how_it_came(record)})")
            for record in self.home.records(self.entry.id)
            if record.file == file
        ]

    def published_digest(self, source: PlannedSource) -> tuple[ExpectedChecksum, ...]:
        """GitHub's own checksum of a release asset, if it comes from there and no pin decides anyway."""
        asset = self.github.asset(source.used_url)
        if asset is None or self.entry.sha256 is not None:
            return ()
        try:
            return (self.github.expected(asset, self.policy),)
        except NoDigestError as error:
            self.notes(f"{host_of(self.github.api)}: {error}; {source.file} is not compared with it")
            return ()

    def _remember(self, record: Record, *, unwritable: Say) -> None:
        """Trust these bytes from now on. What the pin or the user accepts replaces what was trusted."""
        seen = LockEntry(
            sha256=record.sha256,
            size=record.size,
            first_seen=record.fetched_at,
            url=record.url,
            used_url=record.used_url,
            how=_how(record),
            server_hashes=record.server_hashes,
        )
        accept = self.accept_new or self.entry.sha256 is not None
        try:
            replaced = self.lock_file.remember(record.id, record.file, seen, accept=accept)
        except StorageError as error:
            unwritable(
                f"{error.message}; so the checksum of {record.file} is remembered in the cache only "
                f"({TRUST_ENVIRONMENT} names another lock file)"
            )
            return
        if replaced is not None:
            self.notes(
                f"{record.id}: the lock file {self.lock_file.path} now has sha256 {record.sha256}; "
                f"its history keeps {replaced.sha256}, seen {replaced.first_seen}"
            )

    def put(self, source: PlannedSource, partial: Partial, *, main_stays: bool) -> Record:
        """Give a companion its final name; a main file that other bytes of it belong to goes before."""
        record = self._record(source, partial.digests(), self.note, partial.sync(), partial)
        record = replace(record, previous=self._previous(record))
        final = partial.folder / partial.name
        earlier = read_record(_record_path(final))
        if not main_stays and (earlier is None or earlier.sha256 != record.sha256):
            with translated(final):
                final.with_name(self.part_of).unlink(missing_ok=True)
        self._name(record, partial)
        return record

    def _name(self, record: Record, partial: Partial) -> None:
        """Remember what is known of a file, and give it its final name."""
        self._remember(record, unwritable=self.warn)
        write_json(_record_path(partial.folder / partial.name), record.to_json())
        partial.rename()

    def install(
        self,
        source: PlannedSource,
        partial: Partial,
        early: EarlyUnpack,
        beside: Sequence[Beside],
        checked: Checked,
    ) -> Fetched:
        """Unpack, record, rename: what is refused leaves nothing, and a named file has a record.

        A file that no earlier checksum vouches for is looked into before, and its companions with it.
        """
        (held, known), found = checked, partial.digests()
        record = self._record(source, found, self.note, partial.sync(), partial)
        record = replace(record, previous=self._previous(record))
        final = partial.folder / partial.name
        folder = self.home.unpacked_folder(self.entry.id)
        with ExitStack() as stack:
            staged = None
            if is_archive_name(source.file):
                try:
                    staged = stack.enter_context(
                        early.take(found.sha256)
                        or UnpackedFolder(partial.path, folder, shown=final, sha256=found.sha256)
                    )
                except FormatError as error:
                    if known:
                        raise
                    raise UnfitError(error, final, partial.head, can_be_kept=False) from error
            if not known or any(one.partial for one in beside):
                base = checkpoint_in(staged.path) if staged else partial.path
                if beside and not staged:
                    base = stack.enter_context(_seen_together(folder, final, partial.path, beside))
                record = self._fitting(record, base, partial.head)
            companions = _named(beside, main_stays=False)
            record = replace(record, companions={one.file: one.sha256 for one in companions})
            self._name(record, partial)
            if staged:
                staged.commit()
            else:
                remove_folder(folder)
        self.home.touch(self.entry.id)
        if record.bn_statistics is False:
            self.warn(_no_statistics(self.entry.id, record.file))
        path = checkpoint_in(folder) if staged else final
        return Fetched(path, final, record, False, _held_by_all(held, beside), companions)

    def complete(self, source: PlannedSource, record: Record, beside: Sequence[Beside]) -> Fetched:
        """Install companions beside a main file that stays."""
        final = self.home.artefact_folder(self.entry.id) / source.file
        with ExitStack() as stack:
            if any(one.partial for one in beside):
                folder = self.home.unpacked_folder(self.entry.id)
                base = stack.enter_context(_seen_together(folder, final, final, beside))
                record = self._fitting(record, base, b"")
            companions = _named(beside, main_stays=True)
        record = replace(record, companions={one.file: one.sha256 for one in companions})
        write_json(_record_path(final), record.to_json())
        self.home.touch(self.entry.id)
        path = checkpoint_of(self.home, record) or final
        held = _held_by_all(self.known(record.file), beside)
        return Fetched(path, final, record, False, held, companions)

    def _fitting(self, record: Record, path: Path, head: bytes) -> Record:
        """Refuse what came when it is not the entry's checkpoint; the record says what is in it."""
        try:
            statistics = self.fits(path, self.entry)
            if statistics is False and record.bn_statistics and record.note != IMPORTED:
                raise ConversionError(
                    f"{path}: no BatchNorm moving statistics, which this upload should have"
                )
        except (FormatError, ConversionError) as error:
            unfit = UnfitError(error, path, head)
            if not (self.force and self.note == IMPORTED):
                raise unfit from error
            self.warn(f"{record.file} is taken although it does not fit {self.entry.id}: {unfit}")
            return replace(record, bn_statistics=None, overruled=True)
        return record if statistics is None else replace(record, bn_statistics=statistics)

    def _previous(self, record: Record) -> list[dict[str, Any]]:
        """Return what the record that is about to be replaced says, and what it kept of those before it."""
        old = read_record(_record_path(self.home.artefact(record)))
        if old is None:
            return []
        if old.sha256 == record.sha256:
            return old.previous
        facts = {name: getattr(old, name) for name in ("sha256", "size", "fetched_at", "used_url")}
        return [*old.previous, facts][-_MOST_KEPT:]

    def _record(
        self, source: PlannedSource, found: Digests, note: str, mtime_ns: int, partial: Partial
    ) -> Record:
        identity = partial.identity
        return Record(
            id=self.entry.id,
            url=source.url,
            used_url=without_secrets(source.used_url),
            file=source.file,
            size=found.size,
            sha256=found.sha256,
            fetched_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds"),
            mtime_ns=mtime_ns,
            etag=identity.etag if identity else None,
            generation=identity.generation if identity else None,
            server_hashes=dict(as_mapping(partial.expected)),
            ckptkit_version=__version__,
            note=note,
            bn_statistics=source.bn_statistics,
            part_of=self.part_of,
        )


def _held_by_all(held: Sequence[ExpectedChecksum], beside: Sequence[Beside]) -> tuple[ExpectedChecksum, ...]:
    """The checksums of a main file of which the companions have the like."""

    def like(one: ExpectedChecksum) -> tuple[str, str]:
        return one.algorithm, one.origin.partition(" (")[0]

    return tuple(one for one in held if all(like(one) in map(like, other.held) for other in beside))


def _named(beside: Sequence[Beside], *, main_stays: bool) -> tuple[Record, ...]:
    """Give the companions that wait their final names; returns the records of all."""
    for one in beside:
        if one.partial is not None:
            one.record = one.job.put(one.source, one.partial, main_stays=main_stays)
    return tuple(one.record for one in beside if one.record is not None)


@contextmanager
def _seen_together(folder: Path, final: Path, main: Path, beside: Sequence[Beside]) -> Iterator[Path]:
    """Links to a main file and its companions under their final names, in a folder that goes afterwards."""
    places = {final.name: main}
    places |= {
        one.source.file: one.partial.path if one.partial else final.with_name(one.source.file)
        for one in beside
    }
    with StagedFolder(folder) as staged:
        for name, place in places.items():
            with translated(final.with_name(name)):
                try:
                    (staged.path / name).symlink_to(place.absolute())
                except OSError:  # on Windows, who may not make such links
                    (staged.path / name).hardlink_to(place)
        yield staged.path / final.name


def _without_path(error: CkptkitError, path: Path) -> str:
    """What an error says of a file under a temporary name."""
    reason = error.message.removeprefix(f"{path}: ").removeprefix(f"{path} is ")
    return reason.replace(f"{path}{os.sep}", "").replace(str(path), "it")


def _text(head: bytes) -> str:
    """What a text begins with, empty for other bytes: an answer in place of a file mostly says why."""
    try:
        text = " ".join(codecs.getincrementaldecoder("utf-8")().decode(head[:_QUOTED]).split())
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() else ""


def how_it_came(record: Record) -> str:
    """How, when and from where a cached file came."""
    return in_words(_how(record), record.fetched_at, record.used_url)


def _how(record: Record) -> str:
    """How the bytes came: a key of `ckptkit.store.lockfile.HOW`."""
    if record.note:
        return {IMPORTED: "import", FOUND: "cache"}.get(record.note, "download")
    return "download" if record.used_url == without_secrets(record.url) else "mirror"


def _no_statistics(id: str, file: str) -> str:
    return (
        f"{id}: {file} carries no BatchNorm moving statistics: it can initialise training, but its accuracy "
        "cannot be reproduced, and it converts only with --allow-missing-bn"
    )


def _record_path(artefact: Path) -> Path:
    return artefact.with_name(f"{artefact.name}.json")


def _is_untouched(artefact: Path, record: Record) -> bool:
    status = regular_status(artefact)
    return status is not None and status.st_size == record.size and status.st_mtime_ns == record.mtime_ns
