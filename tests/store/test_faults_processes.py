"""Faults of the machine: the process killed, the disk full or closed, and many processes at once.

The processes are forked from a server that has everything imported, so each starts within milliseconds.
"""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.errors import CkptkitError
from ckptkit.store.cache import Home
from ckptkit.store.fetch import Job, fetch
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import anything, entry_of, final_files, random_bytes
from tests.support.http_server import FaultServer, cut, slowly

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's limits and mounts")

SIZE = 400_000
BODY = random_bytes(SIZE)
PATH = "/x/model.pth"


def _child(
    answer: Connection, url: str, home: Path, prepare: Callable[[Path], None] | None, fields: dict[str, Any]
) -> None:
    """Fetch in a process of its own; answer with ("fetched", sha256) or with the error."""
    os.environ["CKPTKIT_TRUST"] = str(home.with_name("trust.json"))  # the server they fork from has another
    try:
        if prepare:
            prepare(home)
        fetched = fetch(Job(entry_of(url, **fields), Home(home), anything))
        answer.send(("fetched", hashlib.sha256(fetched.path.read_bytes()).hexdigest()))
    except CkptkitError as error:
        left = sum(path.stat().st_size for path in home.glob("artefacts/test-entry/.model.pth.*.part"))
        answer.send((type(error).__name__, str(error), left))
    except PermissionError as error:  # of the preparation
        answer.send(("skipped", str(error)))


@pytest.fixture(scope="module")
def forks() -> Iterator[Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    yield context


Start = Callable[..., tuple[Any, Connection]]


@pytest.fixture
def start(forks: Any, server: FaultServer, tmp_path: Path) -> Iterator[Start]:
    """Start a fetch of the file in a process of its own."""
    running: list[Any] = []

    def begin(
        home: Path, prepare: Callable[[Path], None] | None = None, **fields: Any
    ) -> tuple[Any, Connection]:
        ours, theirs = forks.Pipe(duplex=False)
        given = (theirs, server.url(PATH), home, prepare, fields)
        process = forks.Process(target=_child, args=given, daemon=True)
        process.start()
        theirs.close()
        running.append(process)
        return process, ours

    server.serve(PATH, BODY)
    yield begin
    for process in running:
        process.join(10)
        process.close()


def said_by(started: tuple[Any, Connection]) -> Any:
    process, answer = started
    assert answer.poll(30), "it never answered"
    said = answer.recv()
    process.join(10)
    if said[0] == "skipped":
        pytest.skip(f"may not do this here: {said[1]}")
    return said


FETCHED = ("fetched", hashlib.sha256(BODY).hexdigest())


def kill_at_random_moments(server: FaultServer, start: Start, folder: Path, times: int) -> None:
    chance = random.Random(times)
    home = folder / "0"
    begun = 0
    for turn in range(times):
        server.script[PATH] = [slowly(0.01, 20_000)]
        process, answer = start(home)
        process.join(chance.uniform(0, 0.3))
        process.kill()
        process.join(10)
        assert process.exitcode in (0, -signal.SIGKILL)
        standing = [path.read_bytes() for path in final_files(home)]
        assert standing in ([], [BODY])
        parts = [path.read_bytes() for path in home.glob("artefacts/test-entry/.model.pth.*.part")]
        assert len(parts) <= 1 and all(BODY.startswith(part) for part in parts)
        begun += any(parts)
        answer.close()
        if standing:
            home = folder / str(turn + 1)
    server.script.clear()
    server.requests.clear()
    kept = sum(path.stat().st_size for path in home.glob("artefacts/test-entry/.model.pth.*.part"))
    assert said_by(start(home)) == FETCHED
    assert server.ranges(PATH) == [kept or None]
    assert [path.read_bytes() for path in final_files(home)] == [BODY]
    assert begun, "no kill hit a download under way"


def test_killed_at_5_random_moments(server: FaultServer, start: Start, tmp_path: Path) -> None:
    kill_at_random_moments(server, start, tmp_path, 5)


@pytest.mark.parametrize("known", [True, False])
def test_killed_between_the_files_of_an_entry(
    server: FaultServer, start: Start, tmp_path: Path, known: bool
) -> None:
    """A file that is complete is not downloaded again, and the one to open is not there before the others."""
    beside = {f"/x/shard-{n}": random_bytes(SIZE, seed=n) for n in (7, 8)}
    files = {PATH: BODY, **beside}
    for path, body in beside.items():
        server.serve(path, body)
    stated = {
        path: {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)} if known else {}
        for path, body in files.items()
    }
    provenance = {"hash_provenance": None, "checksum_page": "https://a.org/x"} if known else {}
    companions = [{"path": Path(path).name, **stated[path]} for path in beside]
    fields = {**stated[PATH], **provenance, "companions": companions}
    home = tmp_path / "home"
    for path, received in (("/x/shard-8", 100_000), (PATH, 200_000)):
        server.fail(path, slowly(0.02, 20_000))
        process, answer = start(home, **fields)
        folder = home / "artefacts" / "test-entry"
        name = Path(path).name
        deadline = time.monotonic() + 30
        while sum(part.stat().st_size for part in folder.glob(f".{name}.*.part")) < received:
            assert time.monotonic() < deadline and process.is_alive()
            time.sleep(0.01)
        process.kill()
        process.join(10)
        answer.close()
        assert process.exitcode == -signal.SIGKILL
        there = {one.name for one in final_files(home)}
        complete = {"shard-7"} if path != PATH else {"shard-7", "shard-8"}
        assert there == (complete if known else set())
        assert not Home(home).is_cached("test-entry")
    assert said_by(start(home, **fields)) == FETCHED
    assert {one.name: one.read_bytes() for one in final_files(home)} == {
        Path(path).name: body for path, body in files.items()
    }
    first, second, main = (server.ranges(path) for path in ("/x/shard-7", "/x/shard-8", PATH))
    # Of a part that is whole the last byte is asked for again, which tells whether it is still that file.
    assert first == ([None] if known else [None, SIZE - 1, SIZE - 1])
    assert second[0] is None and second[1] >= 100_000
    assert second[2:] == ([] if known else [SIZE - 1])
    assert main[0] is None and main[1] >= 200_000 and len(main) == 2
    assert not [path.name for path in (home / "artefacts" / "test-entry").glob(".*")]


