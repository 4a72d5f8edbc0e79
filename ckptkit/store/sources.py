"""The sources of an entry as they would be tried: where each is really fetched from, and its name here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from ckptkit.base.errors import UsageError
from ckptkit.base.urls import full_url, public_url
from ckptkit.store.cache import is_safe_file_name
from ckptkit.store.mirrors import Mirror, resolve

if TYPE_CHECKING:
    from ckptkit.registry import Entry


@dataclass(frozen=True)
class PlannedSource:
    """One source of an entry.

    Attributes
    ----------
    url : str
        As published, without what is secret in it.
    used_url : str
        Where it is fetched from: the same with its secrets, or what a mirror rule makes of it.
    file : str
        The artefact's name in the cache.
    bn_statistics : bool or None
        Whether the file has the BatchNorm moving statistics; None where the registry does not say.
    """

    url: str
    used_url: str
    file: str
    bn_statistics: bool | None = None


def plan_sources(entry: Entry, mirrors: Sequence[Mirror] = ()) -> list[PlannedSource]:
    """Sources that can be downloaded, in the order they are tried."""
    return [
        PlannedSource(
            public_url(source.url),
            resolve(full_url(source.url), mirrors),
            file_name_of(source.url, entry.id),
            source.bn_statistics,
        )
        for source in entry.sources
        if not source.manual
    ]


def source_of_file(entry: Entry, file: Path) -> PlannedSource:
    """Source a file on this disk came from: the one with the same file name, else the first.

    Raises
    ------
    UsageError
        When the entry has no source at all.
    """
    planned = plan_sources(entry)
    same = [source for source in planned if source.file == file.name]
    if planned:
        # Which of several uploads a renamed file is, nobody can tell: say nothing of its statistics then.
        chosen = same[0] if same else replace(planned[0], bn_statistics=None)
        return replace(chosen, used_url=file.as_uri())
    if not entry.sources:
        raise UsageError(f"{entry.id} has no source", hint="add one to the registry")
    name = file.name if is_safe_file_name(file.name) else f"{entry.id}.bin"
    return PlannedSource(entry.sources[0].url, file.as_uri(), name, entry.sources[0].bn_statistics)


def file_name_of(url: str, id: str) -> str:
    """Name of the artefact in the cache: the last part of the URL's path, if it can be a file name.

    Examples
    --------
    >>> file_name_of("https://a.org/x/moat0.tar.gz?download=1", "moat0-224")
    'moat0.tar.gz'
    >>> file_name_of("https://a.org/x/..%2f..%2fetc", "moat0-224")
    'moat0-224.bin'
    """
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    return name if is_safe_file_name(name) else f"{id}.bin"
