"""fetch and import, as a user runs them."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ckptkit.base.errors import NetworkError
from ckptkit.base.text import human_bytes
from ckptkit.cli.app import main
from ckptkit.cli.store_commands import run_parallel
from ckptkit.store.cache import Home
from tests.support.commands import Runner, runner
from tests.support.entries import (
    XT,
    a_checkpoint,
    final_files,
    pinned,
    published_tiny,
    published_xt,
    random_bytes,
)
from tests.support.http_server import Answer, FaultServer, Request, goog_hash, slowly, stall, status
from tests.support.running import finish, registry_file, start, wait_until


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
    server.serve("/a.tar.gz", published_tiny(), headers=goog_hash(published_tiny()))
    server.serve("/b.pth", published_xt())
    overlay = registry_file(
        tmp_path,
        {"id": "test-a", "sources": [{"url": server.url("/a.tar.gz")}]},
        {"id": "test-b", "sources": [{"url": server.url("/b.pth")}], **XT},
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
    folder = Home.default().unpacked_folder("test-a") / "tiny"
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
        f"no published checksum to compare with; sha256 {hashlib.sha256(published_xt()).hexdigest()}"
        in result.err
    )


def test_globs_and_a_failure_among_them(run) -> None:
    result = run("fetch", "test-*")
    assert result.code == 4
    assert len(result.out.splitlines()) == 2
    assert "test-hand could not be fetched" in result.err and "2 fetched, 1 failed: test-hand" in result.err
    assert "ckptkit import test-hand FILE" in result.err


@pytest.mark.parametrize("ids", [["test-two"], ["test-two", "test-b"]], ids=["alone", "among others"])
def test_each_source_that_failed_has_its_line(
    server: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], ids: list[str]
) -> None:
    server.serve("/b.pth", published_xt())
    urls = [server.url("/gone.pth"), server.url("/gone-too.pth")]
    overlay = registry_file(
        tmp_path,
        {"id": "test-two", "sources": [{"url": url} for url in urls]},
        {"id": "test-b", "sources": [{"url": server.url("/b.pth")}], **XT},
    )
    with pytest.raises(SystemExit) as left:
        main(["fetch", *ids, "--registry", str(overlay)])
    lines = capsys.readouterr().err.splitlines()
    verdict = {
        1: "error: test-two: no source could provide the file",
        2: "warning: test-two could not be fetched: no source could provide the file",
    }[len(ids)]
    assert left.value.code == 4
    assert lines[lines.index(verdict) :][1:4] == [
        f"  {urls[0]}: 404 Not Found",
        f"  {urls[1]}: 404 Not Found",
        "  correct the sources in the registry, or give a --mirror",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["fetch"], 2, "nothing to fetch; name ids, or give --all"),
        (["fetch", "--all", "test-a"], 2, "not both"),
        (["fetch", "tset-a"], 3, "did you mean test-a"),
        (["fetch", "nothing-*"], 3, "no id matches"),
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
    server.serve("/a.tar.gz", published_tiny(), headers=goog_hash(b"something else"))
    result = run("fetch", "test-a")
    assert (result.code, result.out) == (5, "") and "x-goog-hash says" in result.err
    assert Home.default().fetched_ids() == []
    assert not Home.default().unpacked_folder("test-a").exists()


def test_a_changed_file_needs_accept_new(run, server: FaultServer) -> None:
    run("fetch", "test-b")
    server.serve("/b.pth", published_xt(b"other"))
    assert run("fetch", "test-b").code == 0  # still the cached one
    refused = run("fetch", "test-b", "--force")
    assert refused.code == 5 and "--accept-new" in refused.err
    accepted = run("fetch", "test-b", "--force", "--accept-new")
    assert accepted.code == 0 and Path(accepted.out.strip()).read_bytes() == published_xt(b"other")


def test_dry_run_says_what_from_where_to_where(run, server: FaultServer) -> None:
    result = run("fetch", "test-*", "--dry-run", "--mirror", f"{server.base}=file:///srv")
    lines = [line.split() for line in result.out.splitlines()]
    target = Home.default().artefact_folder("test-a") / "a.tar.gz"
    assert lines[1] == ["test-a", "fetch", "unknown", "file:///srv/a.tar.gz", str(target)]
    assert "would fetch 2 files, size unknown" in result.err
    assert lines[3][:3] == ["test-hand", "by", "hand"]
    assert server.requests == [] and not Home.default().path.joinpath("artefacts").exists()
    run("fetch", "test-b")
    plans = json.loads(run("fetch", "test-*", "--dry-run", "--json").out)
    assert [plan["action"] for plan in plans] == ["fetch", "nothing, cached", "by hand"]
    assert plans[0]["from"] == [server.url("/a.tar.gz")]
    assert [plan["size"] for plan in plans] == [len(published_tiny()), len(published_xt()), None]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--dry-run"], f"would fetch 2 files, {human_bytes(len(published_tiny()) + len(published_xt()))}\n"),
        (["--dry-run", "--offline"], "would fetch 2 files, size unknown\n"),
        ([], "fetching 3 files, size unknown\n"),  # servers are asked by --dry-run only
    ],
)
def test_sizes_before_fetching(run, server: FaultServer, more: list[str], says: str) -> None:
    assert says in run("fetch", "test-*", *more).err
    if "--dry-run" in more:
        assert len(server.requests) == (0 if "--offline" in more else 2)
        assert not Home.default().path.joinpath("artefacts").exists()


def test_sizes_that_the_registry_states_are_not_asked_for(
    capsys: pytest.CaptureFixture[str], server: FaultServer, tmp_path: Path
) -> None:
    sources = [{"url": server.url("/b.pth")}]
    rows = [{"id": f"test-{n}", "sources": sources, **XT, "size": n} for n in (1_000_000, 2_000_000)]
    overlay = registry_file(tmp_path, *rows, {"id": "test-x", "sources": sources, **XT})
    line = ("fetch", "test-*", "--dry-run", "--registry", overlay)
    assert "would fetch 3 files, 3.0 MB and 1 of unknown size" in runner(capsys)(*line).err
    assert len(server.requests) == 1  # which answered 404


def test_json(run) -> None:
    result = run("fetch", "test-b", "test-hand", "--json")
    fetched, failed = json.loads(result.out)
    assert result.code == 4
    assert fetched["sha256"] == hashlib.sha256(published_xt()).hexdigest() and not fetched["from_cache"]
    assert Path(fetched["path"]).read_bytes() == published_xt()
    assert (failed["id"], failed["exit_code"]) == ("test-hand", 4)


@pytest.mark.parametrize("where", ["flag", "environment"])
def test_a_mirror(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FaultServer, where: str
) -> None:
    (tmp_path / "b.pth").write_bytes(published_xt())
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
    file.write_bytes(published_tiny())
    dry = run("import", "test-a", file, "--dry-run")
    assert dry.out == f"{file} -> {Home.default().artefact_folder('test-a') / 'a.tar.gz'}\n"
    assert not Home.default().is_cached("test-a")
    done = run("import", "test-a", file)
    assert (done.code, done.out) == (0, f"{Home.default().unpacked_folder('test-a') / 'tiny'}\n")
    assert json.loads(run("import", "test-a", file, "--json").out)["note"] == "imported by hand"
    assert run("fetch", "test-a").out == done.out
    assert server.requests == []
    file.write_bytes(b"<html>sign in")
    assert run("import", "test-a", file, "--force").code == 5
    assert run("fetch", "test-a").out == done.out


def test_a_bar_on_a_terminal(server: FaultServer, tmp_path: Path) -> None:
    server.serve("/b.pth", published_xt())
    overlay = registry_file(tmp_path, {"id": "test-b", "sources": [{"url": server.url("/b.pth")}], **XT})
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
    assert (
        f"sha256 as the lock file {lock} (downloaded " in again.err
        and "no published checksum" not in again.err
    )
    (compared,) = json.loads(again.out)[0]["compared_with"]
    assert compared["algorithm"] == "sha256" and compared["says"].startswith(
        f"the lock file {lock} (downloaded "
    )


def test_a_changed_file_is_refused_although_the_cache_was_removed(run, server: FaultServer) -> None:
    run("fetch", "test-b")
    shutil.rmtree(Home.default().path)
    server.serve("/b.pth", published_xt(b"other"))
    refused = run("fetch", "test-b")
    assert (refused.code, refused.out) == (5, "")
    lock = Path(os.environ["CKPTKIT_TRUST"])
    assert f"but the lock file {lock} (downloaded " in refused.err and "--accept-new" in refused.err
    accepted = run("fetch", "test-b", "--accept-new")
    assert accepted.code == 0 and "its history keeps" in accepted.err
    known = json.loads(lock.read_text())["entries"]["test-b"]["b.pth"]
    digests = [hashlib.sha256(body).hexdigest() for body in (published_xt(b"other"), published_xt())]
    assert [known["sha256"], known["history"][0]["sha256"]] == digests


def test_require_checksum(run, server: FaultServer) -> None:
    refused = run("fetch", "test-*", "--require-checksum")
    assert (refused.code, refused.out) == (5, "") and server.requests == []
    assert refused.err.count("no checksum is known before the file is fetched") == 3
    assert (
        "registry pin test-a" in refused.err
        and f"\n  the lock file {os.environ['CKPTKIT_TRUST']} has" in refused.err
    )
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
        assert f"{lock}: not a valid lock file: Expecting value: line 1" in result.err
    assert server.requests == [] and lock.read_text() == "<<<<<<< HEAD\n"


# Nothing is trusted before it is known to be what it should be.

MODEL = "test-model"
PICTURE = bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffdb0043") + random_bytes(3000)
QUOTA = b'{"error": {"code": 403, "message": "The download quota for this file has been exceeded."}}'


def amid(body: bytes, what: bytes) -> bytes:
    at = len(body) // 2
    return body[:at] + what + body[at + len(what) :]


WRONG: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "JSON": (lambda body: QUOTA, 'a JSON text, .*: \'{"error": {"code": 403, "message": "The download quota'),
    "a sentence as long as the file": (lambda body: b"no " * (len(body) // 3), "'no no no"),
    "a picture": (lambda body: PICTURE, ": a JPEG image"),
    "zeros in the middle": (lambda body: amid(body, bytes(100_000)), "not where the directory says|CRC-32"),
    "a proxy's text in the middle": (lambda body: amid(body, b"<html>504</html>"), "CRC-32"),
    "half": (lambda body: body[: len(body) // 2], "truncated"),
    "another format": (
        lambda body: a_checkpoint(5000),
        "a checkpoint of the format safetensors, not of torch",
    ),
}


@pytest.fixture
def overlaid(server: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs ckptkit with an entry whose file the test's server has."""
    entry = {"id": MODEL, "sources": [{"url": server.url("/m.pth")}], **XT}
    overlay = registry_file(tmp_path, entry)
    runner_of = runner(capsys)
    return lambda *arguments: runner_of(*arguments, "--registry", overlay)


