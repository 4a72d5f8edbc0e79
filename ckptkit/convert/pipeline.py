"""A conversion from what the user named to a file: open, plan, execute, and where the result goes."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from ckptkit.base.errors import FormatError, UnknownModelError, UsageError, command
from ckptkit.base.files import PIECE_BYTES, resolved, translated
from ckptkit.base.parse import Turn
from ckptkit.base.progress import Advance
from ckptkit.convert.execution import Converted, Target, execute
from ckptkit.convert.planning import (
    AS_IS,
    Plan,
    plan_as_is,
    plan_by_layout,
    refuse_family_options,
)
from ckptkit.convert.sharing import Shared, SharedConversion
from ckptkit.families.binding import Weights
from ckptkit.families.recognition import require_recognition
from ckptkit.formats.base import Reader
from ckptkit.formats.builtin import format_of
from ckptkit.formats.detect import open_reader
from ckptkit.formats.names import without_ending
from ckptkit.formats.shards import INDEX_ENDINGS, index_names, shards_of
from ckptkit.formats.writing import files_at
from ckptkit.workspace import Located, Workspace

if TYPE_CHECKING:
    from typing_extensions import Self

    from ckptkit.registry.schema import Entry
    from ckptkit.rules.mapping import RuleFile


@dataclass(frozen=True)
class Options:
    """What a conversion should make: the same for the command line and Python."""

    to: str  # format
    layout: str | None = None  # default: the family's usual one for that format; "as-is" keeps names and axes
    dtype: str | None = None  # of all floating tensors; default: as they are
    weights: Weights = "auto"  # which copy where the source holds both
    head: bool = True  # False leaves the classification head out
    allow_missing_bn: bool = False  # convert a file that lacks all BatchNorm statistics
    variant: str | None = None  # overrides what the file is recognised as
    max_shard_size: int | None = None  # bytes
    settings: Mapping[str, Any] = field(default_factory=dict)  # behaviour settings, before entry's and file's
    # Height and width in pixels to resize position tables for, as the models do it at run time (bilinear,
    # half-pixel centres, no antialias, edges clamped, in float32), for code that does not resize
    resolution: tuple[int, int] | None = None
    rules: RuleFile | None = None  # a user's own names and axis orders, instead of a layout
    require: Literal["proven"] | None = None  # refuse rules that are not

    @property
    def target(self) -> Target:
        """The file to make."""
        return Target(self.to, self.dtype, self.max_shard_size)

    @property
    def is_by_layout(self) -> bool:
        """Whether the names are a family's, before which wrappers' prefixes say nothing."""
        return self.rules is None and self.layout != AS_IS

    def refuse_family_options(self, mode: str) -> None:
        """Refuse options that need a known architecture."""
        given = {
            "--no-head": not self.head,
            "--variant": self.variant is not None,
            "--allow-missing-bn": self.allow_missing_bn,
            "--set": bool(self.settings),
            "--resolution": self.resolution is not None,
        }
        refuse_family_options([name for name, is_given in given.items() if is_given], mode)


def plan(reader: Reader, options: Options, *, entry: Entry | None = None) -> Plan:
    """Plan a conversion by a user's rules, as is, or by the family's layouts, and fit it to its target."""
    target = options.target
    if options.rules is not None:
        if options.layout is not None:
            raise UsageError(
                f"--layout {options.layout} cannot be used with --rules, which give all names",
                hint="leave it out",
            )
        options.refuse_family_options("--rules")
        from ckptkit.convert.by_rules import plan_by_rules

        return target.fit(
            plan_by_rules(
                reader, options.rules, weights=options.weights, entry=entry, require=options.require
            )
        )
    if options.require is not None:
        raise UsageError("--require needs --rules", hint="give --rules FILE too")
    if options.layout == AS_IS:
        options.refuse_family_options(f"--layout {AS_IS}")
        return target.fit(plan_as_is(reader, weights=options.weights, entry=entry))
    variant = options.variant or (entry.variant if entry else None)
    try:
        recognition = require_recognition(reader.path, reader.specs, variant=variant)
    except UnknownModelError as error:
        raise UnknownModelError(
            error.message,
            hint=f"--layout {AS_IS} changes the container of any model, --rules FILE its names too. "
            + command("inspect", reader.path),
        ) from error
    return target.fit(
        plan_by_layout(
            reader,
            recognition,
            options.layout or recognition.family.layout_for(options.to),
            weights=options.weights,
            head=options.head,
            allow_missing_bn=options.allow_missing_bn,
            settings=options.settings,
            resolution=options.resolution,
            entry=entry,
        )
    )


@dataclass(frozen=True)
class Outcome:
    """What became of one conversion."""

    plan: Plan
    target: Target
    path: Path  # where the result is, or would be after a dry run
    converted: Converted | None = None  # None after a dry run, or when the cache held it already
    reused: bool = False  # whether the cache held it already
    shared: Shared | None = None  # where several processes convert: what this one did

    @property
    def is_partial(self) -> bool:
        """Whether another process writes the rest, or did."""
        return self.shared is not None and self.converted is None and not self.reused

    @property
    def way(self) -> str:
        """From what to what, for people."""
        return f"{self.plan.origin} → {self.target.format}/{self.plan.layout}"


def convert_checkpoint(
    located: Located,
    options: Options,
    workspace: Workspace,
    *,
    output: Path | None = None,
    force: bool = False,
    check: bool = True,
    dry_run: bool = False,
    turn: Turn | None = None,
) -> Outcome:
    """Convert one checkpoint; without ``output`` into the cache for an entry, else to the current folder.

    With ``turn`` only some of the shards are written, see `convert.sharing`.
    """
    entry, target = located.entry, options.target
    with (
        Provenance(located) as provenance,  # hashing a large source takes longest, so it begins first
        located.open(options.weights, unwrap=options.is_by_layout) as reader,
    ):
        decided = plan(reader, options, entry=entry)
        decided = decided.with_metadata({**_what_of(reader, located), **provenance.placeholder})
        in_cache = entry is not None and output is None
        if entry is not None and output is None:
            path = _cache_path(entry, decided, options, workspace)
        else:
            path = output or Path(_default_name(located, options.to))
        if turn is not None:
            return _convert_in_turn(
                SharedConversion(decided, target, path, turn, located.path),
                Outcome(decided, target, path),
                reader,
                provenance,
                force=force or in_cache,
                check=check,
                dry_run=dry_run,
                progress=partial(workspace.progress, f"converting {located.name}"),
            )
        if in_cache or dry_run:
            decided = decided.with_metadata(provenance.wait())
        for candidate in workspace.home.candidate_paths(path) if in_cache and not force else []:
            if _is_same(candidate, decided):
                return Outcome(decided, target, candidate, reused=True)
        if dry_run:
            return Outcome(decided, target, path)
        if in_cache and path.is_symlink():  # the cache's own names lead nowhere else
            path.unlink()
        if not in_cache:
            format_of(options.to).refuse_existing(path, force=force)  # before a progress bar is shown
        with workspace.progress(f"converting {located.name}", decided.nbytes) as advance:
            converted = execute(
                decided,
                reader,
                target,
                path,
                force=force or in_cache,
                check=check,
                progress=advance,
                late=provenance.wait,
            )
        return Outcome(decided.with_metadata(provenance.wait()), target, converted.path, converted)


def _convert_in_turn(
    work: SharedConversion,
    planned: Outcome,
    reader: Reader,
    provenance: Provenance,
    *,
    force: bool,
    check: bool,
    dry_run: bool,
    progress: Callable[[int], AbstractContextManager[Advance]],
) -> Outcome:
    """Convert what is one process's of several."""
    own = replace(planned, plan=work.own_plan())
    if dry_run:
        return replace(own, shared=work.state())
    if not force and not work.has_begun:
        for there in _openable(planned.path):
            if _is_same(there, planned.plan.with_metadata(provenance.wait())):
                return replace(own, path=there, reused=True, shared=work.state(complete=True))
        planned.target.kind.refuse_existing(planned.path, force=False)
    with progress(own.plan.nbytes) as advance:
        shared = work.run(reader, provenance.wait, force=force, check=check, progress=advance)
    done = shared.converted
    return replace(own, path=done.path if done else planned.path, converted=done, shared=shared)


