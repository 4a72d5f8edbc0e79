"""A conversion from what the user named to a file: locate, plan, execute."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ckptkit.convert.execution import Converted, execute
from ckptkit.convert.planning import Options, Plan, plan
from ckptkit.errors import FormatError, UsageError
from ckptkit.families.binding import wanted_copy
from ckptkit.formats.base import Reader
from ckptkit.formats.detect import EXTENSIONS, open_reader
from ckptkit.formats.staging import refuse_existing
from ckptkit.workspace import Located, Workspace


@dataclass(frozen=True)
class Outcome:
    """What became of one conversion.

    Parameters
    ----------
    plan : Plan
    path : Path
        Where the result stands, or would stand after a dry run.
    converted : Converted or None
        None after a dry run, or when the same conversion stood there already.
    reused : bool
        Whether it stood there already.
    """

    plan: Plan
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
    with open_reader(located.path, weights=wanted_copy(options.weights, located.entry)) as reader:
        conversion = plan(reader, options, entry=located.entry, provenance=provenance(located))
        path = output_path(located, conversion, options, workspace, output)
        in_cache = located.entry is not None and output is None
        if in_cache and not force and _stands_already(path, conversion):
            return Outcome(conversion, path, None, reused=True)
        if dry_run:
            return Outcome(conversion, path, None)
        if not in_cache:
            refuse_existing(_standing(path), force=force)  # before a progress bar is shown
        with workspace.progress(f"converting {located.name}", conversion.nbytes) as advance:
            converted = execute(
                conversion, reader, path, force=force or in_cache, check=check, progress=advance
            )
        return Outcome(conversion, converted.path, converted)


def provenance(located: Located) -> dict[str, str]:
    """What identifies the source: sha256 of the published file, of a single file, or of a bundle's index.

    A TensorFlow checkpoint is several files; its index holds the crc32c of every tensor, so the index's
    own sha256 stands for the whole.
    """
    if located.sha256:
        return {"source_sha256": located.sha256}
    path = located.path
    if path.is_file() and path.suffix != ".index" and not path.name.endswith(".index.json"):
        return {"source_sha256": _sha256(path)}
    index = next(
        (p for p in (path, path.with_name(path.name + ".index")) if p.suffix == ".index" and p.is_file()),
        None,
    )
    return {"source_index_sha256": _sha256(index)} if index else {}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def output_path(
    located: Located, conversion: Plan, options: Options, workspace: Workspace, output: Path | None
) -> Path:
    """Where a conversion's result goes."""
    extension = EXTENSIONS[conversion.to]
    dtype = _dtype_in_words(conversion)
    what = conversion.layout
    if conversion.weights == "raw":
        what += "-raw"
    if not options.head:
        what += "-backbone"
    if located.entry is not None and output is None:
        return workspace.home.converted_path(located.entry.id, what, dtype, extension)
    stem = located.entry.id if located.entry else _stem(located.path)
    if output is None:
        path = Path(stem + extension)
    elif output.is_dir():
        path = output / (stem + extension)
    else:
        path = output
    if path.is_file() and located.path.is_file() and path.samefile(located.path):
        raise UsageError(f"{path} is the source itself", hint="give another --output")
    return path


def _dtype_in_words(conversion: Plan) -> str:
    names = {spec.dtype.name for spec in conversion.specs if spec.dtype.is_float}
    return names.pop() if len(names) == 1 else "mixed"


def _stem(path: Path) -> str:
    name = path.resolve().name
    for ending in (
        ".tar.gz",
        ".tgz",
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


def _stands_already(path: Path, conversion: Plan) -> bool:
    """Whether the cache holds this very conversion: same source, same options, same version of the tool."""
    if not _standing(path).exists():
        return False
    try:
        with open_reader(path) as reader:
            return _same(reader, conversion)
    except FormatError:
        return False


def _same(reader: Reader, conversion: Plan) -> bool:
    said = {key: value for key, value in reader.metadata.items() if key != "format"}
    return said == dict(conversion.metadata) and {s.name: s for s in conversion.specs} == dict(reader.specs)
