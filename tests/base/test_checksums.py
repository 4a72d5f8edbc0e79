"""Checksums against the libraries that everybody knows."""

from __future__ import annotations

import sys
import zlib

import google_crc32c
import numpy as np
import pytest

from ckptkit.base import checksums

DATA = np.random.default_rng(4).integers(0, 256, 1_000_003, np.uint8)
CUTS = [0, 1, 7, 64, 4096, 999_999, len(DATA)]


@pytest.mark.parametrize("cut", CUTS)
def test_in_pieces_as_at_once(cut: int) -> None:
    first, second = DATA[:cut], DATA[cut:]
    assert checksums.crc32(second, checksums.crc32(first)) == zlib.crc32(DATA.tobytes())
    assert checksums.crc32c(second, checksums.crc32c(first)) == google_crc32c.value(DATA.tobytes())


def test_crc32_where_isal_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    checksums._crc32_library.cache_clear()
    try:
        assert checksums.crc32(b"123456789") == 0xCBF43926
        assert checksums._crc32_library() is zlib
    finally:
        checksums._crc32_library.cache_clear()
