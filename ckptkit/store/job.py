"""One entry on its way into the cache: what is there, what arrives, and when it may have its final name."""

from __future__ import annotations

import codecs
import datetime
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ckptkit._version import __version__
from ckptkit.base.errors import (
    CkptkitError,
    ConversionError,
    FormatError,
    IntegrityError,
    StorageError,
    command,
)
from ckptkit.base.files import regular_status
from ckptkit.formats.builtin import may_begin
from ckptkit.store.archive import (
    StagedFolder,
    checkpoint_in,
    is_archive_name,
    is_unpacked,
    remove_folder,
    unpack,
)
from ckptkit.store.cache import Home, Record, read_record, write_json
from ckptkit.store.download import Download, Notes, Progress, host_of, silent
from ckptkit.store.early import EarlyUnpack
from ckptkit.store.github_digest import GitHub, NoDigestError
from ckptkit.store.integrity import Digests, Promise, as_mapping, compare, hash_file
from ckptkit.store.partial import Partial
from ckptkit.store.sources import PlannedSource, plan_sources
from ckptkit.store.transport import Opener, Policy, SourceError, file_path, without_secrets
from ckptkit.store.trust import ENVIRONMENT as TRUST_ENVIRONMENT
from ckptkit.store.trust import Trusted, TrustFile, in_words

if TYPE_CHECKING:
    from ckptkit.registry import Entry

IMPORTED = "imported by hand"
FOUND = "found in the cache without a sound record"
_QUOTED = 200
_HEAD = 512
_MOST_KEPT = 100
"""Earlier checksums that a record keeps; the lock file keeps all."""


@dataclass(frozen=True)
class Fetched:
    """What a fetch or an import gives.

    Attributes
    ----------
    path : Path
        What convert and load take: the folder with the checkpoint for an archive, else the artefact.
    artefact : Path
        The file as published.
    record : Record
    from_cache : bool
        Whether it lay there already.
    held : tuple of Promise
        The checksums it was compared with when it came: those of the registry, of servers, of the lock file.
    """

    path: Path
    artefact: Path
    record: Record
    from_cache: bool
    held: tuple[Promise, ...] = ()


class Fits(Protocol):
    """Looks into a file that no checksum vouches for: whether it is what an entry publishes."""

    def __call__(self, path: Path, entry: Entry, *, deep: bool = True) -> bool | None:
        """Whether the file holds BatchNorm's moving statistics; None where that cannot be told.

        ``deep`` compares the checksums that the container stores of its contents as well.

        Raises
        ------
        FormatError
            When it is not a checkpoint, or a damaged one.
        ConversionError
            When it is a checkpoint of something else.
        """


class UnfitError(SourceError):
    """A source gave something else than the entry's file.

    Parameters
    ----------
    error : FormatError or ConversionError
        What it gave.
    path : Path
        Its temporary name, which the message leaves out.
    head : bytes
        Its first bytes.
    can_be_kept : bool
        Whether it could be taken all the same: not an archive that cannot be unpacked.
    """

    def __init__(self, error: CkptkitError, path: Path, head: bytes, *, can_be_kept: bool = True) -> None:
        text = _text(head)
        super().__init__(_without_path(error, path) + (f": {text!r}" if text else ""))
        self.is_another = isinstance(error, ConversionError)
        self.is_text = bool(text)
        self.can_be_kept = can_be_kept


