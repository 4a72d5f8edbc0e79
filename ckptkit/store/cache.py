"""The folder of artefacts, their records and what is made of them.

::

    artefacts/<id>/<file as published>     + <file>.json, its record; of several files, each
    unpacked/<id>/…                        archives, unpacked
    converted/<id>/<layout>-<dtype>.<ext>
    logs/<id>/<training log as published>  + <file>.record
    locks/<id>.lock
    used/<id>                              empty; its time says when the entry was last used

Light to import: `ckptkit list` asks it about every entry, so nothing heavy is imported at the top.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ckptkit.base.errors import StorageError, UsageError
from ckptkit.base.files import is_own_file, is_own_folder, kind_of, read_regular, regular_status
from ckptkit.base.home import NOWHERE, home_folders, is_writable
from ckptkit.base.text import CONTROLS, json_text
from ckptkit.base.urls import public_url

_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}(?<!\.)")
_RECORD_BYTES = 1 << 20
_LONGEST = 1 << 16
"""Characters of a text in a record."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"[0-9A-Za-z:.+ -]{1,40}")
_URL = re.compile(r"(?:https?|file|s3|gs|az|hf)://|[^:]*$", re.IGNORECASE)
IMPORTED = "imported by hand"
FOUND = "found in the cache without a sound record"
KINDS = ("artefacts", "unpacked", "converted", "logs")
"""Folders that hold a folder for each entry."""
OTHER_DISK = "move it away; to keep the cache on another disk, set CKPTKIT_HOME to a folder there"
"""What to do about a link in the cache."""


