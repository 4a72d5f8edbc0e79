"""What a name given by the user means: an entry of the registry, or a path.

A `Workspace` is one user's registries, cache folder and network rules; the command line and the Python API
both use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ckptkit.base.errors import (
    ConversionError,
    FormatError,
    NetworkError,
    NotFoundError,
    UsageError,
    command,
)
from ckptkit.base.files import resolved
from ckptkit.base.home import user_path
from ckptkit.base.parse import is_glob
from ckptkit.base.progress import Progress, no_progress
from ckptkit.base.urls import is_far, without_secrets
from ckptkit.families.base import registry_families
from ckptkit.formats.far_path import DOWNLOAD, FarPath
from ckptkit.formats.names import file_ending
from ckptkit.store.cache import Home

if TYPE_CHECKING:
    from ckptkit.base.checksums import ExpectedChecksum
    from ckptkit.formats.base import Reader, Weights
    from ckptkit.registry.query import Registry
    from ckptkit.registry.schema import Entry
    from ckptkit.store.cache import Record
    from ckptkit.store.lockfile import LockFile
    from ckptkit.store.ranges import RangedFiles

STANDARD = "-"
"""Standard input or output, in place of a path."""

Named: TypeAlias = "str | Path | Entry"
"""What users name a checkpoint by: an id, a path, or the registry entry itself."""


def fits(path: Path, entry: Entry, *, deep: bool = True) -> bool | None:
    """See `ckptkit.store.install.Fits`: the container must open and hold what the registry says."""
    from ckptkit.families.binding import refuse_another
    from ckptkit.formats.torch_state_dicts import AmbiguousError
    from ckptkit.formats.zip import LOCAL_MAGIC, check_members

    statistics = None
    try:
        with Located(path, entry).open() as reader:
            if reader.format != entry.format:
                raise ConversionError(f"a checkpoint of the format {reader.format}, not of {entry.format}")
            statistics = refuse_another(reader, entry)
            for name in reader.specs if deep else ():
                reader.check(name)
                reader.release(name)
    except (AmbiguousError, UsageError):
        pass  # several state dicts, or checkpoints in a folder: whoever opens it chooses one
    except NotFoundError as error:  # a part that an index names
        raise FormatError(path, error.message) from error
    if deep and path.is_file():
        with path.open("rb") as file:
            is_zip = file.read(4) == LOCAL_MAGIC
        if is_zip:  # what else is in it
            check_members(path)
    return statistics


@dataclass(frozen=True)
class Located:
    """A checkpoint on this machine."""

    path: Path  # file, folder or TensorFlow prefix: what `ckptkit.formats.detect.open_reader` takes
    entry: Entry | None = None  # the registry entry it belongs to; None for a file of the user's own
    artefact: Path | None = None  # the file as published, where there is one
    sha256: str | None = None  # checksum of the published file as it was fetched
    trusted: ExpectedChecksum | None = None
    server_hashes: tuple[str, ...] = ()  # kinds of checksum that the server gave, and that held
    companions: tuple[Located, ...] = ()  # the other files of an entry that is published as several
    identity: str | None = None  # what tells the bytes of all its files from others
    state_dict: str | None = None  # which of several is meant: the keys to it, joined by dots
    strip_prefix: tuple[str, ...] = ()  # what to take off the front of its tensors' names, in this order
    where_it_fits: bool = False  # these two were given for another file, and apply only where they fit

    def open(self, weights: Weights | None = "auto", *, unwrap: bool = True) -> Reader:
        """Open it as it was asked for."""
        from ckptkit.families.binding import wanted_copy
        from ckptkit.families.recognition import open_checkpoint

        reader = open_checkpoint(
            self.path,
            state_dict=self.state_dict,
            weights=weights and wanted_copy(weights, self.entry),
            strip_prefix=self.strip_prefix,
            where_it_fits=self.where_it_fits,
            unwrap=unwrap,
        )
        if self.state_dict and weights in ("ema", "raw") and reader.weights not in (None, weights):
            reader.close()
            raise UsageError(
                f"{self.path}: {self.state_dict} holds the {reader.weights} weights, not the {weights} ones",
                hint="give --state-dict or --weights, not both",
            )
        return reader

    def chosen(self, state_dict: str | None, strip_prefix: str | Sequence[str] | None) -> Located:
        """The same file, with what of it is meant."""
        prefixes = (strip_prefix,) if isinstance(strip_prefix, str) else tuple(strip_prefix or ())
        return replace(self, state_dict=state_dict, strip_prefix=prefixes)

    def like(self, other: Located) -> Located:
        """The same file, with the choices made for another one where they fit."""
        return replace(self, state_dict=other.state_dict, strip_prefix=other.strip_prefix, where_it_fits=True)

    @property
    def name(self) -> str:
        """What to call it: the entry's id, else the path."""
        return self.entry.id if self.entry else str(self.path)


