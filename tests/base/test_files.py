"""Whole or absent: staged files under faults that really happen."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from ckptkit.base import files
from ckptkit.base.errors import StorageError, UsageError
from ckptkit.base.files import StagedFile
from ckptkit.base.writers import new_writer, release
from tests.support.mounts import refusing


def leftovers(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(".ckptkit-")]


def test_nothing_stands_before_commit(tmp_path):
    target = tmp_path / "deep" / "x.bin"
    with StagedFile(target) as staged:
        staged.append(b"abc")
        staged.append(memoryview(b"def"))
        staged.write_at(b"X", 0)
        assert not target.exists()
        staged.commit()
    assert target.read_bytes() == b"Xbcdef"
    assert leftovers(target.parent) == []


def test_an_exception_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), StagedFile(tmp_path / "x.bin") as staged:
        staged.append(b"abc")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_refused_without_force(tmp_path):
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")
    with pytest.raises(UsageError, match="--force"):
        StagedFile(target)
    with StagedFile(target, force=True) as staged:
        staged.append(b"new")
        assert target.read_bytes() == b"old"
        staged.commit()
    assert target.read_bytes() == b"new"


def test_holes_are_zeros(tmp_path):
    with StagedFile(tmp_path / "x.bin") as staged:
        staged.append(b"a")
        staged.skip_to(8)
        staged.commit()
    assert (tmp_path / "x.bin").read_bytes() == b"a" + bytes(7)


def test_the_umask_decides_the_mode(tmp_path):
    before = os.umask(0o027)
    try:
        with StagedFile(tmp_path / "x.bin") as staged:
            staged.commit()
    finally:
        os.umask(before)
    assert (tmp_path / "x.bin").stat().st_mode & 0o777 == 0o640


def run_child(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


WRITE_AND_WAIT = """
    import sys, time
    from pathlib import Path
    from ckptkit.base.files import StagedFile
    with StagedFile(Path(sys.argv[1])) as staged:
        staged.append(b"half")
        print("half", flush=True)
        time.sleep(60)