def nothing_is_trusted() -> bool:
    folder = Home.default().artefact_folder(MODEL)
    lock = Path(os.environ["CKPTKIT_TRUST"])
    kept = list(folder.iterdir()) if folder.exists() else []
    return not kept and (not lock.exists() or MODEL not in lock.read_text())


@pytest.mark.parametrize(
    ("wrong", "promised"), [*((wrong, False) for wrong in WRONG), ("JSON", True), ("half", True)]
)
def test_what_is_not_the_file_is_not_trusted(
    overlaid: Runner, server: FaultServer, wrong: str, promised: bool
) -> None:
    """Neither with nor without checksums of the server, which show only that its answer came whole."""
    make, says = WRONG[wrong]
    body = make(published_xt())
    server.serve("/m.pth", body, headers=goog_hash(body) if promised else ())
    refused = overlaid("fetch", MODEL)
    assert (refused.code, refused.out) == (5, "") and refused.err.count("\nerror: ") == 1
    assert re.search(says, refused.err), refused.err
    assert nothing_is_trusted()
    server.serve("/m.pth", published_xt(), etag='"v2"')  # the server is well again
    done = overlaid("fetch", MODEL)
    assert done.code == 0, done.err
    assert Path(done.out.strip()).read_bytes() == published_xt()
    assert overlaid("fetch", MODEL, "--force").code == 0


