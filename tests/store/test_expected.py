"""Checksums against published check values, and every dialect of promise."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.checksums import Digests, ExpectedChecksum, StreamHasher, compare, hash_file
from ckptkit.base.errors import IntegrityError, StorageError
from ckptkit.base.net import Credentials
from ckptkit.store.expected import Asset, GitHub, redirect_checksums, server_checksums
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import entry_of, random_bytes
from tests.support.http_server import (
    Answer,
    Fault,
    FaultServer,
    Request,
    cut,
    redirect,
    slowly,
    stall,
    status,
    whole,
)

# Of "123456789": the check value of CRC-32C in the catalogues, and what md5sum and sha256sum print.
CRC32C = "e3069283"
MD5 = "25f9e794323b453885f5181f1b624d0b"
SHA256 = "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"


def b64(digest: str) -> str:
    return base64.b64encode(bytes.fromhex(digest)).decode()


@pytest.mark.parametrize("pieces", [[b"123456789"], [b"1", b"", b"2345", b"6789"]])
def test_stream_hasher_does_not_mind_where_the_pieces_end(pieces: list[bytes]) -> None:
    hasher = StreamHasher()
    for piece in pieces:
        hasher.update(piece)
    assert hasher.digests() == Digests(9, SHA256, MD5, CRC32C)


def test_hash_file(tmp_path: Path) -> None:
    path, steps = tmp_path / "x", []
    path.write_bytes(b"123456789")
    assert hash_file(path, advance=steps.append) == Digests(9, SHA256, MD5, CRC32C)
    assert steps == [9]
    with pytest.raises(StorageError, match="gone"):
        hash_file(tmp_path / "gone")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("x-goog-hash", f"crc32c={b64(CRC32C)}")], [("crc32c", CRC32C)]),
        ([("X-Goog-Hash", f"crc32c={b64(CRC32C)},md5={b64(MD5)}")], [("crc32c", CRC32C), ("md5", MD5)]),
        (
            [("x-goog-hash", f"md5={b64(MD5)}"), ("x-goog-hash", f"crc32c={b64(CRC32C)}")],
            [("md5", MD5), ("crc32c", CRC32C)],
        ),
        ([("Content-MD5", b64(MD5))], [("md5", MD5)]),
        ([("x-ms-blob-content-md5", b64(MD5))], [("md5", MD5)]),
        ([("Repr-Digest", f"sha-256=:{b64(SHA256)}:, md5=:{b64(MD5)}:")], [("sha256", SHA256), ("md5", MD5)]),
        ([("repr-digest", f"sha-512=:{b64(SHA256 * 2)}:")], []),
        ([("X-Linked-Etag", f'"{SHA256}"')], [("sha256", SHA256)]),
        ([("X-Linked-Etag", f'W/"{SHA256.upper()}"')], [("sha256", SHA256)]),
        ([("X-Linked-Etag", '"a9993e364706816aba3e25717850c26c9cd0d89d"')], []),  # a git blob's sha1
        ([("ETag", f'"{MD5}"')], []),  # not a promise: multipart and re-encoded objects have others
        ([("x-goog-hash", "crc32c=****")], []),
        ([("x-goog-hash", f"md5={b64(CRC32C)}")], []),
        ([("x-goog-hash", "")], []),
        ([("x-goog-hash", f"sha1={b64(MD5)}")], []),
        ([("Content-MD5", MD5)], []),
    ],
)
def test_server_promises(headers: list[tuple[str, str]], expected: list[tuple[str, str]]) -> None:
    assert [(p.algorithm, p.value) for p in server_checksums(headers)] == expected


def test_content_md5_of_a_part_says_nothing_of_the_whole() -> None:
    headers = [("Content-MD5", b64(MD5)), ("x-goog-hash", f"crc32c={b64(CRC32C)}")]
    assert [p.origin for p in server_checksums(headers, partial=True)] == ["x-goog-hash"]


def test_of_a_redirect_only_the_linked_etag_counts() -> None:
    headers = [("Content-MD5", b64(MD5)), ("x-linked-etag", SHA256)]
    assert redirect_checksums(headers) == (ExpectedChecksum("sha256", SHA256, "x-linked-etag"),)


@pytest.mark.parametrize(("algorithm", "value"), [("sha256", SHA256), ("md5", MD5), ("crc32c", CRC32C)])
def test_compare(algorithm: str, value: str) -> None:
    found = Digests(9, SHA256, MD5, CRC32C)
    compare("f", found, [ExpectedChecksum(algorithm, value, "a")], hint="h")
    wrong = ExpectedChecksum(algorithm, "0" * len(value), "the registry")
    with pytest.raises(IntegrityError) as caught:
        compare("f.pth", found, [ExpectedChecksum(algorithm, value, "a"), wrong], hint="do this")
    assert str(caught.value) == f"f.pth: {algorithm} is {value}, but the registry says {wrong.value}; do this"


# -- GitHub's digests of release assets: asked for, compared with, and never in the way ----------------------


BODY = random_bytes(50_000)
OTHER = random_bytes(50_000, seed=2)
FILE = "/web/o/r/releases/download/v1.0/model.pth"
API = "/api/repos/o/r/releases/tags/v1.0"
PRIVATE = "ghp_aTokenThatNobodyElseMaySee"


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def release(digest: Any, name: str = "model.pth") -> bytes:
    """Answer of the API, with the fields that matter and a neighbour."""
    neighbour = {"name": "model.pth.json", "size": 3, "digest": f"sha256:{sha256(b'another')}"}
    asset = {"name": name, "size": len(BODY), "state": "uploaded", "digest": digest}
    return json.dumps({"tag_name": "v1.0", "assets": [neighbour, asset]}).encode()


@pytest.fixture
def github(server: FaultServer) -> GitHub:
    """Return a GitHub on the test's server, whose address alone may see the token."""
    credentials = Credentials({"GITHUB_TOKEN": PRIVATE, "NETRC": "/dev/null"}, {"127.0.0.1": "GITHUB_TOKEN"})
    return GitHub(server.url("/web"), server.url("/api"), credentials)


