"""A picture from a real server with real faults."""

from __future__ import annotations

import gzip
import shutil
import subprocess

import pytest

from ckptkit.base.errors import FormatError, NetworkError, NotFoundError
from ckptkit.base.net import Policy
from ckptkit.models.images.downloading import download_picture
from tests.support.http_server import FaultServer, chunked, cut, header, redirect, reset, stall, status, whole

BODY = bytes(range(256)) * 1000


@pytest.fixture
def server():
    with FaultServer() as running:
        yield running


def fetch(url, **options):
    waits: list[float] = []
    policy = Policy(read_timeout=0.5, retries=2, sleep=waits.append, backoff=0.25, chance=lambda: 0.0)
    return download_picture(url, name="cat", policy=policy, **options), waits


def test_whole_and_with_progress(server):
    seen = []

    class Shown:
        def __init__(self, description, total):
            seen.append((description, total))

        def __enter__(self):
            return seen.append

        def __exit__(self, *_):
            return None

    content, waits = fetch(server.serve("/cat.png", BODY), progress=Shown)
    assert (content, waits) == (BODY, [])
    assert seen[0] == ("fetching cat", len(BODY))
    assert sum(seen[1:]) == len(BODY)
    assert [request.headers.get("range") for request in server.requests] == [None]


@pytest.mark.parametrize(
    "fault", [cut(100_000), reset(100_000), stall(100_000), status(503), chunked(ends=False)]
)
def test_a_fault_that_passes_is_borne(server, fault):
    url = server.serve("/cat.png", BODY)
    server.fail("/cat.png", fault, fault)
    content, waits = fetch(url)
    assert content == BODY
    assert waits == [0.25, 0.5]


def test_one_that_stays_is_told(server):
    url = server.serve("/cat.png", BODY)
    server.fail("/cat.png", *[cut(1000)] * 3)
    with pytest.raises(NetworkError, match=r"cat: the connection broke after .* try again later"):
        fetch(url)
    assert len(server.requests) == 3


def test_retry_after_is_obeyed(server):
    url = server.serve("/cat.png", BODY)
    server.fail("/cat.png", status(429, ("Retry-After", "7")))
    assert fetch(url) == (BODY, [7.0])


@pytest.mark.parametrize(
    ("code", "kind"), [(404, NotFoundError), (410, NotFoundError), (403, NetworkError), (418, NetworkError)]
)
def test_refusals_are_not_repeated(server, code, kind):
    server.fail("/cat.png", status(code))
    with pytest.raises(kind, match=f"cat: {code}"):
        fetch(server.url("/cat.png"))
    assert len(server.requests) == 1


def test_redirects_are_followed_but_not_anywhere(server):
    server.serve("/real.png", BODY)
    server.fail("/cat.png", redirect("/real.png"), redirect("file:///etc/passwd"))
    assert fetch(server.url("/cat.png"))[0] == BODY
    with pytest.raises(NetworkError, match="which is not followed"):
        fetch(server.url("/cat.png"))


def test_a_server_whose_certificate_nobody_vouches_for_is_refused(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    pem = tmp_path / "both.pem"
    made = subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext "
        f"subjectAltName=IP:127.0.0.1 -keyout {pem} -out {tmp_path / 'certificate.pem'}".split(),
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("this openssl makes no such certificate")
    pem.write_bytes(pem.read_bytes() + (tmp_path / "certificate.pem").read_bytes())
    with FaultServer(certificate=pem) as server:
        url = server.serve("/cat.png", BODY)
        with pytest.raises(NetworkError, match="not to be trusted"):
            fetch(url)


class TestSize:
    def test_what_is_too_large_is_refused_before_it_is_read(self, server):
        url = server.serve("/cat.png", BODY)
        server.fail("/cat.png", header("Content-Length", str(10**12)))
        with pytest.raises(FormatError, match="cat: more than 50,000,000 bytes"):
            fetch(url)
        assert fetch(url, most_bytes=len(BODY))[0] == BODY
        with pytest.raises(FormatError, match="cat: more than 255,999 bytes"):
            fetch(url, most_bytes=len(BODY) - 1)

    def test_of_unknown_length_too(self, server):
        url = server.serve("/cat.png", BODY)
        server.fail("/cat.png", chunked(ends=True))
        with pytest.raises(FormatError, match="more than 100,000 bytes"):
            fetch(url, most_bytes=100_000)

    def test_packed_small_and_unpacked_large_too(self, server):
        packed = gzip.compress(bytes(300_000))
        assert len(packed) < 1000
        server.fail("/cat.png", whole(packed, ("Content-Encoding", "gzip")))
        with pytest.raises(FormatError, match="more than 200,000 bytes"):
            fetch(server.url("/cat.png"), most_bytes=200_000)


def test_a_coding_is_taken_off(server):
    server.fail("/cat.png", whole(gzip.compress(BODY), ("Content-Encoding", "gzip")))
    assert fetch(server.url("/cat.png"))[0] == BODY


def test_files_of_this_machine(tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(BODY)
    assert fetch(path.as_uri())[0] == BODY
    with pytest.raises(NotFoundError, match="cat: no such file"):
        fetch((tmp_path / "none.png").as_uri())
    with pytest.raises(FormatError, match="cat: not a regular file"):
        fetch(tmp_path.as_uri())
