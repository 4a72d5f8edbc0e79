"""Views over a mapped file, and how long they live."""

from __future__ import annotations

import gc
import mmap
import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest

from ckptkit.base.checksums import crc32
from ckptkit.base.errors import FormatError, NotFoundError
from ckptkit.base.tensors import DTYPES
from ckptkit.formats import mapped_file
from ckptkit.formats.mapped_file import MappedFile
from tests.support.damage import no_maps

VALUES = np.arange(5000, dtype="<f4")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "x").write_bytes(b"pad" + VALUES.tobytes())
    return tmp_path / "x"


def test_views_are_read_only_and_right(path: Path) -> None:
    file = MappedFile(path)
    view = file.view(3, DTYPES["float32"], (50, 100))
    assert np.array_equal(view, VALUES.reshape(50, 100))
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True


def test_strided_and_empty_views(path: Path) -> None:
    file = MappedFile(path)
    assert file.view(3, DTYPES["float32"], (3, 2), (4, 12)).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert file.view(file.size, DTYPES["float32"], (0, 4)).shape == (0, 4)
    assert file.view(3, DTYPES["float32"], ()).tolist() == 0


def test_views_outlive_close(path: Path) -> None:
    """The map must stay while an array points into it: reading unmapped memory would kill the process."""
    file = MappedFile(path)
    view = file.view(3, DTYPES["float32"], (5000,))[10:20]
    file.close()
    del file
    gc.collect()
    assert view.tolist() == list(range(10, 20))


def test_close_unmaps_without_views(path: Path) -> None:
    file = MappedFile(path)
    view = file.view(3, DTYPES["float32"], (5000,))
    del view
    file.close()
    assert file.data.closed
    file.close()


def test_release_keeps_the_contents(path: Path) -> None:
    file = MappedFile(path)
    view = file.view(3, DTYPES["float32"], (5000,))
    file.release(3, view.nbytes)
    file.release(5, 10)
    assert np.array_equal(view, VALUES)


@pytest.mark.parametrize(("offset", "length"), [(0, 20003), (3, 100), (20003, 0)])
def test_crc32(path: Path, offset: int, length: int) -> None:
    assert MappedFile(path).checksum(crc32, offset, length) == zlib.crc32(
        path.read_bytes()[offset : offset + length]
    )


def test_what_cannot_be_mapped(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match="empty file"):
        MappedFile(tmp_path / "empty")
    with pytest.raises(FormatError, match="folder"):
        MappedFile(tmp_path)
    with pytest.raises(NotFoundError):
        MappedFile(tmp_path / "missing")


@pytest.fixture
def unmapped(path: Path, monkeypatch: pytest.MonkeyPatch) -> MappedFile:
    """The same file where the system has no maps."""
    monkeypatch.setattr(mmap, "mmap", no_maps)
    return MappedFile(path)


def test_without_maps_everything_reads_the_same(
    path: Path, unmapped: MappedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_file, "_WINDOW", 64)
    whole = path.read_bytes()
    data, size = unmapped.data, len(whole)
    assert (len(data), unmapped.size) == (size, size)
    generator = random.Random(3)
    for _ in range(300):
        start, length = generator.randrange(size), generator.choice([0, 1, 2, 63, 64, 65, 128, 1000, size])
        assert data[start : start + length] == whole[start : start + length]
        assert data[start] == whole[start]
        wanted = whole[start : start + generator.randrange(1, 9)]
        stop = min(size, start + length)
        assert data.find(wanted, start, stop) == whole.find(wanted, start, stop)
        assert data.rfind(wanted, max(0, start - 100), stop) == whole.rfind(wanted, max(0, start - 100), stop)
        assert bytes(unmapped.raw(start, stop - start)) == whole[start:stop]
        assert unmapped.checksum(crc32, start, stop - start) == zlib.crc32(whole[start:stop])
    view = unmapped.view(3, DTYPES["float32"], (50, 100))
    assert np.array_equal(view, VALUES.reshape(50, 100)) and not view.flags.writeable
    assert unmapped.view(3, DTYPES["float32"], (3, 2), (4, 12)).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert unmapped.view(3, DTYPES["float32"], (3, 2), (0, 4)).tolist() == [[0, 1]] * 3
    assert unmapped.view(size, DTYPES["float32"], (0, 4)).shape == (0, 4)
    assert unmapped.view(3, DTYPES["float32"], ()).tolist() == 0
    unmapped.release(3, 10_000)
    unmapped.close()
    assert view.sum() == VALUES.sum()
    with pytest.raises(ValueError, match="closed"):
        data[:4000]


def test_without_maps_no_more_is_read_than_asked_for(
    path: Path, unmapped: MappedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, at: asked.append((at, count)) or read(fd, count, at))
    for start in range(0, 4000, 4):
        unmapped.data[start : start + 4]
    assert len(asked) == 1  # numbers of a header, one after the other
    monkeypatch.setattr(mapped_file, "_WINDOW", 64)
    asked.clear()
    assert MappedFile(path).view(2003, DTYPES["float32"], (2000,)).nbytes == 8000
    assert asked == [(2003, 8000)]


def test_a_file_that_becomes_shorter_is_an_error_without_maps(path: Path, unmapped: MappedFile) -> None:
    os.truncate(path, 5000)
    with pytest.raises(FormatError, match="at byte 5000: the file became shorter while it was read"):
        unmapped.view(3, DTYPES["float32"], (5000,))
