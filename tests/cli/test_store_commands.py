"""``fetch`` and ``import`` on the command line: what is printed where, and what the process returns."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckptkit.cli.app import main
from ckptkit.store.cache import Home
from tests.support.entries import random_bytes, tar_gz
from tests.support.http_server import FaultServer, goog_hash
from tests.support.running import registry_file

BODY = random_bytes(100_000)
OTHER = random_bytes(100_000, seed=2)
ARCHIVE = tar_gz({"moat/m.index": b"index", "moat/m.data-00000-of-00001": BODY})


@dataclass
class Run:
    code: int
    out: str
    err: str


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def run(server: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs ckptkit with a registry of three entries on the test's server."""
    server.serve("/a.tar.gz", ARCHIVE, headers=goog_hash(ARCHIVE))
    server.serve("/b.pth", BODY)
    overlay = registry_file(
        tmp_path,
        {"id": "test-a", "sources": [{"url": server.url("/a.tar.gz")}]},
        {"id": "test-b", "sources": [{"url": server.url("/b.pth")}]},
        {"id": "test-hand", "sources": [{"url": "https://pan.baidu.com/s/1?pwd=x", "manual": True}]},
    )

    def run(*arguments: str | Path) -> Run:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([*map(str, arguments), "--registry", str(overlay)])
        captured = capsys.readouterr()
        return Run(int(left.value.code or 0), captured.out, captured.err)

    return run


def test_fetch_prints_the_path_and_nothing_else_on_stdout(run, server: FaultServer) -> None:
    first = run("fetch", "test-a")
    folder = Home.default().unpacked_folder("test-a") / "moat"
    assert (first.code, first.out) == (0, f"{folder}\n")
    assert "crc32c and md5 as the server says" in first.err
    again = run("fetch", "test-a")
    assert (again.code, again.out) == (0, first.out)
    assert "in the cache already" in again.err
    assert len(server.requests) == 1
    assert run("fetch", "test-a", "--quiet").err == ""


def test_it_says_when_nobody_promised_a_checksum(run) -> None:
    result = run("fetch", "test-b")
    assert (
        f"nobody publishes a checksum to compare with; sha256 {hashlib.sha256(BODY).hexdigest()}"
        in result.err
    )


def test_globs_and_a_failure_among_them(run) -> None:
    result = run("fetch", "test-*")
    assert result.code == 4
    assert len(result.out.splitlines()) == 2
    assert "test-hand could not be fetched" in result.err and "1 of 3 could not be fetched" in result.err
    assert "ckptkit import test-hand FILE" in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["fetch"], 2, "give ids or globs, or --all"),
        (["fetch", "--all", "test-a"], 2, "not both"),
        (["fetch", "tset-a"], 3, "did you mean test-a"),
        (["fetch", "nothing-*"], 3, "no id fits"),
        (["fetch", "test-a", "--offline"], 4, "--offline forbids"),
        (["fetch", "test-hand"], 4, "by hand"),
        (["fetch", "test-a", "--mirror", "nonsense"], 2, "FROM=TO"),
        (["import", "test-a", "/nowhere/x.tar.gz"], 3, "/nowhere/x.tar.gz: no such file"),
        (["import", "nobody", "/nowhere/x.tar.gz"], 3, "no entry 'nobody'"),
    ],
)
def test_errors_are_one_line_and_a_code(run, arguments: list[str], code: int, said: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (code, "")
    assert said in result.err
    assert [line for line in result.err.splitlines() if line.startswith("error: ")] == [
        result.err.splitlines()[-1]
    ]


def test_damage_returns_5_and_leaves_nothing(run, server: FaultServer) -> None:
    server.serve("/a.tar.gz", ARCHIVE, headers=goog_hash(b"something else"))
    result = run("fetch", "test-a")
    assert (result.code, result.out) == (5, "") and "x-goog-hash says" in result.err
    assert Home.default().fetched_ids() == []
    assert not Home.default().unpacked_folder("test-a").exists()


def test_a_changed_file_needs_accept_new(run, server: FaultServer) -> None:
    run("fetch", "test-b")
    server.serve("/b.pth", OTHER)
    assert run("fetch", "test-b").code == 0  # still the cached one
    refused = run("fetch", "test-b", "--force")
    assert refused.code == 5 and "--accept-new" in refused.err
    accepted = run("fetch", "test-b", "--force", "--accept-new")
    assert accepted.code == 0 and Path(accepted.out.strip()).read_bytes() == OTHER


def test_dry_run_says_what_from_where_to_where(run, server: FaultServer) -> None:
    result = run("fetch", "test-*", "--dry-run", "--mirror", f"{server.base}=file:///srv")
    lines = [line.split() for line in result.out.splitlines()]
    target = Home.default().artefact_folder("test-a") / "a.tar.gz"
    assert lines[1] == ["test-a", "fetch", "file:///srv/a.tar.gz", str(target)]
    assert lines[3][:3] == ["test-hand", "by", "hand"]
    assert server.requests == [] and not Home.default().path.joinpath("artefacts").exists()
    run("fetch", "test-b")
    plans = json.loads(run("fetch", "test-*", "--dry-run", "--json").out)
    assert [plan["action"] for plan in plans] == ["fetch", "nothing, cached", "by hand"]
    assert plans[0]["from"] == [server.url("/a.tar.gz")]


def test_json(run) -> None:
    result = run("fetch", "test-b", "test-hand", "--json")
    fetched, failed = json.loads(result.out)
    assert result.code == 4
    assert fetched["sha256"] == hashlib.sha256(BODY).hexdigest() and not fetched["from_cache"]
    assert Path(fetched["path"]).read_bytes() == BODY
    assert (failed["id"], failed["exit_code"]) == ("test-hand", 4)


@pytest.mark.parametrize("where", ["flag", "environment"])
def test_a_mirror(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FaultServer, where: str
) -> None:
    (tmp_path / "b.pth").write_bytes(BODY)
    rule = f"{server.base}={tmp_path.as_uri()}"
    if where == "environment":
        monkeypatch.setenv("CKPTKIT_MIRROR", rule)
    result = run("fetch", "test-b", "--offline", *(["--mirror", rule] if where == "flag" else []))
    assert result.code == 0 and server.requests == []
    record = Home.default().record("test-b")
    assert record is not None
    assert (record.url, record.used_url) == (server.url("/b.pth"), (tmp_path / "b.pth").as_uri())


def test_import(run, tmp_path: Path, server: FaultServer) -> None:
    file = tmp_path / "a.tar.gz"
    file.write_bytes(ARCHIVE)
    dry = run("import", "test-a", file, "--dry-run")
    assert dry.out == f"{file} -> {Home.default().artefact_folder('test-a') / 'a.tar.gz'}\n"
    assert not Home.default().is_cached("test-a")
    done = run("import", "test-a", file)
    assert (done.code, done.out) == (0, f"{Home.default().unpacked_folder('test-a') / 'moat'}\n")
    assert json.loads(run("import", "test-a", file, "--json").out)["note"] == "imported by hand"
    assert run("fetch", "test-a").out == done.out
    assert server.requests == []
    file.write_bytes(b"<html>sign in")
    assert run("import", "test-a", file, "--force").code == 5
    assert run("fetch", "test-a").out == done.out


def test_a_bar_on_a_terminal(server: FaultServer, tmp_path: Path) -> None:
    server.serve("/b.pth", BODY)
    overlay = registry_file(tmp_path, {"id": "test-b", "sources": [{"url": server.url("/b.pth")}]})
    command = [sys.executable, "-m", "ckptkit.cli.app", "fetch", "test-b", "--registry", str(overlay)]
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=slave, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    )
    os.close(slave)
    shown = b""
    try:
        while piece := os.read(master, 4096):
            shown += piece
    except OSError:  # Linux: the other end of the terminal was closed
        pass
    finally:
        os.close(master)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and out.endswith(b"b.pth\n")
    assert b"100%" in shown and b"\x1b[" in shown
    assert b"\x1b[" not in out