"""


def test_sigkill_leaves_no_target_and_the_next_run_sweeps(tmp_path):
    target = tmp_path / "x.bin"
    child = run_child(WRITE_AND_WAIT, target)
    assert child.stdout.readline() == "half\n"
    with StagedFile(target) as staged:  # somebody else writes at the same time: his file is not an orphan
        assert len(leftovers(tmp_path)) == 2
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not target.exists()
        staged.discard()
    assert len(leftovers(tmp_path)) == 1
    with StagedFile(target) as staged:
        assert len(leftovers(tmp_path)) == 1, "the killed writer's file was swept, ours is there"
        staged.commit()
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_one_clear_error(tmp_path):
    code = """
        import sys, signal, resource
        from pathlib import Path
        from ckptkit.base.errors import StorageError
        from ckptkit.base.files import StagedFile
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with StagedFile(Path(sys.argv[1])) as staged:
                staged.append(bytes(200_000))
                staged.commit()
        except StorageError as error:
            print(error)
    """
    child = run_child(code, tmp_path / "x.bin")
    said, _ = child.communicate(timeout=60)
    assert "x.bin: file too large" in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        StagedFile(tmp_path / "file" / "x.bin")


# -- what a target is ----------------------------------------------------------------------------------------


def device(path: Path, mode: int, major: int, minor: int) -> None:
    try:
        os.mknod(path, mode, os.makedev(major, minor))
    except PermissionError:
        pytest.skip("may not make devices")


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))  # the absolute one may be too long for a socket


TARGETS = {
    "null": (lambda p: device(p, 0o666 | stat.S_IFCHR, 1, 3), None),
    "full": (lambda p: device(p, 0o666 | stat.S_IFCHR, 1, 7), "no space left"),
    "disk": (lambda p: device(p, 0o600 | stat.S_IFBLK, 7, 199), "is a block device"),
    "pipe that nobody reads": (os.mkfifo, "is a named pipe without a reader"),
    "socket": (bound, "is a socket"),
    "folder": (Path.mkdir, "is a folder"),
    "link to a device": (lambda p: p.symlink_to("/dev/null"), None),
    "link to a link to a device": (
        lambda p: (p.symlink_to("x2"), p.with_name("x2").symlink_to("/dev/null")),
        None,
    ),
    "link to a folder": (lambda p: p.symlink_to("."), "is a folder"),
    "link to nothing": (lambda p: p.symlink_to("gone"), "is a broken link"),
    "link below nothing": (lambda p: p.symlink_to("gone/x"), "is a broken link"),
    "link to itself": (lambda p: p.symlink_to(p.name), "Too many levels"),
}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_no_file_is_written_into_or_refused(tmp_path, monkeypatch, name, force):
    make, said = TARGETS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "_READER_SECONDS", 0.1)
    target = tmp_path / "x.bin"
    make(target)
    before = target.lstat()
    refused = pytest.raises((StorageError, UsageError), match=said) if said else contextlib.nullcontext()
    with refused, StagedFile(target, force=force) as staged:
        staged.append(b"abc")
        assert staged.temporary.read_bytes() == b"abc"
        assert staged.commit() == target
    after = target.lstat()
    assert (after.st_ino, stat.S_IFMT(after.st_mode)) == (before.st_ino, stat.S_IFMT(before.st_mode))
    assert leftovers(tmp_path) == []
    for options in ({"plain": True}, {"own": True}):
        with (
            contextlib.suppress(UsageError, StorageError),
            StagedFile(target, force=True, **options) as staged,
        ):
            staged.append(b"abc")
            staged.commit()
            assert options == {"own": True} and stat.S_ISLNK(before.st_mode), "only an own link is replaced"
            assert target.read_bytes() == b"abc" and not target.is_symlink()


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "real.bin", tmp_path / "x.bin"
    real.write_bytes(b"old")
    os.link(real, tmp_path / "other name")
    link.symlink_to("far/real.bin")
    with pytest.raises(UsageError, match="--force"):
        StagedFile(link)
    with StagedFile(link, force=True) as staged:
        staged.append(b"new")
        staged.commit()
    assert link.is_symlink() and real.read_bytes() == b"new"
    assert (tmp_path / "other name").read_bytes() == b"old", "a rename parts it from other names"
    with pytest.raises(UsageError, match="is a link"):
        StagedFile(link, force=True, plain=True)


@pytest.mark.parametrize("form", ["/dev/fd/{}", "/proc/self/fd/{}", "/proc/thread-self/fd/{}", "link"])
def test_an_open_file_is_written_into(tmp_path, form):
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    reading, writing = os.pipe()
    target = Path(form.format(writing))
    if form == "link":
        target = tmp_path / "x.bin"
        target.symlink_to(f"/dev/fd/{writing}")
    with StagedFile(target) as staged:
        staged.append(b"abc")
        staged.commit()
    os.close(writing)
    assert os.read(reading, 10) == b"abc" and os.read(reading, 10) == b""
    os.close(reading)
    with (tmp_path / "open").open("wb", buffering=0) as file:
        file.write(b"before ")
        with StagedFile(
            Path(form.format(file.fileno())) if form != "link" else tmp_path / "open", force=True
        ) as staged:
            staged.append(b"abc")
            staged.commit()
        if form != "link":
            file.write(b" after")
            assert (tmp_path / "open").read_bytes() == b"before abc after"


def test_a_file_without_a_name_is_refused(tmp_path):
    with (tmp_path / "gone").open("wb") as file:
        (tmp_path / "gone").unlink()
        other = run_child("import time; time.sleep(60)", pass_fds=[file.fileno()])
        try:
            with pytest.raises((UsageError, StorageError)):
                StagedFile(Path(f"/proc/{other.pid}/fd/{file.fileno()}"), force=True)
        finally:
            other.kill()
            other.communicate()
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_takes_more_than_it_holds_and_its_reader_may_come_later(tmp_path):
    pipe = tmp_path / "x.bin"
    os.mkfifo(pipe)
    body = os.urandom(3_000_000)
    read = []
    reader = threading.Timer(0.3, lambda: read.append(pipe.read_bytes()))
    reader.start()
    with StagedFile(pipe) as staged:
        staged.append(body)
        staged.commit()
    reader.join()
    assert read == [body] and stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_reader_that_goes_away_is_one_clear_error(tmp_path):
    pipe = tmp_path / "x.bin"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with StagedFile(pipe) as staged, pytest.raises(StorageError, match="Broken pipe"):
        staged.append(bytes(1_000_000))
        os.close(reader)
        staged.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


@pytest.mark.parametrize("name", ["null", "pipe that nobody reads", "socket", "link to nothing", "folder"])
def test_what_comes_while_the_file_is_written_is_not_replaced(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "x.bin"
    with StagedFile(target) as staged:
        staged.append(b"abc")
        TARGETS[name][0](target)
        before = target.lstat()
        with pytest.raises((UsageError, StorageError)):
            staged.commit()
    assert target.lstat().st_ino == before.st_ino and leftovers(tmp_path) == []
    (tmp_path / "source").write_bytes(b"1")
    if not stat.S_ISLNK(before.st_mode):
        with pytest.raises(OSError, match=r"x\.bin"):
            files.move(tmp_path / "source", target)
    assert target.lstat().st_ino == before.st_ino


# -- temporary names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["x" * 255, "ü" * 127, "-o", "--", "a\nb", "a b*[c]?", "\udcff", ".hidden", "m.part", "~", "nul"]
)
@pytest.mark.parametrize("ending", ["", ".index"])
def test_any_name_is_written_and_swept(tmp_path, name, ending):
    target = tmp_path / (name if len(os.fsencode(name + ending)) <= 255 else name[: -len(ending)])
    target = target.with_name(target.name.removesuffix(ending) + ending if len(name) < 200 else target.name)
    lost = StagedFile(target, ending=ending)
    lost._close()  # as if it had been killed
    assert len(leftovers(tmp_path)) == 1
    with StagedFile(target, ending=ending) as staged:
        assert len(leftovers(tmp_path)) == 1 and files.is_temporary(staged.temporary)
        staged.append(b"abc")
        staged.commit()
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.read_bytes() == b"abc"


def test_no_name_is_taken_for_another(tmp_path):
    names = [
        "o.pth",
        "x-o.pth",
        "0123456789ab-o.pth",
        "o.pth.part",
        ".ckptkit-0123456789ab-o.pth",
        "o.pth.old",
    ]
    lost = [StagedFile(tmp_path / name) for name in names]
    for file in lost:
        file._close()
    for number, name in enumerate(names):
        with StagedFile(tmp_path / name):
            left = len(names) - number - 1
            assert len(leftovers(tmp_path)) - (name.startswith(".ckptkit")) in (left, left + 1)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("make", [os.mkfifo, lambda p: p.symlink_to("kept"), Path.mkdir, bound])
def test_what_is_planted_under_a_temporary_name_does_no_harm(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").write_bytes(b"kept")
    make(tmp_path / ".ckptkit-0123456789ab-x.bin.part")
    files.is_held(tmp_path / ".ckptkit-0123456789ab-x.bin.part")
    with StagedFile(tmp_path / "x.bin") as staged:
        staged.commit()
    assert (tmp_path / "kept").read_bytes() == b"kept"


# -- writers at the same time --------------------------------------------------------------------------------

MANY = """
    import sys
    from pathlib import Path
    from ckptkit.base import files
    real = files.os.open
    def slowly(path, flags, *mode, **more):
        fd = real(path, flags, *mode, **more)
        if flags & files.os.O_EXCL:
            files.time.sleep(0.0005)  # between its creation and its lock
        return fd
    files.os.open = slowly
    bad = 0
    for number in range(int(sys.argv[2])):
        try:
            with files.StagedFile(Path(sys.argv[1]), force=True) as staged:
                staged.append(b"x" * 5000)
                staged.rename()
        except Exception as error:
            print(repr(error))
            bad += 1
    print("failed", bad)
