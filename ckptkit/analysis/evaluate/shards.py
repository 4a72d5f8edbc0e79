"""WebDataset shards: tar files whose members share a name a sample, read where they lie.

A sample's files stand under one key: a member's path up to the first dot of its last part; what follows that
dot says what it is (https://github.com/webdataset/webdataset, "The WebDataset Format"). Of each sample the
image (``jpg``, ``png``, ``webp``, …) and its class (``cls``: a decimal index; or ``json``: an object with
``label``) are used. An index is made once by walking from header to header; images are then read by their
offsets, in any order and by several threads, and nothing is unpacked.
"""

from __future__ import annotations

import functools
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ckptkit.analysis.evaluate.folders import class_index
from ckptkit.analysis.evaluate.samples import IMAGE_ENDINGS, ImageSet, Sample, image_set, stamp_of
from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError, NotFoundError, UsageError, storage_error
from ckptkit.base.files import open_regular
from ckptkit.formats.tar_stream import TAR_BLOCK, search_steps, tar_entries

_HEADER_BYTES = 1 << 20
"""More than any member's headers take: whatever asks for more at once is no shard."""
_LABEL_BYTES = 1 << 16
_NAME_BYTES, _BLOCKS_A_NAME = 4 << 20, 8
"""Names are kept: so many bytes of them, and an eighth of the file's size, where each member takes 512."""
_MEMBERS = 10_000_000
_MAX_SHARDS = 100_000
_IMAGES = frozenset(ending.removeprefix(".") for ending in IMAGE_ENDINGS)
_BRACES = re.compile(r"\{([0-9]{1,12})\.\.([0-9]{1,12})\}")
_MOST_BRACES = 50
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


def shard_paths(pattern: str) -> list[Path] | None:
    """Expand a pattern to the paths of shards; None where it is a plain path.

    >>> shard_paths("folder") is None
    True
    """
    if Path(pattern).exists():
        return None
    if (ranges := len(_BRACES.findall(pattern))) > _MOST_BRACES:
        raise UsageError(f"{pattern}: more than {_MOST_BRACES} ranges", hint="write a range for each level")
    if ranges:
        paths = [Path(text) for text in _expanded(pattern)]
        absent = [path for path in paths if not path.is_file()]
        if absent:
            raise NotFoundError(
                f"{pattern}: {len(absent)} of {len(paths)} shards are not there, {absent[0]} first",
                hint="check the range",
            )
        return paths
    if any(sign in pattern for sign in "*?["):
        import glob

        path = Path(pattern)
        if path.parent.is_dir():  # its name may have brackets
            found = sorted(path.parent.glob(path.name))
        else:
            found = sorted(Path(name) for name in glob.glob(pattern))  # noqa: PTH207  # absolute ones too
        if not found:
            raise NotFoundError(f"{pattern}: nothing fits this pattern", hint="check the path")
        return found
    return None


def _expanded(pattern: str) -> list[str]:
    """Every text a pattern of number ranges stands for; numbers keep the first one's width."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < _MAX_SHARDS:
        raise UsageError(
            f"{pattern}: {found[0]} is no range of shards", hint="write it like {000000..000049}"
        )
    heads = [f"{pattern[: found.start()]}{n:0{len(found[1])}d}" for n in range(first, last + 1)]
    tails = _expanded(pattern[found.end() :])
    if len(heads) * len(tails) > _MAX_SHARDS:
        raise UsageError(f"{pattern}: more than {_MAX_SHARDS:,} shards")
    return [head + tail for head in heads for tail in tails]


def read_shards(paths: Sequence[Path], num_classes: int | None, what: str) -> ImageSet:
    """Index shards."""
    names = shard_names(paths)
    samples = [
        sample
        for name, path in zip(names, paths, strict=True)
        for sample in _samples_of(path, name, num_classes)
    ]
    if not samples:
        raise NotFoundError(f"{what}: no images in it", hint="members are called like 0001.jpg, 0001.cls")
    rule = "" if num_classes is None else "classes are those the shards state"
    count = f"{len(paths)} shards, " if len(paths) > 1 else ""
    return image_set(samples, map(stamp_of, paths), f"{count}{what}", rule)


def shard_names(paths: Sequence[Path]) -> list[str]:
    """What to call each shard: its file name where no two share one, else its path."""
    short = [path.name for path in paths]
    return short if len(set(short)) == len(short) else [path.as_posix() for path in paths]


@dataclass
class _Parts:
    """A sample's members, as they are met."""

    image: tuple[int, int] | None = None
    labels: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, path: Path, key: str, ending: str, place: tuple[int, int]) -> None:
        if ending in _IMAGES:
            if self.image is not None:
                raise FormatError(path, f"sample {key} has two images")
            self.image = place
        elif ending in ("cls", "json"):
            self.labels[ending] = place


