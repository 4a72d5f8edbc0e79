"""Whole or absent: staged files under faults that really happen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from ckptkit.errors import StorageError, UsageError
from ckptkit.formats.staging import StagedFile


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
    from ckptkit.formats.staging import StagedFile
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
        from ckptkit.errors import StorageError
        from ckptkit.formats.staging import StagedFile
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
