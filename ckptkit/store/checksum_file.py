"""Checksums of published files as ``sha256sum`` writes them, made from a lock file and read back.

A line is ``HEX  artefacts/ID/FILE``: the path of the file below the cache folder, so that ``sha256sum -c``
works there without ckptkit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptkit.base.checksums import ExpectedChecksum
from ckptkit.base.errors import FormatError, NotFoundError
from ckptkit.base.files import open_named, storage_error
from ckptkit.store.lockfile import LockEntry

FOLDER = "artefacts"
_MAX_BYTES = 16 << 20
_LINE = re.compile(r"(?P<sha256>[0-9a-fA-F]{64}) [ *](?P<path>[^\\\r\n]+)")


def checksum_lines(entries: Mapping[str, Mapping[str, LockEntry]], ids: Iterable[str]) -> list[str]:
    """What a lock file knows of some entries, a line for each file.

    >>> seen = LockEntry("0f" * 32, 10, "2026-01-02T03:04:05Z", "https://a.org/m.pth")
    >>> checksum_lines({"my-model": {"m.pth": seen}}, ["my-model"])[0][60:]
    '0f0f  artefacts/my-model/m.pth'
    """
    return [
        f"{known.sha256}  {FOLDER}/{id}/{file}" for id in ids for file, known in sorted(entries[id].items())
    ]


@dataclass(frozen=True)
class ChecksumFile:
    """A file of checksums; paths in it may lead to the cache folder, or be names alone."""

    path: Path
    by_path: Mapping[str, str]

    def expected(self, id: str, file: str) -> list[ExpectedChecksum]:
        """What it says of one file of an entry."""
        found = {
            sha256
            for path, sha256 in self.by_path.items()
            if path in (file, f"{id}/{file}") or path.endswith(f"/{id}/{file}")
        }
        return [ExpectedChecksum("sha256", sha256, str(self.path)) for sha256 in sorted(found)]


def read_checksums(path: Path) -> ChecksumFile:
    """Read a file that ``sha256sum`` wrote, or `checksum_lines`."""
    try:
        with open_named(path) as stream:
            data = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file", hint="check the path") from error
    except OSError as error:
        raise storage_error(error, path) from error
    if len(data) > _MAX_BYTES:
        raise FormatError(path, f"larger than {_MAX_BYTES:,} bytes, too large for a list of checksums")
    by_path: dict[str, str] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        found = _LINE.fullmatch(line)
        if found is None:
            if not line.strip():
                continue
            raise FormatError(path, f"line {number}: not a line of sha256sum: 64 hex digits, blanks, a path")
        name, sha256 = found["path"].removeprefix("./"), found["sha256"].lower()
        if by_path.setdefault(name, sha256) != sha256:
            raise FormatError(path, f"line {number}: another checksum of {name} than before")
    if not by_path:
        raise FormatError(path, "no checksum in it")
    return ChecksumFile(path, by_path)
