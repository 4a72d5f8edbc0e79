"""The sources of an entry as they would be tried: where each is really fetched from, and its name here."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from ckptkit.base.errors import NotFoundError, UsageError
from ckptkit.base.text import counted
from ckptkit.base.urls import full_url, public_url, scrubbed
from ckptkit.store.cache import is_safe_file_name

if TYPE_CHECKING:
    from ckptkit.registry.schema import Companion, Entry


@dataclass(frozen=True)
class PlannedSource:
    """One source of an entry."""

    url: str  # as published, without what is secret in it
    used_url: str  # where it is fetched from: the same with its secrets, or what a mirror rule makes of it
    file: str  # the artefact's name in the cache
    # Whether the file has the BatchNorm moving statistics; None where the registry does not say
    bn_statistics: bool | None = None
    beside: tuple[PlannedSource, ...] = ()  # the entry's companions, from the same place


def plan_sources(entry: Entry, mirrors: Sequence[Mirror] = ()) -> list[PlannedSource]:
    """Sources that can be downloaded, in the order they are tried."""
    found = [
        PlannedSource(
            public_url(source.url),
            resolve(full_url(source.url), mirrors),
            file_name_of(source.url, entry.id),
            source.bn_statistics,
        )
        for source in entry.sources
        if not source.manual
    ]
    beside = [plan_sources(one, mirrors) for one in entry.files[1:]]
    return [replace(source, beside=tuple(row[n] for row in beside)) for n, source in enumerate(found)]


def source_of_file(entry: Entry, file: Path) -> PlannedSource:
    """Source a file on this disk came from: the one with the same file name, else the first."""
    planned = plan_sources(entry)
    same = [source for source in planned if source.file == file.name]
    if planned:
        # Which of several uploads a renamed file is cannot be known, nor whether it has statistics.
        chosen = same[0] if same else replace(planned[0], bn_statistics=None)
    elif not entry.sources:
        raise UsageError(f"{entry.id} has no source", hint="add one to the registry")
    else:
        name = file.name if is_safe_file_name(file.name) else f"{entry.id}.bin"
        chosen = PlannedSource(entry.sources[0].url, "", name, entry.sources[0].bn_statistics)
    beside = (_of_companion(entry, one, file, chosen.url) for one in entry.companions)
    return replace(chosen, used_url=file.as_uri(), beside=tuple(beside))


def _of_companion(entry: Entry, companion: Companion, file: Path, url: str) -> PlannedSource:
    """A companion on this disk: in the folder of the main file, or where it is published relative to it."""
    places = [file.with_name(companion.name), file.parent / companion.path]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise NotFoundError(
            f"{places[0]}: no such file",
            hint=f"{entry.id} is published as {counted(1 + len(entry.companions), 'file')}; "
            f"put all of them beside {file.name}",
        )
    return PlannedSource(public_url(companion.url(url)), found.resolve().as_uri(), companion.name)


def file_name_of(url: str, id: str) -> str:
    """Name of the artefact in the cache: the last part of the URL's path, if it can be a file name.

    >>> file_name_of("https://a.org/x/moat0.tar.gz?download=1", "moat0-224")
    'moat0.tar.gz'
    >>> file_name_of("https://a.org/x/..%2f..%2fetc", "moat0-224")
    'moat0-224.bin'
    """
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    return name if is_safe_file_name(name) else f"{id}.bin"


ENVIRONMENT = "CKPTKIT_MIRROR"
_RULE = re.compile(
    r"(?P<origin>(?:https?|file|s3|gs|az|hf)://[^\s]*?)=(?P<target>(?:https?|file|s3|gs|az|hf)://[^\s]*)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Mirror:
    """One rule: URLs that begin with ``origin`` are fetched from ``target`` instead."""

    origin: str
    target: str

    def rewrite(self, url: str) -> str:
        """Replace the prefix, minding a slash that only one of the two has.

        >>> Mirror("https://a.org/x/", "http://127.0.0.1:8000").rewrite("https://a.org/x/m.pth")
        'http://127.0.0.1:8000/m.pth'
        """
        rest = url[len(self.origin) :]
        target = self.target
        if rest.startswith("/"):
            target = target.removesuffix("/")
        elif self.origin.endswith("/") and not target.endswith("/"):
            target += "/"
        return target + rest


def parse_mirrors(rules: Sequence[str], environment: str | None = None) -> tuple[Mirror, ...]:
    """Read rules, from the command line first and then from ``CKPTKIT_MIRROR``.

    >>> parse_mirrors(["https://a.org=file:///srv/a"], "")
    (Mirror(origin='https://a.org', target='file:///srv/a'),)
    """
    if environment is None:
        environment = os.environ.get(ENVIRONMENT, "")
    given = [(rule, "--mirror") for rule in rules]
    given += [(rule, ENVIRONMENT) for rule in re.split(r"[\s;]+", environment) if rule]
    return tuple(_parse(rule.strip(), where) for rule, where in given)


def _parse(rule: str, where: str) -> Mirror:
    match = _RULE.fullmatch(rule)
    if not match:
        raise UsageError(
            f"{where} {scrubbed(rule)!r} is not FROM=TO with two URLs",
            hint="write it like https://storage.googleapis.com=http://127.0.0.1:8000 "
            "(TO may be http://, https://, file://, s3://, gs://, az:// or hf://)",
        )
    return Mirror(match["origin"], match["target"])


def resolve(url: str, mirrors: Sequence[Mirror]) -> str:
    """URL to fetch from, after the mirror rules.

    >>> rules = parse_mirrors(["https://a.org=https://b.org", "https://a.org/x=file:///srv/x"], "")
    >>> resolve("https://a.org/x/m.pth", rules), resolve("https://a.org/y/m.pth", rules)
    ('file:///srv/x/m.pth', 'https://b.org/y/m.pth')
    """
    fitting = [mirror for mirror in mirrors if url.startswith(mirror.origin)]
    return max(fitting, key=lambda mirror: len(mirror.origin)).rewrite(url) if fitting else url