def test_it_says_what_the_bytes_were_compared_with(run) -> None:
    assert "crc32c and md5 as the server says; sha256 " in run("fetch", "test-a").err
    run("fetch", "test-b")
    again = run("fetch", "test-b", "--force", "--json")
    lock = os.environ["CKPTKIT_TRUST"]
    assert f"sha256 as the lock file {lock} (seen " in again.err and "nobody publishes" not in again.err
    (compared,) = json.loads(again.out)[0]["compared_with"]
    assert compared["algorithm"] == "sha256" and compared["says"].startswith(f"the lock file {lock} (seen ")


def test_a_changed_file_is_refused_although_the_cache_was_removed(run, server: FaultServer) -> None:
    run("fetch", "test-b")
    shutil.rmtree(Home.default().path)
    server.serve("/b.pth", OTHER)
    refused = run("fetch", "test-b")
    assert (refused.code, refused.out) == (5, "")
    lock = Path(os.environ["CKPTKIT_TRUST"])
    assert f"but the lock file {lock} (seen " in refused.err and "--accept-new" in refused.err
    accepted = run("fetch", "test-b", "--accept-new")
    assert accepted.code == 0 and "its history keeps" in accepted.err
    known = json.loads(lock.read_text())["entries"]["test-b"]["b.pth"]
    digests = [hashlib.sha256(body).hexdigest() for body in (OTHER, BODY)]
    assert [known["sha256"], known["history"][0]["sha256"]] == digests


def test_require_checksum(run, server: FaultServer) -> None:
    refused = run("fetch", "test-*", "--require-checksum")
    assert (refused.code, refused.out) == (5, "") and server.requests == []
    assert refused.err.count("no checksum of it is known before it is fetched") == 3
    assert "registry pin test-a" in refused.err and "CKPTKIT_TRUST" in refused.err
    run("fetch", "test-b")
    plans = json.loads(run("fetch", "test-*", "--require-checksum", "--dry-run", "--json").out)
    assert [plan["action"] for plan in plans] == [
        "refuse, no checksum known",
        "nothing, cached",
        "refuse, no checksum known",
    ]
    shutil.rmtree(Home.default().path)
    assert run("fetch", "test-b", "--require-checksum").code == 0
    both = run("fetch", "test-b", "--require-checksum", "--accept-new")
    assert both.code == 2 and "only one of --accept-new and --require-checksum" in both.err


def test_a_damaged_lock_file_is_named(run, server: FaultServer) -> None:
    lock = Path(os.environ["CKPTKIT_TRUST"])
    lock.write_text("<<<<<<< HEAD\n")
    for command in (["fetch", "test-b"], ["fetch", "test-b", "--accept-new"]):
        result = run(*command)
        assert (result.code, result.out) == (5, "")
        assert f"{lock}: not a sound lock file: Expecting value: line 1" in result.err
    assert server.requests == [] and lock.read_text() == "<<<<<<< HEAD\n"