@pytest.mark.parametrize("wrong", ["JSON", "a picture", "zeros in the middle", "a web page"])
def test_an_import_is_looked_into_as_well(
    overlaid: Runner, server: FaultServer, tmp_path: Path, wrong: str
) -> None:
    make, says = WRONG.get(
        wrong, (lambda _body: b"<!DOCTYPE html><title>Log in", "a web page instead of the file")
    )
    file = tmp_path / "down loaded"
    file.write_bytes(make(published_xt()))
    refused = overlaid("import", MODEL, file)
    assert (refused.code, refused.out) == (5, "") and refused.err.count("\nerror: ") == 1
    assert f"error: {file}: " in refused.err and re.search(says, refused.err), refused.err
    assert "answered" not in refused.err and nothing_is_trusted()
    if wrong == "a web page":
        return
    hint = re.search(r"To take it all the same: ckptkit (.*)$", refused.err.strip())
    assert hint is not None
    forced = overlaid(*shlex.split(hint[1]))
    assert forced.code == 0 and f"is taken although it does not fit {MODEL}" in forced.err
    assert overlaid("fetch", MODEL).code == 0 and server.requests == []  # it stays what the user chose
    # The record was wrong after all: each message names the command that takes it back.
    server.serve("/m.pth", published_xt())
    changed = overlaid("fetch", MODEL, "--force")
    assert changed.code == 5 and re.search(
        rf"\(imported 20\S+ from {re.escape(file.as_uri())}\)", changed.err
    )
    hint = re.search(r"Run: ckptkit (.*)$", changed.err.strip())
    assert hint is not None and overlaid(*shlex.split(hint[1])).code == 0
    assert Path(overlaid("fetch", MODEL).out.strip()).read_bytes() == published_xt()


