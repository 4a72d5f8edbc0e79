"""Cache folders, lock file and registries in every state."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from ckptkit.base.home import NOWHERE
from ckptkit.doctor import folders
from ckptkit.doctor.findings import Finding
from ckptkit.doctor.folders import examine_folders, examine_registries, examine_trust
from tests.support.running import finish, start

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("CKPTKIT_HOME", str(folder))
    return folder


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {one.name: one for one in findings}


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folders, "home_folders", lambda: [NOWHERE])
    (found,) = folders.examine_folders()
    assert (found.verdict, found.advice) == ("problem", "set CKPTKIT_HOME to a folder")
    assert "no home folder is known" in found.said


def test_what_somebody_else_made_below_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "artefacts").mkdir()
    monkeypatch.setattr(folders, "home_folders", lambda: [tmp_path])
    assert [one for one in folders.examine_folders() if one.verdict != "ok"] == []
    monkeypatch.setattr(folders, "is_writable", lambda path: path.name != "artefacts")
    (found,) = [one for one in folders.examine_folders() if one.verdict != "ok"]
    assert found.said.startswith(f"{tmp_path} can be written, but not artefacts in it")


def test_a_folder_that_is_not_there_yet(home: Path):
    found = by_name(examine_folders())
    assert found["folder"] == Finding("cache", "folder", "ok", f"{home}, made when first needed")
    assert found["free space"].verdict == "ok"
    assert not home.exists()


def test_a_folder_and_what_it_holds(home: Path):
    (home / "artefacts" / "x").mkdir(parents=True)
    (home / "artefacts" / "x" / "a").write_bytes(bytes(1_500_000))
    (home / "artefacts" / "x" / "b").write_bytes(bytes(1_000_000))
    found = by_name(examine_folders())
    assert found["folder"].said == f"{home}, holds 2.5 MB"
    assert found["locks"] == Finding("cache", "locks", "ok", "work")
    assert found["names"].said == "capital and small letters differ"
    assert [path.name for path in home.iterdir()] == ["artefacts"]


def test_a_file_where_the_folder_should_be(home: Path):
    home.write_text("x")
    (found,) = examine_folders()
    assert (found.verdict, found.said) == ("problem", f"{home} is a file")
    assert "set CKPTKIT_HOME" in found.advice


def test_a_place_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path / "file" / "home"))
    (found,) = examine_folders()
    assert found.verdict == "problem"
    assert "cannot be written and is not there" in found.said


def test_a_folder_that_this_user_may_not_write(home: Path, tmp_path: Path):
    home.mkdir()
    home.chmod(0o555)
    # Root may write anywhere by its capabilities, so the process gives them up (capset of nothing, Linux).
    drop = (
        "import ctypes, os\n"
        "header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()\n"
        "os.geteuid() or ctypes.CDLL(None).capset(header, nothing)\n"
        "import ckptkit.doctor.devices as devices\n"
        "devices.questions = lambda: []"
    )
    code, out, _ = finish(start(["doctor", "--offline", "--json"], home, prelude=drop))
    values = json.loads(out)
    (found,) = (one for one in values["findings"] if one["name"] == "folder")
    assert (found["verdict"], found["said"]) == ("problem", f"{home} cannot be written")
    assert (code, values["ok"], values["problems"]) == (1, False, 1)


@pytest.mark.parametrize(
    ("free", "verdict"), [(1_999_999_999, "note"), (99_999_999, "problem"), (2_000_000_000, "ok")]
)
def test_little_space(home: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**12, 0, free))
    found = by_name(examine_folders())["free space"]
    assert found.verdict == verdict
    assert bool(found.advice) is (verdict != "ok")


def test_a_file_system_without_locks(home: Path, monkeypatch: pytest.MonkeyPatch):
    from ckptkit.base import locks

    home.mkdir()
    monkeypatch.setattr(locks, "_try", lambda _fd: "no locks")
    found = by_name(examine_folders())["locks"]
    assert found.verdict == "note" and "no working locks" in found.said


def test_a_file_system_that_does_not_tell_capitals(home: Path, monkeypatch: pytest.MonkeyPatch):
    home.mkdir()
    really = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name == "LETTERS" or really(path))
    assert by_name(examine_folders())["names"].said.startswith("capital and small letters are the same")


def test_counting_ends_in_time(home: Path, monkeypatch: pytest.MonkeyPatch):
    home.mkdir()
    (home / "a").write_bytes(b"12")
    monkeypatch.setattr(folders, "_COUNTING_SECONDS", -1.0)
    assert by_name(examine_folders())["folder"].said.endswith("holds more than 2 B")


def test_shared_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "shared").mkdir()
    names = [str(tmp_path / name) for name in ("mine", "shared", "missing")]
    monkeypatch.setenv("CKPTKIT_HOME", os.pathsep.join(names))
    found = [(one.name, one.verdict, one.said) for one in examine_folders() if "folder" in one.name]
    assert found == [
        ("folder", "ok", f"{names[0]}, made when first needed"),
        ("shared folder", "ok", f"{names[1]}, holds 0 B"),
        ("shared folder", "note", f"{names[2]} is not there"),
    ]


def test_the_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "trust" / "ckptkit.lock"
    monkeypatch.setenv("CKPTKIT_TRUST", str(path))
    assert examine_trust() == Finding("cache", "lock file", "ok", f"{path}, made with the first fetch")
    path.parent.mkdir()
    path.write_text('{"ckptkit_lock": 1, "entries": {}}')
    assert examine_trust() == Finding("cache", "lock file", "ok", str(path))
    path.write_text('{"ckptkit_lock": 1, "entries": ')
    damaged = examine_trust()
    assert damaged.verdict == "problem" and "not a sound lock file" in damaged.said and damaged.advice


def test_a_lock_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CKPTKIT_TRUST", str(tmp_path / "file" / "ckptkit.lock"))
    found = examine_trust()
    assert found.verdict == "note" and "set CKPTKIT_TRUST" in found.advice


def test_registries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    good, bad, more = (tmp_path / name for name in ("good.yaml", "bad.yaml", "more.yaml"))
    entry = (
        "  - id: {}\n    family: moat\n    variant: tiny-moat0\n    display_name: x\n    layout: deeplab2\n"
        "    format: tf\n    sources:\n      - url: https://a.org/m\n"
    )
    good.write_text("entries:\n" + entry.format("mine"))
    bad.write_text("entries:\n  - id: moat0-224\n    colour: red\n")
    more.write_text("entries:\n" + entry.format("mine-too") + entry.format("mine"))
    monkeypatch.setenv("CKPTKIT_REGISTRY", str(good))
    found, registry = examine_registries([bad, tmp_path / "missing.yaml", more])
    assert [(one.name, one.verdict) for one in found] == [
        ("registry.yaml", "ok"),
        ("good.yaml", "ok"),
        ("bad.yaml", "problem"),
        ("missing.yaml", "problem"),
        ("more.yaml", "ok"),
    ]
    assert [found[place].said.endswith(", 1 entry of its own") for place in (1, 4)] == [True, True]
    assert "line 3" in found[2].said and found[2].advice.startswith("see 'ckptkit registry validate")
    assert registry is not None and {"mine", "mine-too", "moat0-224"} <= set(registry)