@pytest.mark.parametrize(
    ("url", "asset"),
    [
        (
            "https://github.com/Westlake-AI/openmixup/releases/download/moganet-in1k-weights/moga.pth",
            Asset("Westlake-AI", "openmixup", "moganet-in1k-weights", "moga.pth"),
        ),
        ("https://github.com/o/r/releases/download/v%2B1/a%20b.pth?x=1#y", Asset("o", "r", "v+1", "a b.pth")),
        ("https://github.com/o/r/releases/download/a/b/m.pth", Asset("o", "r", "a/b", "m.pth")),
        ("https://github.com/o/r/releases/download/v1/", None),
        ("https://github.com/o/r/releases/download/v1", None),
        ("https://github.com/../r/releases/download/v1/m.pth", None),
        ("https://github.com/o/%2e%2e/releases/download/v1/m.pth", None),
        ("https://github.com/o/r/raw/main/m.pth", None),
        ("https://github.com.evil.org/o/r/releases/download/v1/m.pth", None),
        ("http://github.com/o/r/releases/download/v1/m.pth", None),
        ("https://a.org/https://github.com/o/r/releases/download/v1/m.pth", None),
    ],
)
def test_which_urls_are_release_assets(url: str, asset: Asset | None) -> None:
    assert GitHub().asset(url) == asset


def test_the_digest_is_compared_and_recorded(
    server: FaultServer, store: Store, assert_only: AssertOnly, github: GitHub
) -> None:
    server.serve(API, release(f"sha256:{sha256(BODY)}"))
    fetched = store.fetch(entry_of(server.serve(FILE, BODY)), github=github)
    assert_only(store, BODY)
    assert fetched.record.server_hashes == {"sha256": sha256(BODY)}
    assert [promise.origin for promise in fetched.held] == ["GitHub's API"]
    assert [request.path for request in server.requests] == [FILE, API]
    asked = server.requests[1].headers
    assert asked["accept"] == "application/vnd.github+json" and asked["x-github-api-version"] == "2022-11-28"
    assert store.notes == []


