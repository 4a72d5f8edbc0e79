"""Checkpoints in shards: an index says which file holds which tensor.

Hugging Face's libraries write ``….safetensors.index.json``, ``….bin.index.json`` and those of ``.msgpack``,
which list tensors; Keras writes ``….weights.json``, which lists the groups of variables, each in one file or
in several (keras/src/saving/saving_lib.py, ShardedH5IOStore).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

from ckptkit.base.budget import Budget
from ckptkit.base.errors import CkptkitError, FormatError
from ckptkit.base.text import counted
from ckptkit.formats.base import Reader
from ckptkit.formats.json_text import strict_json, utf8
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.formats.readers import Relay

EXTENSION = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
KERAS_INDEX, KERAS_SHARD = ".weights.json", ".weights.h5"
TORCH_ENDINGS = (".bin", ".pt", ".pth")
_HUB_ENDINGS = (EXTENSION, *TORCH_ENDINGS, ".msgpack")
INDEX_ENDINGS = (*(f"{ending}.index.json" for ending in (*_HUB_ENDINGS, ".h5")), KERAS_INDEX)
_SHARD_ENDINGS = (*_HUB_ENDINGS, KERAS_SHARD)
_NUMBERED = re.compile(r"-\d{5}-of-(?!00001\b)\d{5}\.(safetensors|bin|pth?|msgpack)$|_\d{5}\.weights\.h5$")
_MAX_INDEX_BYTES = 100_000_000
_MAX_NAME_BYTES = 255  # no common file system takes a longer one
_MAX_SHARDS = 1000


def numbered(name: str) -> bool:
    """Whether a file is called as one of several shards.

    Examples
    --------
    >>> numbered("m-00001-of-00003.safetensors"), numbered("m_00012.weights.h5"), numbered("m.safetensors")
    (True, True, False)
    """
    return _NUMBERED.search(name) is not None


def index_of(name: str) -> str | None:
    """What the index of one of Hugging Face's shards is called; None for other files.

    Examples
    --------
    >>> index_of("model-00001-of-00003.safetensors"), index_of("m_00001.weights.h5")
    ('model.safetensors.index.json', None)
    """
    found = re.fullmatch(r"(.*)-\d{5}-of-(?!00001\b)\d{5}(\.(?:safetensors|bin|pth?|msgpack))", name)
    return f"{found[1]}{found[2]}.index.json" if found else None


def whole_of(name: str) -> str:
    """What a checkpoint in shards would be called as one file, by the name of a shard or of its index.

    Examples
    --------
    >>> whole_of("m-00001-of-00003.bin"), whole_of("m_00001.weights.h5"), whole_of("m.weights.json")
    ('m.bin', 'm.weights.h5', 'm.weights.h5')
    """
    name = re.sub(r"_\d{5}(\.weights\.h5)$", r"\1", index_of(name) or name)
    if name.endswith(KERAS_INDEX):
        return name.removesuffix(KERAS_INDEX) + KERAS_SHARD
    return name.removesuffix(".index.json") if name.endswith(INDEX_ENDINGS) else name


def index_names(name: str) -> list[str]:
    """What the index of a checkpoint of that name may be called; that of Keras is the last.

    Examples
    --------
    >>> index_names("m"), index_names("m.pth")[0], index_names("m.weights.h5")[-1]
    (['m.safetensors.index.json', 'm.bin.index.json', 'm.weights.json'], 'm.pth.index.json', 'm.weights.json')
    """
    names = [f"{name}{ending}.index.json" for ending in ("", EXTENSION, TORCH_ENDINGS[0])]
    names.append(name.removesuffix(KERAS_SHARD) + KERAS_INDEX)
    return [name for name in names if name.endswith(INDEX_ENDINGS)]


def shards_of(index: Path) -> set[str]:
    """Names of the files of an index; none where it is damaged, which opening it will say."""
    try:
        return set(read_index(index))
    except CkptkitError:
        return set()


def index_beside(shard: Path) -> Path | None:
    """The index in the folder of a file that names it."""
    with contextlib.suppress(OSError):  # a folder may be readable only file by file
        for path in sorted(shard.parent.iterdir()):
            if path.name.endswith(INDEX_ENDINGS) and path.is_file() and shard.name in shards_of(path):
                return path
    return None


def read_index(path: Path) -> dict[str, set[str]]:
    """Names of the files, and what each should hold: tensors, or groups of a Keras file."""
    file = MappedFile(path)
    try:
        if file.size > _MAX_INDEX_BYTES:
            raise FormatError(path, f"index of {file.size} bytes, more than {_MAX_INDEX_BYTES}")
        # The name of a shard may be no UTF-8; then it has halves of surrogate pairs, as every path in Python.
        budget = Budget(file.size, lambda reason: FormatError(path, reason))
        table = strict_json(path, utf8(file, 0, file.size), budget, surrogates="surrogateescape")
    finally:
        file.close()
    homes = table.get("weight_map")
    if not isinstance(homes, dict) or not homes:
        raise FormatError(path, "an index of shards without weight_map")
    shards: dict[str, set[str]] = {}
    for name, home in homes.items():
        for shard in home if isinstance(home, list) else [home]:
            if isinstance(shard, str) and shard.removesuffix(KERAS_SHARD).endswith(".h5"):
                raise FormatError(
                    path,
                    "is the index of a TensorFlow model of transformers, in shards",
                    hint="take its safetensors or PyTorch files, or save it again with transformers before 5",
                )
            if not isinstance(shard, str) or not (
                shard in shards or (shard.endswith(_SHARD_ENDINGS) and is_plain_name(shard))
            ):
                raise FormatError(path, f"places {name!r} in {shard!r}, which is not the name of a shard")
            shards.setdefault(shard, set()).add(name)
    if len(shards) > _MAX_SHARDS:
        raise FormatError(path, f"{counted(len(shards), 'shard')}, more than {_MAX_SHARDS}")
    return shards


def is_plain_name(name: str) -> bool:
    """Whether a name stays in its folder on every system."""
    return (
        len(os.fsencode(name)) <= _MAX_NAME_BYTES
        and "\0" not in name
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )


class ShardedReader(Relay):
    """The files that an index names, each opened by ``open_shard``, as one checkpoint."""

    def __init__(self, path: Path, open_shard: Callable[[Path], Reader]) -> None:
        self.path = path
        self._readers: list[Reader] = []
        seen: set[str] = set()
        try:
            for shard, placed in read_index(path).items():
                if not (path.parent / shard).is_file():
                    raise FormatError(path, f"its shard {shard} is missing", hint="fetch the missing file")
                self._readers.append(open_shard(path.parent / shard))
                self._require_exactly(shard, placed, seen)
            super().__init__(self._readers, {})
        except BaseException:
            self.close()
            raise
        self.notes = [f"{reader.path.name}: {note}" for reader in self._readers for note in reader.notes]

    def _require_exactly(self, shard: str, placed: set[str], seen: set[str]) -> None:
        """A shard must hold what the index places there, and nothing else or twice."""
        apart = "its shards do not belong together"
        reader = self._readers[-1]
        if reader.format != self._readers[0].format:
            raise FormatError(self.path, f"{shard} is a {reader.format} file, unlike the others", hint=apart)
        names = reader.specs.keys() | reader.left_out.keys()
        held = {f"/{name.rpartition('/')[0]}" for name in names} if shard.endswith(KERAS_SHARD) else names
        for name in placed ^ held:
            reason = "lacks" if name in placed else "also holds"
            raise FormatError(self.path, f"{shard} {reason} {name!r}", hint=apart)
        for name in names & seen:
            raise FormatError(self.path, f"{shard} holds {name!r} once more", hint=apart)
        seen |= names
