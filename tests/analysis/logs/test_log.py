"""Published logs, fetched from a real server into the cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckptkit.analysis.logs import log as fetching
from ckptkit.analysis.logs.log import fetch_log, read_log
from ckptkit.base.errors import CkptkitError, FormatError, NetworkError, NotFoundError
from ckptkit.base.net import Policy
from ckptkit.registry.loading import load_registry
from ckptkit.registry.schema import Entry
from ckptkit.store.cache import Home
from ckptkit.workspace import Workspace
from tests.support.entries import entry_of
from tests.support.http_server import FaultServer, cut, gzipped, status, whole
from tests.support.training_logs import THREE_EPOCHS, mmcv_log, train_line

BODY = THREE_EPOCHS.encode()
QUICK = Policy(connect_timeout=5, read_timeout=2, retries=2, sleep=lambda _seconds: None)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        running.serve("/a.log.json", BODY)
        yield running


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(home=Home(tmp_path / "home"), note=lambda _note: None)


def entry(server: FaultServer, path: str = "/a.log.json", **fields: object) -> Entry:
    return entry_of("https://a.org/m.pth", log_url=server.url(path), **fields)


def kept(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in (workspace.home.path / "logs" / "test-entry").glob("*"))


def test_a_log_is_fetched_once(server: FaultServer, workspace: Workspace):
    first = fetch_log(entry(server), workspace)
    assert first == workspace.home.path / "logs" / "test-entry" / "a.log.json"
    assert first.read_bytes() == BODY
    assert fetch_log(entry(server), replace(workspace, offline=True)) == first
    assert len(server.requests) == 1
    assert kept(workspace) == ["a.log.json", "a.log.json.record"]


def test_refresh_fetches_it_again(server: FaultServer, workspace: Workspace):
    path = fetch_log(entry(server), workspace)
    longer = mmcv_log([train_line(1, 1, 9.0)]).encode()
    server.serve("/a.log.json", longer, etag='"v2"')
    assert fetch_log(entry(server), workspace).read_bytes() == BODY
    assert fetch_log(entry(server), workspace, refresh=True) == path
    assert path.read_bytes() == longer


def test_another_address_or_touched_bytes_are_fetched_again(server: FaultServer, workspace: Workspace):
    path = fetch_log(entry(server), workspace)
    server.serve("/b/a.log.json", BODY.replace(b"76.75", b"66.75"))
    assert fetch_log(entry(server, "/b/a.log.json"), workspace) == path
    assert b"66.75" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"66.75", b"99.75"))
    assert b"66.75" in fetch_log(entry(server, "/b/a.log.json"), workspace).read_bytes()
    assert [request.path for request in server.requests] == ["/a.log.json", "/b/a.log.json", "/b/a.log.json"]


def test_mirrors_count(server: FaultServer, workspace: Workspace):
    mirrored = replace(workspace, mirrors=(f"https://logs.example.org={server.base}",))
    published = entry_of("https://a.org/m.pth", log_url="https://logs.example.org/a.log.json")
    assert fetch_log(published, mirrored).read_bytes() == BODY


def test_offline(server: FaultServer, workspace: Workspace, tmp_path: Path):
    away = replace(workspace, offline=True)
    with pytest.raises(NetworkError, match="is not cached, and --offline forbids fetching it"):
        fetch_log(entry(server), away)
    assert server.requests == []
    local = tmp_path / "here.csv"
    local.write_text("epoch,train_loss\n0,1\n")
    published = entry_of("https://a.org/m.pth", log_url=local.as_uri())
    assert fetch_log(published, away).read_text() == local.read_text()


def test_a_cut_download_is_gone_on_with(server: FaultServer, workspace: Workspace):
    server.fail("/a.log.json", cut(500), status(503))
    assert fetch_log(entry(server), workspace, policy=QUICK).read_bytes() == BODY
    assert server.ranges("/a.log.json") == [None, 500, 500]


def test_a_coded_answer_is_unpacked(server: FaultServer, workspace: Workspace):
    server.fail("/a.log.json", gzipped)
    assert fetch_log(entry(server), workspace).read_bytes() == BODY


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(404), "404 Not Found"),
        (whole(b"<!DOCTYPE html>sign in"), "web page instead of the file"),
        (whole(b""), "the file is empty"),
        (status(403), "403 Forbidden"),
    ],
)
def test_what_cannot_be_had_leaves_nothing(server: FaultServer, workspace: Workspace, fault, reason):
    server.fail("/a.log.json", fault)
    with pytest.raises(NetworkError) as raised:
        fetch_log(entry(server), workspace, policy=QUICK)
    assert reason in str(raised.value)
    assert kept(workspace) == []


def test_a_failed_refresh_keeps_what_was_there(server: FaultServer, workspace: Workspace):
    path = fetch_log(entry(server), workspace)
    server.fail("/a.log.json", status(404))
    with pytest.raises(NetworkError):
        fetch_log(entry(server), workspace, refresh=True, policy=QUICK)
    assert path.read_bytes() == BODY
    assert fetch_log(entry(server), replace(workspace, offline=True)) == path


@pytest.mark.parametrize("fault", [None, gzipped], ids=["plain", "packed"])
def test_a_server_that_sends_without_end_is_stopped(
    server: FaultServer, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, fault
):
    monkeypatch.setattr(fetching, "MAX_BYTES", 100_000)
    server.serve("/a.log.json", b"{}\n" * 100_000)
    if fault:
        server.fail("/a.log.json", fault)
    with pytest.raises(NetworkError, match="sends more than 100,000 bytes"):
        fetch_log(entry(server), workspace, policy=QUICK)
    assert kept(workspace) == []


def test_a_record_that_is_damaged_counts_for_nothing(server: FaultServer, workspace: Workspace):
    path = fetch_log(entry(server), workspace)
    for text in ("", "[]", "{", "[" * 100_000):
        path.with_name("a.log.json.record").write_text(text)
        assert fetch_log(entry(server), workspace) == path
    assert len(server.requests) == 5


def test_two_at_once_download_it_once(server: FaultServer, workspace: Workspace):
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch_log(entry(server), workspace))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 4
    assert len(server.requests) == 1


def test_an_entry_without_a_log_says_what_there_is(workspace: Workspace):
    with pytest.raises(NotFoundError) as raised:
        read_log("moat0-224", workspace)
    assert "moat0-224: no training log is published" in str(raised.value)
    assert "'ckptkit show moat0-224' has the published figures" in str(raised.value)
    named = str(raised.value).partition("a log is published of ")[2].partition(",")[0]
    assert load_registry()[named].log_url


def test_read_log_sets_the_published_figures_beside_it(
    server: FaultServer, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    url = load_registry()["moganet-xt-224"].log_url
    assert url
    server.serve("/x/" + url.rpartition("/")[2], BODY)
    mirrored = replace(workspace, mirrors=(f"{url.rpartition('/')[0]}={server.url('/x')}",))
    log = read_log("moganet-xt-224", mirrored)
    assert (log.name, log.url, log.published_top1, log.published_top5) == ("moganet-xt-224", url, 76.5, 93.4)
    assert log.to_json()["difference"] == 0.25


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("no-such-entry", NotFoundError),
        ("missing.csv", NotFoundError),
        ("./folder", NotFoundError),
        ("bad.log.json", FormatError),
    ],
)
def test_what_is_not_there(
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    error: type[CkptkitError],
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.log.json").write_text("{")
    with pytest.raises(error):
        read_log(what, workspace)
