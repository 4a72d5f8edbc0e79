"""What a server does wrong is called by its name, in the error or in a note."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ckptkit.base.errors import NetworkError
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import entry_of, random_bytes
from tests.support.http_server import Answer, Fault, FaultServer, Request, cut, gzipped, header, whole

BODY = random_bytes(100_000)
OTHER = random_bytes(100_000, seed=2)
PATH = "/x/model.pth"
PAGE = b"<!DOCTYPE html><html><body>Sign in</body></html>"
BEGUN = cut(40_000)


def rest_of_another(_request: Request, _answer: Answer) -> Answer:
    span = ("Content-Range", "bytes 40000-99999/100000")
    return Answer(206, (("ETag", '"v2"'), span), OTHER[40_000:])


def cut_gzip(request: Request, answer: Answer) -> Answer:
    packed = gzipped(request, answer)
    return Answer(200, packed.headers, packed.body[:5000])


NAMED: dict[str, tuple[Sequence[Fault], str]] = {
    "short body": ([BEGUN], r"closed after 40,000 of 100,000 bytes, 40,000 bytes kept"),
    "206, wrong range": (
        [BEGUN, header("Content-Range", "bytes 39999-99999/100000")],
        r"sent another part than asked for \(Content-Range: 'bytes 39999-99999/100000', from 40000\)",
    ),
    "206, no range": (
        [BEGUN, lambda _request, answer: answer.without("Content-Range")],
        "sent a part without saying which",
    ),
    "200 to a range request": (
        [BEGUN, whole(BODY, ("ETag", '"v1"'))],
        "answered the range request with the whole file, so it is sent from the beginning again",
    ),
    "ETag changed, 200": (
        [BEGUN, whole(BODY, ("ETag", '"v2"'))],
        "the file's ETag on the server has changed, so it is sent from the beginning again",
    ),
    "ETag changed, 206": (
        [BEGUN, rest_of_another],
        "the file's ETag on the server has changed; beginning again",
    ),
    "generation changed": (
        [
            lambda _request, answer: replace(answer.with_header("x-goog-generation", "1"), cut=40_000),
            whole(BODY, ("ETag", '"v2"'), ("x-goog-generation", "2")),
        ],
        "the file on the server has changed, so it is sent from the beginning again",
    ),
    "gzip on top": ([gzipped], "applies gzip to the file, though asked not to"),
    "gzip on top, cut": ([cut_gzip], "the gzip coding ends early"),
}


@pytest.mark.parametrize("case", NAMED)
def test_a_fault_that_is_overcome_is_named_in_a_note(
    server: FaultServer, store: Store, assert_only: AssertOnly, case: str
) -> None:
    faults, says = NAMED[case]
    server.fail(PATH, *faults)
    store.fetch(entry_of(server.serve(PATH, BODY)))
    assert_only(store, BODY)
    assert any(
        re.search(says, note) and note.startswith(f"127.0.0.1:{server.port}: ") for note in store.notes
    )


def test_no_fault_no_note(server: FaultServer, store: Store) -> None:
    store.fetch(entry_of(server.serve(PATH, BODY)))
    assert store.notes == []


def test_a_page_is_named_in_the_error(server: FaultServer, store: Store) -> None:
    server.fail(PATH, whole(PAGE, ("Content-Type", "text/html")))
    with pytest.raises(NetworkError, match=r"model\.pth: answered with a web page instead of the file"):
        store.fetch(entry_of(server.serve(PATH, BODY)))
    assert store.files == []
