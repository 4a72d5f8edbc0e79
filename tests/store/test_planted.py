"""What others put into a cache: it is never waited for, never believed, never removed, and leads nowhere."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.errors import StorageError
from ckptkit.base.files import HAS_DIR_FD, Folder, files_below
from ckptkit.base.writers import new_writer, release
from ckptkit.store.cache import KINDS, Home, Record, read_record
from ckptkit.store.fetch import Job, fetch
from ckptkit.store.lockfile import LockFile
from ckptkit.store.unpack import MARKER, checkpoint_in, is_unpacked
from ckptkit.store.upkeep import held_ids, holdings, leftovers, prune, remove, sweep, tree_size
from tests.store.conftest import Store
from tests.support.caches import put_conversion, put_entry
from tests.support.commands import Runner, runner
from tests.support.entries import anything, entry_of, random_bytes, tar_gz
from tests.support.http_server import FaultServer
from tests.support.running import registry_file

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and pipes of Unix")

BODY = random_bytes(1000)
ARCHIVE = tar_gz({"m/m.index": b"index", "m/m.data-00000-of-00001": BODY})
ID = "moat0-224"


@pytest.fixture
def home() -> Home:
    return Home.default()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(capsys)


@contextmanager
def in_time(seconds: int = 20) -> Iterator[None]:
    """Fail where something is waited for."""

    def give_up(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, and what is in its files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of somebody else, which looks as much like a cache as it can."""
    folder = tmp_path / "victim"
    put_entry(Home(folder), ID, ARCHIVE, file="m.tar.gz")
    for name in ("documents/thesis.txt", f"{ID}/thesis.txt", f"{ID}/m.pth", "loose"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")
    (folder / ID / "m.pth.json").write_text(Record(ID, "u", "m.pth", 8, "0" * 64, "t").to_json())
    (folder / ID / MARKER).write_text(json.dumps({"sha256": "0" * 64, "files": {}}))
    (folder / ID / "torch-float32.safetensors").write_text("precious")
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [True, False], ids=["kind", "entry"])
def test_nothing_that_a_link_leads_to_is_removed_or_renamed(
    kind: str, whole: bool, home: Home, victim: Path, run: Runner
) -> None:
    before = everything(victim)
    link = home.path / kind if whole else home.path / kind / ID
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim if whole else victim / ID)
    put_entry(home, "other", BODY) if kind != "artefacts" or not whole else None
    for words in (
        ["rm", "*"], ["rm", ID], ["rm", "--converted", "*"], ["prune", "--max-size", "0"],
        ["prune", "--older-than", "1s", "--imported"], ["verify"], ["ls"],
    ):  # fmt: skip
        result = run("cache", *words)
        assert result.code in (0, 1, 3), result
        if words[0] in ("rm", "prune") and whole:
            assert f"{link} is a link; left as it is" in " ".join(result.err.split())
    assert list(prune(home, max_size=0)) is not None and sweep(home) == 0
    archive = victim.with_name("m.tar.gz")
    archive.write_bytes(ARCHIVE)
    with pytest.raises(StorageError, match="is a link"):
        fetch(Job(entry_of(archive.as_uri(), id=ID), home, anything, force=True))
    assert everything(victim) == before and link.is_symlink()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_bears_no_mark_is_left(kind: str, home: Home, run: Runner) -> None:
    put_entry(home, "m", BODY)
    folder = home.path / kind / "documents"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("precious")
    (folder / "data.json").write_text('{"id": "documents"}')
    with home.lock("another"):
        pass
    result = run("cache", "rm", "*")
    assert result.code == 0 and "was not made by ckptkit" in result.err
    assert run("cache", "prune", "--max-size", "0").code == 0
    assert (folder / "thesis.txt").read_text() == "precious" and not home.artefact_folder("m").exists()