def test_other_bytes_than_the_digest_are_refused(server: FaultServer, store: Store, github: GitHub) -> None:
    server.serve(API, release(f"sha256:{sha256(OTHER)}"))
    with pytest.raises(
        IntegrityError, match=f"sha256 is {sha256(BODY)}, but GitHub's API says {sha256(OTHER)}"
    ):
        store.fetch(entry_of(server.serve(FILE, BODY)), github=github)
    assert store.files == [] and store.leftovers() == []


def test_a_file_joined_from_parts_gets_its_second_chance(
    server: FaultServer, store: Store, assert_only: AssertOnly, github: GitHub
) -> None:
    server.serve(API, release(f"sha256:{sha256(BODY)}"))
    server.fail(FILE, cut(20_000), lambda _request, answer: replace(answer, body=OTHER[20_000:]))
    store.fetch(entry_of(server.serve(FILE, BODY)), github=github)
    assert_only(store, BODY)
    assert [request.path for request in server.requests] == [FILE, FILE, API, FILE]  # asked once


def deep(_request: Request, _answer: Answer) -> Answer:
    return Answer(200, (), b'{"assets":' + b"[" * 200_000)


UNHELPFUL: dict[str, tuple[list[Fault], str]] = {
    "rate limit": (
        [status(403, ("X-RateLimit-Remaining", "0"))],
        "rate limit is used up (403); with GITHUB_",
    ),
    "too many requests": ([status(429)], "rate limit is used up (429)"),
    "token refused": ([status(401)], "refuses GITHUB_TOKEN (401)"),
    "forbidden": ([status(403)], "answered 403"),
    "no release": ([status(404)], "knows no such release (404)"),
    "ill": ([status(502)], "answered 502"),
    "no digest": ([whole(release(None))], "has the file, but no digest of it"),
    "another algorithm": ([whole(release(f"sha512:{sha256(BODY) * 2}"))], "no digest of it"),
    "half a digest": ([whole(release(f"sha256:{sha256(BODY)[:-1]}"))], "no digest of it"),
    "digest a number": ([whole(release(7))], "no digest of it"),
    "another file": ([whole(release(None, "model2.pth"))], "no file of this name"),
    "no assets": ([whole(b'{"assets": null}')], "no file of this name"),
    "a list": ([whole(b"[1]")], "no file of this name"),
    "odd assets": ([whole(b'{"assets": [1, null, {"name": 3}]}')], "no file of this name"),
    "no JSON": ([whole(b"<html>")], "cannot be read"),
    "nested": ([deep], "cannot be read"),
    "cut": ([cut(50)], "cannot be read"),
    "stall": ([stall(50)], "the connection stalled"),
    "elsewhere": ([redirect("https://evil.org/x")], "redirects to another host"),
    "another port": ([redirect("http://127.0.0.1:9/x")], "redirects to another host"),
    "another scheme": ([redirect("file:///etc/passwd")], "redirects to another host"),
    "in a circle": ([redirect(API)] * 9, "redirect loop"),
    "to nowhere": ([redirect("")] * 9, "redirect loop"),
    "no URL": ([redirect("http://[")], "cannot be read"),
}


@pytest.mark.parametrize("case", UNHELPFUL)
def test_no_digest_is_a_note_and_no_error(
    server: FaultServer, store: Store, assert_only: AssertOnly, github: GitHub, case: str
) -> None:
    faults, says = UNHELPFUL[case]
    server.serve(API, release(f"sha256:{sha256(OTHER)}"))
    server.fail(API, *faults)
    fetched = store.fetch(entry_of(server.serve(FILE, BODY)), github=github)
    assert_only(store, BODY)
    assert fetched.record.server_hashes == {} and len(store.notes) == 1
    assert store.notes[0].startswith(f"127.0.0.1:{server.port}: ") and says in store.notes[0]
    assert store.notes[0].endswith("; model.pth is not compared with it") and PRIVATE not in store.notes[0]
    assert len(server.requests) <= 5