def test_another_variant_is_not_trusted(
    run: Runner, server: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model code knows these names and shapes."""
    xt = tmp_path / "xt.pth"
    xt.write_bytes(published_xt())
    server.serve("/t.pth", published_xt())
    overlay = tmp_path / "t.yaml"
    overlay.write_text(f"entries: [{{id: moganet-t-256, sources: [{{url: '{server.url('/t.pth')}'}}]}}]")
    for arguments in (["fetch", "moganet-t-256"], ["import", "moganet-t-256", xt]):
        refused = runner(capsys)(*arguments, "--registry", overlay)
        assert refused.code == 5 and "a checkpoint of moganet-xt, not of moganet-t" in refused.err
    assert not Home.default().records("moganet-t-256") and not Path(os.environ["CKPTKIT_TRUST"]).exists()


def test_a_wrong_record_is_taken_back_by_an_import_too(
    overlaid: Runner, server: FaultServer, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    first.write_bytes(a_checkpoint(5000))
    second.write_bytes(published_xt())
    assert overlaid("import", MODEL, first, "--force").code == 0
    for arguments in (["import", MODEL, second], ["import", MODEL, second, "--force"]):
        refused = overlaid(*arguments)
        assert refused.code in (2, 5) and "imported 2" in refused.err and first.as_uri() in refused.err
        hint = re.search(r"(?:Run|To replace them): ckptkit (.*)$", refused.err.strip())
        assert hint is not None
    taken = overlaid(*shlex.split(hint[1]))
    assert taken.code == 0 and "does not fit" not in taken.err
    known = json.loads(Path(os.environ["CKPTKIT_TRUST"]).read_text())["entries"][MODEL]["m.pth"]
    assert (known["sha256"], known["how"]) == (hashlib.sha256(published_xt()).hexdigest(), "import")
    assert [old["used_url"] for old in known["history"]] == [first.as_uri()]


def test_the_lock_file_lies_with_a_cache_of_its_own(
    overlaid: Runner, server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a test server gave is in no lock file but that of its cache, and is held against nobody else."""
    monkeypatch.delenv("CKPTKIT_TRUST")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    server.serve("/m.pth", published_xt())
    for name in ("one", "two"):
        monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path / name))
        assert overlaid("fetch", MODEL).code == 0
        lock = tmp_path / name / "ckptkit.lock"
        assert MODEL in json.loads(lock.read_text())["entries"]
        refused = overlaid(
            "fetch", MODEL, "--force", "--offline", "--mirror", f"{server.base}={tmp_path.as_uri()}"
        )
        assert refused.code == 4
        server.serve("/m.pth", published_xt(b"other"))  # another file for the next cache
        changed = overlaid("fetch", MODEL, "--force")
        assert changed.code == 5
        server.serve("/m.pth", published_xt())
    assert not (tmp_path / "config").exists()


