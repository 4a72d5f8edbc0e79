"""Registry files at URLs: fetched once, kept in the cache under their sha256, and never another text.

A URL names the text it means: ``https://example.org/mine.yaml#sha256=…``. What has another sha256 is refused
when it comes, and fetched again where it was damaged in the cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ckptkit.base.checksums import ExpectedChecksum, compare
from ckptkit.base.errors import NetworkError
from ckptkit.base.home import home_folders, user_path
from ckptkit.base.net import Policy, SourceError
from ckptkit.base.progress import Progress, Say, no_progress, say_nothing
from ckptkit.base.urls import full_url, is_local, public_url, without_secrets
from ckptkit.registry.loading import MAX_FILE_SIZE, cached_registry, environment_registries, is_url
from ckptkit.store.partial import Partial
from ckptkit.store.sources import parse_mirrors, resolve
from ckptkit.store.transfer import Transfer, explain, url_opener, what_helps


class _Bounded(Partial):
    """A part that grows no larger than any registry may be, whatever the server sends."""

    def append(self, data: bytes | memoryview) -> None:
        if self.size + len(data) > MAX_FILE_SIZE:
            self.discard()
            raise SourceError(f"sends more than {MAX_FILE_SIZE:,} bytes, too many for a registry")
        super().append(data)


def local_registries(
    given: Sequence[str | Path],
    *,
    offline: bool = False,
    mirrors: Sequence[str] = (),
    notes: Say = say_nothing,
    progress: Progress = no_progress,
    policy: Policy | None = None,
) -> tuple[Path, ...]:
    """Have every registry file on this machine, the environment's too; returns the paths of ``given``."""
    fetch = partial(_fetch, offline=offline, mirrors=mirrors, notes=notes, progress=progress)

    def here(one: str | Path) -> Path:
        if not is_url(one):
            return user_path(one)
        path = cached_registry(str(one))
        if not path.is_file():
            fetch(str(one), path, policy=policy or Policy())
        return path

    for one in environment_registries():
        here(one)
    return tuple(map(here, given))


def _fetch(
    text: str,
    path: Path,
    *,
    offline: bool,
    mirrors: Sequence[str],
    notes: Say,
    progress: Progress,
    policy: Policy,
) -> None:
    published = full_url(text.partition("#")[0])
    url = resolve(published, parse_mirrors(mirrors))
    if offline and not is_local(url):
        raise NetworkError(
            f"the registry {public_url(published)} is not cached, and --offline forbids fetching it",
            hint="run without --offline",
        )
    part = _Bounded(home_folders()[0] / path.parent.name, path.name, url)
    with contextlib.closing(part), url_opener(policy) as opener:
        try:
            Transfer(
                url, part, opener, policy, progress=progress, name="fetching a registry", notes=notes
            ).run()
        except SourceError as error:
            raise NetworkError(
                "the registry could not be fetched",
                details=explain([(url, error)]),
                hint=what_helps([error]),
            ) from error
        found = part.digests()
        try:
            compare(
                without_secrets(url),
                found,
                [ExpectedChecksum("sha256", path.stem, "its address"), *part.expected],
                hint="it has changed; look at it before you take its new sha256",
            )
        except BaseException:
            part.discard()
            raise
        part.sync()
        part.rename()
    notes(f"{public_url(published)}: fetched, {found.size:,} bytes, as its sha256 says")
