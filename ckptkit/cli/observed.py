"""What was observed of the files of entries, by the cache and the lock file: what ``registry pin`` writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckptkit.base.errors import IntegrityError, NotFoundError, UsageError, command

if TYPE_CHECKING:
    from ckptkit.cli.state import State
    from ckptkit.registry import Entry, Pin
    from ckptkit.store.cache import Home, Record
    from ckptkit.store.trust import Trusted, TrustFile


def observed_pins(state: State, ids: Sequence[str], *, all_entries: bool, force: bool) -> list[Pin]:
    """Pins of the entries asked for, or of all that were ever fetched here.

    Raises
    ------
    UsageError
        When both ids and all are asked for, or neither; when only the lesser upload of an entry was fetched.
    NotFoundError
        When an entry, or with ``all_entries`` every entry, was never fetched here.
    IntegrityError
        When what was observed contradicts an earlier pin, or the cache contradicts the lock file.
    FormatError
        When the lock file is damaged.
    """
    from ckptkit.store.cache import Home
    from ckptkit.store.trust import TrustFile

    if bool(ids) == all_entries:
        both = ", not both" if ids else ""
        raise UsageError(f"give ids or globs, or --all{both}", hint="see 'ckptkit list --cached'")
    registry, home, trust = state.registry(), Home.default(), TrustFile.default()
    if not all_entries:
        return [
            _pin(entry, _observed(entry, home, trust, force=force), force) for entry in registry.select(ids)
        ]
    pins = []
    for entry in registry.values():
        try:
            seen = _observed(entry, home, trust, force=force)
        except NotFoundError:
            continue
        if _is_lesser(entry, seen) and not force:
            state.output.warn(
                f"{entry.id}: passed over, only the upload without BatchNorm statistics is here"
            )
            continue
        pins.append(_pin(entry, seen, force))
    if not pins:
        raise NotFoundError(
            "nothing that could be pinned was fetched here", hint="run 'ckptkit fetch ID' first"
        )
    left = len(registry) - len(pins)
    if left:
        state.output.note(f"{len(pins)} of {len(registry)} entries were fetched; the others stay as they are")
    return pins


def _observed(entry: Entry, home: Home, trust: TrustFile, *, force: bool) -> Record:
    """Return what is known of an entry's file: the cache's record, else what the lock file remembers."""
    known = trust.files(entry.id)
    record = home.record(entry.id)
    if record is None:
        record = _remembered(entry, known)
    if record is None:
        raise NotFoundError(
            f"{entry.id} was never fetched here, so nothing is known of its file",
            hint=command("fetch", entry.id),
        )
    trusted = trust.promise(entry.id, record.file)
    if trusted is not None and trusted.value != record.sha256 and not force:
        raise IntegrityError(
            f"{entry.id}: the cached file has sha256 {record.sha256}, but {trusted.origin} says "
            f"{trusted.value}",
            hint="--force pins the cached one, if that is the right one",
        )
    return record


def _remembered(entry: Entry, known: dict[str, Trusted]) -> Record | None:
    """Make a record of what the lock file knows; of several uploads the one that is tried first."""
    from ckptkit.store.cache import Record
    from ckptkit.store.job import FOUND, IMPORTED
    from ckptkit.store.sources import plan_sources

    planned = {source.file: source.bn_statistics for source in reversed(plan_sources(entry))}
    names = [*(source.file for source in plan_sources(entry)), *known]
    file = next((name for name in names if name in known), None)
    if file is None:
        return None
    seen = known[file]
    return Record(
        id=entry.id,
        url=seen.url,
        file=file,
        size=seen.size,
        sha256=seen.sha256,
        fetched_at=seen.first_seen,
        used_url=seen.used_url,
        server_hashes=seen.server_hashes,
        note={"import": IMPORTED, "cache": FOUND}.get(seen.how, ""),
        bn_statistics=planned.get(file),
    )


def _pin(entry: Entry, record: Record, force: bool) -> Pin:
    """Make a pin of a record; refuse what contradicts an earlier pin, or would refuse the better upload."""
    from ckptkit.registry import Pin

    if entry.sha256 is not None and entry.sha256 != record.sha256 and not force:
        raise IntegrityError(
            f"{entry.id}: the fetched file has sha256 {record.sha256}, but {entry.sha256} is pinned",
            hint="--force pins the fetched one, if that is the right one",
        )
    if _is_lesser(entry, record) and not force:
        raise UsageError(
            f"{entry.id}: the cached file is the upload without BatchNorm statistics ({record.url}), "
            "and a checksum pinned from it would refuse the one with them",
            hint="--force pins it all the same. "
            + command("fetch", entry.id, "--force").replace("Run", "To have the better one first", 1),
        )
    came_from = record.used_url or record.url
    return Pin(entry.id, record.sha256, record.size, record.fetched_at, came_from, _note(record))


def _is_lesser(entry: Entry, record: Record) -> bool:
    """Whether it is the upload without statistics where the entry means the one with them."""
    return record.bn_statistics is False and any(source.bn_statistics for source in entry.sources)


def _note(record: Record) -> str | None:
    """Say how the bytes came and what they were compared with, where that is more than the URL says."""
    hashes = " and ".join(sorted(record.server_hashes))
    elsewhere = record.used_url not in ("", record.url)
    told = [
        record.note,
        f"published at {record.url}" if elsewhere else "",
        f"the server's {hashes} held" if hashes else "",
    ]
    return "; ".join(text for text in told if text) or None
