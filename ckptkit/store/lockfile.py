"""The lock file of a cache: what each published file was when it was first fetched (trust on first use).

That of the default cache is in the user's configuration folder, so that it outlives the cache. Any other
cache has its own inside, so that what a test server gave is never held against the published files.
``CKPTKIT_TRUST`` names another: kept in a repository, it ties a CI job to what somebody looked at. Sorted
JSON::

    {"ckptkit_lock": 1,
     "entries": {"<id>": {"<file>": {"sha256": …, "size": …, "first_seen": …, "how": …, "url": …,
                                     "used_url": …, "server_hashes": {…},
                                     "history": [{…, "replaced_at": …}]}}}}

A file that cannot be read as that is refused, never taken for an empty one: to forget a checksum silently is
to trust whatever comes next.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckptkit.base.checksums import ExpectedChecksum
from ckptkit.base.errors import FormatError, IntegrityError, command
from ckptkit.base.files import open_regular, resolved, storage_error
from ckptkit.base.home import home_folders, platform_folder, user_path
from ckptkit.base.text import json_text

ENVIRONMENT = "CKPTKIT_TRUST"
FILE_NAME = "ckptkit.lock"
_VERSION = 1
_MAX_BYTES = 16 << 20
_TEXTS = ("first_seen", "how", "url", "used_url")
_SHA256 = re.compile("[0-9a-f]{64}")
HOW = {
    "download": "downloaded",
    "mirror": "downloaded from a mirror",
    "import": "imported",
    "cache": "found in the cache",
}
"""How bytes came here, and how a message says it."""


@dataclass(frozen=True)
class LockEntry:
    """The bytes a published file had when it was first fetched, or when a change was accepted."""

    sha256: str  # lower-case hex
    size: int  # bytes
    first_seen: str  # ISO 8601, UTC
    url: str  # the published URL, and where the bytes really came from
    used_url: str = ""
    how: str = "download"  # a key of `HOW`
    # Checksums the server promised then (and the bytes kept), algorithm → hex
    server_hashes: Mapping[str, str] = field(default_factory=dict)
    history: tuple[LockEntry, ...] = ()  # what was trusted before, oldest first
    replaced_at: str = ""  # in the history: when it was replaced

    def to_json(self) -> dict[str, Any]:
        """Plain values that `json.dumps` takes."""
        values: dict[str, Any] = {
            "sha256": self.sha256,
            "size": self.size,
            **{name: getattr(self, name) for name in _TEXTS},
            "server_hashes": dict(self.server_hashes),
        }
        if self.replaced_at:
            return {**values, "replaced_at": self.replaced_at}
        return {**values, "history": [earlier.to_json() for earlier in self.history]}


class LockFile:
    """A lock file on the disk; it need not exist yet.

    >>> LockFile(Path("nowhere.lock")).get("moat0-224", "moat0.tar.gz") is None
    True
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def default(cls, home: Path | None = None) -> LockFile:
        """``$CKPTKIT_TRUST``, else the lock file of a cache folder, of the one in use where none is given."""
        given = os.environ.get(ENVIRONMENT, "").strip()
        if given:
            return cls(user_path(given))
        home = home or home_folders()[0]
        if home != platform_folder("cache"):
            return cls(home / FILE_NAME)
        return cls(platform_folder("config") / FILE_NAME)

    def get(self, id: str, file: str) -> LockEntry | None:
        """What is trusted of one file of an entry; None where it was never fetched."""
        return self.files(id).get(file)

    def files(self, id: str) -> dict[str, LockEntry]:
        """Everything trusted of an entry: file name → what it was. Raises as `get` does."""
        return self._load().get(id, {})

    def everything(self) -> dict[str, dict[str, LockEntry]]:
        """All that is trusted: id → file name → what it was."""
        return self._load()

    def expected(self, id: str, file: str) -> ExpectedChecksum | None:
        """What is trusted of a file as a checksum to compare with; its origin names this lock file."""
        known = self.get(id, file)
        return None if known is None else ExpectedChecksum("sha256", known.sha256, self._named(known))

    def remember(self, id: str, file: str, seen: LockEntry, *, accept: bool = False) -> LockEntry | None:
        """Trust these bytes from now on; nothing is written where they are trusted already."""
        if _same(self.get(id, file), seen):
            return None
        with self._guard():
            entries = self._load()  # again: another process may have been quicker
            known = entries.get(id, {}).get(file)
            if _same(known, seen):
                return None
            if known is not None and not accept:
                raise IntegrityError(
                    f"{id}: {file} has sha256 {seen.sha256}, but {self._named(known)} says {known.sha256}",
                    hint=f"either may be the wrong one. {command('fetch', id, '--force', '--accept-new')}",
                )
            past: tuple[LockEntry, ...] = ()
            if known is not None:
                now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
                past = (*known.history, replace(known, history=(), replaced_at=now))
            entries.setdefault(id, {})[file] = replace(seen, history=past, replaced_at="")
            self._write(entries)
            return known

    def _named(self, known: LockEntry) -> str:
        came = in_words(known.how, known.first_seen, known.used_url or known.url)
        return f"the lock file {self.path} ({came})"

    def _load(self) -> dict[str, dict[str, LockEntry]]:
        try:
            with open_regular(self.path) as stream:
                text = stream.read(_MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise storage_error(error, self.path) from error
        try:
            if len(text) > _MAX_BYTES:
                raise ValueError(f"larger than {_MAX_BYTES:,} bytes")
            return _entries(json.loads(text, object_pairs_hook=_without_duplicates))
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise FormatError(
                self.path,
                f"not a valid lock file: {reason}",
                hint="restore a valid copy (version control, a backup), or move it away to start over; "
                "every checksum it held is then forgotten",
            ) from error

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Let one process at a time read, change and write."""
        from ckptkit.base.locks import hold

        path = resolved(self.path)
        with hold(path.with_name(f".{path.name}.guard")):
            yield

    def _write(self, entries: Mapping[str, Mapping[str, LockEntry]]) -> None:
        from ckptkit.base.files import StagedFile, copy_mode

        path = resolved(self.path)  # a link stays a link to the written file
        value = {
            "ckptkit_lock": _VERSION,
            "entries": {
                id: {file: known.to_json() for file, known in sorted(files.items())}
                for id, files in sorted(entries.items())
            },
        }
        there = path.exists()
        if there and not os.access(path, os.W_OK):  # renaming would replace even a file made read-only
            raise storage_error(PermissionError(errno.EACCES, "read-only"), self.path)
        text = json_text(value, indent=2) + "\n"
        with StagedFile(path, force=True, plain=True) as staged:
            staged.append(text.encode(errors="backslashreplace"))  # as JSON writes what is not UTF-8
            if there:
                copy_mode(path, staged.temporary)
            staged.commit()


def in_words(how: str, when: str, where: str) -> str:
    """How, when and from where bytes came.

    >>> in_words("import", "2026-01-02T03:04:05.678901+00:00", "file:///home/me/cat.jpg")
    'imported 2026-01-02T03:04:05+00:00 from file:///home/me/cat.jpg'
    """
    return f"{HOW[how]} {re.sub('[.][0-9]+', '', when)}" + (f" from {where}" if where else "")


def _same(known: LockEntry | None, seen: LockEntry) -> bool:
    return known is not None and known.sha256 == seen.sha256


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse what a badly resolved merge leaves: of two equal keys JSON would silently keep the last."""
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(name for name in names if names.count(name) > 1)!r}")
    return result


