"""A gzip coding on top of a file: taken off, or left where it is the file itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckptkit.base.errors import IntegrityError, NetworkError
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import entry_of, random_bytes, tar_gz
from tests.support.http_server import (
    Answer,
    FaultServer,
    Request,
    goog_hash,
    gzipped,
    header,
    md5_of,
)

BODY = random_bytes(300_000)
OTHER = random_bytes(300_000, seed=2)
PATH = "/x/model.pth"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/m.pth", b"weights " * 50_000),
        ("/m.pth", BODY),
        ("/m.tar.gz", tar_gz({"a/m.index": b"1", "a/m": BODY})),
    ],
)
def test_a_coding_laid_on_top_is_taken_off(server: FaultServer, store: Store, path: str, body: bytes) -> None:
    server.fail(path, gzipped)
    fetched = store.fetch(entry_of(server.serve(path, body)))
    assert fetched.artefact.read_bytes() == body


def test_an_archive_labelled_as_coded_is_left_as_it_is(server: FaultServer, store: Store) -> None:
    body = tar_gz({"a/m.index": b"1", "a/m.data": BODY})
    server.fail("/m.tar.gz", header("Content-Encoding", "x-gzip"))
    fetched = store.fetch(entry_of(server.serve("/m.tar.gz", body, headers=goog_hash(body))))
    assert fetched.artefact.read_bytes() == body


def test_a_damaged_or_unknown_coding(server: FaultServer, store: Store, assert_only: AssertOnly) -> None:
    def torn(request: Request, answer: Answer) -> Answer:
        answer = gzipped(request, answer)
        return replace(answer, body=answer.body[:-30])

    def flipped(request: Request, answer: Answer) -> Answer:
        answer = gzipped(request, answer)
        return replace(answer, body=answer.body[:200_000] + b"\0\0\0\0" + answer.body[200_004:])

    url = server.serve(PATH, BODY)
    server.fail(PATH, torn, flipped)
    store.fetch(entry_of(url))
    assert_only(store, BODY)
    assert server.ranges(PATH) == [None, None, None]
    server.fail(PATH, header("Content-Encoding", "br"))
    with pytest.raises(NetworkError, match="packs the file as 'br'"):
        store.fetch(entry_of(url), force=True)
    assert_only(store, BODY)


@pytest.mark.parametrize(
    "value",
    [
        "aws-chunked",
        "aws-chunked,",
        "utf-8",
        "UTF-8",
        "binary",
        "none",
        "identity",
        "identity, identity",
        "8bit",
    ],
)
def test_a_value_that_packs_nothing_changes_nothing(
    server: FaultServer, store: Store, assert_only: AssertOnly, value: str
) -> None:
    server.fail(PATH, lambda r, a: replace(a.with_header("Content-Encoding", value), cut=100_000))
    server.fail(PATH, header("Content-Encoding", value))
    store.fetch(entry_of(server.serve(PATH, BODY)))
    assert_only(store, BODY)
    assert server.ranges(PATH) == [None, 100_000]


def test_what_a_store_adds_to_gzip_is_no_coding(server: FaultServer, store: Store) -> None:
    server.fail(PATH, lambda r, a: gzipped(r, a).with_header("Content-Encoding", "aws-chunked,gzip"))
    assert store.fetch(entry_of(server.serve(PATH, BODY))).artefact.read_bytes() == BODY


@pytest.mark.parametrize("value", ["gzip, gzip", "deflate", "aws-chunked, zstd", "br, gzip", "compress"])
def test_codings_that_are_not_taken_off_are_refused(server: FaultServer, store: Store, value: str) -> None:
    server.fail(PATH, header("Content-Encoding", value))
    packed = value.removeprefix("aws-chunked, ")
    with pytest.raises(NetworkError, match=f"packs the file as '{packed}', although asked not to"):
        store.fetch(entry_of(server.serve(PATH, BODY)))
    assert store.files == []


def test_a_coded_body_is_compared_with_its_own_checksum(server: FaultServer, store: Store) -> None:
    def fault(request: Request, answer: Answer) -> Answer:
        return gzipped(request, answer).with_header("x-goog-hash", f"md5={md5_of(b'something else')}")

    server.fail(PATH, fault)
    with pytest.raises(IntegrityError, match="x-goog-hash"):
        store.fetch(entry_of(server.serve(PATH, BODY)))
    assert store.files == [] and store.leftovers() == []