def test_the_lock_file_of_a_mirror_says_so(overlaid: Runner, server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(published_xt())
    assert overlaid("fetch", MODEL, "--mirror", f"{server.base}={tmp_path.as_uri()}").code == 0
    known = json.loads(Path(os.environ["CKPTKIT_TRUST"]).read_text())["entries"][MODEL]["m.pth"]
    assert (known["how"], known["used_url"]) == ("mirror", (tmp_path / "m.pth").as_uri())
    assert overlaid("registry", "pin", MODEL).code == 0
    (pinned,) = yaml.safe_load((tmp_path / "registry.yaml").read_text())["entries"]
    provenance = pinned["hash_provenance"]
    assert provenance["url"] == (tmp_path / "m.pth").as_uri()
    assert provenance["note"] == f"published at {server.url('/m.pth')}"


# -- many at once: in the order given, a failure of one apart; Ctrl+C ends all of them


BODIES = {f"test-{number:03}": random_bytes(3_000, seed=number) for number in range(100)}


def serve(server: FaultServer, folder: Path, bodies: dict[str, bytes]) -> Path:
    """Have these files and a registry of them."""
    entries = []
    for id, body in bodies.items():
        url = server.serve(f"/{id}.pth", body, headers=goog_hash(body))
        entries.append({"id": id, "sources": [{"url": url}], **pinned(body)})
    return registry_file(folder, *entries)


def fetch(overlay: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["fetch", *arguments, "--registry", str(overlay)])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_a_hundred_entries_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FaultServer() as server:
        overlay = serve(server, tmp_path, BODIES)
        code, out, err = fetch(overlay, capsys, "test-*", "-j", "16")
        assert code == 0, err
        assert sorted(request.path for request in server.requests) == sorted(f"/{id}.pth" for id in BODIES)
    paths = [Path(line) for line in out.splitlines()]
    assert [path.stem for path in paths] == list(BODIES)
    assert [path.read_bytes() for path in paths] == list(BODIES.values())
    assert not list(Home.default().path.rglob(".*.part*"))


def test_they_really_run_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    together = threading.Barrier(3)

    def wait(_request: Request, answer: Answer) -> Answer:
        together.wait(timeout=5)
        return answer

    bodies = dict(list(BODIES.items())[:3])
    with FaultServer() as server:
        overlay = serve(server, tmp_path, bodies)
        for id in bodies:
            server.fail(f"/{id}.pth", wait)
        code, out, _ = fetch(overlay, capsys, *reversed(bodies), "--jobs", "3", "--quiet")
    assert code == 0
    assert [Path(line).stem for line in out.splitlines()] == list(reversed(bodies))


def test_a_failure_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = dict(list(BODIES.items())[:6])
    with FaultServer() as server:
        overlay = serve(server, tmp_path, bodies)
        server.fail("/test-002.pth", status(404))
        server.serve("/test-004.pth", b"something else")
        code, out, err = fetch(overlay, capsys, "test-*", "-j", "4", "--json")
    results = json.loads(out)
    assert [result["id"] for result in results] == list(bodies)
    assert {result["id"]: result["exit_code"] for result in results if "error" in result} == {
        "test-002": 4,
        "test-004": 5,
    }
    assert code == 4 and "4 fetched, 2 failed: test-002, test-004" in err
    assert len(final_files(Home.default().path)) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-j", "0"], "-j"),
        (["-j", "17"], "-j"),
        (["--connections", "9"], "--connections"),
        (["--limit-rate", "fast"], "invalid rate 'fast'"),
    ],
)
def test_numbers_that_are_out_of_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with FaultServer() as server:
        overlay = serve(server, tmp_path, {"test-a": b"x" * 100})
        code, out, err = fetch(overlay, capsys, "test-a", *arguments)
        assert server.requests == []
    assert (code, out) == (2, "") and said in err


