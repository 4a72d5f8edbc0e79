"""A conversion from what the user named to a file: locate, plan, execute."""

from __future__ import annotations

import contextlib
import glob
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.base.errors import FormatError, UnknownModelError, UsageError, command
from ckptkit.base.files import resolved
from ckptkit.convert.execution import Converted, execute
from ckptkit.convert.moves import TensorPlan
from ckptkit.convert.options import AS_IS, Options
from ckptkit.convert.planning import plan
from ckptkit.convert.provenance import Provenance
from ckptkit.formats.base import Reader
from ckptkit.formats.builtin import format_of
from ckptkit.formats.detect import open_reader
from ckptkit.formats.names import without_ending
from ckptkit.formats.replacing import files_at, refuse_existing_checkpoint
from ckptkit.formats.shards import INDEX_ENDINGS, shards_of
from ckptkit.workspace import Located, Workspace

if TYPE_CHECKING:
    from ckptkit.registry import Entry


@dataclass(frozen=True)
class Outcome:
    """What became of one conversion.

    Parameters
    ----------
    plan : TensorPlan
    path : Path
        Where the result stands, or would stand after a dry run.
    converted : Converted or None
        None after a dry run, or when the same conversion stood there already.
    reused : bool
        Whether it stood there already.
    """

    plan: TensorPlan
    path: Path
    converted: Converted | None
    reused: bool = False


def convert_located(
    located: Located,
    options: Options,
    workspace: Workspace,
    *,
    output: Path | None = None,
    force: bool = False,
    check: bool = True,
    dry_run: bool = False,
) -> Outcome:
    """Convert one checkpoint.

    Parameters
    ----------
    located : Located
    options : Options
    workspace : Workspace
        Its cache takes the conversions of registry entries when there is no ``output``.
    output : Path, optional
        File, or prefix for ``tf``, as `planned_paths` gives it. Default: the cache for an entry, the
        current folder for a file of one's own.
    force, check
        As in `execute`.
    dry_run : bool
        Plan only.

    Raises
    ------
    CkptkitError
        As `plan` and `execute` raise them.
    """
    with (
        located.open(options.weights, unwrap=_is_of_a_family(options)) as reader,
        Provenance(located) as provenance,
    ):
        said = {**_which(reader, located), **provenance.placeholder}
        conversion = _plan(reader, options, located.entry, said)
        in_cache = located.entry is not None and output is None
        path = (
            _cache_path(located.entry, conversion, options, workspace)
            if located.entry is not None and output is None
            else output or Path(_default_name(located, options.to))
        )
        if in_cache or dry_run:
            conversion = _settled(conversion, provenance)
        earlier = workspace.home.everywhere(path) if in_cache and not force else []
        for candidate in earlier:
            if _stands_already(candidate, conversion):
                return Outcome(conversion, candidate, None, reused=True)
        if dry_run:
            return Outcome(conversion, path, None)
        if in_cache and path.is_symlink():  # the cache's own names lead nowhere else
            path.unlink()
        if not in_cache:
            refuse_existing_checkpoint(path, force=force)  # before a progress bar is shown
        with workspace.progress(f"converting {located.name}", conversion.nbytes) as advance:
            converted = execute(
                conversion,
                reader,
                path,
                force=force or in_cache,
                check=check,
                progress=advance,
                late=provenance.wait,
            )
        return Outcome(_settled(conversion, provenance), converted.path, converted)


def _which(reader: Reader, located: Located) -> dict[str, str]:
    """What of the source was converted, where it holds several state dicts or names were cut by hand."""
    said = {}
    if len(reader.state_dicts) > 1:
        said["source_state_dict"] = str(reader.state_dict)
    if located.strip_prefix:
        said["source_prefix"] = " ".join(located.strip_prefix)
    return said


def _is_of_a_family(options: Options) -> bool:
    """Whether the names are a family's, before which wrappers' prefixes say nothing."""
    return options.rules is None and options.layout != AS_IS


def _plan(reader: Reader, options: Options, entry: Entry | None, provenance: Mapping[str, str]) -> TensorPlan:
    """Decide a conversion by a user's rules, as is, or by the family's layouts."""
    if options.rules is not None:
        from ckptkit.convert.by_rules import plan_by_rules

        return plan_by_rules(reader, options, options.rules, entry=entry, provenance=provenance)
    if options.layout == AS_IS:
        from ckptkit.convert.as_is import plan_as_is

        return plan_as_is(reader, options, entry=entry, provenance=provenance)
    try:
        return plan(reader, options, entry=entry, provenance=provenance)
    except UnknownModelError as error:
        raise UnknownModelError(
            error.message,
            hint=f"--layout {AS_IS} changes the container of any model, --rules FILE its names too. "
            + command("inspect", reader.path),
        ) from error


def _settled(conversion: TensorPlan, provenance: Provenance) -> TensorPlan:
    return replace(conversion, metadata={**conversion.metadata, **provenance.wait()})


def planned_paths(
    sources: Sequence[Located], options: Options, output: Path | None, *, folder: bool = False
) -> list[Path | None]:
    """Where the results of several conversions go, found before anything is written.

    Parameters
    ----------
    sources : sequence of Located
    options : Options
    output : Path, optional
        A file, or the folder where each result gets its default name.
    folder : bool
        Whether ``output`` is that folder; it need not be there yet.

    Returns
    -------
    list of (Path or None)
        One for each source; None for what goes into the cache.

    Raises
    ------
    UsageError
        Two results would have one name (or names that some file systems take for one), or a result would
        replace a source.
    """
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
    """Refuse to write where that would replace or remove a file of the source.

    Raises
    ------
    UsageError
        It would.
    """
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
        yield from path.parent.glob(f"{glob.escape(stem_of(path))}-*-of-*{path.suffix}")


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


def _cache_path(entry: Entry, conversion: TensorPlan, options: Options, workspace: Workspace) -> Path:
    """Where the cache keeps a conversion of an entry."""
    what = conversion.layout
    if conversion.weights == "raw":
        what += "-raw"
    if not options.head:
        what += "-backbone"
    if options.resolution is not None:
        what += "-{}x{}".format(*options.resolution)
    workspace.home.refuse_links(entry.id, ("converted",))
    return workspace.home.converted_path(
        entry.id, what, _dtype_in_words(conversion), format_of(conversion.to).endings[0]
    )


def _dtype_in_words(conversion: TensorPlan) -> str:
    names = {spec.dtype.name for spec in conversion.specs if spec.dtype.is_float}
    return names.pop() if len(names) == 1 else "mixed"


def stem_of(path: Path) -> str:
    """A checkpoint's name without its ending."""
    name = resolved(path).name
    stem = without_ending(name)
    return stem if stem != name else path.stem or name


def standing(path: Path) -> Path:
    """What stands at a path if anything does: the file, or the index of a TensorFlow prefix."""
    return path if path.exists() else path.with_name(path.name + ".index")


def _stands_already(path: Path, conversion: TensorPlan) -> bool:
    """Whether the cache holds this very conversion: same source, same options, same version of the tool."""
    if not standing(path).exists():
        return False
    try:
        with open_reader(path) as reader:
            return _same(reader, conversion)
    except FormatError:
        return False


def _same(reader: Reader, conversion: TensorPlan) -> bool:
    said = {key: value for key, value in reader.metadata.items() if key != "format"}
    return said == dict(conversion.metadata) and {s.name: s for s in conversion.specs} == dict(reader.specs)