"""


@pytest.mark.parametrize("refused", [{}, {"flock": errno.ENOLCK}, {"flock": errno.EAGAIN}], ids=str)
def test_no_writer_is_lost(tmp_path, refused):
    environment = {**os.environ, **(refusing(tmp_path, refused) if refused else {})}
    count = 60 if not refused else 10
    children = [run_child(MANY, tmp_path / "s.bin", count, env=environment) for _ in range(4)]
    assert [child.communicate(timeout=120)[0] for child in children] == ["failed 0\n"] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["s.bin"]
    assert (tmp_path / "s.bin").read_bytes() == b"x" * 5000


def test_no_sweep_takes_a_file_that_its_writer_has_not_locked_yet(tmp_path, monkeypatch):
    target = tmp_path / "x.bin"
    real, made = os.open, []

    def stopped(path, flags, *more, **named):
        fd = real(path, flags, *more, **named)
        if flags & os.O_EXCL:
            made.append(Path(path))
            files._sweep_orphans(target, "")
        return fd

    monkeypatch.setattr(files.os, "open", stopped)
    with StagedFile(target) as staged:
        assert staged.temporary != made[0] and files.is_held(staged.temporary)
        staged.append(b"abc")
        staged.commit()
    assert len(made) == 1 and target.read_bytes() == b"abc" and leftovers(tmp_path) == []


def test_a_file_whose_writer_was_killed_before_its_lock_is_swept(tmp_path):
    writer = new_writer()
    path = tmp_path / f".ckptkit-{writer}.part"
    path.touch()
    files._sweep_orphans(tmp_path / "x.bin", "")
    assert leftovers(tmp_path) == [path.name]
    release(writer)
    files._sweep_orphans(tmp_path / "x.bin", "")
    assert leftovers(tmp_path) == []
