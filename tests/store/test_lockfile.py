"""The lock file: what it remembers, what it refuses to forget, and many writers at once."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.errors import FormatError, IntegrityError, StorageError
from ckptkit.base.home import platform_folder
from ckptkit.store.lockfile import LockEntry, LockFile

A, B, C = "a" * 64, "b" * 64, "c" * 64
FIRST = LockEntry(
    A,
    5,
    "2026-01-02T03:04:05+00:00",
    "https://a.org/m.pth",
    "http://127.0.0.1/m.pth",
    "import",
    {"md5": "00"},
)
SECOND = LockEntry(B, 6, "2026-02-02T03:04:05+00:00", "https://a.org/m.pth")
WRITTEN: dict[str, Any] = {
    "sha256": A,
    "size": 5,
    "first_seen": "2026-01-02T03:04:05+00:00",
    "url": "https://a.org/m.pth",
    "used_url": "http://127.0.0.1/m.pth",
    "how": "import",
    "server_hashes": {"md5": "00"},
}


@pytest.fixture
def trust(tmp_path: Path) -> LockFile:
    return LockFile(tmp_path / "config" / "ckptkit.lock")


def test_nothing_is_made_by_asking(trust: LockFile) -> None:
    assert trust.get("moat0", "m.pth") is None and trust.files("moat0") == {}
    assert not trust.path.parent.exists()


def test_what_is_remembered_is_there_for_the_next(trust: LockFile) -> None:
    assert trust.remember("moat0", "m.pth", FIRST) is None
    assert json.loads(trust.path.read_text()) == {
        "ckptkit_lock": 1,
        "entries": {"moat0": {"m.pth": {**WRITTEN, "history": []}}},
    }
    again = LockFile(trust.path)
    assert again.get("moat0", "m.pth") == FIRST
    assert again.get("moat0", "n.pth") is None and again.get("moat1", "m.pth") is None
    promise = again.expected("moat0", "m.pth")
    assert promise is not None and (promise.algorithm, promise.value) == ("sha256", A)
    assert promise.origin == (
        f"the lock file {trust.path} (imported 2026-01-02T03:04:05+00:00 from http://127.0.0.1/m.pth)"
    )


def test_the_same_bytes_again_change_nothing(trust: LockFile) -> None:
    trust.remember("moat0", "m.pth", FIRST)
    before = (trust.path.read_bytes(), trust.path.stat().st_mtime_ns, trust.path.stat().st_ino)
    later = replace(FIRST, first_seen="2030-01-01T00:00:00+00:00")
    assert trust.remember("moat0", "m.pth", later, accept=True) is None
    assert (trust.path.read_bytes(), trust.path.stat().st_mtime_ns, trust.path.stat().st_ino) == before


def test_other_bytes_are_refused_or_the_old_ones_kept_in_the_history(trust: LockFile) -> None:
    began = datetime.datetime.now(datetime.timezone.utc)
    trust.remember("moat0", "m.pth", FIRST)
    with pytest.raises(
        IntegrityError, match=f"m.pth has sha256 {B}, but the lock file .* says {A}.*--accept-new"
    ):
        trust.remember("moat0", "m.pth", SECOND)
    assert trust.get("moat0", "m.pth") == FIRST
    assert trust.remember("moat0", "m.pth", SECOND, accept=True) == FIRST
    trust.remember(
        "moat0", "m.pth", replace(SECOND, sha256=C, first_seen="2026-03-01T00:00:00Z"), accept=True
    )
    entry = json.loads(trust.path.read_text())["entries"]["moat0"]["m.pth"]
    assert entry["sha256"] == C
    assert [old["sha256"] for old in entry["history"]] == [A, B]
    times = [datetime.datetime.fromisoformat(old.pop("replaced_at")) for old in entry["history"]]
    assert began <= times[0] <= times[1] <= datetime.datetime.now(datetime.timezone.utc)
    assert entry["history"][0] == WRITTEN


def test_it_is_sorted_for_version_control(trust: LockFile) -> None:
    for id, file in [("b", "x"), ("a", "z"), ("a", "y")]:
        trust.remember(id, file, FIRST)
    keys = json.loads(trust.path.read_text(), object_pairs_hook=list)[1][1]
    assert [(id, [file for file, _ in files]) for id, files in keys] == [("a", ["y", "z"]), ("b", ["x"])]
    assert trust.path.read_bytes().endswith(b"}\n")


def changed(**fields: Any) -> bytes:
    return json.dumps({"ckptkit_lock": 1, "entries": {"m": {"f": {**WRITTEN, **fields}}}}).encode()


SOUND = changed(history=[{**WRITTEN, "replaced_at": "2026-02-02T03:04:05Z"}])
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "Expecting value"),
    "cut": (SOUND[:-20], "line 1"),
    "merge conflict": (SOUND.replace(b'"size"', b'\n<<<<<<< HEAD\n"size"'), "line 2"),
    "not text": (b"\xff\xfe\x00", "lock file"),
    "a list": (b"[]", "no 'ckptkit_lock' version"),
    "something else": (b'{"entries": {}}', "no 'ckptkit_lock' version"),
    "newer": (SOUND.replace(b'"ckptkit_lock": 1', b'"ckptkit_lock": 2'), "version 2, .* reads version 1"),
    "no entries": (b'{"ckptkit_lock": 1}', "'entries' is not a mapping"),
    "key twice": (SOUND.replace(b'"size": 5', b'"sha256": "x", "size": 5'), "duplicate key 'sha256'"),
    "further key": (changed(colour="red"), "m, f: unknown key 'colour'"),
    "no sha256": (changed(sha256=None), "sha256 is not 64"),
    "short sha256": (changed(sha256="ab"), "sha256 is not 64"),
    "capitals": (changed(sha256=A.upper()), "sha256 is not 64"),
    "negative size": (changed(size=-1), "size is not"),
    "size true": (changed(size=True), "size is not"),
    "no time": (changed(first_seen=""), "no first_seen"),
    "how strange": (changed(how="by magic"), "how is 'by magic', not one of download, mirror"),
    "url a number": (changed(url=7), "a value that is not text"),
    "hashes a list": (changed(server_hashes=[]), "server_hashes is not a mapping"),
    "history a mapping": (changed(history={}), "history is not a list"),
    "history unsound": (changed(history=[{**WRITTEN, "sha256": "x"}]), "history: sha256 is not 64"),
    "history without a time": (changed(history=[WRITTEN]), "history: no replaced_at"),
    "nested": (b'{"ckptkit_lock":' + b"[" * 100_000, "lock file"),
}


def test_the_text_that_is_damaged_below_is_sound(trust: LockFile) -> None:
    trust.path.parent.mkdir()
    trust.path.write_bytes(SOUND)
    known = trust.get("m", "f")
    assert known is not None and (known.sha256, len(known.history)) == (A, 1)


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_and_left_as_it_is(trust: LockFile, case: str) -> None:
    text, says = DAMAGED[case]
    trust.path.parent.mkdir()
    trust.path.write_bytes(text)
    for ask in (lambda: trust.get("m", "f"), lambda: trust.remember("x", "y", FIRST, accept=True)):
        with pytest.raises(FormatError, match=says) as caught:
            ask()
        assert str(trust.path) in str(caught.value) and "move it away to start over" in str(caught.value)
    assert trust.path.read_bytes() == text


def test_one_that_is_too_large_is_not_read_whole(trust: LockFile) -> None:
    trust.path.parent.mkdir()
    with trust.path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(FormatError, match="larger than"):
        trust.get("m", "f")


def test_a_folder_in_its_place_is_an_error(trust: LockFile) -> None:
    trust.path.mkdir(parents=True)
    with pytest.raises(StorageError, match=r"ckptkit\.lock"):
        trust.get("m", "f")


def test_where_it_cannot_be_written_that_is_said_and_nothing_changes(
    trust: LockFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("a file where the folder should be")
    assert trust.get("m", "f") is None
    with pytest.raises(StorageError, match=r"ckptkit\.lock"):
        trust.remember("m", "f", FIRST)
    kept = LockFile(tmp_path / "kept.lock")
    kept.remember("m", "f", FIRST)
    before = kept.path.read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == kept.path and mode == os.W_OK))
    with pytest.raises(StorageError, match="permission denied"):
        kept.remember("m", "g", FIRST)
    assert kept.remember("m", "f", FIRST) is None  # known already: nothing to write
    assert kept.path.read_bytes() == before


def test_a_link_stays_a_link_and_the_mode_stays(tmp_path: Path) -> None:
    real = LockFile(tmp_path / "repository" / "ckptkit.lock")
    real.remember("m", "f", FIRST)
    real.path.chmod(0o664)
    link = tmp_path / "link.lock"
    link.symlink_to(real.path)
    LockFile(link).remember("m", "g", SECOND)
    assert link.is_symlink() and set(real.files("m")) == {"f", "g"}
    assert real.path.stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize(
    ("fields", "how"),
    [
        ({"note": ""}, "mirror"),
        ({"note": "", "used_url": "https://a.org/m.pth"}, "download"),
        ({"note": "", "used_url": ""}, "download"),
        ({"note": "imported by hand"}, "import"),
        ({"note": "found in the cache without a sound record"}, "cache"),
        ({}, "mirror"),
    ],
)
def test_a_lock_file_of_the_first_release_is_read(trust: LockFile, fields: dict[str, str], how: str) -> None:
    value = json.loads(changed(**fields))
    del value["entries"]["m"]["f"]["how"]
    trust.path.parent.mkdir()
    trust.path.write_text(json.dumps(value))
    known = trust.get("m", "f")
    assert known is not None and (known.sha256, known.how) == (A, how)
    trust.remember("m", "g", SECOND)
    assert json.loads(trust.path.read_text())["entries"]["m"]["f"]["how"] == how


def test_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default cache's is in the configuration folder, any other cache's inside it."""
    monkeypatch.setenv("CKPTKIT_TRUST", str(tmp_path / "mine.lock"))
    assert LockFile.default().path == LockFile.default(tmp_path).path == tmp_path / "mine.lock"
    monkeypatch.setenv("CKPTKIT_TRUST", " ")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path / "cache"))
    assert LockFile.default().path == tmp_path / "cache" / "ckptkit.lock"
    assert LockFile.default(tmp_path / "other").path == tmp_path / "other" / "ckptkit.lock"
    monkeypatch.setenv("CKPTKIT_HOME", os.pathsep.join([str(tmp_path / "cache"), str(tmp_path / "shared")]))
    assert LockFile.default().path == tmp_path / "cache" / "ckptkit.lock"
    for home in ("", str(platform_folder("cache"))):
        monkeypatch.setenv("CKPTKIT_HOME", home)
        place = LockFile.default().path
        assert place.name == "ckptkit.lock" and not place.is_relative_to(platform_folder("cache"))
        if sys.platform == "linux":
            assert place == tmp_path / "xdg" / "ckptkit" / "ckptkit.lock"


