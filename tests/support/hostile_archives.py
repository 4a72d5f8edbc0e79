"""Archives that play tricks on whoever reads them: names, overlaps, sizes.

Nothing here uses ckptkit's code.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.torch_files import STORAGE, TENSOR, table, tar_members, text, whole, write_tar, write_zip

GOOD, EVIL = whole(table(w=TENSOR)), whole(table(w=text("evil")))


def _twice(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", GOOD)
        archive.writestr("archive/data.pkl", EVIL)


def _overlapping(path: Path) -> None:
    """Two directory records that lead to one and the same member."""
    write_zip(path, GOOD)
    raw = path.read_bytes()
    record = raw.index(b"PK\x01\x02")
    end = raw.index(b"PK\x05\x06")
    first = raw[record : raw.index(b"PK\x01\x02", record + 4)]
    directory = raw[record:end] + first.replace(b"archive/data.pkl", b"archive/data.pk2")
    path.write_bytes(
        raw[:record]
        + directory
        + raw[end : end + 8]
        + (3).to_bytes(2, "little") * 2
        + len(directory).to_bytes(4, "little")
        + raw[end + 16 :]
    )


def _shifted(path: Path) -> None:
    """A directory that says the pickle starts inside a storage."""
    write_zip(path, GOOD, {"0": STORAGE + EVIL})
    raw = path.read_bytes()
    where = raw.index(b"PK\x01\x02") + 42
    path.write_bytes(raw[:where] + (60).to_bytes(4, "little") + raw[where + 4 :])


def _inflated(path: Path) -> None:
    write_zip(path, whole(text("x" * (64 << 20))), compression=zipfile.ZIP_DEFLATED)


def _doubled_tar(path: Path) -> None:
    write_tar(path, {**tar_members(), "./pickle": EVIL})


def _named(member: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, GOOD)
            archive.writestr("archive/data/0", STORAGE)

    return write


CONTAINERS: dict[str, Callable[[Path], None]] = {
    "data.pkl twice": _twice,
    "entries that overlap": _overlapping,
    "pickle inside a storage": _shifted,
    "pickle that inflates": _inflated,
    "pickle in two folders": lambda path: (
        write_zip(path, GOOD, {"0": STORAGE, "../../other/data.pkl": EVIL}) and None
    ),
    "pickle of an absolute name": _named("/data.pkl"),
    "pickle of a name that climbs": _named("../data.pkl"),
    "pickle with a backslash": _named("archive\\data.pkl"),
    "pickle without a folder": _named("data.pkl"),
    "tar with two pickles": _doubled_tar,
}