@pytest.mark.slow
def test_killed_at_50_random_moments(server: FaultServer, start: Start, tmp_path: Path) -> None:
    kill_at_random_moments(server, start, tmp_path, 50)


def test_eight_processes_download_once(server: FaultServer, start: Start, tmp_path: Path) -> None:
    server.fail(PATH, slowly(0.02, 40_000))
    started = [start(tmp_path / "home") for _ in range(8)]
    assert [said_by(one) for one in started] == [FETCHED] * 8
    assert server.ranges(PATH) == [None]


def test_eight_processes_and_a_line_that_breaks(server: FaultServer, start: Start, tmp_path: Path) -> None:
    server.fail(PATH, cut(100_000), cut(100_000))
    started = [start(tmp_path / "home") for _ in range(8)]
    assert [said_by(one) for one in started] == [FETCHED] * 8
    assert server.ranges(PATH) == [None, 100_000, 200_000]


# What the disk does.


def _limit_file_size(_home: Path) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))


def _mount(home: Path, flags: int, options: bytes) -> None:
    """Mount a tmpfs on the cache folder, in a mount namespace of this process's own."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private = 0x00020000, 0x4C000
    home.mkdir(parents=True, exist_ok=True)
    for done in (
        lambda: libc.unshare(new_namespace),
        lambda: libc.mount(b"none", b"/", None, private, None),
        lambda: libc.mount(b"none", str(home).encode(), b"tmpfs", flags, options),
    ):
        if done():
            raise PermissionError(ctypes.get_errno(), "cannot mount")


def _small_disk(home: Path) -> None:
    import shutil

    _mount(home, 0, b"size=200k")
    # The space check would refuse beforehand; here the disk fills up while the bytes come.
    shutil.disk_usage = lambda _path: shutil._ntuple_diskusage(9**9, 0, 9**9)  # type: ignore[attr-defined]


def _small_disk_checked(home: Path) -> None:
    _mount(home, 0, b"size=200k")


def _read_only_disk(home: Path) -> None:
    _mount(home, 1, b"size=1m")


def _folder_of_somebody_else(home: Path) -> None:
    """Make a folder that may not be written to, and give up root's right to write there all the same."""
    (home / "locks").mkdir(parents=True)
    (home / "locks").chmod(0o777)
    (home / "artefacts").mkdir()
    (home / "artefacts").chmod(0o555)
    if os.geteuid() == 0:
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        ctypes.CDLL(None).capset(header, nothing)


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (_limit_file_size, "model.pth: file too large"),
        (_small_disk, "model.pth: no space left on the disk; free some space"),
        (_small_disk_checked, "more bytes, but"),
        (_read_only_disk, "read-only file system"),
        (_folder_of_somebody_else, "permission denied; check who may write there"),
    ],
)
def test_a_disk_that_refuses(
    server: FaultServer,
    start: Start,
    store: Store,
    prepare: Callable[[Path], None],
    says: str,
) -> None:
    kind, message, left = said_by(start(store.home.path, prepare))
    assert kind == "StorageError" and says in message
    assert left == 0 and store.files == [] and store.leftovers() == []
    for folder in store.home.path.glob("*"):
        folder.chmod(0o755)
    assert said_by(start(store.home.path)) == FETCHED
    assert [path.read_bytes() for path in store.files] == [BODY] and store.leftovers() == []


def test_the_clock_of_the_machine_may_jump(
    store: Store, server: FaultServer, assert_only: AssertOnly, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cached is told by its size and its recorded time, not by what the clock says now."""
    entry = entry_of(server.serve(PATH, BODY))
    real = time.time
    server.fail(PATH, cut(100_000))
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * len(server.requests))
    store.fetch(entry)
    assert store.fetch(entry).from_cache
    assert_only(store, BODY)
    assert server.ranges(PATH) == [None, 100_000]
