"""Attributes of HDF5 objects as h5py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import FormatError
from ckptkit.formats.hdf5_attributes import Attributes
from ckptkit.formats.hdf5_bytes import Hdf5Bytes
from ckptkit.formats.hdf5_objects import Objects
from ckptkit.formats.mapped_file import MappedFile
from tests.support.hdf5_files import h5py, keras_file


def attributes_of_root(path: Path, method: str = "of") -> dict[str, Any]:
    source = Hdf5Bytes(MappedFile(path))
    objects = Objects(source)
    return dict(getattr(Attributes(source), method)(objects.header(objects.root)))


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


@pytest.mark.parametrize("count", [9, 500])
def test_attributes_in_a_heap(tmp_path: Path, count: int) -> None:
    """More than eight, or long ones, where their order is tracked."""
    wanted = {f"a{i}": f"text {i} " * (i % 7) ** 4 for i in range(count)}
    path = keras_file(tmp_path / "m.h5", lambda f: f.attrs.update(wanted), track_order=True)
    assert attributes_of_root(path) == wanted


def test_whole_numbers(tmp_path: Path) -> None:
    values = {"a": np.int64(-7), "b": np.uint8(200), "c": np.array(300, ">i2"), "d": "8", "e": [9], "f": 1.0}
    path = keras_file(tmp_path / "m.h5", lambda f: f.attrs.update(values))
    objects = Objects(Hdf5Bytes(MappedFile(path)))
    attributes, root = Attributes(objects.source), objects.header(objects.root)
    found = {name: attributes.number(root, name) for name in [*values, "gone"]}
    assert found == {"a": -7, "b": 200, "c": 300, "d": None, "e": None, "f": None, "gone": None}


LISTS: dict[str, tuple[Any, tuple[str, ...] | None]] = {
    "one text": ("hällo", ("hällo",)),
    "any length": ([b"a", b"", "dü".encode()], ("a", "", "dü")),
    "fixed length": (np.array([b"a", b"", b"abc"]), ("a", "", "abc")),
    "no elements": ([], ()),
    "null": (h5py.Empty("S3"), ()),
    "table": (np.array([[b"a"]]), None),
    "not all UTF-8": (np.array([b"a", b"\xff"]), None),
    "numbers": ([1, 2], None),
    "too long": ("x" * 1_100_000, None),
}


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_texts(tmp_path: Path, kind: str, libver: str) -> None:
    value, expected = LISTS[kind]
    path = keras_file(tmp_path / "m.h5", lambda f: f.attrs.__setitem__("list", value), libver=libver)
    assert attributes_of_root(path, "texts") == {"list": expected}


def test_two_attributes_of_one_name(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.h5", lambda f: f.attrs.update({"name_1": 1, "name_2": 2}))
    raw = path.read_bytes()
    assert raw.count(b"name_2") == 1
    path.write_bytes(raw.replace(b"name_2", b"name_1"))
    with pytest.raises(FormatError, match="two attributes 'name_1'"):
        attributes_of_root(path)
