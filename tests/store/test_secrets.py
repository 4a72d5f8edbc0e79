"""No password in anything that is written or said, however it was given: a grep over all of it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from ckptkit.base.net import Policy
from ckptkit.base.urls import Url, full_url, public_url, scrubbed
from ckptkit.registry.schema import Source
from ckptkit.store.cache import Home, Record, read_record
from tests.store.conftest import Store
from tests.support.commands import Runner, runner
from tests.support.entries import entry_of
from tests.support.http_server import Fault, FaultServer, redirect, status, whole
from tests.support.running import registry_file
from tests.support.torch_files import TENSOR, table, write_zip
from tests.support.torch_files import whole as pickled

SECRETS = ["p%40ssw0rd", "p@ssw0rd", "p%40ss", "TOKEN1", "TOKEN2", "TOKEN3", "TOKEN4", "TOKEN5", "hf_SECRET",
           "gh_SECRET", "NETRCPW", "PROXYPW"]  # fmt: skip
QUERY = "token=TOKEN1&X-Amz-Signature=TOKEN2&sig=TOKEN3&access_token=TOKEN4&unheard_of=TOKEN5&download=1"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(capsys)


def with_secrets(url: str) -> str:
    """The URL with a login whose password is percent-encoded, and tokens in its query."""
    return f"{url.replace('http://', 'http://me:p%40ssw0rd@')}?{QUERY}"


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FaultServer) -> Path:
    """A registry and an environment with secrets of every kind; gives the registry."""
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1:{server.port} login me password NETRCPW\n")
    (tmp_path / "netrc").chmod(0o600)
    for name, value in {
        "NETRC": str(tmp_path / "netrc"),
        "HF_TOKEN": "hf_SECRET",
        "GITHUB_TOKEN": "gh_SECRET",
        "http_proxy": "http://me:PROXYPW@127.0.0.1:1",
        "AWS_SECRET_ACCESS_KEY": "TOKEN5",
        "CKPTKIT_MIRROR": f"https://mirrored.invalid={with_secrets(server.url('/mirror')).partition('?')[0]}",
    }.items():
        monkeypatch.setenv(name, value)
    body = write_zip(tmp_path / "body.pth", pickled(table(weight=TENSOR))).read_bytes()
    server.serve("/model.pth", body)
    server.serve("/mirror/model.pth", body)
    pin = {
        "sha256": hashlib.sha256(body).hexdigest(),
        "hash_provenance": {
            "observed_at": "2026-01-02T03:04:05Z",
            "url": with_secrets(server.url("/model.pth")),
        },
        "format": "torch",
        "layout": "torch",
    }
    server.serve("/log.csv", b"epoch,train_loss,eval_top1\n0,1.5,50.0\n1,1.2,60.0\n")
    entry = {
        **pin,
        "id": "secret-entry",
        "sources": [
            {"url": with_secrets(server.url("/model.pth"))},
            {"url": with_secrets(server.url("/b.pth"))},
        ],
        "log_url": with_secrets(server.url("/log.csv")),
        "config_url": with_secrets(server.url("/config.py")),
    }
    published = f"https://mirrored.invalid/model.pth?{QUERY}"
    mirrored = {**pin, "id": "mirrored-entry", "sources": [{"url": published}]}
    return registry_file(tmp_path, entry, mirrored)


def found_in(folder: Path, *texts: str) -> list[tuple[str, str]]:
    """Secrets in the files below a folder, in their names, and in texts."""
    here = [(str(path), path.read_bytes()) for path in folder.rglob("*") if path.is_file()]
    here += [("said", text.encode()) for text in texts]
    return [
        (name, secret)
        for name, content in here
        for secret in SECRETS
        if secret.encode() in content or secret in name
    ]


WORDS = [
    ["fetch", "secret-entry", "--dry-run"], ["fetch", "secret-entry", "--dry-run", "--json"],
    ["fetch", "secret-entry"], ["fetch", "secret-entry", "--json"], ["fetch", "mirrored-entry", "--json"],
    ["fetch", "secret-entry", "--force", "-j", "3"], ["show", "secret-entry"],
    ["show", "secret-entry", "--json"], ["list", "--json"], ["list", "--format", "csv"],
    ["list", "--format", "markdown"], ["list", "--format", "html"],
    ["list", "--columns", "id,url,log,config"],
    ["logs", "secret-entry"], ["logs", "secret-entry", "--json"], ["logs", "secret-entry", "--format", "csv"],
    ["verify", "secret-entry"], ["verify", "secret-entry", "--json"], ["inspect", "secret-entry", "--json"],
    ["convert", "secret-entry", "--layout", "as-is", "--to", "safetensors", "-o", "made.safetensors"],
    ["inspect", "made.safetensors", "--json"], ["export", "secret-entry", "--to", "hf", "-o", "made"],
    ["cache", "ls", "--json"], ["cache", "verify", "--json"], ["cache", "path", "secret-entry"],
    ["registry", "pin", "secret-entry", "--dry-run"],
    ["registry", "add", "added", "http://me:p%40ssw0rd@a.org/x.pth?token=TOKEN1", "--variant", "tiny-moat0",
     "--layout", "torch", "--format", "torch", "--dry-run"], ["registry", "validate"],
    ["doctor", "--offline", "--json"],
    ["plot", "-o", "made.svg"], ["plot", "-o", "made.html"],
    ["fetch", "secret-entry", "--mirror", "nonsense://me:p%40ssw0rd@a.org"],
    ["predict", "secret-entry", "http://me:p%40ssw0rd@127.0.0.1:1/cat.jpg?token=TOKEN1"],
    ["convert", "secret-entry", "-o", "s3://me:p%40ssw0rd@bucket/x.pth"],
    ["convert", "http://me:p%40ssw0rd@127.0.0.1:1/x.pth?token=TOKEN1"],
]  # fmt: skip


def test_a_run_with_credentials_writes_and_says_none_of_them(
    secrets: Path, server: FaultServer, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name in ("TMPDIR", "CKPTKIT_TRUST"):
        (work / name).mkdir()
        monkeypatch.setenv(name, str(work / name / ("lock" if name == "CKPTKIT_TRUST" else "")))
    for number, words in enumerate(WORDS):
        result = run("--registry", secrets, *(["--verbose"] if number % 2 else []), *words)
        leaks = found_in(work, result.out, result.err) + found_in(Home.default().path)
        assert leaks == [], (words, leaks)
    sent = [request for request in server.requests if request.path in ("/model.pth", "/log.csv")]
    assert sent and all("TOKEN3" in request.target for request in sent)
    assert all(request.headers["authorization"].startswith("Basic ") for request in sent)
    assert read_record(Home.default().artefact_folder("secret-entry") / "model.pth.json") is not None
    assert not any(part in os.environ["TMPDIR"] for part in SECRETS)


@pytest.mark.parametrize(
    "fault",
    [
        status(404), status(401), status(403), status(500), redirect("http://me:TOKEN1@a.org/x?sig=TOKEN2"),
        redirect("ftp://me:TOKEN1@a.org/"), redirect("https://[TOKEN1@"), redirect("//me:TOKEN1@a.org:x/"),
        whole(b"<html>"), whole(b'{"url": "x"}'), status(503, ("Retry-After", "9999")),
    ],
)  # fmt: skip
def test_no_failure_says_them(
    fault: Fault, secrets: Path, server: FaultServer, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "wait", lambda *_: 0.0)
    for path in ("/model.pth", "/b.pth"):
        server.fail(path, *[fault] * 12)
    result = run("--registry", secrets, "--verbose", "fetch", "secret-entry")
    assert result.code in (4, 5)
    assert found_in(Home.default().path, result.out, result.err) == []


@pytest.mark.usefixtures("secrets")
def test_nobody_there_and_no_such_host(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "wait", lambda *_: 0.0)
    for place in ("127.0.0.1:1", "no-such-host.invalid", "[::1]:1", "127.0.0.1:99999", "x" * 300):
        url = f"http://me:p%40ssw0rd@{place}/m.pth?{QUERY}"
        folder = tmp_path / "registries" / str(len(place))
        folder.mkdir(parents=True)
        registry = registry_file(folder, {"id": "secret-entry", "sources": [{"url": url}]})
        result = run("--registry", registry, "--verbose", "fetch", "secret-entry")
        assert result.code in (4, 5) and found_in(Home.default().path, result.out, result.err) == []


def test_a_registry_that_does_not_load_says_none(run: Runner, tmp_path: Path) -> None:
    for url in ("http://me:p%40ssw0rd@a.org/x y", "gopher://me:p%40ssw0rd@a.org/x?token=TOKEN1",
                "http://me:p%40ssw0rd", "http://me:p%40ssw0rd@[::1/" + "x" * 500):  # fmt: skip
        folder = tmp_path / str(len(url))
        folder.mkdir()
        registry = registry_file(folder, {"id": "secret-entry", "sources": [{"url": url}]})
        result = run("--registry", registry, "--verbose", "list")
        assert found_in(Home.default().path, result.out, result.err) == [], url


def test_a_record_of_an_older_version_is_shown_without(store: Store) -> None:
    text = Record("m", "https://me:p%40ss@a.org/m.pth", "m.pth", 3, "0" * 64, "2026-01-01").to_json()
    record = Record.from_json(text)
    assert record is not None and record.url == "https://a.org/m.pth"


def test_a_log_is_found_again_whatever_its_token_is(secrets: Path, server: FaultServer, run: Runner) -> None:
    assert run("--registry", secrets, "logs", "secret-entry").code == 0
    secrets.write_text(secrets.read_text().replace("TOKEN3", "TOKEN6"))
    assert run("--registry", secrets, "logs", "secret-entry").code == 0
    assert len([request for request in server.requests if request.path == "/log.csv"]) == 1


def test_the_whole_url_is_kept_for_the_request() -> None:
    source = Source(url="https://me:p%40ss@a.org/m.pth?token=TOKEN1")
    assert str(source.url) == source.model_dump(mode="json")["url"] == "https://a.org/m.pth"
    assert (
        full_url(source.url)
        == full_url(source.model_copy().url)
        == "https://me:p%40ss@a.org/m.pth?token=TOKEN1"
    )
    assert "TOKEN1" not in f"{source!r} {source.url!r} {json.dumps(source.model_dump())}"
    assert full_url(Url(source.url)) == full_url(source.url) and hash(source.url) == hash(
        "https://a.org/m.pth"
    )
    entry = entry_of("https://me:p%40ss@a.org/m.pth")
    assert "p%40ss" not in repr(entry) + entry.model_dump_json()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://a.org:8443/m.pth", "https://a.org:8443/m.pth"),
        ("https://a.org/m.pth?id=7&download=1", "https://a.org/m.pth?id=7&download=1"),
        ("https://me@a.org/", "https://a.org/"),
        ("https://a.org/#token=x", "https://a.org/"),
        ("https://a.org/m.pth?&id=7&KEY=x", "https://a.org/m.pth?id=7"),
        ("file:///srv/a%20b.pth", "file:///srv/a%20b.pth"),
        ("http://me:x@[::1]:80/m", "http://[::1]:80/m"),
        ("http://me:x@[::1/m?a=b", "http://[::1/m"),
        ("http://me:se/cr?e#t@a.org/x", "http://a.org/x"),
        ("https://a.org:80/x@y:z@", "https://a.org:80/x@y:z@"),
        ("https://a.org/m;token=x/n;v=2", "https://a.org/m/n;v=2"),
        ("https://a.org/m?id=7;token=x&v=1%26sig=x", "https://a.org/m"),
    ],
)
def test_what_is_shown_of_a_url(text: str, shown: str) -> None:
    assert public_url(text) == shown == public_url(public_url(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://a.org:443: refused", "at https://a.org:443: refused"),
        ("see https://a.org: it", "see https://a.org: it"),
        ("'http://a.org:80'", "'http://a.org:80'"),
        ("http://me:sec", "http://"),
        ("input='http://me:sec...t@a.org/x'", "input='http://a.org/x'"),
        ("url: /m.pth?token=a&id=7 (x)", "url: /m.pth?token=…&id=7 (x)"),
        ("http://[::1]:80/x is there", "http://[::1]:80/x is there"),
        ("a = b? c=d", "a = b? c=d"),
        ("http://me:se/cret@a.org/x", "http://a.org/x"),
        ("http:me:secret@a.org, https:/me:secret@a.org", "http:a.org, https:/a.org"),
        ("?url=x /r/https%3A%2F%2Fme%3Asec%40a.org", "?url=… /r/https%3A%2F%2Fa.org"),
        ("to http%253A%252F%252Fme%253Asec%2540a.org", "to http%253A%252F%252Fa.org"),
        ("Invalid header value b'Bearer secret'", "Invalid header value b'Bearer …'"),
        (
            "{'Authorization': 'Basic bWU6eA==', 'a': 1} Authorization: Basic bWU6eA==",
            "{'Authorization': 'Basic …', 'a': 1} Authorization: Basic …",
        ),
        ("/m?id=7;token=x", "/m?id=…"),
        ("https://a.org/cb#access_token=x&v=1", "https://a.org/cb#access_token=…&v=1"),
        ("Basic training of a;b=c, layer#a=b, x:y@z", "Basic training of a;b=c, layer#a=b, x:y@z"),
    ],
)
def test_what_is_left_of_the_text_of_others(text: str, shown: str) -> None:
    assert scrubbed(text) == shown


def test_scrubbing_takes_no_more_than_the_text_is_long() -> None:
    import time

    began = time.monotonic()
    for text in (
        "://" * 300_000,
        "://" + "a" * 900_000,
        "?a" * 400_000,
        "://a:" * 200_000,
        "?" + "a=" * 400_000,
    ):
        scrubbed(text)
    assert time.monotonic() - began < 5 and sys.getrecursionlimit()