def _entries(value: Any) -> dict[str, dict[str, LockEntry]]:
    if not isinstance(value, dict) or "ckptkit_lock" not in value:
        raise ValueError("no 'ckptkit_lock' version in it")
    if value["ckptkit_lock"] != _VERSION:
        raise ValueError(f"version {value['ckptkit_lock']!r}, but this ckptkit reads version {_VERSION}")
    _refuse_other_keys(value, {"ckptkit_lock", "entries"}, "the file")
    return {
        id: {file: _trusted(known, f"{id}, {file}") for file, known in _mapping(files, id).items()}
        for id, files in _mapping(value.get("entries"), "'entries'").items()
    }


def _trusted(value: Any, where: str, *, past: bool = False) -> LockEntry:
    """Read one entry, or one of its history."""
    extra = "replaced_at" if past else "history"
    known = {"sha256", "size", "server_hashes", "note", extra, *_TEXTS}
    _refuse_other_keys(_mapping(value, where), known, where)
    sha256, size, history = value.get("sha256"), value.get("size"), value.get("history", [])
    texts = {name: value.get(name, "") for name in _TEXTS}
    texts["how"] = texts["how"] or _how(value)
    texts["replaced_at"] = value.get("replaced_at", "")
    hashes = _mapping(value.get("server_hashes", {}), f"{where}: server_hashes")
    rules = {
        "sha256 is not 64 lower-case hex digits": isinstance(sha256, str) and _SHA256.fullmatch(sha256),
        "size is not a number of bytes": type(size) is int and size >= 0,
        "a value that is not text where text belongs": all(
            isinstance(text, str) for text in (*texts.values(), *hashes.values())
        ),
        f"how is {texts['how']!r}, not one of {', '.join(HOW)}": texts["how"] in tuple(HOW),
        "no first_seen": texts["first_seen"],
        "no replaced_at": texts["replaced_at"] or not past,
        "history is not a list": isinstance(history, list),
    }
    if broken := next((rule for rule, holds in rules.items() if not holds), ""):
        raise ValueError(f"{where}: {broken}")
    earlier = tuple(_trusted(one, f"{where}: history", past=True) for one in history)
    return LockEntry(sha256, size, **texts, server_hashes=hashes, history=earlier)


def _how(value: Mapping[str, Any]) -> str:
    """How the bytes came, as ckptkit 0.1.0 recorded it."""
    notes = {"imported by hand": "import", "found in the cache without a sound record": "cache"}
    mirrored = value.get("used_url") not in ("", None, value.get("url"))
    return notes.get(str(value.get("note")), "mirror" if mirrored else "download")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not a mapping")
    return value


def _refuse_other_keys(value: Mapping[str, Any], known: set[str], where: str) -> None:
    """An unknown key would be lost by the next writing."""
    for name in value:
        if name not in known:
            raise ValueError(f"{where}: unknown key {name!r}")