def test_an_answer_without_end_is_not_read_to_its_end(
    server: FaultServer,
    store: Store,
    assert_only: AssertOnly,
    github: GitHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = server.serve(FILE, BODY)
    server.fail(API, whole(b" " * (9 << 20)))
    store.fetch(entry_of(url), github=github)
    assert "larger than 8,388,608 bytes" in store.notes[0]
    monkeypatch.setattr("ckptkit.store.expected._MAX_SECONDS", 0.5)
    server.serve(API, b" " * 100_000)
    server.fail(API, slowly(0.2, 2000))
    store.fetch(entry_of(url), github=github, force=True)
    assert "no complete answer within" in store.notes[1]
    assert_only(store, BODY)


def test_nobody_listens(server: FaultServer, store: Store, assert_only: AssertOnly, github: GitHub) -> None:
    away = replace(github, api="http://127.0.0.1:9")
    store.fetch(entry_of(server.serve(FILE, BODY)), github=away)
    assert_only(store, BODY)
    assert store.notes == [
        "127.0.0.1:9: connection failed: Connection refused; model.pth is not compared with it"
    ]


def test_a_renamed_repository_is_followed_on_the_same_host(
    server: FaultServer, store: Store, github: GitHub
) -> None:
    server.serve("/api/repositories/7/releases/tags/v1.0", release(f"sha256:{sha256(BODY)}"))
    server.fail(API, redirect("/api/repositories/7/releases/tags/v1.0", 301))
    record = store.fetch(entry_of(server.serve(FILE, BODY)), github=github).record
    assert record.server_hashes == {"sha256": sha256(BODY)}


def test_the_token_goes_to_the_api_and_no_further(
    server: FaultServer, store: Store, github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = tmp_path / "netrc"
    login.write_text(
        "machine localhost login me password hidden\nmachine 127.0.0.1 login me password hidden\n"
    )
    login.chmod(0o600)
    monkeypatch.setenv("NETRC", str(login))  # requests itself would send this one
    url = server.serve(FILE, BODY)
    with FaultServer() as elsewhere:
        server.fail(API, redirect(elsewhere.serve(API, release(f"sha256:{sha256(BODY)}"))))
        store.fetch(entry_of(url), github=github)
        assert elsewhere.requests == []
        assert server.requests[1].headers["authorization"] == f"Bearer {PRIVATE}"
        other = replace(github, api=f"http://localhost:{elsewhere.port}/api")
        store.fetch(entry_of(url), github=other, force=True)
        assert [request.path for request in elsewhere.requests] == [API]
        assert "authorization" not in elsewhere.requests[0].headers
    assert PRIVATE not in repr(github)
    for path in store.home.path.rglob("*.json"):
        assert PRIVATE not in path.read_text()


@pytest.mark.parametrize("why", ["pinned", "mirror", "offline", "another host"])
def test_nobody_is_asked_without_need(
    server: FaultServer, store: Store, github: GitHub, tmp_path: Path, why: str
) -> None:
    from ckptkit.store.sources import parse_mirrors

    server.serve(API, release(f"sha256:{sha256(OTHER)}"))
    entry, options = entry_of(server.serve(FILE, BODY)), {}
    if why == "pinned":
        entry = entry_of(server.url(FILE), sha256=sha256(BODY))
    elif why == "another host":
        entry = entry_of(server.serve("/model.pth", BODY))
    else:  # who gives a mirror does not want GitHub to be asked, and perhaps cannot ask it
        (tmp_path / "model.pth").write_bytes(BODY)
        folder = server.url(FILE).rpartition("/")[0]
        options = {
            "offline": why == "offline",
            "mirrors": parse_mirrors([f"{folder}={tmp_path.as_uri()}"], ""),
        }
    store.fetch(entry, github=github, **options)
    assert API not in [request.path for request in server.requests]
