"""The training log of an entry, or of a file: fetched once, kept in the cache under ``logs/<id>/``.

Beside the log is a small record (where it came from, its size and sha256), so that a log whose address
changed in the registry is fetched again.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.analysis.logs.readers import MAX_BYTES, TrainingLog, parse_log
from ckptkit.base.checksums import compare, hash_file
from ckptkit.base.errors import NetworkError, NotFoundError
from ckptkit.base.files import read_regular, regular_status
from ckptkit.base.home import user_path
from ckptkit.base.net import Policy, SourceError
from ckptkit.base.urls import full_url, is_local, public_url, without_secrets
from ckptkit.registry.schema import Entry
from ckptkit.store.cache import write_json
from ckptkit.store.partial import Partial
from ckptkit.store.sources import file_name_of, parse_mirrors, resolve
from ckptkit.store.transfer import (
    Transfer,
    explain,
    url_opener,
    what_helps,
)

if TYPE_CHECKING:
    from ckptkit.registry.query import Registry
    from ckptkit.workspace import Named, Workspace

_RECORD_BYTES = 1 << 16


class _Bounded(Partial):
    """A part that grows no larger than any log is, whatever the server sends."""

    def append(self, data: bytes | memoryview) -> None:
        if self.size + len(data) > MAX_BYTES:
            self.discard()
            raise SourceError(f"sends more than {MAX_BYTES:,} bytes, too many for a training log")
        super().append(data)


def fetch_log(
    entry: Entry, workspace: Workspace, *, refresh: bool = False, policy: Policy | None = None
) -> Path:
    """Have the training log of an entry in the cache."""
    if entry.log_url is None:
        hint = _instead(entry, workspace)
        raise NotFoundError(f"{entry.id}: no training log is published", hint=hint)
    published = full_url(entry.log_url)
    home, name = workspace.home, file_name_of(entry.log_url, entry.id)
    kept = home.candidate_paths(home.logs_folder(entry.id) / name)
    if not refresh and (there := _first_kept(kept, published)):
        return there
    url = resolve(published, parse_mirrors(workspace.mirrors))
    if workspace.offline and not is_local(url):
        raise NetworkError(
            f"the training log of {entry.id} is not cached, and --offline forbids fetching it",
            hint="run without --offline",
        )
    waiting = f"waiting for another process that is fetching {entry.id}"
    with home.lock(entry.id, waiting=lambda: workspace.note(waiting)):
        if not refresh and (there := _first_kept(kept[:1], published)):
            return there
        return _download(published, url, kept[0], workspace, policy or Policy())


def _download(published: str, url: str, target: Path, workspace: Workspace, policy: Policy) -> Path:
    partial = _Bounded(target.parent, target.name, url)
    with contextlib.closing(partial), url_opener(policy) as opener:
        try:
            Transfer(url, partial, opener, policy, None, workspace.progress, workspace.note).run()
        except SourceError as error:
            raise NetworkError(
                "the training log could not be fetched",
                details=explain([(url, error)]),
                hint=what_helps([error]),
            ) from error
        found = partial.digests()
        compare(target.name, found, partial.expected, hint="it was damaged on the way; run it again")
        partial.sync()
        record = {
            "url": public_url(published),
            "used_url": without_secrets(url),
            "size": found.size,
            "sha256": found.sha256,
            "fetched_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        write_json(_record_path(target), record)
        return partial.rename()


def _record_path(log: Path) -> Path:
    return log.with_name(f"{log.name}.record")


def _first_kept(paths: Sequence[Path], url: str) -> Path | None:
    return next((path for path in paths if _is_log_of(path, url)), None)


def _is_log_of(path: Path, url: str) -> bool:
    """Whether the whole log from this address is cached."""
    try:
        record: Any = json.loads(read_regular(_record_path(path), _RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    status = regular_status(path)
    if not isinstance(record, dict) or status is None:
        return False
    if public_url(str(record.get("url"))) != public_url(url) or record.get("size") != status.st_size:
        return False
    return record.get("sha256") == hash_file(path).sha256


def _instead(entry: Entry, workspace: Workspace) -> str:
    """What there is of an entry that has no log."""
    parts = [f"'ckptkit show {entry.id}' has the published figures"]
    if entry.config_url:
        parts.append(f"its configuration is at {entry.config_url}")
    nearest = nearest_with_log(entry, workspace.registry)
    if nearest is not None:
        parts.append(f"a log is published of {nearest.id}, for one")
    return "; ".join(parts)


def nearest_with_log(entry: Entry, registry: Registry) -> Entry | None:
    """The entry with a log that has most in common with one that has none; None where no entry has one."""
    having = [other for other in registry.values() if other.log_url]

    def likeness(other: Entry) -> tuple[bool, bool]:
        return (other.variant == entry.variant, other.family == entry.family)

    return max(having, key=likeness, default=None)


def read_log(what: Named, workspace: Workspace, *, refresh: bool = False) -> TrainingLog:
    """Read the training log of an entry, or a local one."""
    if isinstance(what, Entry):
        return _of_entry(what, workspace, refresh=refresh)
    named_like_a_file = "/" in str(what) or Path(what).suffix in (".json", ".csv")
    if isinstance(what, Path) or named_like_a_file or workspace.is_path(what):
        return parse_log(user_path(what))
    return _of_entry(workspace.registry[what], workspace, refresh=refresh)


def _of_entry(entry: Entry, workspace: Workspace, *, refresh: bool) -> TrainingLog:
    log = parse_log(fetch_log(entry, workspace, refresh=refresh), name=entry.id)
    return replace(
        log,
        url=entry.log_url,
        published_top1=entry.published_top1,
        published_top5=entry.published_top5,
        published_metrics=entry.metrics,
        weights=entry.weights,
    )
