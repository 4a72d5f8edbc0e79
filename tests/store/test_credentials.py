"""Who gets which credentials: their own host alone, over https or this machine, and nobody by a redirect."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ckptkit.base.errors import NetworkError
from ckptkit.base.net import (
    TOKEN_HOSTS,
    Credentials,
    SourceError,
    checked_redirect,
    is_loopback,
)
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import entry_of, random_bytes
from tests.support.http_server import Answer, Fault, FaultServer, redirect, status

BODY = random_bytes(30_000)
PATH = "/x/model.pth"
TABLE = {"127.0.0.1": "FIRST_TOKEN", "localhost": "SECOND_TOKEN"}
SECRETS = {"FIRST_TOKEN": "first-secret", "SECOND_TOKEN": "second-secret"}


def basic(login: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode()


@pytest.fixture
def login_file(tmp_path: Path) -> Path:
    path = tmp_path / "logins"
    path.write_text(
        "machine a.org login me password a-secret\n"
        "machine 127.0.0.1 login you password 1-secret\n"
        "machine github.com login us password g-secret\n"
        "default login anyone password d-secret\n"
    )
    return path


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://a.org/x", basic("me", "a-secret")),
        ("https://A.org:8443/x", basic("me", "a-secret")),
        ("http://a.org/x", None),
        ("https://b.a.org/x", None),
        ("https://a.org.evil.net/x", None),
        ("https://nobody.net/x", None),  # the default of .netrc is for every host, so for none
        ("http://127.0.0.1:8000/x", basic("you", "1-secret")),
        ("https://github.com/o/r/releases/download/v1/m", "Bearer gh"),  # the token before .netrc
        ("https://api.github.com/repos/o/r", "Bearer gh"),
        ("https://objects.githubusercontent.com/m", None),
        ("https://gist.github.com/m", None),
        ("http://github.com/o", None),
        ("https://huggingface.co/a/b/resolve/main/m", "Bearer hf"),
        ("http://huggingface.co/a", None),
        ("https://cdn-lfs.huggingface.co/a", None),
        ("https://huggingface.co.evil.net/a", None),
        ("https://huggingface.co@evil.net/a", basic("huggingface.co", "")),  # the host is evil.net
        ("https://u:p%40ss@a.org/x", basic("u", "p@ss")),
    ],
)
def test_who_gets_what(login_file: Path, url: str, sent: str | None) -> None:
    environment = {"GITHUB_TOKEN": "gh", "HF_TOKEN": "hf\n", "NETRC": str(login_file)}
    assert Credentials(environment).authorization(url) == sent


@pytest.mark.parametrize("token", ["", " ", "two words", "line\nbreak", "ä", "x" * 5000])
def test_a_token_that_is_none_is_not_sent(token: str) -> None:
    assert (
        Credentials({"HF_TOKEN": token, "NETRC": "/dev/null"}).authorization("https://huggingface.co/")
        is None
    )


@pytest.mark.parametrize("text", [None, "machine", "machine a.org login", "nonsense here", "\x00\xff"])
def test_a_netrc_that_cannot_be_read_says_nothing(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "logins"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    assert Credentials({"NETRC": str(path)}).authorization("https://a.org/") is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_netrc_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"machine a.org login me password x\n" * 100_000)
    for path in (tmp_path / "pipe", tmp_path / "large", Path("/dev/zero"), Path("/dev/full"), tmp_path):
        began = time.process_time()
        assert Credentials({"NETRC": str(path)}).authorization("https://a.org/") is None
        assert time.process_time() - began < 1
    reader, writer = os.pipe()  # as of a shell's <(pass show netrc)
    os.write(writer, b"machine a.org login me password x\n")
    os.close(writer)
    assert Credentials({"NETRC": f"/dev/fd/{reader}"}).authorization("https://a.org/") == basic("me", "x")
    os.close(reader)


def test_the_file_in_the_home_folder(login_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = login_file.parent / "home"
    home.mkdir()
    (home / ".netrc").write_text("machine a.org login me password h-secret")
    (home / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.delenv("NETRC", raising=False)
    assert Credentials().authorization("https://a.org/") == basic("me", "h-secret")


def test_the_representation_keeps_secrets() -> None:
    assert "secret" not in repr(Credentials({"HF_TOKEN": "secret"}))
    assert set(TOKEN_HOSTS) == {"github.com", "api.github.com", "huggingface.co"}


def sent_to(server: FaultServer) -> list[str | None]:
    return [request.headers.get("authorization") for request in server.requests]


@pytest.fixture
def fetch(store: Store) -> Callable[..., None]:
    def run(url: str, **environment: str) -> None:
        credentials = Credentials({**SECRETS, "NETRC": "/dev/null", **environment}, TABLE)
        fetched = store.fetch(entry_of(url), policy=replace(store.policy, credentials=credentials))
        text = json.dumps([fetched.record.to_json(), store.notes, store.warnings, repr(fetched)])
        assert "secret" not in text

    return run


def test_each_hop_of_a_redirect_gets_its_own(
    server: FaultServer, store: Store, assert_only: AssertOnly, fetch: Callable[..., None]
) -> None:
    with FaultServer() as second:
        second.serve("/m.pth", BODY)
        server.fail(PATH, redirect("/again"))
        server.fail("/again", redirect(f"http://localhost:{second.port}/m.pth"))
        fetch(server.url(PATH))
        assert sent_to(server) == ["Bearer first-secret"] * 2
        assert sent_to(second) == ["Bearer second-secret"]
    assert_only(store, BODY)


def test_a_host_without_any_gets_none_by_a_redirect(
    server: FaultServer, store: Store, assert_only: AssertOnly, fetch: Callable[..., None]
) -> None:
    try:
        stranger = FaultServer(host="127.0.0.2")
    except OSError:
        pytest.skip("this system has one loopback address only")
    with stranger:
        server.fail(PATH, redirect(stranger.serve("/m.pth", BODY)))
        fetch(server.url(PATH))
        assert (sent_to(server), sent_to(stranger)) == (["Bearer first-secret"], [None])
    assert_only(store, BODY)


def test_netrc_on_the_wire(
    server: FaultServer, store: Store, assert_only: AssertOnly, login_file: Path, fetch: Callable[..., None]
) -> None:
    with FaultServer() as second:
        second.serve("/m.pth", BODY)
        server.fail(PATH, redirect(f"http://localhost:{second.port}/m.pth"))
        fetch(server.url(PATH), FIRST_TOKEN="", SECOND_TOKEN="", NETRC=str(login_file))
        assert (sent_to(server), sent_to(second)) == ([basic("you", "1-secret")], [None])
    assert_only(store, BODY)


def test_requests_own_netrc_is_not_asked(
    server: FaultServer,
    store: Store,
    assert_only: AssertOnly,
    login_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    login_file.write_text("default login anyone password d-secret\n")
    monkeypatch.setenv("NETRC", str(login_file))
    store.fetch(entry_of(server.serve(PATH, BODY)))
    assert_only(store, BODY)
    assert sent_to(server) == [None]


def public(code: int) -> Fault:
    """A public file, on a server that looks at whatever credentials it is sent."""
    return lambda request, answer: Answer(code) if "authorization" in request.headers else answer


def stale_credentials(kind: str, server: FaultServer, login_file: Path) -> tuple[str, dict[str, str], str]:
    """URL, environment, and what the message calls them."""
    url = server.serve(PATH, BODY)
    if kind == "token":
        return url, {"FIRST_TOKEN": "first-secret"}, "the token in FIRST_TOKEN"
    if kind == "netrc":
        return url, {"FIRST_TOKEN": "", "NETRC": str(login_file)}, f"the login in {login_file}"
    return url.replace("//", "//me:url-secret@"), {}, "the login in the URL"


@pytest.mark.parametrize(("code", "connections"), [(401, 1), (403, 1), (401, 4)])
@pytest.mark.parametrize("kind", ["token", "netrc", "url"])
def test_refused_credentials_are_dropped_once_and_named(
    server: FaultServer, store: Store, login_file: Path, *, kind: str, code: int, connections: int
) -> None:
    url, environment, named = stale_credentials(kind, server, login_file)
    server.fail(PATH, *[public(code)] * 99)
    credentials = Credentials({**SECRETS, "NETRC": "/dev/null", **environment}, TABLE)
    policy = replace(
        store.policy,
        credentials=credentials,
        connections=connections,
        split_from=1000,
        segment=len(BODY) // 3,
    )
    lesser = {"url": server.serve("/lesser.pth", b"lesser"), "bn_statistics": False}
    fetched = store.fetch(entry_of({"url": url, "bn_statistics": True}, lesser), policy=policy)
    assert fetched.artefact.read_bytes() == BODY
    said = [note for note in store.notes if named in note]
    phrase = {401: "401 Unauthorized", 403: "403 Forbidden"}[code]
    assert said == [f"{phrase} from 127.0.0.1:{server.port}: {named} was refused; trying without it"]
    assert "secret" not in str(store.notes)
    sent = sent_to(server)
    assert sent[0] is not None and sent[1:] == [None] * len(sent[1:])


@pytest.mark.parametrize("kind", ["token", "netrc", "url"])
def test_credentials_that_do_not_help_are_named_in_the_error(
    server: FaultServer, store: Store, login_file: Path, kind: str
) -> None:
    url, environment, named = stale_credentials(kind, server, login_file)
    server.fail(PATH, *[status(401)] * 9)
    policy = replace(
        store.policy, credentials=Credentials({**SECRETS, "NETRC": "/dev/null", **environment}, TABLE)
    )
    lesser = {"url": server.serve("/lesser.pth", BODY), "bn_statistics": False}
    with pytest.raises(NetworkError) as caught:
        store.fetch(entry_of({"url": url, "bn_statistics": True}, lesser), policy=policy)
    assert f"401 Unauthorized: {named} was refused, and so was the request without it" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert [request.path for request in server.requests] == [PATH] * 2 and store.slept == []


def test_credentials_refused_behind_a_redirect_are_dropped_for_that_host_alone(
    server: FaultServer, store: Store, assert_only: AssertOnly, fetch: Callable[..., None]
) -> None:
    with FaultServer() as second:
        second.serve("/m.pth", BODY)
        second.fail("/m.pth", public(401))
        server.fail(PATH, redirect(f"http://localhost:{second.port}/m.pth"))
        fetch(server.url(PATH))
        assert sent_to(server) == ["Bearer first-secret"]
        assert sent_to(second) == ["Bearer second-secret", None]
    assert_only(store, BODY)
    (note,) = store.notes
    assert note.startswith(f"401 Unauthorized from localhost:{second.port}: the token in SECOND_TOKEN")


@pytest.mark.parametrize("fault", [status(403), status(500), redirect("ftp://a.org/x"), redirect("http://[")])
def test_no_error_tells_a_secret(
    server: FaultServer, store: Store, fault, fetch: Callable[..., None]
) -> None:
    server.fail(PATH, *[fault] * 20)
    with pytest.raises(NetworkError) as caught:
        fetch(server.url(PATH).replace("//", "//me:url-secret@"))
    assert "secret" not in str(caught.value) + str(store.notes) + str(store.warnings)
    assert sent_to(server)[0] == basic("me", "url-secret")


@pytest.mark.parametrize(
    ("origin", "location", "target"),
    [
        ("https://a.org/x", "https://b.org/y", "https://b.org/y"),
        ("http://a.org/x", "https://b.org/y", "https://b.org/y"),
        ("http://127.0.0.1:80/x", "/y", "http://127.0.0.1:80/y"),
        ("http://localhost/x", "http://127.0.0.2/y", "http://127.0.0.2/y"),
        ("http://localhost/x", "http://[::1]:8/y", "http://[::1]:8/y"),
        ("https://a.org/x", "http://b.org/y", None),
        ("https://a.org/x", "http://127.0.0.1/y", None),
        ("http://a.org/x", "http://b.org/y", None),
        ("http://a.org/x", "/y", None),
        ("http://a.org/x", "http://127.0.0.1:8080/y", None),  # no stranger's server reaches into this machine
        ("http://localhost/x", "http://b.org/y", None),
        ("https://a.org/x", "file:///etc/passwd", None),
        ("https://a.org/x", "https://u@b.org/y", None),
    ],
)
def test_where_redirects_may_lead(origin: str, location: str, target: str | None) -> None:
    if target is not None:
        assert checked_redirect(origin, location) == target
    else:
        with pytest.raises(SourceError, match="not followed"):
            checked_redirect(origin, location)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://LOCALHOST/", True),
        ("http://[::1]/", True),
        ("http://127.9.9.9/", True),
        ("http://10.0.0.1/", False),
    ],
)
def test_is_loopback(url: str, loopback: bool) -> None:
    assert is_loopback(url) is loopback
