"""Checksums that the publisher of a file states: compared with, and what an MD5 alone is good for."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from ckptkit.base.errors import IntegrityError
from ckptkit.cli.store_commands import _checked_by
from tests.store.conftest import Store
from tests.support.entries import entry_of, random_bytes
from tests.support.http_server import FaultServer

BODY = random_bytes(50_000)
OTHER = random_bytes(50_000, seed=2)
PATH = "/x/model.pth"
PAGE = "https://a.org/checksums"


def md5(body: bytes) -> dict[str, Any]:
    return {"md5": hashlib.md5(body).hexdigest(), "checksum_page": PAGE}


def sha256(body: bytes) -> dict[str, Any]:
    value = hashlib.sha256(body).hexdigest()
    return {"sha256": value, "hash_provenance": None, "checksum_page": PAGE, "size": len(body)}


@pytest.mark.parametrize(
    ("stated", "kind"), [(md5, "md5"), (sha256, "sha256"), (lambda body: md5(body) | sha256(body), "sha256")]
)
def test_what_the_publisher_states_is_compared(
    server: FaultServer, store: Store, stated: Any, kind: str
) -> None:
    entry = entry_of(server.serve(PATH, BODY), **stated(BODY))
    fetched = store.fetch(entry)
    assert f"{kind} as the publisher says" in _checked_by(fetched) or "md5 and sha256" in _checked_by(fetched)
    assert not any("md5" in one for one in fetched.record.server_hashes)  # the server stated none
    server.serve(PATH, OTHER)
    with pytest.raises(IntegrityError, match=f"{kind} is .*, but the publisher says .*nothing was kept"):
        store.fetch(entry, force=True, accept_new=True)  # no option overrules it
    assert store.home.record(entry.id) == fetched.record and store.leftovers() == []


def test_an_md5_tells_which_of_two_sources_is_damaged(server: FaultServer, store: Store) -> None:
    bad, good = server.serve("/a/model.pth", OTHER), server.serve("/b/model.pth", BODY)
    assert store.fetch(entry_of(bad, good, **md5(BODY))).record.url == good
    assert any("but the publisher says" in note for note in store.notes)


def test_an_md5_is_no_checksum_known_before(server: FaultServer, store: Store) -> None:
    entry = entry_of(server.serve(PATH, BODY), **md5(BODY))
    with pytest.raises(IntegrityError, match="only its MD5, which can be forged"):
        store.fetch(entry, require_checksum=True)
    assert server.requests == []
    assert store.fetch(entry_of(server.serve(PATH, BODY), **sha256(BODY)), require_checksum=True)


def test_a_file_without_its_record_is_held_against_the_md5(server: FaultServer, store: Store) -> None:
    entry = entry_of(server.serve(PATH, BODY), **md5(BODY))
    artefact = store.fetch(entry).artefact
    artefact.with_name(f"{artefact.name}.json").unlink()
    artefact.write_bytes(OTHER)
    assert not store.fetch(entry).from_cache and artefact.read_bytes() == BODY
    assert any("no sound record, and md5 is" in note for note in store.notes)


def test_an_imported_file_is_held_against_the_md5(store: Store, tmp_path: Any) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(OTHER)
    entry = entry_of("https://a.org/model.pth", **md5(BODY))
    with pytest.raises(IntegrityError, match=r"md5 is .*, but the publisher says"):
        store.import_file(entry, file)
    file.write_bytes(BODY)
    assert store.import_file(entry, file).record.sha256 == hashlib.sha256(BODY).hexdigest()
