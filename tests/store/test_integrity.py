"""Checksums against published check values, and every dialect of promise."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from ckptkit.base.errors import IntegrityError, StorageError
from ckptkit.store.expected import (
    Digests,
    ExpectedChecksum,
    StreamHasher,
    compare,
    hash_file,
    redirect_checksums,
    server_checksums,
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
