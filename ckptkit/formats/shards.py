"""Checkpoints in shards: the index that says which file holds which tensor."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from ckptkit.errors import CkptkitError, FormatError
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.formats.safetensors_header import strict_json, utf8

EXTENSION = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
INDEX_ENDINGS = (INDEX_SUFFIX, ".bin.index.json", ".weights.json")
_SHARD_ENDINGS = (EXTENSION, ".bin", ".pt", ".pth", ".weights.h5")
_NUMBERED = re.compile(r"(-\d{5}-of-\d{5}\.(safetensors|bin|pt|pth)|_\d{5}\.weights\.h5)$")
_MAX_INDEX_BYTES = 100_000_000
_MAX_NAME_BYTES = 255  # no common file system takes a longer one


def numbered(name: str) -> bool:
    """Whether a file is called as one of several shards.

    Examples
    --------
    >>> numbered("m-00001-of-00003.safetensors"), numbered("m_00012.weights.h5"), numbered("m.safetensors")
    (True, True, False)
    """
    return _NUMBERED.search(name) is not None


def shards_of(index: Path) -> set[str]:
    """Names of the files of an index; none where it is damaged, which opening it will say."""
    try:
        return set(read_index(index).values())
    except CkptkitError:
        return set()


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
        # The name of a shard may be no UTF-8; then it has halves of surrogate pairs, as every path in Python.
        table = strict_json(path, utf8(file, 0, file.size), surrogates="surrogateescape")
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
        name.endswith(_SHARD_ENDINGS)
        and len(os.fsencode(name)) <= _MAX_NAME_BYTES
        and "\0" not in name
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )
