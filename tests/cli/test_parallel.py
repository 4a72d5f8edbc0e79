"""``fetch -j``: many entries at once, in the order given, one's failure apart; Ctrl+C ends all of them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ckptkit.base.errors import NetworkError
from ckptkit.cli.app import main
from ckptkit.cli.store_commands import run_parallel
from ckptkit.store.cache import Home
from tests.support.entries import final_files, pinned, random_bytes
from tests.support.http_server import Answer, FaultServer, Request, goog_hash, slowly, stall, status
from tests.support.running import finish, registry_file, start, wait_until

BODIES = {f"test-{number:03}": random_bytes(3_000, seed=number) for number in range(100)}


def serve(server: FaultServer, folder: Path, bodies: dict[str, bytes]) -> Path:
    """Have these files and a registry of them."""
    entries = []
    for id, body in bodies.items():
        url = server.serve(f"/{id}.pth", body, headers=goog_hash(body))
        entries.append({"id": id, "sources": [{"url": url}], **pinned(body)})
    return registry_file(folder, *entries)


def run(overlay: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["fetch", *arguments, "--registry", str(overlay)])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_a_hundred_entries_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FaultServer() as server:
        overlay = serve(server, tmp_path, BODIES)
        code, out, err = run(overlay, capsys, "test-*", "-j", "16")
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
        code, out, _ = run(overlay, capsys, *reversed(bodies), "--jobs", "3", "--quiet")
    assert code == 0
    assert [Path(line).stem for line in out.splitlines()] == list(reversed(bodies))


def test_a_failure_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = dict(list(BODIES.items())[:6])
    with FaultServer() as server:
        overlay = serve(server, tmp_path, bodies)
        server.fail("/test-002.pth", status(404))
        server.serve("/test-004.pth", b"something else")
        code, out, err = run(overlay, capsys, "test-*", "-j", "4", "--json")
    results = json.loads(out)
    assert [result["id"] for result in results] == list(bodies)
    assert {result["id"]: result["exit_code"] for result in results if "error" in result} == {
        "test-002": 4,
        "test-004": 5,
    }
    assert code == 4 and "2 of 6 could not be fetched" in err
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
        code, out, err = run(overlay, capsys, "test-a", *arguments)
        assert server.requests == []
    assert (code, out) == (2, "") and said in err


def test_a_limit_slows_all_of_it_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = {f"test-{number}": random_bytes(100_000, seed=number) for number in range(4)}
    with FaultServer() as server:
        overlay = serve(server, tmp_path, bodies)
        began = time.monotonic()
        code, _, err = run(overlay, capsys, "test-*", "-j", "4", "--limit-rate", "400kB")
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
        assert (code, out) == (130, "") and err.rstrip().endswith("interrupted")
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
    assert b"\x1b[" in shown and all(f"{id}.pth".encode() in shown for id in bodies)
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
