"""The index that says which shard of a safetensors checkpoint holds which tensor."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from ckptkit.errors import FormatError, UsageError
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.formats.safetensors_header import strict_json, utf8
from ckptkit.formats.staging import TEMPORARY

EXTENSION = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
_MAX_INDEX_BYTES = 100_000_000
_MAX_NAME_BYTES = 255  # no common file system takes a longer one


def safetensors_in_folder(folder: Path) -> Path:
    """The one checkpoint of a folder: its index, or its only ``.safetensors`` file.

    Raises
    ------
    FormatError
        There is none.
    UsageError
        There are several.
    """
    found = _finished(folder, f"*{INDEX_SUFFIX}") or _finished(folder, f"*{EXTENSION}")
    if not found:
        raise FormatError(folder, "holds no .safetensors file and no index of shards")
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:5])
        raise UsageError(f"{folder}: holds several checkpoints ({names})", hint="name one of them")
    return found[0]


def _finished(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder that nobody is writing."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith(TEMPORARY))


def read_index(path: Path) -> dict[str, str]:
    """Which shard holds which tensor.

    Raises
    ------
    FormatError
        No valid index, or one that names files outside its folder.
    """
    file = MappedFile(path)
    try:
        if file.size > _MAX_INDEX_BYTES:
            raise FormatError(path, f"index of {file.size} bytes, more than {_MAX_INDEX_BYTES}")
        table = strict_json(path, utf8(file, 0, file.size))
    finally:
        file.close()
    homes = table.get("weight_map")
    if not isinstance(homes, dict) or not homes:
        raise FormatError(path, "an index of shards without weight_map")
    plain: set[str] = set()
    for name, shard in homes.items():
        if not isinstance(shard, str) or not (shard in plain or _is_plain_name(shard)):
            raise FormatError(path, f"tensor {name!r} lies in {shard!r}, which is no file name")
        plain.add(shard)
    return homes


def _is_plain_name(name: str) -> bool:
    """Whether a name stays in its folder on every system."""
    return (
        name.endswith(EXTENSION)
        and len(name.encode()) <= _MAX_NAME_BYTES
        and "\0" not in name
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )
