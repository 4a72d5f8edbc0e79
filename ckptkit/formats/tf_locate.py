"""Which TensorFlow checkpoint a path means: a prefix, an index, a folder, or an archive."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from ckptkit.errors import FormatError, NotFoundError, UsageError, storage_error
from ckptkit.formats.staging import TEMPORARY, translated
from ckptkit.formats.tar_members import iter_safe_members
from ckptkit.formats.tar_stream import describe_foreign, is_archive
from ckptkit.formats.tf_bundle_index import index_path

_SHARD_NAME = re.compile(r"\.data-\d{5}-of-\d{5}$")
_STATE_PATH = re.compile(r'^\s*model_checkpoint_path\s*:\s*"((?:[^"\\]|\\.)*)"', re.MULTILINE)
_STATE_FILE = "checkpoint"
_MAX_NAME_BYTES = 255
_STATE_BYTES = 1 << 20
_SAVED_MODEL = Path("variables", "variables")
_COPY_BYTES = 1 << 20
_HEAD_BYTES = 512
_SHOWN = 5
_DEPTHS = ("*/", "*/*/", "*/*/*/")  # how deep in a folder a checkpoint is looked for


def locate(path: Path) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    """Find the checkpoint that ``path`` means.

    Parameters
    ----------
    path : Path
        A prefix; its ``.index`` or one of its data files; a folder (its ``checkpoint`` file, its only
        prefix, or a SavedModel's variables); or a tar archive of any of these.

    Returns
    -------
    prefix : Path
        ``<prefix>.index`` exists.
    unpacked : TemporaryDirectory or None
        Where an archive's members were put; the caller cleans it up.

    Raises
    ------
    NotFoundError
        Nothing of that name.
    UsageError
        A folder with several checkpoints.
    FormatError
        Something else than a checkpoint.
    """
    if path.name and index_path(path).is_file():
        return path, None
    if path.is_dir():
        return _in_folder(path), None
    if not path.exists():
        raise NotFoundError(f"{path}: no such file, folder or checkpoint prefix")
    if path.name == _STATE_FILE:
        return _in_folder(path.parent), None
    prefix = path.with_name(_SHARD_NAME.sub("", path.name.removesuffix(".index")) or path.name)
    if prefix != path:
        if not index_path(prefix).is_file():
            raise NotFoundError(f"{index_path(prefix)}: no such file", hint="a checkpoint needs its .index")
        return prefix, None
    if not path.is_file():
        raise FormatError(path, "neither a file nor a folder")
    return _in_archive(path)


def _in_archive(path: Path) -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    head = _head(path)
    if not is_archive(head):
        raise FormatError(
            path,
            f"no TensorFlow checkpoint but {describe_foreign(head)}",
            hint="fetch it again, or give the checkpoint's prefix, folder or .tar.gz",
        )
    folder = tempfile.TemporaryDirectory(prefix="ckptkit-tf-")
    try:
        _copy_members(path, Path(folder.name))
        return _in_folder(Path(folder.name), shown=path), folder
    except BaseException:  # Ctrl+C too: nothing may stay in the temporary folder
        folder.cleanup()
        raise


def _copy_members(archive: Path, folder: Path) -> None:
    """Copy an archive's checkpoint files, and nothing else, into a folder."""
    for member, stream in iter_safe_members(archive):
        name = PurePosixPath(member.name).name
        if stream is None or not (name == _STATE_FILE or _is_index(name) or _SHARD_NAME.search(name)):
            continue
        target = folder.joinpath(*PurePosixPath(member.name).parts)
        with translated(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                shutil.copyfileobj(stream, file, _COPY_BYTES)


def _in_folder(folder: Path, *, shown: Path | None = None) -> Path:
    """The folder's checkpoint; ``shown`` is the archive it came from, if any."""
    found = _from_state_files([folder / _STATE_FILE]) or _prefixes(folder, "*.index")
    if index_path(folder / _SAVED_MODEL).is_file() and len(found) != 1:
        return folder / _SAVED_MODEL
    if not found:
        below = [state for depth in _DEPTHS for state in sorted(folder.glob(depth + _STATE_FILE))]
        found = _from_state_files(below)
        found = found if len(found) == 1 else _prefixes(folder, *(depth + "*.index" for depth in _DEPTHS))
    if len(found) == 1:
        return found[0]
    if not found:
        raise FormatError(shown or folder, "holds no TensorFlow checkpoint (no .index file)")
    names = ", ".join(prefix.relative_to(folder).as_posix() for prefix in found[:_SHOWN])
    listed = f"holds {len(found)} checkpoints: {names}{', ...' if len(found) > _SHOWN else ''}"
    if shown is not None:
        raise FormatError(shown, listed, hint="unpack it and give the prefix of one")
    raise UsageError(f"{folder}: {listed}", hint="give the prefix of one")


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
        match = (
            _STATE_PATH.search(_head(state, _STATE_BYTES).decode("utf-8", "replace"))
            if state.is_file()
            else None
        )
        name = PurePosixPath(re.sub(r"\\(.)", r"\1", match[1]).replace("\\", "/")).name if match else ""
        if _may_exist(name) and index_path(state.parent / name).is_file():
            found.add(state.parent / name)
    return sorted(found)


def _may_exist(name: str) -> bool:
    """Whether a prefix may have this name; asking a file system for one that is too long is an error."""
    return name not in ("", "..") and len(f"{name}.index".encode()) <= _MAX_NAME_BYTES


def _head(path: Path, size: int = _HEAD_BYTES) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise storage_error(error, path) from error
