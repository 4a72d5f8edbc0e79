"""A conversion from what the user named to a file: locate, plan, execute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.convert.execution import Converted, execute
from ckptkit.convert.moves import TensorPlan
from ckptkit.convert.options import AS_IS, Options
from ckptkit.convert.planning import plan
from ckptkit.convert.provenance import Provenance
from ckptkit.errors import FormatError, UnknownModelError, UsageError, command
from ckptkit.families.binding import wanted_copy
from ckptkit.formats.base import Reader
from ckptkit.formats.detect import EXTENSIONS, open_reader
from ckptkit.formats.staging import refuse_existing
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
        File, or prefix for ``tf``; a folder (existing) takes the default name. Default: the cache for an
        entry, the current folder for a file of one's own.
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
        open_reader(located.path, weights=wanted_copy(options.weights, located.entry)) as reader,
        Provenance(located) as provenance,
    ):
        conversion = _plan(reader, options, located.entry, provenance.placeholder)
        path = output_path(located, conversion, options, workspace, output)
        in_cache = located.entry is not None and output is None
        if in_cache or dry_run:
            conversion = _settled(conversion, provenance)
        standing = workspace.home.everywhere(path) if in_cache and not force else []
        for candidate in standing:
            if _stands_already(candidate, conversion):
                return Outcome(conversion, candidate, None, reused=True)
        if dry_run:
            return Outcome(conversion, path, None)
        if not in_cache:
            refuse_existing(_standing(path), force=force)  # before a progress bar is shown
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


def output_path(
    located: Located, conversion: TensorPlan, options: Options, workspace: Workspace, output: Path | None
) -> Path:
    """Where a conversion's result goes."""
    extension = EXTENSIONS[conversion.to]
    dtype = _dtype_in_words(conversion)
    what = conversion.layout
    if conversion.weights == "raw":
        what += "-raw"
    if not options.head:
        what += "-backbone"
    if options.resolution is not None:
        what += "-{}x{}".format(*options.resolution)
    if located.entry is not None and output is None:
        return workspace.home.converted_path(located.entry.id, what, dtype, extension)
    stem = located.entry.id if located.entry else stem_of(located.path)
    if output is None:
        path = Path(stem + extension)
    elif output.is_dir():
        path = output / (stem + extension)
    else:
        path = output
    if path.is_file() and located.path.is_file() and path.samefile(located.path):
        raise UsageError(f"{path} is the source itself", hint="give another --output")
    return path


def _dtype_in_words(conversion: TensorPlan) -> str:
    names = {spec.dtype.name for spec in conversion.specs if spec.dtype.is_float}
    return names.pop() if len(names) == 1 else "mixed"


def stem_of(path: Path) -> str:
    """A checkpoint's name without its ending."""
    name = path.resolve().name
    for ending in (
        ".tar.gz",
        ".tgz",
        ".tar.bz2",
        ".tar.xz",
        ".tar.zst",
        ".zip",
        ".pth.tar",
        ".safetensors.index.json",
        *EXTENSIONS.values(),
        ".index",
        ".tar",
    ):
        if name.endswith(ending) and name != ending:
            return name.removesuffix(ending)
    return path.stem or name


def _standing(path: Path) -> Path:
    """What stands at a path if anything does: the file, or the index of a TensorFlow prefix."""
    return path if path.exists() else path.with_name(path.name + ".index")


def _stands_already(path: Path, conversion: TensorPlan) -> bool:
    """Whether the cache holds this very conversion: same source, same options, same version of the tool."""
    if not _standing(path).exists():
        return False
    try:
        with open_reader(path) as reader:
            return _same(reader, conversion)
    except FormatError:
        return False


def _same(reader: Reader, conversion: TensorPlan) -> bool:
    said = {key: value for key, value in reader.metadata.items() if key != "format"}
    return said == dict(conversion.metadata) and {s.name: s for s in conversion.specs} == dict(reader.specs)