@dataclass(frozen=True)
class Record:
    """What is known of one fetched artefact."""

    id: str  # entry id
    url: str  # the published URL
    file: str  # name of the artefact in its folder
    size: int  # bytes
    sha256: str  # lower-case hex, computed here
    fetched_at: str  # ISO 8601, UTC
    # Where the bytes really came from: a mirror or, for an imported file, a ``file://`` URL
    used_url: str = ""
    # The artefact's modification time when it was last hashed: with the size it tells an untouched file
    mtime_ns: int = 0
    etag: str | None = None  # the server's identity of the file
    generation: str | None = None
    # Checksums the server promised (and the bytes kept), algorithm → hex
    server_hashes: Mapping[str, str] = field(default_factory=dict)
    ckptkit_version: str = ""  # the version that fetched it
    note: str = ""  # how it got here when not by download: ``imported by hand``
    # Whether it has BatchNorm's moving statistics: what the file itself shows, else what the registry says
    bn_statistics: bool | None = None
    overruled: bool = False  # whether it does not fit its entry and was imported all the same
    part_of: str = ""  # of a companion: the main file's name, beside which it is published
    # Of a main file: name → sha256 of the companions that came with it
    companions: Mapping[str, str] = field(default_factory=dict)
    # What had this name before with other bytes, oldest first: sha256, size, fetched_at, used_url
    previous: list[dict[str, Any]] = field(default_factory=list)

    @property
    def identity(self) -> str:
        """The sha256 that tells its bytes, and its companions', from others.

        A TensorFlow index holds the checksums of its data, so its own will do; of other files it is that of
        what ``sha256sum`` prints for them.
        """
        if not self.companions or self.file.endswith(".index"):
            return self.sha256
        lines = (
            f"{sha256}  {file}\n" for file, sha256 in {self.file: self.sha256, **self.companions}.items()
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def to_json(self) -> str:
        """Text of the record file."""
        return json_text(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Record | None:
        """Read a record file's text; None when it is damaged."""
        try:
            values = json.loads(text)
            values |= {name: public_url(values[name]) for name in ("url", "used_url") if name in values}
            known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
            record = cls(**known)
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None
        return record if record._is_sound() else None

    def _is_sound(self) -> bool:
        texts = (self.id, self.url, self.file, self.sha256, self.fetched_at, self.used_url, self.note)
        numbers = (self.size, self.mtime_ns)
        return (
            all(_is_text(value) for value in (*texts, self.ckptkit_version))
            and all(value is None or _is_text(value) for value in (self.etag, self.generation))
            and all(type(value) is int and abs(value) < 1 << 63 for value in numbers)
            and self.size >= 0
            and isinstance(self.server_hashes, dict)
            and all(map(_is_text, (*self.server_hashes, *self.server_hashes.values())))
            and self.bn_statistics in (None, True, False)
            and type(self.overruled) is bool
            and isinstance(self.part_of, str)
            and (not self.part_of or is_safe_file_name(self.part_of))
            and isinstance(self.companions, dict)
            and all(isinstance(name, str) and is_safe_file_name(name) for name in self.companions)
            and all(isinstance(one, str) and _SHA256.fullmatch(one) for one in self.companions.values())
            and isinstance(self.previous, list)
            and all(isinstance(earlier, dict) for earlier in self.previous)
            and _SHA256.fullmatch(self.sha256) is not None
            and _TIME.fullmatch(self.fetched_at) is not None
            and all(_URL.match(url) for url in (self.url, self.used_url) if url)
            and _SAFE_ID.fullmatch(self.id) is not None
            and is_safe_file_name(self.file)
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST


class Home:
    """A cache folder, or several read as one: what somebody else fetched need not be fetched again.

    An entry whose places in the first folder cannot be written (somebody else made them) is written to the
    next folder where they can. What was fetched there comes before what the others hold, so that a fetch
    that was asked for (``--force``, ``--accept-new``) counts even where a shared folder holds the same entry.
    An untouched file comes before one that was touched or damaged, in whichever folder. Nothing is created by
    asking.

    >>> Home(Path("cache")).artefact_folder("moat0-224").as_posix()
    'cache/artefacts/moat0-224'
    """

    def __init__(self, path: Path, others: Sequence[Path] = ()) -> None:
        self.path = path  # the folder that is written to, if it can be
        self.homes: Sequence[Home] = (Home(path), *map(Home, others)) if others else (self,)

    @classmethod
    def default(cls) -> Home:
        """``$CKPTKIT_HOME``, else the platform's cache folder for ckptkit; a list of folders is one cache."""
        first, *others = home_folders()
        return cls(first, others)

    def candidate_paths(self, path: Path) -> list[Path]:
        """Return the same place in each of its folders, given that in the one that is written to.

        >>> home = Home(Path("mine"), [Path("shared")])
        >>> [path.as_posix() for path in home.candidate_paths(home.unpacked_folder("moat0-224"))]
        ['mine/unpacked/moat0-224', 'shared/unpacked/moat0-224']
        """
        base = next(home for home in self.homes if path.is_relative_to(home.path))
        inside = path.relative_to(base.path)
        return [path, *(home.path / inside for home in self.homes if home is not base)]

    def at(self, id: str) -> Home:
        """Return the single folder that an entry is written to: the first where everything of it can be."""
        if len(self.homes) == 1:
            return self
        return next((home for home in self.homes if home.can_write(id)), self.homes[0])

    def can_write(self, id: str) -> bool:
        """Whether everything of an entry can be written here: what others made below may be theirs alone."""
        lock, folders = self.lock_path(id), [self.path / kind for kind in KINDS]
        return (
            all(map(is_writable, folders))
            and all(is_writable(folder / safe_id(id)) for folder in folders)
            and (os.access(lock, os.R_OK) if lock.exists() else is_writable(lock.parent))
        )

    def writable(self, name: str) -> Path:
        """Return the folder of this name, in the first of its folders where it can be written."""
        folders = [home.path / name for home in self.homes]
        return next(filter(is_writable, folders), folders[0])

    def _folder(self, kind: str, id: str) -> Path:
        return self.at(id).path / kind / safe_id(id)

    def artefact_folder(self, id: str) -> Path:
        """Folder of an entry's artefact and its record."""
        return self._folder("artefacts", id)

    def unpacked_folder(self, id: str) -> Path:
        """Folder of an entry's unpacked archive."""
        return self._folder("unpacked", id)

    def converted_folder(self, id: str) -> Path:
        """Folder of an entry's conversions."""
        return self._folder("converted", id)

    def logs_folder(self, id: str) -> Path:
        """Folder of an entry's training log and what is known of where it came from."""
        return self._folder("logs", id)

    def links(self, id: str = "", kinds: Sequence[str] = KINDS) -> list[str]:
        """What is a link where the folder of a kind, or of an entry in it, belongs; a line each."""
        places = [self.path / kind for kind in kinds]
        places += [place / id for place in places if id and is_own_folder(place)]
        return [f"{place} is a link" for place in places if place.is_symlink()]

    def refuse_links(self, id: str, kinds: Sequence[str] = (*KINDS, "locks")) -> None:
        """Refuse to write where a link leads: what is there belongs to others."""
        for link in self.at(id).links(safe_id(id), kinds):
            raise StorageError(f"{link}; ckptkit writes only into folders of its own", hint=OTHER_DISK)

    def converted_path(self, id: str, layout: str, dtype: str, ext: str) -> Path:
        """Where a conversion of an entry goes.

        >>> Home(Path("c")).converted_path("moat0-224", "torch", "float32", ".safetensors").as_posix()
        'c/converted/moat0-224/torch-float32.safetensors'
        """
        name = f"{layout}-{dtype}.{ext.removeprefix('.')}" if ext else f"{layout}-{dtype}"
        if not is_safe_file_name(name):
            raise UsageError(f"{name!r} cannot be a file name")
        return self.converted_folder(id) / name

    def record(self, id: str) -> Record | None:
        """Return the newest sound record of an entry, of the copy to use; None where there is none."""
        recorded = [(home, record) for home in self.homes if (record := home._newest(id))]
        if len(recorded) > 1:
            own = self.at(id)
            recorded.sort(key=lambda one: (-_worth(*one), one[0] is not own))
        return recorded[0][1] if recorded else None

    def _newest(self, id: str) -> Record | None:
        main = (record for record in self._records(id) if not record.part_of)
        return max(main, key=lambda record: record.fetched_at, default=None)

    def records(self, id: str) -> list[Record]:
        """Every sound record of an entry (one a file: an entry's sources may have different names)."""
        return [record for home in self.homes for record in home._records(id)]

    def _records(self, id: str) -> list[Record]:
        folder, found = self.path / "artefacts" / safe_id(id), []
        try:
            names = [name for name in os.listdir(folder) if name.endswith(".json")]  # noqa: PTH208
        except OSError:
            return []
        for name in sorted(names):
            record = read_record(folder / name)
            if record and record.id == id and f"{record.file}.json" == name:
                found.append(record)
        return found

    def artefact(self, record: Record) -> Path:
        """Path of the artefact a record describes, whether or not it is still there."""
        home = self
        if len(self.homes) > 1:
            home = next((home for home in self.homes if record in home._records(record.id)), self)
        return home.artefact_folder(record.id) / record.file

    def beside(self, record: Record) -> dict[str, Record | None]:
        """The companions that came with a main file, by name; None for one that is here no more."""
        artefact = self.artefact(record)
        found = {name: read_record(artefact.with_name(f"{name}.json")) for name in record.companions}
        return {
            name: one if one and one.file == name and one.sha256 == record.companions[name] else None
            for name, one in found.items()
        }

    def is_cached(self, id: str) -> bool:
        """Whether the files of a newest record are here with the recorded sizes."""
        return any(home._newest_worth(id) for home in self.homes)

    def _newest_worth(self, id: str) -> int:
        record = self._newest(id)
        return _worth(self, record) if record else 0

    def fetched_ids(self) -> list[str]:
        """Ids of the entries that are cached, sorted."""
        found: set[str] = set()
        for home in self.homes:
            with contextlib.suppress(OSError):
                names = os.listdir(home.path / "artefacts")  # noqa: PTH208
                found.update(name for name in names if _SAFE_ID.fullmatch(name) and home.is_cached(name))
        return sorted(found)

    def touch(self, id: str) -> None:
        """Remember that an entry is used now; ignored where that cannot be written."""
        home = self.at(id)
        stamp = home._folder("used", id)
        if stamp.parent.is_symlink() or (os.path.lexists(stamp) and not is_own_file(stamp)):
            return
        try:
            os.utime(stamp)
        except OSError:  # not there yet, or another user's
            with contextlib.suppress(OSError):
                stamp.parent.mkdir(exist_ok=True)
                stamp.unlink(missing_ok=True)
                stamp.touch()

    @contextlib.contextmanager
    def lock(self, id: str, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold an entry's lock, across processes and threads.

        In a folder that this process may not write there is nothing to protect, so no lock is taken.
        """
        from ckptkit.base.locks import hold

        path = self.lock_path(id)
        if is_writable(self.at(id).path):
            self.refuse_links(id)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(hold(path, waiting=waiting))
            except StorageError as error:
                folder = self.at(id).path
                if folder == NOWHERE:
                    raise StorageError(
                        "there is no home folder (HOME is not set), so there is no place for the cache",
                        hint="set CKPTKIT_HOME to a folder",
                    ) from error
                if not folder.is_dir() or is_writable(folder):
                    raise
            yield

    def lock_path(self, id: str) -> Path:
        """Path of an entry's lock file."""
        folder = self._folder("locks", id)
        return folder.with_name(f"{folder.name}.lock")


def _worth(home: Home, record: Record) -> int:
    """2 for untouched files, 1 for ones of the recorded size, 0 for none or another."""
    artefact = home.artefact(record)
    files = (record, *home.beside(record).values()) if record.companions else (record,)
    return min(_worth_of_file(artefact.with_name(one.file), one) if one else 0 for one in files)


def _worth_of_file(path: Path, record: Record) -> int:
    status = regular_status(path)
    if status is None or status.st_size != record.size:
        return 0
    return 2 if status.st_mtime_ns == record.mtime_ns else 1


def safe_id(id: str) -> str:
    """Return ``id`` if it can name a folder; ids come from registry files, which anybody may write.

    >>> safe_id("moat2-384-noposemb")
    'moat2-384-noposemb'
    """
    if not _SAFE_ID.fullmatch(id):
        raise UsageError(
            f"{id!r} cannot be an entry id",
            hint="use letters, digits, '.', '_', '+' and '-', a letter or digit first",
        )
    return id


def is_safe_file_name(name: str) -> bool:
    """Whether ``name`` is one plain, visible path component on every platform."""
    return (
        0 < len(name.encode("utf-8", "surrogatepass")) <= 200
        and not name.startswith(".")
        and not name.endswith((".", " "))
        and not CONTROLS.search(name)
        and not any(letter in '/\\:*?"<>|' for letter in name)
    )


def read_record(path: Path) -> Record | None:
    """Read a record file; None when it is missing, too large or damaged."""
    try:
        return Record.from_json(read_regular(path, _RECORD_BYTES))
    except OSError:
        return None


def refuse_planted(path: Path) -> None:
    """Refuse to write where there is something else than a file, or a link, which is replaced."""
    with contextlib.suppress(OSError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise StorageError(f"{path} is {kind_of(mode)}", hint="move it away")


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file so that it is either the old one or the new one, never half of it."""
    from ckptkit.base.files import StagedFile

    text = value if isinstance(value, str) else json.dumps(value, indent=2) + "\n"
    refuse_planted(path)
    with StagedFile(path, force=True, own=True) as staged:
        staged.append(text.encode(errors="backslashreplace"))  # as JSON writes what is not UTF-8
        staged.commit()
