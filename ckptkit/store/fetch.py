"""The way of an artefact into the cache: from its sources, or from a file somebody has already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ckptkit.base.checksums import ExpectedChecksum, hash_file
from ckptkit.base.errors import (
    CkptkitError,
    FormatError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    UsageError,
    command,
)
from ckptkit.base.files import is_own_file
from ckptkit.base.net import (
    RefusedError,
    SourceError,
    SourceGoneError,
)
from ckptkit.base.progress import Advance
from ckptkit.base.urls import at_revision, hub_place, is_local, without_secrets
from ckptkit.store.cache import IMPORTED
from ckptkit.store.install import Beside, Checked, Fetched, Fits, Job, UnfitError, how_it_came
from ckptkit.store.openers import Opener, file_path
from ckptkit.store.partial import Partial, require_space
from ckptkit.store.ranges import at_commit
from ckptkit.store.sources import PlannedSource, plan_sources, source_of_file
from ckptkit.store.transfer import (
    LATER,
    Transfer,
    explain,
    url_opener,
    what_helps,
)
from ckptkit.store.unpack import EarlyUnpack

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry
    from ckptkit.store.cache import Record

Result = TypeVar("Result")

__all__ = ["Fetched", "Fits", "Job", "fetch", "import_file"]


def fetch(job: Job) -> Fetched:
    """Have an entry's artefact in the cache, downloading it if it is not there."""
    refuse_contradiction(accept_new=job.accept_new, require_checksum=job.require_checksum)
    id = job.entry.id
    job.lock_file.files(id)  # a damaged lock file is refused before anything is downloaded
    if job.require_checksum:
        records = [record.file for record in job.home.records(id) if not record.part_of]
        job.refuse_unknown([*(source.file for source in plan_sources(job.entry)), *records])
        for companion in job.entry.companions:
            job.of(companion.name, "").refuse_unknown([companion.name])
    if not job.force and not job.verify and (there := job.untouched()):
        return there
    with job.locked():
        if not job.force and (there := job.intact()):
            return there
        return _from_sources(job)


def refuse_contradiction(*, accept_new: bool, require_checksum: bool) -> None:
    """Refuse to accept whatever is new and to require a known checksum at once."""
    if accept_new and require_checksum:
        raise UsageError(
            "a new checksum cannot be both accepted and refused",
            hint="give only one of --accept-new and --require-checksum",
        )


def import_file(job: Job, file: Path) -> Fetched:
    """Take a file that somebody downloaded by hand; it is copied, hashed and checked like a download.

    ``force`` replaces what is cached, and takes a file that does not fit the entry, with a warning;
    ``accept_new`` replaces what is cached and what the lock file says.
    """
    file, id = file.absolute(), job.entry.id
    if job.entry.companions and file.is_dir():
        file = next((one for one in (file / name for name in _mains(job.entry)) if one.is_file()), file)
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "no such file"
        raise NotFoundError(f"{file}: {kind}", hint="give the file as it was published")
    job = replace(job, note=IMPORTED)
    job.lock_file.files(id)
    with job.locked():
        there = None if job.force or job.accept_new else job.intact(quiet=True)
        origin = source_of_file(job.entry, file)
        if there is not None:
            records = {one.file: one.sha256 for one in (there.record, *there.companions)}
            given = {one.file: file_path(one.used_url) for one in origin.beside} | {there.record.file: file}
            if all(records.get(name) == hash_file(path).sha256 for name, path in given.items()):
                return there
            raise UsageError(
                f"{id} is cached already, with other bytes ({how_it_came(there.record)})",
                hint=command("import", id, file, "--accept-new").replace("Run", "To replace them", 1),
            )
        with url_opener(job.policy) as opener:
            try:
                return _take(job, origin, opener)
            except SourceError as error:
                hint = "give the file as it was published"
                if isinstance(error, UnfitError) and error.can_be_kept:
                    run = command("import", id, file, "--force")
                    hint = run.replace("Run", "To take it all the same", 1)
                raise FormatError(file, str(error), hint=hint) from error


def _mains(entry: Entry) -> list[str]:
    """Names of an entry's main file."""
    return [*(source.file for source in plan_sources(entry)), entry.file_name]