@dataclass(frozen=True)
class Workspace:
    """Registries, cache and network rules of one run."""

    registries: Sequence[Path] = ()  # overlays on the built-in registry
    home: Home = field(default_factory=Home.default)  # the cache folder
    offline: bool = False  # never touch the network
    mirrors: Sequence[str] = ()  # `FROM=TO` rules
    note: Callable[[str], None] = print  # takes what the user may want to know
    warn: Callable[[str], None] = print  # takes what the user must know
    progress: Progress = no_progress
    trust: LockFile | None = None  # the lock file of what was fetched before; default: the user's own
    standard_input: Callable[[], Path] | None = None  # gives the file that "-" means

    @cached_property
    def registry(self) -> Registry:
        """The built-in registry with every overlay on top."""
        from ckptkit.registry.loading import load_registry

        return load_registry(tuple(self.registries), registry_families)

    def is_path(self, name: str) -> bool:
        """Whether ``name`` is something on the disk: a file, a folder, or a TensorFlow prefix.

        Something without a slash that is also an entry's id means the entry; write ``./name`` for the file.
        """
        path = user_path(name)
        there = path.exists() or path.with_name(path.name + ".index").exists() if path.name else path.exists()
        return there and not (path.name == name and self._is_id(name))

    def _is_id(self, name: str) -> bool:
        return name in self.registry

    def locate(
        self,
        name: Named,
        *,
        fetch: bool = True,
        state_dict: str | None = None,
        strip_prefix: str | Sequence[str] | None = None,
        far: bool | str = DOWNLOAD,
    ) -> Located:
        """Find a checkpoint by id or path; an entry that is not here yet is fetched.

        ``far`` says whether names and shapes are enough, so that it may be on a server; else what to do.
        """
        return self._find(name, fetch, far).chosen(state_dict, strip_prefix)

    def _find(self, name: Named, fetch: bool, far: bool | str) -> Located:
        if is_far(name):
            return self._at_url(str(name), far)
        if not isinstance(name, (str, Path)):
            return self.fetch(name) if fetch else self._as_cached(name, far)
        if name == STANDARD and self.standard_input is not None:
            return Located(self.standard_input())
        if isinstance(name, Path) or self.is_path(name):
            path = user_path(name)
            located = self._of_cache(path) or Located(path)
            if fetch and located.entry:
                self.home.touch(located.entry.id)
            return located
        if name not in self.registry and ("/" in name or file_ending(name) or name.endswith(".json")):
            raise NotFoundError(f"{name}: no such file", hint="check the path, or 'ckptkit list' for the ids")
        try:
            entry = self.registry[name]
        except NotFoundError as error:
            if error.details:  # of a glob
                raise
            raise NotFoundError(f"no file and no entry {name!r}", hint=error.hint) from error
        return self.fetch(entry) if fetch else self._as_cached(entry, far)

    def fetch(self, entry: Entry, *, force: bool = False) -> Located:
        """Fetch an entry (at once when it is here and intact, unless forced)."""
        from ckptkit.store.fetch import Job, fetch
        from ckptkit.store.sources import parse_mirrors

        job = Job(
            entry,
            self.home,
            fits,
            offline=self.offline,
            mirrors=parse_mirrors(self.mirrors),
            progress=self.progress,
            notes=self.note,
            warn=self.warn,
            trust=self.trust,
            force=force,
        )
        fetched = fetch(job)
        return self._located(fetched.path, entry, fetched.artefact, fetched.record)

    def expand(
        self, names: Sequence[str], among: Callable[[], Iterable[str]] | None = None, *, files: bool = True
    ) -> list[str]:
        """Ids and paths as the user named them, with the ids or else the files that a glob stands for.

        ``among`` gives the ids that it may stand for. A file whose own name has glob characters is that file.
        """
        found: list[str] = []
        by_glob: set[str] = set()
        for name in names:
            if name == STANDARD or is_far(name) or not is_glob(name) or (files and self.is_path(name)):
                found += [name] if name not in by_glob else []
                continue
            fitting = [one for one in self._matching(name, among, files=files) if one not in found]
            found += fitting
            by_glob.update(fitting)
        return found

    def _matching(self, pattern: str, among: Callable[[], Iterable[str]] | None, *, files: bool) -> list[str]:
        """The ids that fit a glob, else the files."""
        from glob import glob

        ids = [entry.id for entry in self.registry.find(ids=pattern)]
        wanted = ids if among is None else [id for id in among() if id in ids]
        if wanted:
            return wanted
        paths = sorted(glob(str(user_path(pattern)))) if files else []  # noqa: PTH207 (absolute or not)
        if paths:
            return paths
        if ids:
            raise NotFoundError(f"no entry in the cache matches {pattern!r}", hint=command("fetch", pattern))
        raise self.registry.no_match(pattern, "id or file" if files else "id")

    def fetched(self) -> list[Located]:
        """Every entry that is in the cache, without touching the network."""
        ids = self.home.fetched_ids()
        return [self.locate(id, fetch=False) for id in self.registry if id in ids]

    @cached_property
    def ranged(self) -> RangedFiles:
        """What was read of files on servers."""
        from ckptkit.store.ranges import RangedFiles

        return RangedFiles(notes=self.note)

    def say_what_was_read(self) -> None:
        """Note how much of the files on servers was transferred, where there are some."""
        if "ranged" in self.__dict__ and self.ranged.summary:
            self.note(self.ranged.summary)

    def _at_url(self, url: str, far: bool | str) -> Located:
        """A file on a server, whose values stay there."""
        from ckptkit.formats.detect import chosen_of
        from ckptkit.store.ranges import is_repository

        shown = without_secrets(url)
        if far is not True:
            raise UsageError(f"{shown} is on a server: its values cannot be read there", hint=far or DOWNLOAD)
        if self.offline:
            raise NetworkError(f"{shown}: --offline forbids asking its server", hint=DOWNLOAD)
        if is_repository(url):
            repository, names = self.ranged.repository(url)
            return Located(FarPath(repository, self.ranged) / chosen_of(shown, names))
        return Located(FarPath(url, self.ranged))

    def _source_of(self, entry: Entry) -> Located | None:
        """The first source of an entry whose server answers range requests."""
        from ckptkit.store.sources import parse_mirrors, plan_sources
        from ckptkit.store.unpack import is_archive_name

        for source in plan_sources(entry, parse_mirrors(self.mirrors)):
            path = FarPath(source.used_url, self.ranged)
            if not is_far(source.used_url) or is_archive_name(source.file):
                continue
            try:
                there = path.is_file()
            except NetworkError as error:
                self.note(error.message)
                continue
            if there:
                self.note(f"{entry.id} is not in the cache; reading the header of {path}")
                return Located(path, entry)
        return None

    def _as_cached(self, entry: Entry, far: bool | str = False) -> Located:
        """Return an entry's cached file without repairing anything, so that `verify` judges what is there."""
        from ckptkit.store.unpack import checkpoint_of

        record = self.home.record(entry.id)
        artefact = self.home.artefact(record) if record else None
        if record is None or artefact is None or not artefact.is_file():
            if far is True and not self.offline and (there := self._source_of(entry)):
                return there
            raise NotFoundError(f"{entry.id} is not in the cache", hint=command("fetch", entry.id))
        return self._located(checkpoint_of(self.home, record) or artefact, entry, artefact, record)

    def _of_cache(self, path: Path) -> Located | None:
        """A path in the cache belongs to an entry."""
        place = resolved(path)
        home = next((h for h in self.home.homes if place.is_relative_to(resolved(h.path))), None)
        if home is None:
            return None
        parts = place.relative_to(resolved(home.path)).parts
        if len(parts) < 2 or parts[0] not in ("artefacts", "unpacked") or parts[1] not in self.registry:
            return None
        record = home.record(parts[1])
        if record is None:
            return Located(path, self.registry[parts[1]])
        artefact = home.artefact(record)
        return self._located(path, self.registry[parts[1]], artefact, record)

    def _located(self, path: Path, entry: Entry, artefact: Path, record: Record) -> Located:
        from ckptkit.store.lockfile import LockFile

        trusted = (self.trust or LockFile.default(self.home.path)).expected(entry.id, record.file)
        here, beside = self.home.beside(record), []
        for companion, alone in zip(entry.companions, entry.files[1:], strict=True):
            file, known = artefact.with_name(companion.name), here.get(companion.name)
            beside.append(self._located(file, alone, file, known) if known else Located(file, alone, file))
        hashes = tuple(sorted(record.server_hashes))
        return Located(
            path,
            entry,
            artefact,
            record.sha256,
            trusted,
            hashes,
            companions=tuple(beside),
            identity=record.identity,
        )