WRITER = """
import sys
from pathlib import Path
from ckptkit.base.errors import IntegrityError
from ckptkit.store.lockfile import LockEntry, LockFile

trust, me = LockFile(Path(sys.argv[1])), int(sys.argv[2])
for number in range(12):
    trust.remember(f"entry-{me}", f"{number}.pth", LockEntry(f"{me:064x}", 1, "now", "https://a.org"))
try:
    trust.remember("same", "m.pth", LockEntry(f"{me:064x}", 1, "now", "https://a.org"))
    print("won")
except IntegrityError:
    print("refused")
"""


def test_several_processes_at_once_lose_nothing_and_one_wins(trust: LockFile) -> None:
    command = [sys.executable, "-c", WRITER, str(trust.path)]
    running = [
        subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, text=True) for number in range(4)
    ]
    said = [process.communicate(timeout=60)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert sorted(said) == ["refused"] * 3 + ["won"]
    for number in range(4):
        assert {known.sha256 for known in trust.files(f"entry-{number}").values()} == {f"{number:064x}"}
        assert len(trust.files(f"entry-{number}")) == 12
    winner = trust.get("same", "m.pth")
    assert winner is not None and winner.sha256 == f"{said.index('won'):064x}"
    assert sorted(path.name for path in trust.path.parent.iterdir()) == [
        ".ckptkit.lock.guard",
        "ckptkit.lock",
    ]
