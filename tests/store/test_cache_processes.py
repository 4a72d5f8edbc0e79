"""Several processes on one cache: with locks that do nothing, killed, or where nobody may write."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ckptkit.registry.loading import load_registry
from ckptkit.store.cache import Home
from ckptkit.store.fetch import Job, import_file
from ckptkit.store.upkeep import leftovers, sweep
from ckptkit.workspace import fits
from tests.support.caches import put_conversion, put_entry
from tests.support.entries import XT, final_files, pinned, published_xt, random_bytes, tar_gz
from tests.support.http_server import Answer, Fault, FaultServer, Request, goog_hash, slowly
from tests.support.moat_files import write_tiny
from tests.support.running import REPOSITORY, finish, registry_file, start, wait_until

BODY = random_bytes(1_000_000)
OTHER = random_bytes(1_000_000, seed=2)
PATH = "/x/model.pth"

WITHOUT_LOCKS = {
    "none there": "import errno, fcntl\n"
    "def refuse(*_): raise OSError(errno.ENOLCK, 'no locks')\n"
    "fcntl.flock = refuse",
    "that exclude nobody": "import ckptkit.base.locks\nckptkit.base.locks._try = lambda fd: 'held'",
}
"""As on Lustre without -o flock, or NFS without its lock service; as with NFS's nolock on two machines."""


def meeting_at(meeting: threading.Barrier, *faults: Fault) -> list[Fault]:
    """Answer no request before all have come, so that their writers write at the same time."""

    def after_meeting(fault: Fault) -> Fault:
        def answer(request: Request, good: Answer) -> Answer:
            meeting.wait()
            return fault(request, good)

        return answer

    return [after_meeting(fault) for fault in faults]


def temporary_files(home: Path) -> list[str]:
    return [path.name for path in home.rglob(".*") if path.name != ".ckptkit-unpacked.json"]


@pytest.mark.parametrize("locks", WITHOUT_LOCKS)
def test_without_locks_two_writers_share_no_byte(server: FaultServer, tmp_path: Path, locks: str) -> None:
    """Both download whole, one after the other gives it its name, and nothing is left."""
    home = tmp_path / "home"
    archive = tar_gz({"m/m.index": b"index", "m/m.data-00000-of-00001": BODY})
    url = server.serve("/x/model.tar.gz", archive, headers=goog_hash(archive))
    meeting = threading.Barrier(2, timeout=30)
    server.fail("/x/model.tar.gz", *meeting_at(meeting, slowly(0.01, 50_000), slowly(0.015, 50_000)))
    overlay = registry_file(tmp_path, {"id": "test-entry", "sources": [{"url": url}], **pinned(archive)})
    arguments = ["fetch", "test-entry", "--registry", overlay]
    processes = [start(arguments, home, prelude=WITHOUT_LOCKS[locks]) for _ in range(2)]
    results = [finish(process) for process in processes]
    assert [code for code, _, _ in results] == [0, 0], results
    assert server.ranges("/x/model.tar.gz") == [None, None]
    assert (home / "artefacts/test-entry/model.tar.gz").read_bytes() == archive
    assert (home / "unpacked/test-entry/m/m.data-00000-of-00001").read_bytes() == BODY
    assert temporary_files(home) == []
    code, _, err = finish(start([*arguments, "--offline"], home))
    assert code == 0 and "in the cache already" in err, err