def _samples_of(path: Path, name: str, num_classes: int | None) -> Iterator[Sample]:
    found: dict[str, _Parts] = {}
    try:
        with open_regular(path) as file:
            names = os.fstat(file.fileno()).st_size // _BLOCKS_A_NAME + _NAME_BYTES
            for member in members(path, file):
                names -= len(member.name)
                if names < 0:
                    raise FormatError(path, "its members' names take more than the images could")
                if member.name.rpartition("/")[2].startswith("."):
                    continue  # what macOS adds
                key, ending = _split(member.name)
                found.setdefault(key, _Parts()).add(path, key, ending, (member.offset_data, member.size))
            for key, parts in found.items():
                if parts.image is not None:
                    label = None if num_classes is None else _label(path, file, key, parts, num_classes)
                    yield Sample(f"{name}/{key}", path, label, *parts.image)
                elif "cls" in parts.labels:
                    raise FormatError(path, f"sample {key} has a class but no image")
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such shard", hint="check the path") from error
    except OSError as error:
        raise storage_error(error, path) from error


def _split(name: str) -> tuple[str, str]:
    """Key and kind of a member.

    >>> _split("val/n01440764.x/0001.seg.PNG")
    ('val/n01440764.x/0001', 'seg.png')
    """
    folder, slash, last = name.rpartition("/")
    key, _, ending = last.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Walk over the files of an uncompressed tar archive from header to header."""
    head = file.read(512)
    kind = next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)
    if kind is not None:
        raise FormatError(
            path, f"compressed with {kind}, so its images cannot be read at random", hint="unpack it to .tar"
        )
    file.seek(0)
    headers = _Headers(path, file)
    for count, member in enumerate(tar_entries(path, headers, errors="surrogateescape")):
        if count == _MEMBERS:
            raise FormatError(path, f"more than {_MEMBERS:,} members")
        if member.isdir():
            continue
        if not member.isfile() or member.issparse():
            what = "a link" if member.issym() or member.islnk() else "no plain file"
            raise FormatError(path, f"member {member.name[:200]!r} is {what}, which is refused")
        yield member


class _Headers:
    """A tar file as `tarfile` reads its headers: never much at once, remembering what came last."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._position = 0
        self._steps = Budget(file.seek(0, os.SEEK_END), functools.partial(FormatError, path))
        self.last_header = b""

    def read(self, size: int, /) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise FormatError(self._path, f"a header of {size:,} bytes", offset=self._position)
        self._file.seek(self._position)
        self.last_header = self._file.read(size)
        self._steps.spend(steps=search_steps(self._path, self.last_header))
        self._position += len(self.last_header)
        return self.last_header

    def seek(self, target: int, /) -> int:
        self._position = target
        return target

    def tell(self) -> int:
        return self._position

    def begin_entry(self) -> None:
        """Nothing to do: what a header may have is bounded in `read`."""

    def begins_again(self) -> bool:
        self._file.seek(self._position)
        while piece := self._file.read(_HEADER_BYTES):
            if rest := piece.lstrip(b"\0"):
                self._position += (len(piece) - len(rest)) // TAR_BLOCK * TAR_BLOCK
                return True
            self._position += len(piece)
        return False


def _label(path: Path, file: BinaryIO, key: str, parts: _Parts, num_classes: int) -> int:
    where = f"{path}: {key}"
    for ending in ("cls", "json"):
        if ending not in parts.labels:
            continue
        offset, size = parts.labels[ending]
        if size > _LABEL_BYTES:
            raise FormatError(where, f"its .{ending} has {size:,} bytes")
        file.seek(offset)
        text = file.read(size)
        if ending == "cls":
            return class_index(text.decode("utf-8-sig", "replace"), num_classes, where)
        return class_index(str(_json_label(text, where)), num_classes, where)
    raise FormatError(where, "an image without a class", hint="it needs a .cls or .json beside it")


def _json_label(text: bytes, where: str) -> object:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(where, "its .json cannot be read") from error
    if not isinstance(found, dict) or "label" not in found:
        raise FormatError(where, "its .json has no label")
    return found["label"]
