"""Fetching in processes of its own: killed, interrupted, two at once, a full disk, no permission."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.entries import final_files, pinned, random_bytes
from tests.support.http_server import FaultServer, goog_hash, slowly
from tests.support.running import finish, registry_file, start, wait_until

BODY = random_bytes(2_000_000)
PATH = "/x/model.pth"


@pytest.fixture
def arguments(server: FaultServer, tmp_path: Path) -> list[str | Path]:
    """Return the command line that fetches the test's file."""
    url = server.serve(PATH, BODY, headers=goog_hash(BODY))
    overlay = registry_file(tmp_path, {"id": "test-entry", "sources": [{"url": url}], **pinned(BODY)})
    return ["fetch", "test-entry", "--registry", overlay]


def part_size(home: Path) -> int:
    total = 0
    for path in home.glob("artefacts/test-entry/.*.part"):
        with contextlib.suppress(FileNotFoundError):  # a record on its way has such a name for a moment
            total += path.stat().st_size
    return total


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_fetch_is_continued_by_the_next(
    server: FaultServer, tmp_path: Path, arguments: list[str | Path], how: signal.Signals
) -> None:
    home = tmp_path / "home"
    server.fail(PATH, slowly(0.05, 50_000))
    process = start(arguments, home)
    wait_until(lambda: part_size(home) > 100_000)
    process.send_signal(how)
    code, out, err = finish(process)
    assert out == "" and final_files(home) == []
    assert not list(home.glob("artefacts/test-entry/[!.]*"))
    if how is signal.SIGINT:
        assert code == 130 and err.rstrip().endswith("interrupted; run it again to resume")
    else:
        assert code == -how
    kept = part_size(home)
    assert 100_000 < kept < len(BODY)
    code, out, err = finish(start(arguments, home))
    assert code == 0, err
    assert server.ranges(PATH) == [None, kept]
    assert Path(out.strip()).read_bytes() == BODY
    assert sorted(path.name for path in home.glob("artefacts/test-entry/*")) == [
        "model.pth",
        "model.pth.json",
    ]


def test_two_processes_download_once(
    server: FaultServer, tmp_path: Path, arguments: list[str | Path]
) -> None:
    home = tmp_path / "home"
    server.fail(PATH, slowly(0.02, 50_000))
    processes = [start(arguments, home) for _ in range(3)]
    results = [finish(process) for process in processes]
    assert [code for code, _, _ in results] == [0, 0, 0], results
    assert len({out for _, out, _ in results}) == 1
    assert server.ranges(PATH) == [None]
    assert [path.read_bytes() == BODY for path in final_files(home)] == [True]
    assert any("another process" in err for _, _, err in results)


def test_a_file_size_limit_is_a_storage_error(
    server: FaultServer, tmp_path: Path, arguments: list[str | Path]
) -> None:
    home = tmp_path / "home"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))"
    code, out, err = finish(start(arguments, home, prelude=limit))
    assert (code, out) == (5, "")
    assert "model.pth: file too large" in err and err.count("error:") == 1
    assert final_files(home) == [] and part_size(home) == 0


def test_a_full_disk(server: FaultServer, tmp_path: Path, arguments: list[str | Path]) -> None:
    """On a file system of 1 MB, in a mount namespace of its own so that nobody else sees it."""
    home = tmp_path / "home"
    home.mkdir()
    script = tmp_path / "run.sh"
    lines = [
        f"mount -t tmpfs -o size=1m none '{home}' || exit 77",
        '"$@"; code=$?',
        f"ls -A '{home}/artefacts/test-entry'",
        "exit $code",
    ]
    script.write_text("\n".join(lines))
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    # The space check would refuse beforehand; here the disk fills up while the bytes come.
    prelude = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(9**9, 0, 9**9)"
    code = f"{prelude}\nfrom ckptkit.cli.app import main\nmain()"
    command = ["unshare", "-rm", "sh", str(script), sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "CKPTKIT_HOME": str(home)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if run.returncode == 77 or "unshare failed" in run.stderr or "Operation not permitted" in run.stderr:
        pytest.skip("may not mount here")
    assert run.returncode == 5, run.stderr
    assert "model.pth: no space left on the disk; free some space" in run.stderr
    assert run.stdout == ""  # nothing stands in the entry's folder, temporary files neither


def test_no_permission(server: FaultServer, tmp_path: Path, arguments: list[str | Path]) -> None:
    home = tmp_path / "home"
    (home / "artefacts").mkdir(parents=True)
    (home / "locks").mkdir()
    (home / "locks").chmod(0o777)
    (home / "artefacts").chmod(0o555)
    # Root may write anywhere by its capabilities, so the process gives them up (capset of nothing, Linux).
    drop = (
        "import ctypes, os\n"
        "header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()\n"
        "os.geteuid() or ctypes.CDLL(None).capset(header, nothing)"
    )
    code, out, err = finish(start(arguments, home, prelude=drop))
    assert (code, out) == (5, ""), err
    assert "permission denied; check who may write there" in err
    assert final_files(home) == []


def test_a_read_only_cache_still_serves(
    tmp_path: Path, server: FaultServer, arguments: list[str | Path]
) -> None:
    home = tmp_path / "home"
    assert finish(start(arguments, home))[0] == 0
    shutil.rmtree(home / "locks")  # an intact file needs no lock, so none is made
    code, out, _ = finish(start([*arguments, "--offline"], home))
    assert code == 0
    assert hashlib.sha256(Path(out.strip()).read_bytes()).digest() == hashlib.sha256(BODY).digest()
    assert not (home / "locks").exists()
