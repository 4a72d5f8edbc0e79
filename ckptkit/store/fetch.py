"""The way of an artefact into the cache: from its sources, or from a file somebody has already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.base.errors import (
    CkptkitError,
    FormatError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    UsageError,
    command,
)
from ckptkit.store.cache import Home
from ckptkit.store.download import LATER, Notes, Progress, explain, silent, url_opener, what_helps
from ckptkit.store.github_digest import GitHub
from ckptkit.store.integrity import hash_file
from ckptkit.store.job import IMPORTED, Fetched, Fits, Job, UnfitError, came
from ckptkit.store.mirrors import Mirror
from ckptkit.store.sources import PlannedSource, plan_sources, source_of_file
from ckptkit.store.transport import (
    Policy,
    RefusedError,
    SourceError,
    SourceGoneError,
    is_local,
    without_secrets,
)
from ckptkit.store.trust import TrustFile

if TYPE_CHECKING:
    from ckptkit.registry import Entry

__all__ = ["Fetched", "Fits", "fetch", "import_file"]


def fetch(
    entry: Entry,
    home: Home,
    *,
    fits: Fits,
    offline: bool = False,
    mirrors: Sequence[Mirror] = (),
    force: bool = False,
    accept_new: bool = False,
    verify: bool = False,
    require_checksum: bool = False,
    progress: Progress | None = None,
    notes: Notes = silent,
    warn: Notes | None = None,
    policy: Policy | None = None,
    trust: TrustFile | None = None,
    github: GitHub | None = None,
) -> Fetched:
    """Have an entry's artefact in the cache, downloading it if it is not there.

    Parameters
    ----------
    entry : Entry
        A registry entry.
    home : Home
        The cache.
    fits : Fits
        Looks into a file whose checksum nobody knows, before it gets a name or a line in the lock file.
    offline : bool
        Never touch the network; ``file://`` sources still work.
    mirrors : sequence of Mirror
        From `ckptkit.store.mirrors.parse_mirrors`.
    force : bool
        Download again what is there.
    accept_new : bool
        Accept a file whose sha256 differs from that of an earlier fetch; what was trusted until then stays in
        the history of the lock file and of the cache's record.
    verify : bool
        Hash again what is there, even if size and time say that nobody touched it.
    require_checksum : bool
        Take only bytes whose sha256 is known from elsewhere than the download that brings them: from the
        registry's pin or the lock file. No word of a server counts, not even that of GitHub's API: who can
        put another file there changes that too.
    progress : callable, optional
        `ckptkit.cli.output.Output.progress`, or anything like it.
    notes : callable
        Told what a person may want to know, one line each.
    warn : callable, optional
        Told what a person must know, such as that only a copy without statistics could be had; `notes` where
        not given.
    policy : Policy, optional
        Timeouts, retries, clock.
    trust : TrustFile, optional
        The lock file of what was fetched before; that of the cache where not given.
    github : GitHub, optional
        Where GitHub's API is asked for the digests of release assets.

    Raises
    ------
    UsageError
        When both ``accept_new`` and ``require_checksum`` are asked for.
    NetworkError
        When no source gives the file, or ``offline`` forbids to ask.
    IntegrityError
        When the bytes are not those promised, or ``require_checksum`` and nobody promised anything.
    FormatError
        When no source gives a checkpoint of the entry, or the lock file is damaged.
    StorageError
        When the disk refuses.
    """
    refuse_contradiction(accept_new=accept_new, require_checksum=require_checksum)
    trust, github = trust or TrustFile.default(home.path), github or GitHub()
    job = Job(entry, home, accept_new, notes, warn or notes, trust, fits, require_checksum, github=github)
    trust.files(entry.id)  # a damaged lock file is said before anything is downloaded
    if require_checksum:
        records = [record.file for record in home.records(entry.id)]
        job.refuse_unknown([*(planned.file for planned in plan_sources(entry)), *records])
    if not force and not verify and (there := job.untouched()):
        return there
    with home.lock(entry.id, waiting=lambda: notes(_waiting(entry))):
        if not force and (there := job.intact(verify=verify, offline=offline)):
            return there
        return _download(job, offline, mirrors, progress, policy or Policy())


def refuse_contradiction(*, accept_new: bool, require_checksum: bool) -> None:
    """Refuse to accept whatever is new and to require a known checksum at once.

    Raises
    ------
    UsageError
        When both are asked for.
    """
    if accept_new and require_checksum:
        raise UsageError(
            "to accept whatever is new and to require a known checksum exclude each other",
            hint="give only one of --accept-new and --require-checksum",
        )


def import_file(
    entry: Entry,
    file: Path,
    home: Home,
    *,
    fits: Fits,
    force: bool = False,
    accept_new: bool = False,
    progress: Progress | None = None,
    notes: Notes = silent,
    warn: Notes | None = None,
    trust: TrustFile | None = None,
) -> Fetched:
    """Take a file that somebody downloaded by hand; it is copied, hashed and checked like a download.

    ``force`` replaces what is cached, and takes a file that does not fit the entry, with a warning;
    ``accept_new`` replaces what is cached and what the lock file says.

    Raises
    ------
    NotFoundError
        When there is no such file.
    UsageError
        When other bytes are cached already and neither ``force`` nor ``accept_new`` is given.
    IntegrityError, FormatError, StorageError
        As for `fetch`.
    """
    file = file.absolute()
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "no such file"
        raise NotFoundError(f"{file}: {kind}", hint="give the file as it was published")
    trust = trust or TrustFile.default(home.path)
    job = Job(entry, home, accept_new, notes, warn or notes, trust, fits, overrule=force)
    job.trust.files(entry.id)
    with home.lock(entry.id, waiting=lambda: notes(_waiting(entry))):
        there = None if force or accept_new else job.intact(verify=False, offline=True, quiet=True)
        if there is not None:
            if there.record.sha256 == hash_file(file).sha256:
                return there
            raise UsageError(
                f"{entry.id} is cached already, with other bytes ({came(there.record)})",
                hint=command("import", entry.id, file, "--accept-new").replace("Run", "To replace them", 1),
            )
        origin = source_of_file(entry, file)
        with url_opener(Policy()) as opener:
            try:
                return job.take(origin, opener, Policy(), progress, IMPORTED)
            except SourceError as error:
                hint = "give the file as it was published"
                if isinstance(error, UnfitError) and error.can_be_kept:
                    run = command("import", entry.id, file, "--force")
                    hint = run.replace("Run", "To take it all the same", 1)
                raise FormatError(file, str(error), hint=hint) from error


def _download(
    job: Job, offline: bool, mirrors: Sequence[Mirror], progress: Progress | None, policy: Policy
) -> Fetched:
    entry = job.entry
    failures: list[tuple[str, Exception]] = []
    lesser: list[PlannedSource] = []
    withheld = False  # whether a better copy may be had another time
    wrong: IntegrityError | None = None
    planned_sources = plan_sources(entry, mirrors)
    with url_opener(policy, job.notes) as opener:
        for planned in planned_sources:
            if offline and not is_local(planned.used_url):
                withheld |= planned.bn_statistics is not False
                continue
            if (job.require_checksum or wrong) and not job.is_tied(planned.file):
                job.notes(f"{without_secrets(planned.used_url)}: passed over, no checksum of it is known")
                continue
            if entry.sha256 is None and planned.bn_statistics is False:
                if withheld:  # no silent loss of accuracy because of a fault that may pass
                    lesser.append(planned)
                    continue
                if failures:
                    job.warn_of_lesser(planned)
            try:
                return job.take(planned, opener, policy, progress, "")
            except SourceError as error:
                withheld |= planned.bn_statistics is not False and not _is_gone(error)
                failures.append((planned.used_url, error))
                if planned is not planned_sources[-1]:  # of the last one the error itself tells
                    job.notes(f"{without_secrets(planned.used_url)}: {error}")
            except IntegrityError as error:
                if job.accept_new or not job.is_tied(planned.file):
                    raise
                wrong = error  # what is known from before decides whether another source has the right bytes
                failures.append((planned.used_url, error))
                if planned is not planned_sources[-1]:
                    job.notes(str(error))
    if wrong:
        raise wrong
    raise _nothing(entry, failures, lesser, offline)


def _nothing(
    entry: Entry,
    failures: Sequence[tuple[str, Exception]],
    lesser: Sequence[PlannedSource],
    offline: bool,
) -> CkptkitError:
    manual = [source for source in entry.sources if source.manual]
    by_hand = f"ckptkit import {entry.id} FILE"
    if failures:
        hint = _what_helps([error for _, error in failures])
        if lesser:
            hint += (
                f"; {without_secrets(lesser[0].url)} has no BatchNorm moving statistics and is taken only "
                f"once the better copy is gone for good; if it will do, download it and run '{by_hand}'"
            )
        if manual:
            hint += f"; or download it by hand from {manual[0].url} and run '{by_hand}'"
        said = f"no source gave the file: {explain(failures)}"
        if not lesser and all(isinstance(error, UnfitError) for _, error in failures):
            return FormatError(entry.id, said, hint=hint)
        return NetworkError(f"{entry.id}: {said}", hint=hint)
    if offline and len(manual) < len(entry.sources):
        return NetworkError(
            f"{entry.id} is not cached, and --offline forbids to fetch it",
            hint=f"run without --offline, or '{by_hand}'",
        )
    where = f" from {manual[0].url}" if manual else ""
    return NetworkError(f"{entry.id} can only be downloaded by hand{where}", hint=f"then run '{by_hand}'")


def _waiting(entry: Entry) -> str:
    return f"waiting for another process that is fetching {entry.id}"


def _is_gone(error: Exception) -> bool:
    """Whether a source does not have the file, and will not have it by waiting."""
    return isinstance(error, SourceGoneError) or (isinstance(error, UnfitError) and error.is_another)


def _what_helps(errors: Sequence[Exception]) -> str:
    refused = next((error.login for error in errors if isinstance(error, RefusedError) and error.login), "")
    if refused:
        return f"renew {refused} or remove it, or give a --mirror"
    if all(_is_gone(error) for error in errors):
        return "correct the sources in the registry, or give a --mirror"
    if all(isinstance(error, UnfitError) and not error.is_text for error in errors):
        return "nothing was kept; run the same command again, or give a --mirror"
    if any(isinstance(error, UnfitError) and error.is_text for error in errors):  # "too many requests"
        return LATER
    return what_helps(errors)