def _openable(path: Path) -> Iterator[Path]:
    """What a checkpoint in shards, or in one, is opened by."""
    indexes = (path.parent / name for name in index_names(path.name))
    yield from (there for there in (path, *indexes) if there.exists())


def _what_of(reader: Reader, located: Located) -> dict[str, str]:
    """What of the source was converted, where it holds several state dicts or names were cut by hand."""
    chosen = {}
    if len(reader.state_dicts) > 1:
        chosen["source_state_dict"] = str(reader.state_dict)
    if located.strip_prefix:
        chosen["source_prefix"] = " ".join(located.strip_prefix)
    return chosen


# -- what identifies a source --------------------------------------------------------------------------------

_SMALL_BYTES = 4 << 20
"""Hashed in a few milliseconds, when it is asked for."""
_UNKNOWN = "0" * 64


class Provenance:
    """What identifies a source: sha256 of what is published, of a single file, or of a bundle's index.

    A TensorFlow checkpoint is several files; its index holds the crc32c of every tensor, so the index's
    own sha256 identifies the whole. A large file is hashed by a thread, which lets go of the interpreter
    lock, while the ``with`` block runs.
    """

    def __init__(self, located: Located) -> None:
        self._key, self._file = _identifying_file(located.path)
        self._known = located.identity or located.sha256
        if self._known:
            self._key = "source_sha256"
        self._stop = threading.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._hashing: Future[str] | None = None

    @property
    def placeholder(self) -> Mapping[str, str]:
        """The right keys, with zeros where a value is not known yet."""
        return {self._key: self._known or _UNKNOWN} if self._key else {}

    def wait(self) -> Mapping[str, str]:
        """Return the true values."""
        if self._known is None and self._file is not None:
            self._known = self._hashing.result() if self._hashing else self._hash(self._file)
        return {self._key: self._known} if self._key and self._known else {}

    def _hash(self, path: Path) -> str:
        buffer = bytearray(PIECE_BYTES)
        view, digest = memoryview(buffer), hashlib.sha256()
        with translated(path), path.open("rb", buffering=0) as file:
            while not self._stop.is_set() and (count := file.readinto(buffer)):
                digest.update(view[:count])
        return digest.hexdigest()

    def __enter__(self) -> Self:
        if self._known is None and self._file is not None and self._file.stat().st_size > _SMALL_BYTES:
            self._pool = ThreadPoolExecutor(1)
            self._hashing = self._pool.submit(self._hash, self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._pool is not None:
            self._pool.shutdown()


def _identifying_file(path: Path) -> tuple[str, Path | None]:
    """Key in the metadata, and the file whose sha256 identifies the source; a folder has none."""
    if path.is_file() and path.suffix != ".index" and not path.name.endswith(INDEX_ENDINGS):
        return "source_sha256", path
    for index in (path, path.parent / (path.name + ".index")):  # "." and "/" have no name to replace
        if index.suffix == ".index" and index.is_file():
            return "source_index_sha256", index
    return "", None


# -- where results go ----------------------------------------------------------------------------------------


def planned_paths(
    sources: Sequence[Located], options: Options, output: Path | None, *, folder: bool = False
) -> list[Path | None]:
    """Where the results of several conversions go, found before anything is written."""
    planned: list[Path | None] = []
    taken: dict[str, Located] = {}
    inputs = {identity: source for source in sources for identity in _identities(_files_of(source.path))}
    for source in sources:
        if output is None:
            path = None if source.entry else Path(_default_name(source, options.to))
        else:
            path = output / _default_name(source, options.to) if folder else output
        planned.append(path)
        if path is None:
            continue
        other = taken.setdefault(str(path).casefold(), source)
        if other is not source:
            raise UsageError(
                f"{other.name} and {source.name} would both be written to {path}",
                hint="convert them one by one, each with its own --output",
            )
        overwritten = next(_identities(_files_at(path, options), among=inputs), None)
        if overwritten is not None:
            replaced = inputs[overwritten]
            raise UsageError(
                f"{path} is the source itself"
                if replaced is source
                else f"{path} would replace {replaced.name}",
                hint="give another --output",
            )
    return planned


def refuse_source(path: Path, located: Located) -> None:
    """Refuse to write where that would replace or remove a file of the source."""
    inputs = dict.fromkeys(_identities(_files_of(located.path)), located)
    if next(_identities(files_at(path), among=inputs), None) is not None:
        raise UsageError(f"{path} is the source itself", hint="give another --output")


def _default_name(located: Located, to: str) -> str:
    return (located.entry.id if located.entry else stem_of(located.path)) + format_of(to).endings[0]


def _files_of(path: Path) -> Iterator[Path]:
    """The files that a checkpoint of that name may consist of."""
    if path.is_dir():
        yield from path.iterdir()
        return
    yield path
    prefix = path.with_suffix("") if path.suffix == ".index" else path
    yield from path.parent.glob(f"{glob.escape(prefix.name)}.*")
    if path.name.endswith(INDEX_ENDINGS):
        yield from (path.with_name(shard) for shard in shards_of(path))


def _files_at(path: Path, options: Options) -> Iterator[Path]:
    """The files that writing to a path may replace."""
    yield from files_at(path)
    yield from format_of(options.to).beside(path)
    if options.max_shard_size is not None:
        stem = glob.escape(stem_of(path))
        yield from path.parent.glob(f"{stem}-*-of-*{path.suffix}")
        yield from path.parent.glob(f"{stem}_[0-9]*{path.suffix}")


def _identities(
    files: Iterator[Path], among: Mapping[tuple[int, int], Located] | None = None
) -> Iterator[tuple[int, int]]:
    """What tells files apart, whatever leads to them: device and number."""
    for file in files:
        with contextlib.suppress(OSError):
            status = file.stat()
            identity = (status.st_dev, status.st_ino)
            if stat.S_ISREG(status.st_mode) and (among is None or identity in among):
                yield identity


def _cache_path(entry: Entry, plan: Plan, options: Options, workspace: Workspace) -> Path:
    """Where the cache keeps a conversion of an entry."""
    what = plan.layout
    if plan.weights == "raw":
        what += "-raw"
    if not options.head:
        what += "-backbone"
    if options.resolution is not None:
        what += "-{}x{}".format(*options.resolution)
    workspace.home.refuse_links(entry.id, ("converted",))
    floats = {spec.dtype.name for spec in plan.specs if spec.dtype.is_float}
    dtype = floats.pop() if len(floats) == 1 else "mixed"
    return workspace.home.converted_path(entry.id, what, dtype, format_of(options.to).endings[0])


def stem_of(path: Path) -> str:
    """A checkpoint's name without its ending."""
    name = resolved(path).name
    stem = without_ending(name)
    return stem if stem != name else path.stem or name


def standing(path: Path) -> Path:
    """What is at a path if anything is: the file, or the index of a TensorFlow prefix."""
    return path if path.exists() else path.parent / (path.name + ".index")


def _is_same(path: Path, plan: Plan) -> bool:
    """Whether the cache holds this very conversion: same source, same options, same version of the tool."""
    if not standing(path).exists():
        return False
    try:
        with open_reader(path) as reader:
            metadata = {key: value for key, value in reader.metadata.items() if key != "format"}
            return metadata == dict(plan.metadata) and {s.name: s for s in plan.specs} == dict(reader.specs)
    except FormatError:
        return False
