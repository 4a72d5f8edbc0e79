"""One entry on its way into the cache: what is there, what arrives, and when it may have its final name."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit._version import __version__
from ckptkit.errors import FormatError, IntegrityError
from ckptkit.store.archive import (
    StagedFolder,
    checkpoint_in,
    is_archive_name,
    is_unpacked,
    remove_folder,
    unpack,
)
from ckptkit.store.cache import Home, Record, write_json
from ckptkit.store.download import Download, Notes, Progress, host_of, silent
from ckptkit.store.integrity import Digests, Promise, as_mapping, compare, hash_file
from ckptkit.store.partial import Partial
from ckptkit.store.sources import PlannedSource, plan_sources
from ckptkit.store.transport import Opener, Policy, without_secrets

if TYPE_CHECKING:
    from ckptkit.registry import Entry

IMPORTED = "imported by hand"
FOUND = "found in the cache without a sound record"


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
    """

    path: Path
    artefact: Path
    record: Record
    from_cache: bool


@dataclass
class Job:
    """One entry on its way into the cache."""

    entry: Entry
    home: Home
    accept_new: bool
    notes: Notes
    warn: Notes

    def untouched(self) -> Fetched | None:
        """Return what is cached if nobody touched it since it was hashed; needs no lock."""
        record = self.home.record(self.entry.id)
        if (
            record is None
            or not self._fits_pin(record)
            or not _is_untouched(self.home.artefact(record), record)
        ):
            return None
        artefact = self.home.artefact(record)
        if is_archive_name(record.file):
            folder = self.home.unpacked_folder(self.entry.id)
            if not is_unpacked(folder, record.sha256):
                return None
            return self._found(checkpoint_in(folder), artefact, record)
        return self._found(artefact, artefact, record)

    def intact(self, *, verify: bool, offline: bool, quiet: bool = False) -> Fetched | None:
        """Return what is cached if its bytes are still the recorded ones; unpacks it anew where need be."""
        notes = silent if quiet else self.notes
        record = self.home.record(self.entry.id) or self._adopt(notes)
        if record is None:
            return None
        artefact = self.home.artefact(record)
        try:
            if not self._fits_pin(record):
                raise IntegrityError(
                    f"{artefact}: sha256 is {record.sha256}, but the registry says {self.entry.sha256}"
                )
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
            folder = self.home.unpacked_folder(self.entry.id)
            if not is_unpacked(folder, record.sha256):
                unpack(artefact, folder, sha256=record.sha256)
            path = checkpoint_in(folder)
        return self._found(path, artefact, record)

    def _found(self, path: Path, artefact: Path, record: Record) -> Fetched:
        if record.bn_statistics is False:
            self.warn(_no_statistics(self.entry.id, record.file))
        return Fetched(path, artefact, record, from_cache=True)

    def _fits_pin(self, record: Record) -> bool:
        return self.entry.sha256 in (None, record.sha256)

    def _checked(self, artefact: Path, record: Record, *, verify: bool) -> Record:
        """Compare the artefact with its record, hashing it only if it was touched or ``verify`` asks."""
        status = artefact.stat()
        if status.st_size != record.size:
            raise IntegrityError(f"{artefact}: {status.st_size:,} bytes, but {record.size:,} were fetched")
        if status.st_mtime_ns == record.mtime_ns and not verify:
            return record
        found = hash_file(artefact)
        compare(str(artefact), found, [Promise("sha256", record.sha256, "its record")], hint="")
        if status.st_mtime_ns == record.mtime_ns:
            return record
        record = replace(record, mtime_ns=status.st_mtime_ns)
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
            if self.entry.sha256 not in (None, found.sha256):
                notes(f"{artefact}: no sound record, and not the pinned bytes; fetching it again")
                continue
            notes(f"{artefact}: its record was missing or damaged; hashed again, sha256 {found.sha256}")
            record = self._record(
                planned, found, FOUND, status.st_mtime_ns, Partial(folder, planned.file, "")
            )
            write_json(_record_path(artefact), record.to_json())
            return record
        return None

    def is_lesser(self, planned: PlannedSource, failures: Sequence[object]) -> bool:
        """Whether this copy lacks what a copy that failed has: the BatchNorm moving statistics."""
        better = self.entry.sources[0].bn_statistics is True
        return bool(failures) and better and planned.bn_statistics is False and self.entry.sha256 is None

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
        try:
            for _ in range(2):
                Download(
                    planned.used_url, partial, opener, policy, self.entry.size, progress, self.notes
                ).run()
                joined = partial.joined
                try:
                    self._check(planned, partial)
                    break
                except IntegrityError as error:
                    partial.discard()
                    if not joined:
                        raise
                    self.notes(f"{error.message}; the parts do not fit together, downloading it whole")
            return self._commit(planned, partial, note)
        except (IntegrityError, FormatError):
            partial.discard()
            raise
        finally:
            partial.close()

    def _check(self, planned: PlannedSource, partial: Partial) -> None:
        found = partial.digests()
        where = f"{planned.file} from {host_of(planned.used_url)}"
        if self.entry.sha256:
            pin = Promise("sha256", self.entry.sha256, "the registry")
            compare(where, found, [pin], hint="the file is not the pinned one; nothing was kept")
            return
        compare(where, found, partial.promises, hint="it was damaged on the way; run the same command again")
        if self.accept_new:
            return
        for earlier in self.home.records(self.entry.id):
            if earlier.file == planned.file:
                promise = Promise("sha256", earlier.sha256, f"the fetch of {earlier.fetched_at}")
                hint = "the published file has changed; look into it, then give --accept-new to take it"
                compare(where, found, [promise], hint=hint)

    def _commit(self, planned: PlannedSource, partial: Partial, note: str) -> Fetched:
        """Unpack, record, rename: a refused archive leaves nothing, and a named file has a record."""
        found = partial.digests()
        record = self._record(planned, found, note, partial.sync(), partial)
        final = partial.folder / partial.name
        folder = self.home.unpacked_folder(self.entry.id)
        with ExitStack() as stack:
            staged = None
            if is_archive_name(planned.file):
                staged = stack.enter_context(
                    StagedFolder(partial.path, folder, shown=final, sha256=found.sha256)
                )
            write_json(_record_path(final), record.to_json())
            partial.rename()
            if staged:
                staged.commit()
            else:
                remove_folder(folder)
        if record.bn_statistics is False:
            self.warn(_no_statistics(self.entry.id, record.file))
        path = checkpoint_in(folder) if staged else final
        return Fetched(path, final, record, from_cache=False)

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


def _no_statistics(id: str, file: str) -> str:
    return (
        f"{id}: {file} carries no BatchNorm moving statistics: it can initialise training, but its accuracy "
        "cannot be reproduced, and it converts only with --allow-missing-bn"
    )


def _record_path(artefact: Path) -> Path:
    return artefact.with_name(f"{artefact.name}.json")


def _is_untouched(artefact: Path, record: Record) -> bool:
    try:
        status = artefact.stat()
    except OSError:
        return False
    return status.st_size == record.size and status.st_mtime_ns == record.mtime_ns
