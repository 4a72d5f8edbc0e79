"""Checksums against the registry's pin and the record of the first fetch."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import replace

import pytest

from ckptkit.base.errors import StorageError
from ckptkit.compare.verify.checksum import check_checksum
from ckptkit.store.integrity import Promise
from ckptkit.workspace import Located
from tests.support.entries import entry_of

BODY = bytes(range(256)) * 9000
TRUE = hashlib.sha256(BODY).hexdigest()
OTHER = hashlib.sha256(b"another file").hexdigest()


@contextmanager
def silent(_description, _total):
    yield lambda _steps: None


@pytest.fixture
def artefact(tmp_path):
    path = tmp_path / "moat.tar.gz"
    path.write_bytes(BODY)
    return path


@pytest.mark.parametrize(
    ("pinned", "size", "recorded", "expected"),
    [
        (TRUE, len(BODY), TRUE, ("ok", f"sha256 {TRUE}, {len(BODY):,} bytes: as pinned in the registry")),
        (TRUE, None, None, ("ok", "as pinned in the registry")),
        (None, None, TRUE, ("ok", "as first fetched (no checksum is published for it")),
        (None, None, None, ("skipped", "no record of its fetch")),
        (OTHER, None, TRUE, ("failed", f"sha256 is {TRUE}, but the registry says {OTHER}")),
        (
            TRUE,
            len(BODY) + 1,
            TRUE,
            ("failed", f"{len(BODY):,} bytes, but the registry says {len(BODY) + 1:,}"),
        ),
        (None, None, OTHER, ("failed", f"sha256 is {TRUE}, but at its first fetch it was {OTHER}")),
        (TRUE, None, OTHER, ("failed", f"at its first fetch it was {OTHER}")),
    ],
)
def test_artefact_against_pin_and_record(artefact, pinned, size, recorded, expected):
    status, says = expected
    entry = entry_of("https://a.org/moat.tar.gz", sha256=pinned, size=size)
    check = check_checksum(Located(artefact, entry, artefact, recorded), silent)
    assert check.status == status
    assert says in "\n".join((check.detail, *check.items))


LOCK = Promise("sha256", TRUE, "the lock file /home/me/ckptkit.lock (seen 2026-01-02)")


@pytest.mark.parametrize(
    ("pinned", "trusted", "hashes", "expected"),
    [
        (TRUE, LOCK, (), ("ok", "as pinned in the registry")),
        (
            TRUE,
            LOCK,
            ("crc32c", "md5"),
            ("ok", "as pinned in the registry; the server's crc32c and md5 held"),
        ),
        (
            None,
            LOCK,
            (),
            ("ok", "on trust; remembered in the lock file /home/me/ckptkit.lock (seen 2026-01-02))"),
        ),
        (None, LOCK, ("md5",), ("ok", "(seen 2026-01-02); the server's md5 held)")),
        (None, None, ("md5",), ("ok", "taken on trust; the server's md5 held)")),
        (
            None,
            replace(LOCK, value=OTHER),
            (),
            (
                "failed",
                f"sha256 is {TRUE}, but the lock file /home/me/ckptkit.lock (seen 2026-01-02) says {OTHER}",
            ),
        ),
        (TRUE, replace(LOCK, value=OTHER), (), ("ok", "as pinned in the registry")),
    ],
)
def test_where_the_checksum_comes_from_is_said(artefact, pinned, trusted, hashes, expected):
    status, says = expected
    entry = entry_of("https://a.org/moat.tar.gz", sha256=pinned)
    check = check_checksum(Located(artefact, entry, artefact, TRUE, trusted, hashes), silent)
    assert check.status == status
    assert says in "\n".join((check.detail, *check.items))


def test_the_published_file_is_hashed_not_what_was_unpacked_from_it(artefact, tmp_path):
    unpacked = tmp_path / "model.ckpt.index"
    unpacked.write_bytes(b"something else")
    entry = entry_of("https://a.org/moat.tar.gz", sha256=TRUE)
    assert check_checksum(Located(unpacked, entry, artefact, TRUE), silent).status == "ok"


def test_a_file_of_ones_own_is_hashed_and_shown(artefact):
    check = check_checksum(Located(artefact), silent)
    assert check.status == "skipped"
    assert TRUE in check.detail


def test_a_prefix_of_several_files_has_no_checksum(artefact):
    check = check_checksum(Located(artefact.parent / "model.ckpt"), silent)
    assert check.status == "skipped"
    assert "several files" in check.detail


def test_every_byte_is_shown_as_progress(artefact):
    shown = []

    @contextmanager
    def display(description, total):
        shown.append((description, total))
        yield shown.append

    check_checksum(Located(artefact), display)
    assert shown[0] == ("hashing moat.tar.gz", len(BODY))
    assert sum(shown[1:]) == len(BODY)


def test_an_artefact_that_went_away_is_named(tmp_path):
    gone = tmp_path / "gone.tar.gz"
    with pytest.raises(StorageError, match=r"gone\.tar\.gz"):
        check_checksum(Located(gone, entry_of("https://a.org/x"), gone, TRUE), silent)
