"""Views over a mapped file, and how long they live."""

from __future__ import annotations

import gc
import zlib
from pathlib import Path

import numpy as np
import pytest

from ckptkit.errors import FormatError, NotFoundError
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.tensors import DTYPES

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
    assert MappedFile(path).crc32(offset, length) == zlib.crc32(path.read_bytes()[offset : offset + length])


def test_what_cannot_be_mapped(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match="empty file"):
        MappedFile(tmp_path / "empty")
    with pytest.raises(FormatError, match="folder"):
        MappedFile(tmp_path)
    with pytest.raises(NotFoundError):
        MappedFile(tmp_path / "missing")
