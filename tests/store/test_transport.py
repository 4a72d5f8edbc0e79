"""Sources on this disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptkit.base.errors import NetworkError
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import entry_of, random_bytes

BODY = random_bytes(300_000)
OTHER = random_bytes(300_000, seed=2)
PATH = "/x/model.pth"


def test_file_urls(store: Store, tmp_path: Path, assert_only: AssertOnly) -> None:
    source = tmp_path / "with blank" / "model.pth"
    source.parent.mkdir()
    source.write_bytes(BODY)
    store.fetch(entry_of(source.as_uri()), offline=True)
    assert_only(store, BODY)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"<html>"), "web page"),
    ],
)
def test_file_urls_of_other_things(
    store: Store, tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    make(tmp_path / "thing.pth")
    with pytest.raises(NetworkError, match=said):
        store.fetch(entry_of((tmp_path / "thing.pth").as_uri()))
    assert store.files == []