@pytest.mark.parametrize("locks", WITHOUT_LOCKS)
def test_without_locks_two_different_files_stay_apart(
    server: FaultServer, tmp_path: Path, locks: str
) -> None:
    """The published file changes between the requests of two writers: either is there, none is a mixture."""
    home = tmp_path / "home"
    one, two = published_xt(), published_xt(b"two")
    url = server.serve(PATH, one, etag='"one"')
    meeting = threading.Barrier(2, timeout=30)
    server.fail(PATH, *meeting_at(meeting, slowly(0.04, 600_000), slowly(0.01, 600_000)))
    overlay = registry_file(tmp_path, {"id": "test-entry", "sources": [{"url": url}], **XT})
    arguments = ["fetch", "test-entry", "--registry", overlay]
    first = start(arguments, home, prelude=WITHOUT_LOCKS[locks])
    wait_until(lambda: meeting.n_waiting == 1)
    server.serve(PATH, two, etag='"two"')
    second = start(arguments, home, prelude=WITHOUT_LOCKS[locks])
    codes = sorted(finish(process)[0] for process in (first, second))
    assert codes == [0, 5]  # the later one is not what was fetched first, and is refused
    (path,) = final_files(home)
    record = Home(home).record("test-entry")
    assert record is not None and path.read_bytes() in (one, two)
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_without_locks_a_killed_fetch_is_continued(server: FaultServer, tmp_path: Path) -> None:
    home = tmp_path / "home"
    url = server.serve(PATH, BODY, headers=goog_hash(BODY))
    server.fail(PATH, slowly(0.05, 50_000))
    overlay = registry_file(tmp_path, {"id": "test-entry", "sources": [{"url": url}], **pinned(BODY)})
    arguments = ["fetch", "test-entry", "--registry", overlay]

    def arrived() -> int:
        return sum(path.stat().st_size for path in home.glob("artefacts/test-entry/.*.part"))

    process = start(arguments, home, prelude=WITHOUT_LOCKS["none there"])
    wait_until(lambda: arrived() > 100_000)
    process.kill()
    finish(process)
    kept = arrived()
    code, out, err = finish(start(arguments, home, prelude=WITHOUT_LOCKS["none there"]))
    assert code == 0, err
    assert server.ranges(PATH) == [None, kept] and Path(out.strip()).read_bytes() == BODY
    assert temporary_files(home) == []


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from ckptkit.store.cache import Home
from ckptkit.store.upkeep import remove

model, step = Path(sys.argv[1]), 0