@dataclass
class _Tried:
    """What became of the sources that were tried so far."""

    job: Job
    failures: list[tuple[str, Exception]] = field(default_factory=list)
    lacking: list[PlannedSource] = field(default_factory=list)  # left out: no BatchNorm statistics
    withheld: bool = False  # whether a better copy may be had another time
    wrong: IntegrityError | None = None  # the first bytes that are not the known ones

    def passes_over(self, source: PlannedSource) -> bool:
        """Whether a source is not to be asked."""
        job, lacks = self.job, source.bn_statistics is False
        if job.offline and not is_local(source.used_url):
            self.withheld |= not lacks
            return True
        files = job.each(source)
        lacks_checksum = (
            job.require_checksum and not all(one_job.is_tied(one.file) for one_job, one in files)
        ) or (self.wrong and not all(one_job.tells_apart(one.file) for one_job, one in files))
        if lacks_checksum:
            job.notes(f"{without_secrets(source.used_url)}: passed over, no checksum of it is known")
            return True
        if job.entry.sha256 is None and lacks:
            if self.withheld:  # a fault that may pass must not cost accuracy in silence
                self.lacking.append(source)
                return True
            if self.failures:
                job.warn_lacks_bn_statistics(source)
        return False

    def failed(self, source: PlannedSource, error: SourceError | IntegrityError) -> str:
        """Remember a source that failed, and say how; raises the error where it decides."""
        url = getattr(error, "url", "") or source.used_url
        self.failures.append((url, error))
        if isinstance(error, SourceError):
            self.withheld |= source.bn_statistics is not False and not _is_gone(error)
            return f"{without_secrets(url)}: {error}"
        if self.job.accept_new or not all(job.tells_apart(one.file) for job, one in self.job.each(source)):
            raise error
        self.wrong = error  # what is known from before decides whether another source has the right bytes
        return str(error)


def _from_sources(job: Job) -> Fetched:
    tried, sources = _Tried(job), plan_sources(job.entry, job.mirrors)
    with url_opener(job.policy, job.notes) as opener:
        for source in sources:
            if tried.passes_over(source):
                continue
            try:
                return _take(job, _at_commit(source, opener), opener)
            except (SourceError, IntegrityError) as error:
                reason = tried.failed(source, error)
                if source is not sources[-1]:  # that of the last one is in the error
                    job.notes(reason)
    raise tried.wrong or _nothing(job, tried.failures, tried.lacking)


def _at_commit(source: PlannedSource, opener: Opener) -> PlannedSource:
    """A source on the Hugging Face hub at the commit of now, so that what is recorded can be had again."""
    used_url = at_commit(source.used_url, opener)
    if used_url == source.used_url:
        return source
    revision = (hub_place(used_url) or ("", ""))[1]
    files = [
        replace(one, url=there if one.url == one.used_url else one.url, used_url=there)
        for one in (source, *source.beside)
        if (there := at_revision(one.used_url, revision) or one.used_url)
    ]
    return replace(files[0], beside=tuple(files[1:]))


def _take(job: Job, source: PlannedSource, opener: Opener) -> Fetched:
    """Have every file of one source, the main one last, so that it is never there without the others."""
    with ExitStack() as stack:
        kept = {one.file: one_job.kept(one) for one_job, one in job.each(source)} if source.beside else {}
        if kept:
            job = _with_one_bar(job, source, kept, stack)
        main = kept.get(source.file)
        beside: list[Beside] = []
        try:
            for one_job, one in job.each(source)[:-1]:
                if record := kept[one.file]:
                    beside.append(Beside(one_job, one, one_job.known(one.file), record))
                else:
                    beside.append(_companion(one_job, one, opener, stack, main_stays=main is not None))
            if main is not None:
                return job.complete(source, main, beside)
            part = _part(job, source, stack)
            folder = job.home.unpacked_folder(job.entry.id)
            early = EarlyUnpack(part, folder, enabled=job.policy.connections == 1)
            stack.callback(early.drop)
            install = partial(job.install, source, part, early, beside)
            return _receive(job, source, part, opener, install, begun=early.begin)
        except UnfitError:
            for waiting in filter(None, (one.partial for one in beside)):
                waiting.discard()
            raise