def test_what_is_no_folder_is_no_entry(home: Home, run: Runner) -> None:
    """A stray file, a dangling link, a loop of links, a leftover's name without its writer's token."""
    put_entry(home, "m", BODY)
    artefacts = home.path / "artefacts"
    (artefacts / "stray").write_text("x")
    (artefacts / "dangling").symlink_to("/nowhere")
    (artefacts / "loop").symlink_to("loop")
    os.mkfifo(artefacts / "pipe")
    (artefacts / ".ckptkit-removing-mine").mkdir()
    writer = new_writer()
    release(writer)
    (artefacts / f".ckptkit-removing-link-{writer}").symlink_to(artefacts)
    (artefacts / f".ckptkit-unpacking-file-{writer}").write_text("x")
    names = sorted(os.listdir(artefacts))  # noqa: PTH208
    assert held_ids(home) == ["m"] and leftovers(home) == []
    assert run("cache", "rm", "*").code == 0 and run("cache", "rm", "*").code == 3
    assert sorted(os.listdir(artefacts)) == [name for name in names if name != "m"]  # noqa: PTH208


def test_links_in_an_entry_go_and_what_they_lead_to_stays(home: Home, victim: Path, tmp_path: Path) -> None:
    put_entry(home, "m", ARCHIVE, file="m.tar.gz")
    before = everything(victim)
    folder = home.unpacked_folder("m")
    (folder / "folder").symlink_to(victim)
    (folder / "file").symlink_to(victim / "loose")
    (folder / "loop").symlink_to("loop")
    os.link(victim / "loose", folder / "hard")
    os.mkfifo(folder / "pipe")
    removal = remove(home, "m")
    assert removal.kept == () and not folder.exists() and everything(victim) == before


def test_the_home_itself_may_be_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    home = Home(tmp_path / "home")
    put_entry(home, "m", BODY)
    assert remove(home, "m").removed and not (tmp_path / "disk" / "artefacts" / "m").exists()