def counted(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

while True:
    home = model.with_name(f"home{step}")
    shutil.copytree(model, home)
    child = os.fork()
    if child == 0:
        left = step
        for name in ("rename", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        remove(Home(home), "m")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(status, flush=True)
    if status == 0:
        break
    step += 1
"""
"""Removes an entry again and again, killed before the first change to the disk, the second, and so on."""


def test_a_removal_that_is_killed_leaves_everything_whole_or_gone(tmp_path: Path) -> None:
    model = Home(tmp_path / "home")
    archive = tar_gz({f"m/{number}": b"x" * 100 for number in range(5)})
    put_entry(model, "m", archive, file="m.tar.gz")
    put_conversion(model, "m", "torch-float32.safetensors", hashlib.sha256(archive).hexdigest())
    model.touch("m")
    whole = {path.relative_to(model.path) for path in model.path.rglob("*") if path.is_file()}
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(model.path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    statuses = run.stdout.split()
    steps = len(statuses) - 1
    assert statuses == [str(int(signal.SIGKILL))] * steps + ["0"]
    assert steps > len(whole) + 3  # every file, and every folder's renaming and removal
    seen = set()
    for step in range(steps + 1):
        home = Home(tmp_path / f"home{step}")
        for kind in ("artefacts", "unpacked", "converted"):
            folder = home.path / kind / "m"
            there = {path.relative_to(home.path) for path in folder.rglob("*") if path.is_file()}
            assert there in (set(), {path for path in whole if path.parts[0] == kind}), (step, kind)
        seen.add((home.is_cached("m"), bool(leftovers(home))))
        sweep(home)
        assert leftovers(home) == [] and temporary_files(home.path) == []
    assert seen == {(True, False), (False, True), (False, False)}


def test_readers_and_a_remover_at_once(server: FaultServer, tmp_path: Path) -> None:
    """While entries come and go, a fetch gives a whole file or downloads it again, and never fails."""
    home = tmp_path / "home"
    url = server.serve(PATH, BODY, headers=goog_hash(BODY))
    overlay = registry_file(tmp_path, {"id": "test-entry", "sources": [{"url": url}], **pinned(BODY)})
    remover = start(["cache", "rm", "test-entry"], home, prelude=(
        "import time\nfrom pathlib import Path\nfrom ckptkit.store.cache import Home\n"
        "from ckptkit.store.upkeep import remove\n"
        "end = time.monotonic() + 1.5\n"
        "while time.monotonic() < end:\n    remove(Home.default(), 'test-entry'); time.sleep(0.01)\n"
        "raise SystemExit(0)"
    ))  # fmt: skip
    fetchers = [start(["fetch", "test-entry", "--registry", overlay], home) for _ in range(3)]
    for process in fetchers:
        code, _, err = finish(process)
        assert code == 0, err
    assert finish(remover)[0] == 0
    assert all(path.read_bytes() == BODY for path in final_files(home)) and temporary_files(home) == []


READ_ONLY = """
set -e
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 77
if touch "$1/x" 2>/dev/null; then exit 77; fi
shift; exec "$@"
"""


def read_only(folder: Path, home: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ckptkit where a folder is a read-only mount: not even root may write there."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    python = [sys.executable, "-m", "ckptkit.cli.app", *map(str, arguments)]
    run = subprocess.run(
        ["unshare", "-rm", "sh", "-c", READ_ONLY, "sh", str(folder), *python],
        env={**os.environ, "CKPTKIT_HOME": home},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if run.returncode == 77 or "unshare failed" in run.stderr or "Operation not permitted" in run.stderr:
        pytest.skip("may not mount here")
    return run


def test_a_read_only_file_system(server: FaultServer, tmp_path: Path) -> None:
    """Cached files are served, touched or not; conversions and what is fetched anew go to the next folder."""
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    url = server.serve(PATH, BODY, headers=goog_hash(BODY))
    server.serve("/x/other.pth", OTHER)
    overlay = registry_file(
        tmp_path,
        {"id": "test-entry", "sources": [{"url": url}], **pinned(BODY)},
        {"id": "test-other", "sources": [{"url": server.url("/x/other.pth")}], **pinned(OTHER)},
    )
    fetch = ["fetch", "test-entry", "--registry", overlay]
    assert finish(start(fetch, theirs))[0] == 0
    artefact = theirs / "artefacts/test-entry/model.pth"
    for touched in (False, True):
        if touched:
            os.utime(artefact, (1, 1))
        run = read_only(theirs, str(theirs), *fetch)  # alone, without any folder to write to
        assert (run.returncode, run.stdout) == (0, f"{artefact}\n"), run.stderr
    both = f"{theirs}{os.pathsep}{mine}"
    run = read_only(theirs, both, "fetch", "test-entry", "test-other", "--registry", overlay)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [str(artefact), str(mine / "artefacts/test-other/model.pth").replace(
        "model", "other")]  # fmt: skip
    run = read_only(theirs, str(theirs), "fetch", "test-other", "--registry", overlay)
    assert run.returncode == 5 and "read-only file system" in run.stderr
    run = read_only(theirs, str(theirs), "cache", "verify")
    assert run.returncode == 0, run.stderr
    run = read_only(theirs, str(theirs), "cache", "rm", "test-entry")
    assert run.returncode == 5 and "read-only" in run.stderr and run.stderr.count("error:") == 1
    assert artefact.read_bytes() == BODY
    assert [home.path for home in Home(mine, [theirs]).homes] == [mine, theirs]


def test_a_conversion_of_what_is_read_only_goes_elsewhere(tmp_path: Path) -> None:
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    write_tiny(tmp_path / "tiny" / "model.ckpt")
    published = tmp_path / "published.tar.gz"
    files = {f"tiny/{path.name}": path.read_bytes() for path in (tmp_path / "tiny").iterdir()}
    published.write_bytes(tar_gz(files))
    import_file(Job(load_registry()["tiny-moat0-256"], Home(theirs), fits), published)
    both = f"{theirs}{os.pathsep}{mine}"
    expected = mine / "converted" / "tiny-moat0-256" / "torch-float32.safetensors"
    convert = ["convert", "tiny-moat0-256", "--offline"]
    run = read_only(theirs, both, *convert)
    assert (run.returncode, run.stdout) == (0, f"{expected}\n"), run.stderr
    assert not (theirs / "converted").exists()
    shutil.copytree(mine / "converted", theirs / "converted")
    shutil.rmtree(mine / "converted")
    run = read_only(theirs, both, *convert)  # one that lies there already is used there
    assert run.stdout == f"{theirs / expected.relative_to(mine)}\n"
    assert not (mine / "converted").exists()