def test_a_limit_slows_all_of_it_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = {f"test-{number}": random_bytes(100_000, seed=number) for number in range(4)}
    with FaultServer() as server:
        overlay = serve(server, tmp_path, bodies)
        began = time.monotonic()
        code, _, err = fetch(overlay, capsys, "test-*", "-j", "4", "--limit-rate", "400kB")
        took = time.monotonic() - began
    assert code == 0, err
    assert took >= (400_000 - 100_000) / 400_000  # the bucket holds a quarter of a second's bytes


@pytest.mark.parametrize("fault", [slowly(0.05, 10_000), stall(250_000)], ids=["slow", "stalled"])
def test_an_interrupt_stops_all_and_keeps_what_has_arrived(tmp_path: Path, fault) -> None:
    bodies = {f"test-{number}": random_bytes(1_000_000, seed=number) for number in range(3)}
    home = tmp_path / "home"

    def parts() -> list[int]:
        return [path.stat().st_size for path in home.glob("artefacts/*/.*.part")]

    with FaultServer() as server:
        overlay = serve(server, tmp_path, bodies)
        for id in bodies:
            server.fail(f"/{id}.pth", fault)
        process = start(["fetch", "test-*", "-j", "3", "--registry", overlay], home)
        wait_until(lambda: len(parts()) == 3 and min(parts()) > 100_000)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        code, out, err = finish(process)
        assert time.monotonic() - began < 10
        assert (code, out) == (130, "") and err.rstrip().endswith("interrupted; run it again to resume")
        kept = parts()
        assert len(kept) == 3 and min(kept) > 100_000 and final_files(home) == []
        server.requests.clear()
        code, out, err = finish(start(["fetch", "test-*", "-j", "3", "--registry", overlay], home))
        assert code == 0, err
        assert sorted(request.start or 0 for request in server.requests) == sorted(kept)
    assert [Path(line).read_bytes() for line in out.splitlines()] == list(bodies.values())


def test_bars_on_a_terminal(tmp_path: Path) -> None:
    bodies = {f"test-{number}": random_bytes(200_000, seed=number) for number in range(3)}
    with FaultServer() as server:
        overlay = serve(server, tmp_path, bodies)
        for id in bodies:
            server.fail(f"/{id}.pth", slowly(0.1, 50_000))
        command = [
            sys.executable,
            "-m",
            "ckptkit.cli.app",
            "fetch",
            "test-*",
            "-j",
            "3",
            "--registry",
            str(overlay),
        ]
        terminal, inner = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=inner, env=environment)
        os.close(inner)
        shown = b""
        try:
            while piece := os.read(terminal, 4096):
                shown += piece
        except OSError:  # Linux: the other end of the terminal was closed
            pass
        finally:
            os.close(terminal)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert [Path(line).stem for line in out.decode().splitlines()] == list(bodies)
    assert b"\x1b[" in shown and all(f"fetching {id} ".encode() in shown for id in bodies)
    assert all(f"{id}: 200.0 kB in".encode() in shown for id in bodies)


def test_works_keep_the_order_and_raise_what_is_no_error_of_ours() -> None:
    def fail() -> int:
        raise NetworkError("gone")

    stop = threading.Event()
    one, error, three = run_parallel([lambda: 1, fail, lambda: 3], 2, stop)
    assert (one, three, str(error)) == (1, 3, "gone") and not stop.is_set()
    with pytest.raises(ZeroDivisionError):
        run_parallel([lambda: 1 // 0, *[lambda: 1] * 5], 2, stop)
    assert stop.is_set()