def test_a_folder_too_deep_for_any_path_goes(home: Home) -> None:
    put_entry(home, "m", BODY)
    fd = os.open(home.artefact_folder("m"), os.O_RDONLY)
    for _ in range(900):
        os.mkdir("d" * 5, dir_fd=fd)
        inner = os.open("d" * 5, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    assert holdings(home) and tree_size(home.artefact_folder("m")) > 0
    assert list(files_below(home.artefact_folder("m")))
    assert remove(home, "m").kept == () and os.listdir(home.path / "artefacts") == []  # noqa: PTH208


@pytest.mark.skipif(not HAS_DIR_FD, reason="the system cannot hold a folder")
@pytest.mark.parametrize("swapped", ["kind", "entry", "inside"])
def test_a_link_that_takes_a_folders_place_meanwhile(swapped: str, tmp_path: Path) -> None:
    """Removals while another thread swaps a folder for a link to somebody's, and back."""
    home, victim = Home(tmp_path / "home"), tmp_path / "victim"
    (victim / "m").mkdir(parents=True)
    for folder in (victim, victim / "m"):
        (folder / "m.pth").write_bytes(BODY)
        (folder / "m.pth.json").write_text(Record("m", "u", "m.pth", 1000, "0" * 64, "t").to_json())
    before = everything(victim)
    put_entry(home, "m", BODY)
    target = {"kind": "artefacts", "entry": "artefacts/m", "inside": "artefacts/m/inner"}[swapped]
    place, aside, link = home.path / target, tmp_path / "aside", tmp_path / "link"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            with suppress(OSError):
                place.rename(aside)
            with suppress(OSError):
                link.symlink_to(victim)
                link.rename(place)
            with suppress(OSError):
                place.unlink()
            with suppress(OSError):
                aside.rename(place)

    thread = threading.Thread(target=swap, daemon=True)
    thread.start()
    try:
        for _ in range(60):
            with suppress(OSError, StorageError):
                put_entry(home, "m", BODY) if swapped != "kind" else None
                if swapped == "inside":
                    (home.artefact_folder("m") / "inner" / "deep").mkdir(parents=True, exist_ok=True)
            with suppress(OSError, StorageError):
                remove(home, "m")
            with suppress(OSError):
                list(prune(home, max_size=0))
                sweep(home)
            # `put_entry` writes by path and may follow the link; only what vanishes or is renamed counts
            assert set(before) <= set(everything(victim))
    finally:
        stop.set()
        thread.join(10)


# -- what is no regular file ---------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def pipe_with_a_writer(path: Path) -> None:
    os.mkfifo(path)
    OPEN.append(os.open(path, os.O_RDWR))


def socket_of_unix(path: Path) -> None:
    here = os.getcwd()  # noqa: PTH109
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


OPEN: list[int] = []
PLANTS: dict[str, Callable[[Path], Any]] = {
    "a pipe": pipe,
    "a pipe with a writer": pipe_with_a_writer,
    "a socket": socket_of_unix,
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a terminal": lambda path: path.symlink_to("/dev/tty"),
}
PLACES = [
    f"artefacts/{ID}/x.json",
    f"artefacts/{ID}/tiny.pth.json",
    f"artefacts/{ID}/tiny.pth",
    f"artefacts/{ID}/.x.part",
    f"artefacts/{ID}/.tiny.pth.0123456789abcdef.aaaaaaaa-1-1-abcdef.part.json",
    f"artefacts/{ID}/.ckptkit-0123456789ab-x.part",
    f"unpacked/{ID}/{MARKER}",
    f"unpacked/{ID}/m.index",
    f"converted/{ID}/torch-float32.safetensors",
    f"converted/{ID}/.ckptkit-0123456789ab-x.part",
    f"logs/{ID}/log.csv",
    f"logs/{ID}/log.csv.record",
    f"locks/{ID}.lock",
    f"used/{ID}",
    "ckptkit.lock",
]


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "tiny.pth"
    path.parent.mkdir()
    path.write_bytes(BODY)
    log = path.with_name("log.csv")
    log.write_text("epoch,train_loss\n0,1\n")
    source = {"id": ID, "sources": [{"url": path.as_uri()}], "log_url": log.as_uri()}
    return registry_file(tmp_path, source)


TOGETHER = [place for place in PLACES if not place.endswith((f"{ID}.lock", "ckptkit.lock", "/tiny.pth"))]
"""Places where plants leave each command something else to find."""


@pytest.mark.parametrize(
    ("plant", "places"),
    [
        *((plant, TOGETHER) for plant in PLANTS),
        *(("a pipe", [place]) for place in PLACES if place not in TOGETHER),
        *(("a pipe with a writer", [place]) for place in PLACES if place not in TOGETHER),
    ],
    ids=str,
)
def test_nothing_is_waited_for(
    plant: str, places: list[str], home: Home, run: Runner, registry: Path
) -> None:
    put_entry(home, ID, BODY, file="tiny.pth")
    for place in places:
        planted = home.path / place
        planted.parent.mkdir(parents=True, exist_ok=True)
        planted.unlink(missing_ok=True)
        PLANTS[plant](planted)
    named = ("--registry", registry)
    try:
        for words in (
            ["list", "--cached"], ["show", ID], ["cache", "ls"], ["cache", "verify"], ["cache", "path", ID],
            ["--offline", "fetch", ID], ["verify", ID], ["--offline", "convert", ID],
            ["--offline", "logs", ID], ["cache", "prune", "--max-size", "0", "--dry-run"],
            ["cache", "rm", ID],
        ):  # fmt: skip
            with in_time():
                result = run(*named, *words)
            assert "Traceback" not in result.err and result.err.count("error: ") <= 1, (words, result)
            assert result.code in (0, 1, 2, 3, 4, 5), (words, result)
    finally:
        while OPEN:
            os.close(OPEN.pop())


def test_a_fetch_takes_the_place_of_links_alone(home: Home, store: Store, server: FaultServer) -> None:
    store.home = home
    entry = entry_of(server.serve("/m.pth", BODY), id=ID)
    folder = home.artefact_folder(ID)
    folder.mkdir(parents=True)
    for name in ("m.pth", "m.pth.json"):
        (folder / name).symlink_to("/dev/zero")
    with in_time():
        assert store.fetch(entry).artefact.read_bytes() == BODY
    assert read_record(folder / "m.pth.json") is not None and Path("/dev/zero").is_char_device()


@pytest.mark.parametrize("name", ["m.pth", "m.pth.json"])
@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device", "a folder"])
def test_what_is_no_file_is_left_and_nothing_is_asked_for(
    kind: str, name: str, store: Store, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store.home.artefact_folder(ID)
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            {
                "a named pipe": os.mkfifo, "a socket": made.bind, "a folder": os.mkdir,
                "a device": lambda name: os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
            }[kind](name)  # fmt: skip
    except PermissionError:
        pytest.skip("making devices takes root")
    before = os.lstat(name)
    for _ in range(2):
        with in_time(), pytest.raises(StorageError, match=f"{name} is {kind}; move it away"):
            store.fetch(entry_of(server.serve("/m.pth", BODY), id=ID))
    assert (
        os.path.samestat(os.lstat(name), before)
        and list(folder.iterdir()) == [folder / name]
        and not server.requests
    )


def test_a_lock_file_that_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "trust")
    with in_time(), pytest.raises(StorageError, match="a named pipe where a regular file is needed"):
        LockFile(tmp_path / "trust").files(ID)


SOUND = asdict(Record(ID, "https://a.org/m.pth", "m.pth", len(BODY), "0" * 64, "2026-01-01T00:00:00+00:00"))


@pytest.mark.parametrize(
    "lie",
    [
        {"file": "../../etc/passwd"}, {"file": "/etc/passwd"}, {"file": ".."}, {"file": ""}, {"file": "a\0b"},
        {"id": "other"}, {"id": "../x"}, {"size": -1}, {"size": 1.5}, {"size": True}, {"size": 1 << 80},
        {"size": "9"}, {"mtime_ns": 1 << 99}, {"mtime_ns": None}, {"sha256": "0" * 63}, {"sha256": "G" * 64},
        {"sha256": None}, {"url": "javascript:alert(1)"}, {"url": 7}, {"used_url": "data:text/html,x"},
        {"etag": 1}, {"generation": ["x"]}, {"server_hashes": {"md5": 1}}, {"server_hashes": []},
        {"previous": [1]}, {"bn_statistics": "yes"}, {"overruled": 1}, {"fetched_at": "\x1b[2J"},
        {"fetched_at": "9" * 100}, {"note": None}, {"url": "https://a.org/" + "x" * (1 << 17)},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_lies_is_no_record(lie: dict[str, Any], home: Home) -> None:
    folder = home.artefact_folder(ID)
    folder.mkdir(parents=True)
    (folder / "m.pth").write_bytes(BODY)
    record = folder / "m.pth.json"
    record.write_text(json.dumps(SOUND))
    assert home.is_cached(ID)
    record.write_text(json.dumps({**SOUND, **lie}))
    assert home.record(ID) is None and not home.is_cached(ID)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "1", "[" * 100_000, "{" * 100_000, "9" * 5000, '"x"', "\xff"], ids=len
)
def test_a_record_that_is_no_mapping(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(text.encode("latin-1"))
    assert read_record(tmp_path / "r.json") is None
    (tmp_path / "r.json").write_bytes(b" " * (2 << 20))
    assert read_record(tmp_path / "r.json") is None


@pytest.mark.parametrize(
    "files",
    [{"../../outside": 8}, {"/etc/passwd": 1}, {"": 0}, {".": 0}, {"a//b": 0}, {"m.index": True},
     {"m.index": "5"}, [["m.index", 5], 1], {"a\\..\\b": 1}],
    ids=str,
)  # fmt: skip
def test_a_marker_that_lies_is_none(files: Any, home: Home) -> None:
    put_entry(home, "m", ARCHIVE, file="m.tar.gz")
    folder = home.unpacked_folder("m")
    marker = json.loads((folder / MARKER).read_text())
    assert is_unpacked(folder, marker["sha256"])
    (home.path / "outside").write_text("precious")
    (folder / MARKER).write_text(json.dumps({**marker, "files": files}))
    assert not is_unpacked(folder, marker["sha256"])


def test_links_in_an_unpacked_folder_are_not_walked(home: Home, victim: Path) -> None:
    put_entry(home, "m", ARCHIVE, file="m.tar.gz")
    folder = home.unpacked_folder("m")
    (folder / "loop").symlink_to(folder)
    (folder / "away").symlink_to(victim)
    assert checkpoint_in(folder) == folder / "m"


@pytest.mark.parametrize("planted", ["pipe", "link", "second name"])
def test_a_part_that_is_not_its_own_file_is_not_continued(
    planted: str, home: Home, store: Store, server: FaultServer, tmp_path: Path
) -> None:
    """A planted part whose sidecar is as sound as can be: nobody's file is written to."""
    from ckptkit.store.openers import Identity
    from ckptkit.store.partial import Partial

    store.home = home
    url = server.serve("/m.pth", BODY)
    entry = entry_of(url, id=ID)
    partial = Partial(home.artefact_folder(ID), "m.pth", url)
    partial.begin(Identity(etag='"v1"', size=len(BODY)), ())
    partial.append(BODY[:500])
    partial.close()
    (part,) = home.artefact_folder(ID).glob(".*.part")
    precious = tmp_path / "precious"
    precious.write_bytes(BODY[:500])
    part.unlink()
    if planted == "pipe":
        os.mkfifo(part)
    elif planted == "link":
        part.symlink_to(precious)
    else:
        os.link(precious, part)
    with in_time():
        assert store.fetch(entry).artefact.read_bytes() == BODY
    assert precious.read_bytes() == BODY[:500] and server.ranges("/m.pth") == [None]


def test_conversions_and_logs_are_told_from_others_files(home: Home) -> None:
    put_conversion(home, "m", "torch-float32.safetensors", "0" * 64)
    logs = home.logs_folder("m")
    logs.mkdir(parents=True)
    (logs / "mine.csv").write_text("x")
    removal = remove(home, "m")
    assert [path.parent.name for path in removal.removed] == ["converted"]
    assert "was not made by ckptkit" in removal.kept[0] and (logs / "mine.csv").exists()


@pytest.mark.skipif(not HAS_DIR_FD, reason="the system cannot hold a folder")
def test_a_folder_is_opened_by_names_that_are_no_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with Folder(tmp_path / "a" / "b", below=tmp_path) as folder:
        assert folder.names() == [] and folder.path == tmp_path / "a" / "b"
    with pytest.raises(OSError):
        Folder(tmp_path / "link" / "b", below=tmp_path)
    with Folder(tmp_path / "link" / "b", below=tmp_path / "link") as folder:
        assert folder.names() == []


def test_the_store_opens_nothing_by_a_plain_open() -> None:
    """`ckptkit.base.files` opens what others may have put there."""
    package = Path(__file__).parents[2] / "ckptkit"
    allowed = {("writers.py", "read_text"), ("unpack.py", "open"), ("remote.py", "open")}
    found = set()
    base = [package / "base" / name for name in ("locks.py", "writers.py", "net.py")]
    for file in (*package.glob("store/*.py"), *base):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in ("open", "read_bytes", "read_text", "rmtree", "fdopen"):
                    owner = getattr(getattr(node.func, "value", None), "id", "")
                    if owner != "os":
                        found.add((file.name, name))
    assert found <= allowed
