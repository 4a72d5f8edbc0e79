"""Which TensorFlow checkpoint a path means: a prefix, an index, a folder, or an archive."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError, NotFoundError, UsageError, listed, storage_error
from ckptkit.base.files import TEMPORARY, make_folders, translated
from ckptkit.formats import foreign
from ckptkit.formats.tar_members import iter_safe_members
from ckptkit.formats.tf_bundle_index import index_path

_SHARD_NAME = re.compile(r"\.data-\d{5}-of-\d{5}$")
_STATE_PATH = re.compile(
    r'^[ \t]*model_checkpoint_path[ \t]*:[ \t]*"((?:[^"\\\n]|\\.){0,8192})"', re.MULTILINE
)
_STATE_FILE = "checkpoint"
_MAX_NAME_BYTES = 255
_STATE_BYTES = 1 << 20
_SAVED_MODEL = Path("variables", "variables")
_FILE_STEPS = 1_500
"""What making a file, and looking at it, costs of a budget."""
_COPY_BYTES = 1 << 20
_SHOWN = 5
_DEPTHS = ("*/", "*/*/", "*/*/*/")  # how deep in a folder a checkpoint is looked for


def locate(path: Path) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    """Find the checkpoint that ``path`` means."""
    if path.name and index_path(path).is_file():
        return path, None
    if path.is_dir():
        return _in_folder(path), None
    if not path.exists():
        raise NotFoundError(f"{path}: no such file, folder or checkpoint prefix")
    if path.name == _STATE_FILE:
        return _in_folder(path.parent), None
    prefix = prefix_of(path)
    if prefix is not None:
        if not index_path(prefix).is_file():
            raise NotFoundError(f"{index_path(prefix)}: no such file", hint="a checkpoint needs its .index")
        return prefix, None
    if not path.is_file():
        raise FormatError(path, "neither a file nor a folder")
    return _in_archive(path)


def prefix_of(path: Path) -> Path | None:
    """The prefix that a file of a checkpoint is called after; None for other files.

    Examples
    --------
    >>> [str(prefix_of(Path(f"m.ckpt{end}"))) for end in (".meta", ".data-00000-of-00001", ".pth")]
    ['m.ckpt', 'm.ckpt', 'None']
    """
    name = _SHARD_NAME.sub("", path.name.removesuffix(".index").removesuffix(".meta"))
    return path.with_name(name) if name and name != path.name else None


def prefixes_in(folder: Path) -> list[Path]:
    """The checkpoints at the top of a folder: the one its ``checkpoint`` file names, else all there are."""
    found = _from_state_files([folder / _STATE_FILE]) or _prefixes(folder, "*.index")
    if index_path(folder / _SAVED_MODEL).is_file() and len(found) != 1:
        return [folder / _SAVED_MODEL]
    return found


def _in_archive(path: Path) -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    folder = tempfile.TemporaryDirectory(prefix="ckptkit-tf-")
    try:
        names = _copy_members(path, Path(folder.name))
        return _in_folder(Path(folder.name), archive=path, names=names), folder
    except BaseException:  # Ctrl+C too: nothing may stay in the temporary folder
        folder.cleanup()
        raise


def _copy_members(archive: Path, folder: Path) -> list[str]:
    """Copy an archive's checkpoint files, and nothing else, into a folder; the names of all members."""
    names = []
    budget = Budget(archive.stat().st_size, partial(FormatError, archive))
    for member, stream in iter_safe_members(archive):
        name = PurePosixPath(member.name).name
        if stream is None:
            continue
        names.append(member.name)
        if not (name == _STATE_FILE or _is_index(name) or _SHARD_NAME.search(name)):
            continue
        budget.spend(steps=_FILE_STEPS)
        target = folder.joinpath(*PurePosixPath(member.name).parts)
        with translated(target):
            make_folders(target.parent)
            with target.open("xb") as file:
                shutil.copyfileobj(stream, file, _COPY_BYTES)
    return names


def _in_folder(folder: Path, *, archive: Path | None = None, names: Sequence[str] = ()) -> Path:
    """The folder's checkpoint; ``archive`` is where it came from, if any, with members of those names."""
    found = prefixes_in(folder)
    if not found:
        below = [state for depth in _DEPTHS for state in sorted(folder.glob(depth + _STATE_FILE))]
        found = _from_state_files(below)
        found = found if len(found) == 1 else _prefixes(folder, *(depth + "*.index" for depth in _DEPTHS))
    if len(found) == 1:
        return found[0]
    if not found:
        if archive is not None:
            raise foreign.of_archive(archive, names).error(archive)
        raise FormatError(folder, "holds no TensorFlow checkpoint (no .index file)")
    choices = (prefix.relative_to(folder).as_posix() for prefix in found)
    holds = f"holds {len(found)} checkpoints: {listed(choices, _SHOWN)}"
    if archive is not None:
        raise FormatError(archive, holds, hint=foreign.of_archive(archive, names).hint)
    raise UsageError(f"{folder} {holds}", hint="give the prefix of one")


def _prefixes(folder: Path, *patterns: str) -> list[Path]:
    files = {path for pattern in patterns for path in folder.glob(pattern)}
    found = (path for path in files if _is_index(path.name) and path.is_file())
    return sorted(path.with_name(path.name.removesuffix(".index")) for path in found)


def _is_index(name: str) -> bool:
    """Whether a file is an index; macOS puts ``._x`` beside each ``x`` in archives, which are none."""
    return name.endswith(".index") and len(name) > len(".index") and not name.startswith(("._", TEMPORARY))


def _from_state_files(states: list[Path]) -> list[Path]:
    """The prefixes that ``checkpoint`` text files name, as far as they stand in the same folder.

    TensorFlow writes the absolute path on the machine that trained; only its last part means something here.
    """
    found = set()
    for state in states:
        prefix = named_by(state) if state.is_file() else None
        if prefix is not None and index_path(prefix).is_file():
            found.add(prefix)
    return sorted(found)


def named_by(state: Path) -> Path | None:
    """What a ``checkpoint`` text file names, in its own folder, whether it is there or not."""
    match = _STATE_PATH.search(_head(state, _STATE_BYTES).decode("utf-8", "replace"))
    name = PurePosixPath(re.sub(r"\\(.)", r"\1", match[1]).replace("\\", "/")).name if match else ""
    return state.parent / name if _may_exist(name) else None


def _may_exist(name: str) -> bool:
    """Whether a prefix may have this name; asking a file system for one that is too long is an error."""
    return name not in ("", "..") and len(f"{name}.index".encode()) <= _MAX_NAME_BYTES


def _head(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise storage_error(error, path) from error
