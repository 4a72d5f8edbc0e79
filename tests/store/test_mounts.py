"""Mounts without memory maps, locks, renames, links, permissions, times or syncs: everything works there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckptkit.base import files
from ckptkit.base.errors import StorageError
from ckptkit.base.files import StagedFile
from ckptkit.formats.detect import open_reader
from ckptkit.store.partial import require_space
from ckptkit.store.upkeep import is_being_written
from tests.support.entries import tar_gz
from tests.support.mounts import refusing
from tests.support.running import registry_file
from tests.support.tf_files import write_checkpoint

TENSORS = {"a": np.arange(60_000, dtype=np.float32), "b": np.arange(12, dtype=np.float32).reshape(3, 4)}
LINES = """
fetch mine
fetch mine --force
registry pin mine --file mine.yaml --force
cache ls
cache verify
convert mine --layout as-is --to torch
convert mine --layout as-is --to safetensors -o m.safetensors
convert mine --layout as-is --to safetensors -o m.safetensors --force
convert m.safetensors --layout as-is -o shards.safetensors --max-shard-size 240000
convert m.safetensors --layout as-is --to npz -o m.npz
convert m.npz --layout as-is --to tf -o m.ckpt
convert m.ckpt --layout as-is --to torch -o m.pth
diff m.pth m.safetensors
diff m.pth shards.safetensors.index.json
list -o list.csv
list -o list.csv --force
cache rm mine
"""
SCRIPT = f"""
import sys
from ckptkit.base import files
files._LOCK_SECONDS = 0.3
from ckptkit.cli.app import main
for line in {LINES!r}.strip().splitlines():
    try:
        main(["--registry", "mine.yaml", *line.split()])
    except SystemExit as left:
        if left.code:
            sys.exit(f"{{line}}: {{left.code}}")
"""
MOUNTS = {
    "maps, permissions, times, syncs, truncation, writing at a place, a size": {
        "mmap": errno.ENODEV,
        "chmod": errno.EPERM,
        "utime": errno.EPERM,
        "fsync": errno.EINVAL,
        "truncate": errno.EINVAL,
        "pwrite": errno.ESPIPE,
        "statvfs": errno.ENOSYS,
    },
    "renames across branches, locks": {"rename": errno.EXDEV, "flock": errno.ENOLCK},
    "renames, links, syncs": {
        "rename": errno.ENOSYS,
        "link": errno.EPERM,
        "utime": errno.EPERM,
        "fsync": errno.ENOTSUP,
        "flock": errno.ENOTSUP,
    },
    "leave to rename and link": {"rename": errno.EPERM, "link": errno.EPERM, "flock": errno.ENOSYS},
    "an answer about locks, and renames at times": {"rename": f"{errno.EBUSY}=2", "flock": "hang"},
}


@pytest.mark.parametrize("missing", MOUNTS)
def test_everything_works_on_a_mount_without(tmp_path: Path, missing: str) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    write_checkpoint(tmp_path / "m", TENSORS)
    names = ("m.index", "m.data-00000-of-00001")
    archive = tmp_path / "m.tar.gz"
    archive.write_bytes(tar_gz({name: (tmp_path / name).read_bytes() for name in names}))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    seen = {"observed_at": "2026-01-02T03:04:05Z", "url": archive.as_uri()}
    source = {"sources": [{"url": archive.as_uri()}], "sha256": digest, "hash_provenance": seen}
    registry_file(mount, {"id": "mine", **source}).rename(mount / "mine.yaml")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=mount,
        env={
            **os.environ,
            **refusing(mount, MOUNTS[missing]),
            "CKPTKIT_HOME": str(mount / "home"),
            "CKPTKIT_TRUST": str(mount / "ckptkit.lock"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in (
        "m.safetensors",
        "shards.safetensors.index.json",
        "m.npz",
        "m.ckpt",
        "m.pth",
    ):
        with open_reader(mount / name) as reader:
            found = {tensor: np.array(reader.read(tensor)) for tensor in reader.specs}
        assert {tensor: array.tolist() for tensor, array in found.items()} == {
            tensor: array.tolist() for tensor, array in TENSORS.items()
        }, name
    assert json.loads((mount / "ckptkit.lock").read_text())["entries"]["mine"]["m.tar.gz"]["sha256"] == digest
    left = [str(path.relative_to(mount)) for path in mount.rglob("*") if path.is_file()]
    assert [name for name in left if "mine" in name and name != "mine.yaml" and "locks" not in name] == []
    assert [name for name in left if ".part" in name] == []


PROBE = """
import fcntl, mmap, os, sys
name, other = sys.argv[1:]
with open(name, "xb+") as file:
    file.write(b"x")
    file.flush()
    fd = file.fileno()
    for call in (
        lambda: mmap.mmap(fd, 0, access=mmap.ACCESS_READ), lambda: fcntl.flock(fd, fcntl.LOCK_EX),
        lambda: os.fsync(fd), lambda: os.fdatasync(fd), lambda: os.chmod(name, 0o600), lambda: os.utime(name),
        lambda: os.ftruncate(fd, 3), lambda: os.pwrite(fd, b"", 0), lambda: os.rename(name, other),
        lambda: os.link(name, other), lambda: os.statvfs(name),
    ):
        try:
            call()
        except OSError as error:
            print(error.errno)
        else:
            print("done")