@dataclass
class Job:
    """One entry on its way into the cache."""

    entry: Entry
    home: Home
    accept_new: bool
    notes: Notes
    warn: Notes
    trust: TrustFile
    fits: Fits
    require_checksum: bool = False
    overrule: bool = False
    """Whether a file that does not fit is taken all the same."""
    github: GitHub = field(default_factory=GitHub)

    def untouched(self) -> Fetched | None:
        """Return what is cached if nobody touched it since it was hashed; needs no lock."""
        record = self.home.record(self.entry.id)
        if (
            record is None
            or self._objection(record) is not None
            or not _is_untouched(self.home.artefact(record), record)
        ):
            return None
        artefact = self.home.artefact(record)
        if is_archive_name(record.file):
            folder = self._unpacked(record)
            if folder is None:
                return None
            path = checkpoint_in(folder)
        else:
            path = artefact
        return None if self._misfit(record, path) else self._found(path, artefact, record)

    def intact(self, *, verify: bool, offline: bool, quiet: bool = False) -> Fetched | None:
        """Return what is cached if its bytes are still the recorded ones; unpacks it anew where need be."""
        notes = silent if quiet else self.notes
        record = self.home.record(self.entry.id) or self._adopt(notes)
        if record is None:
            return None
        artefact = self.home.artefact(record)
        try:
            if objection := self._objection(record):
                raise IntegrityError(f"{artefact}: {objection}")
            record = self._checked(artefact, record, verify=verify)
        except FileNotFoundError:
            return None
        except IntegrityError as error:
            if offline and not quiet:
                raise IntegrityError(error.message, hint="run without --offline to fetch it again") from error
            notes(f"{error.message}; fetching it again")
            return None
        path = artefact
        if is_archive_name(record.file):
            folder = self._unpacked(record)
            if folder is None:
                folder = self.home.unpacked_folder(self.entry.id)
                unpack(artefact, folder, sha256=record.sha256)
            path = checkpoint_in(folder)
        if misfit := self._misfit(record, path):
            if offline and not quiet:
                raise IntegrityError(f"{artefact}: {misfit}", hint="run without --offline to fetch it again")
            notes(f"{artefact}: {misfit}; fetching it again")
            return None
        return self._found(path, artefact, record)

    def _unpacked(self, record: Record) -> Path | None:
        """Folder of the archive unpacked; None where it is in no cache folder."""
        folders = self.home.everywhere(self.home.unpacked_folder(self.entry.id))
        return next((folder for folder in folders if is_unpacked(folder, record.sha256)), None)

    def _found(self, path: Path, artefact: Path, record: Record) -> Fetched:
        self.home.touch(self.entry.id)
        self._remember(record, unwritable=silent)  # fetched before there was a lock file, or with another one
        if record.bn_statistics is False:
            self.warn(_no_statistics(self.entry.id, record.file))
        return Fetched(path, artefact, record, from_cache=True)

    def is_tied(self, file: str) -> bool:
        """Whether a checksum of the file is known from elsewhere than the download that brings it."""
        return self.entry.sha256 is not None or self.trust.get(self.entry.id, file) is not None

    def _decides(self, file: str) -> bool:
        """Whether only bytes of a known checksum are taken."""
        return self.entry.sha256 is not None or (self.is_tied(file) and not self.accept_new)

    def refuse_unknown(self, files: Sequence[str]) -> None:
        """Refuse, before anything is asked of anybody, what ``--require-checksum`` forbids.

        Raises
        ------
        IntegrityError
            When neither the registry nor the lock file has a checksum of any of these files.
        """
        if any(self.is_tied(file) for file in files):
            return
        raise IntegrityError(
            f"{self.entry.id}: no checksum of it is known before it is fetched: the registry pins none, and "
            f"the lock file {self.trust.path} has none",
            hint="what a server says of its own answer shows only that it came whole; fetch it once without "
            f"--require-checksum and look at it, then run 'ckptkit registry pin {self.entry.id}' or keep the "
            f"lock file ({TRUST_ENVIRONMENT} says where it is)",
        )

    def _objection(self, record: Record) -> str | None:
        """Why cached bytes are not to be taken: the pin decides, else the lock file."""
        if self.entry.sha256 is not None:
            fits = self.entry.sha256 == record.sha256
            return None if fits else f"sha256 is {record.sha256}, but the registry says {self.entry.sha256}"
        known = self.trust.promise(self.entry.id, record.file)
        if known is not None and known.value != record.sha256 and not self.accept_new:
            return f"sha256 is {record.sha256}, but {known.origin} says {known.value}"
        if known is None and self.require_checksum:
            return f"no checksum of it is known from elsewhere, and {self.trust.path} has none"
        return None

    def _misfit(self, record: Record, path: Path) -> str | None:
        """Why cached bytes that no checksum vouches for are not the entry's file."""
        known = self.entry.sha256 or getattr(self.trust.get(self.entry.id, record.file), "sha256", None)
        if known == record.sha256 or record.overruled:
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
        compare(str(artefact), found, [Promise("sha256", record.sha256, "its record")], hint="")
        if status.st_mtime_ns == record.mtime_ns:
            return record
        record = replace(record, mtime_ns=status.st_mtime_ns)
        if artefact.is_relative_to(self.home.artefact_folder(self.entry.id)):
            with suppress(StorageError):  # of a read-only cache: it is hashed again the next time
                write_json(_record_path(artefact), record.to_json())
        return record

    def _adopt(self, notes: Notes) -> Record | None:
        """Make a record anew for an artefact that lost its own; a pinned checksum must fit."""
        folder = self.home.artefact_folder(self.entry.id)
        for planned in plan_sources(self.entry, ()):
            artefact = folder / planned.file
            if not artefact.is_file():
                continue
            found, status = hash_file(artefact), artefact.stat()
            record = self._record(
                planned, found, FOUND, status.st_mtime_ns, Partial(folder, planned.file, "")
            )
            if objection := self._objection(record):
                notes(f"{artefact}: no sound record, and {objection}; fetching it again")
                continue
            notes(f"{artefact}: its record was missing or damaged; hashed again, sha256 {found.sha256}")
            write_json(_record_path(artefact), record.to_json())
            return record
        return None

    def warn_of_lesser(self, planned: PlannedSource) -> None:
        """Say loudly that a lesser copy is about to be taken."""
        self.warn(
            f"falling back to {without_secrets(planned.url)}: {_no_statistics(self.entry.id, planned.file)}"
        )

    def take(
        self, planned: PlannedSource, opener: Opener, policy: Policy, progress: Progress | None, note: str
    ) -> Fetched:
        """Download from one source, check, put in place; a file joined from parts gets a second chance."""
        partial = Partial(self.home.artefact_folder(self.entry.id), planned.file, planned.used_url)
        folder = self.home.unpacked_folder(self.entry.id)
        early = EarlyUnpack(partial, folder, enabled=policy.connections == 1)
        watched = early.watching(progress)
        promised: tuple[Promise, ...] = ()
        again = False
        try:
            while True:
                Download(
                    planned.used_url,
                    partial,
                    opener,
                    policy,
                    self.entry.size,
                    watched,
                    self.notes,
                    self._decides(planned.file) and not again,
                    self._may_begin,
                ).run()
                joined = partial.joined and not again
                promised = promised or self._published_digest(planned, policy)
                partial.promises = tuple(dict.fromkeys((*partial.promises, *promised)))
                try:
                    return self._commit(planned, partial, note, early)
                except (IntegrityError, UnfitError) as error:
                    if not joined:
                        raise
                    partial.discard()
                    self.notes(f"{error}; the parts do not fit together, downloading it whole")
                    policy, again = replace(policy, connections=1), True
        except (IntegrityError, FormatError, UnfitError):
            partial.discard()
            raise
        finally:
            early.drop()
            partial.close()

    def _may_begin(self, head: bytes) -> bool:
        """Whether a file of the entry's format, packed or not, can begin so; texts are judged when whole."""
        return len(head) < _HEAD or may_begin(self.entry.format, head) or bool(_text(head))

    def _check(self, planned: PlannedSource, partial: Partial, note: str) -> tuple[tuple[Promise, ...], bool]:
        """Compare what came with everything that was promised.

        Returns the promises that held, and whether one of them is older than this download: what a server
        says of its own answer shows only that it came whole.
        """
        found = partial.digests()
        where = f"{planned.file} from {host_of(planned.used_url)}"
        if self.entry.sha256:
            pin = Promise("sha256", self.entry.sha256, "the registry")
            compare(where, found, [pin], hint="the file is not the pinned one; nothing was kept")
            return (pin,), True
        compare(where, found, partial.promises, hint="it was damaged on the way; run the same command again")
        earlier = self._earlier(planned.file)
        if self.accept_new:
            earlier = [promise for promise in earlier if promise.value == found.of(promise.algorithm)]
        compare(where, found, earlier, hint=self._take_back(planned, note))
        return (*partial.promises, *earlier), bool(earlier)

    def _take_back(self, planned: PlannedSource, note: str) -> str:
        """What to do where the bytes are not those of an earlier record, which may be the wrong one."""
        if note == IMPORTED:
            run = command("import", self.entry.id, file_path(planned.used_url), "--accept-new")
        else:
            run = command("fetch", self.entry.id, "--force", "--accept-new")
        return f"Either may be the wrong one. If it is the earlier record, replace it. {run}"

    def _earlier(self, file: str) -> list[Promise]:
        """What an earlier fetch found: the lock file says it, else the cache's own records."""
        known = self.trust.promise(self.entry.id, file)
        if known is not None:
            return [known]
        return [
            Promise(
                "sha256",
                record.sha256,
                f"its record ({came(record)})",
            )
            for record in self.home.records(self.entry.id)
            if record.file == file
        ]

    def _published_digest(self, planned: PlannedSource, policy: Policy) -> tuple[Promise, ...]:
        """GitHub's own checksum of a release asset, if it comes from there and no pin decides anyway."""
        asset = self.github.asset(planned.used_url)
        if asset is None or self.entry.sha256 is not None:
            return ()
        try:
            return (self.github.promise(asset, policy),)
        except NoDigestError as error:
            self.notes(f"{host_of(self.github.api)}: {error}; {planned.file} is not compared with it")
            return ()

    def _remember(self, record: Record, *, unwritable: Notes) -> None:
        """Trust these bytes from now on. What the pin or the user accepts replaces what was trusted."""
        seen = Trusted(
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
            replaced = self.trust.remember(record.id, record.file, seen, accept=accept)
        except StorageError as error:
            unwritable(
                f"{error.message}; so the checksum of {record.file} is remembered in the cache only "
                f"({TRUST_ENVIRONMENT} names another lock file)"
            )
            return
        if replaced is not None:
            self.notes(
                f"{record.id}: the lock file {self.trust.path} now has sha256 {record.sha256}; its history "
                f"keeps {replaced.sha256}, seen {replaced.first_seen}"
            )

    def _commit(
        self,
        planned: PlannedSource,
        partial: Partial,
        note: str,
        early: EarlyUnpack,
    ) -> Fetched:
        """Check, unpack, record, rename: what is refused leaves nothing, and a named file has a record."""
        held, known = self._check(planned, partial, note)
        found = partial.digests()
        record = self._record(planned, found, note, partial.sync(), partial)
        record = replace(record, previous=self._previous(record))
        final = partial.folder / partial.name
        folder = self.home.unpacked_folder(self.entry.id)
        with ExitStack() as stack:
            staged = None
            if is_archive_name(planned.file):
                try:
                    staged = stack.enter_context(
                        early.take(found.sha256)
                        or StagedFolder(partial.path, folder, shown=final, sha256=found.sha256)
                    )
                except FormatError as error:
                    if known:
                        raise
                    raise UnfitError(error, final, partial.head, can_be_kept=False) from error
            if not known:
                base = checkpoint_in(staged.temporary) if staged else partial.path
                record = self._fitting(record, base, partial.head)
            self._remember(record, unwritable=self.warn)
            write_json(_record_path(final), record.to_json())
            partial.rename()
            if staged:
                staged.commit()
            else:
                remove_folder(folder)
        self.home.touch(self.entry.id)
        if record.bn_statistics is False:
            self.warn(_no_statistics(self.entry.id, record.file))
        path = checkpoint_in(folder) if staged else final
        return Fetched(path, final, record, from_cache=False, held=held)

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
            if not self.overrule:
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
        self, planned: PlannedSource, found: Digests, note: str, mtime_ns: int, partial: Partial
    ) -> Record:
        identity = partial.identity
        return Record(
            id=self.entry.id,
            url=planned.url,
            used_url=without_secrets(planned.used_url),
            file=planned.file,
            size=found.size,
            sha256=found.sha256,
            fetched_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds"),
            mtime_ns=mtime_ns,
            etag=identity.etag if identity else None,
            generation=identity.generation if identity else None,
            server_hashes=dict(as_mapping(partial.promises)),
            ckptkit_version=__version__,
            note=note,
            bn_statistics=planned.bn_statistics,
        )


def _without_path(error: CkptkitError, path: Path) -> str:
    """What an error says of a file under a temporary name."""
    said = error.message.removeprefix(f"{path}: ").removeprefix(f"{path} is ")
    return said.replace(f"{path}{os.sep}", "").replace(str(path), "it")


def _text(head: bytes) -> str:
    """What a text begins with, empty for other bytes: an answer in place of a file mostly says why."""
    try:
        text = " ".join(codecs.getincrementaldecoder("utf-8")().decode(head[:_QUOTED]).split())
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() else ""


def came(record: Record) -> str:
    """How, when and from where a cached file came."""
    return in_words(_how(record), record.fetched_at, record.used_url)


def _how(record: Record) -> str:
    """How the bytes came: a key of `ckptkit.store.trust.HOW`."""
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