def _companion(
    job: Job, source: PlannedSource, opener: Opener, stack: ExitStack, *, main_stays: bool
) -> Beside:
    """A companion as it comes; one of a known checksum gets its final name at once."""
    part = _part(job, source, stack)

    def settle(checked: Checked) -> Beside:
        held, known = checked
        if not known:
            return Beside(job, source, held, partial=part)
        return Beside(job, source, held, job.put(source, part, main_stays=main_stays))

    try:
        return _receive(job, source, part, opener, settle)
    except SourceError as error:
        error.url = source.used_url
        raise


def _part(job: Job, source: PlannedSource, stack: ExitStack) -> Partial:
    kinds = [checksum.algorithm for checksum in job.entry.expected]
    part = Partial(job.home.artefact_folder(job.entry.id), source.file, source.used_url, kinds)
    stack.callback(part.close)
    return part


def _receive(
    job: Job,
    source: PlannedSource,
    part: Partial,
    opener: Opener,
    settle: Callable[[Checked], Result],
    *,
    begun: Callable[[int | None], None] = lambda _size: None,
) -> Result:
    """Transfer, check, hand on; a file joined from parts gets a second chance."""
    policy = job.policy
    published: tuple[ExpectedChecksum, ...] = ()
    again = False
    try:
        while True:
            Transfer(
                source.used_url,
                part,
                opener,
                policy,
                expected_size=job.entry.size,
                progress=job.progress,
                name=f"fetching {job.entry.id}" + (f": {source.file}" if job.is_one_of_several else ""),
                notes=job.notes,
                is_tied=job.decides(source.file) and not again,
                may_begin=job.may_begin,
                begun=begun,
            ).run()
            joined = part.joined and not again
            published = published or job.published_digest(source)
            part.expected = tuple(dict.fromkeys((*part.expected, *published)))
            try:
                return settle(job.check(source, part))
            except (IntegrityError, UnfitError) as error:
                if not joined:
                    raise
                part.discard()
                job.notes(f"{error}; the parts do not fit together, downloading it whole")
                policy, again = replace(policy, connections=1), True
    except (IntegrityError, FormatError, UnfitError):
        part.discard()
        raise


def _with_one_bar(
    job: Job, source: PlannedSource, kept: Mapping[str, Record | None], stack: ExitStack
) -> Job:
    """Ask for space for all files together, and count them all in one bar, where their sizes are known."""
    total = job.entry.total_size
    if total is None:
        return job
    folder = job.home.artefact_folder(job.entry.id)
    here = sum(record.size for record in kept.values() if record)
    arrived = sum(path.stat().st_size for path in folder.glob(".*.part") if is_own_file(path))
    require_space(folder, total - here - arrived, source.file)
    if job.progress is None:
        return job
    advance = stack.enter_context(job.progress(f"fetching {job.entry.id}", total))
    advance(here)

    @contextmanager
    def in_it(_name: str, _total: int | None, /, *, unit: str = "bytes") -> Iterator[Advance]:
        yield advance

    return replace(job, progress=in_it)


def _nothing(
    job: Job, failures: Sequence[tuple[str, Exception]], lacking: Sequence[PlannedSource]
) -> CkptkitError:
    entry = job.entry
    manual = [source for source in entry.sources if source.manual]
    by_hand = f"ckptkit import {entry.id} FILE"
    if failures:
        hint = _what_helps([error for _, error in failures])
        if lacking:
            hint += (
                f"; {without_secrets(lacking[0].url)} has no BatchNorm moving statistics and is taken only "
                f"once the better copy is gone for good; if it will do, download it and run '{by_hand}'"
            )
        if manual:
            hint += f"; or download it by hand from {manual[0].url} and run '{by_hand}'"
        reason, why = "no source could provide the file", explain(failures)
        if not lacking and all(isinstance(error, UnfitError) for _, error in failures):
            return FormatError(entry.id, reason, details=why, hint=hint)
        return NetworkError(f"{entry.id}: {reason}", details=why, hint=hint)
    if job.offline and len(manual) < len(entry.sources):
        return NetworkError(
            f"{entry.id} is not cached, and --offline forbids fetching it",
            hint=f"run without --offline, or '{by_hand}'",
        )
    where = f" from {manual[0].url}" if manual else ""
    return NetworkError(f"{entry.id} can only be downloaded by hand{where}", hint=f"then run '{by_hand}'")


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