"""


def test_such_a_mount_really_refuses(tmp_path: Path) -> None:
    names = [
        "mmap",
        "flock",
        "fsync",
        "fsync",
        "chmod",
        "utime",
        "truncate",
        "pwrite",
        "rename",
        "link",
        "statvfs",
    ]
    refused = {name: 100 + number for number, name in enumerate(dict.fromkeys(names))}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path / "file"), str(tmp_path / "other")],
        env={**os.environ, **refusing(tmp_path, refused)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [int(line) for line in done.stdout.split()] == [refused[name] for name in names]


class TestStaging:
    """What `ckptkit.base.files` does where something is refused, call by call."""

    @pytest.fixture
    def refuse(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        def refuse(name: str, number: int, times: int = 99) -> None:
            owner = Path if name in ("rename", "replace") else os
            real, made = getattr(owner, name), []

            def call(*arguments: object, **options: object) -> object:
                made.append(name)
                if len(made) <= times:
                    raise OSError(number, os.strerror(number))
                return real(*arguments, **options)

            monkeypatch.setattr(owner, name, call)

        return refuse

    @pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
    def test_a_disk_that_fails_is_still_an_error(
        self, tmp_path: Path, refuse: Callable[..., None], number: int
    ) -> None:
        refuse("fsync", number)
        with StagedFile(tmp_path / "m") as file, pytest.raises(StorageError):
            file.append(b"x")
            file.commit()
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_is_moved_file_by_file(self, tmp_path: Path, refuse: Callable[..., None]) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "file").write_bytes(b"1")
        (tmp_path / "a" / "other").write_bytes(b"22")
        (tmp_path / "a" / "other").chmod(0o640)
        os.utime(tmp_path / "a" / "other", ns=(5, 1_600_000_000_123_456_789))
        refuse("rename", errno.EXDEV)
        refuse("link", errno.EPERM)
        files.move(tmp_path / "a", tmp_path / "c")
        assert not (tmp_path / "a").exists()
        assert (tmp_path / "c" / "b" / "file").read_bytes() == b"1"
        status = (tmp_path / "c" / "other").stat()
        assert (status.st_mtime_ns, status.st_mode & 0o777) == (1_600_000_000_123_456_789, 0o640)

    def test_a_copy_that_fails_leaves_nothing_under_the_name(
        self, tmp_path: Path, refuse: Callable[..., None]
    ) -> None:
        (tmp_path / "a").write_bytes(b"new")
        refuse("replace", errno.EXDEV)
        refuse("link", errno.EPERM)
        refuse("fsync", errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            files.move(tmp_path / "a", tmp_path / "b")
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_a_name_that_stays_busy_is_an_error(
        self, tmp_path: Path, refuse: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waited: list[float] = []
        monkeypatch.setattr("time.sleep", waited.append)
        (tmp_path / "a").write_bytes(b"new")
        refuse("replace", errno.EBUSY)
        with pytest.raises(OSError, match="busy"):
            files.move(tmp_path / "a", tmp_path / "b")
        assert waited == list(files._BUSY_SECONDS)

    def test_a_size_that_the_mount_does_not_know_is_enough(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil._ntuple_diskusage  # type: ignore[attr-defined]
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(0, 0, 0))
        require_space(tmp_path, 10, "m.pth")
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(9, 0, 9))
        with pytest.raises(StorageError, match="needs 10 more bytes, but 9 are free"):
            require_space(tmp_path, 10, "m.pth")

    def test_a_file_that_looks_written_is_not_a_temporary_one(self, tmp_path: Path) -> None:
        for name in (".ckptkit-unpacked.json", ".DS_Store", ".nfs0001", "m.part"):
            (tmp_path / name).touch()
            assert not is_being_written(tmp_path / name)
        staged = StagedFile(tmp_path / "m.safetensors.index.json", ending=".index.json")
        assert files.is_temporary(staged.temporary)
        assert is_being_written(staged.temporary)
        staged.discard()
