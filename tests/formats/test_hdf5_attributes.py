"""Attributes of HDF5 objects as h5py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.formats.hdf5_attributes import Attributes
from ckptkit.formats.hdf5_bytes import Hdf5Bytes
from ckptkit.formats.hdf5_objects import Objects
from ckptkit.formats.mapped_file import MappedFile
from tests.support.hdf5_files import h5py, keras_file


def attributes_of_root(path: Path) -> dict[str, str | None]:
    source = Hdf5Bytes(MappedFile(path))
    objects = Objects(source)
    return Attributes(source).of(objects.header(objects.root))


VALUES: dict[str, tuple[Any, str | None]] = {
    "text": ("hällo", "hällo"),
    "long": ("x" * 50_000, "x" * 50_000),
    "empty text": ("", ""),
    "bytes": (np.bytes_(b"abc"), "abc"),
    "padded bytes": (np.array(b"abc", "S8"), "abc"),
    "one in a list": (["abc"], "abc"),
    "bytes that are no text": (np.bytes_(b"\xff\xfe"), None),
    "several": (["a", "b"], None),
    "number": (7, None),
    "array": (np.ones((3, 4)), None),
    "nothing": (h5py.Empty("f4"), None),
}


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("kind", VALUES)
def test_single_texts_are_read_and_everything_else_is_named(tmp_path: Path, kind: str, libver: str) -> None:
    value, expected = VALUES[kind]
    path = keras_file(tmp_path / "m.h5", lambda f: f.attrs.__setitem__("näme", value), libver=libver)
    assert attributes_of_root(path) == {"näme": expected}


def test_many_texts_in_one_collection(tmp_path: Path) -> None:
    path = keras_file(
        tmp_path / "m.h5", lambda f: [f.attrs.__setitem__(f"a{i}", f"text {i}") for i in range(40)]
    )
    assert attributes_of_root(path) == {f"a{i}": f"text {i}" for i in range(40)}
