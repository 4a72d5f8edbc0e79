"""``cache`` on the command line: what is printed where, and what the process returns."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from ckptkit.store.cache import Home
from tests.support.caches import put_conversion, put_entry, put_shared
from tests.support.commands import Runner, runner
from tests.support.entries import tar_gz
from tests.support.moat_files import flip_byte
from tests.support.running import registry_file

BODY = b"x" * 1000
ARCHIVE = tar_gz({"m/m.index": b"index", "m/m.data-00000-of-00001": BODY})


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(capsys)


@pytest.fixture
def home() -> Home:
    """Two entries: an archive with a conversion used today, a file used ten days ago."""
    home = Home.default()
    put_entry(home, "test-a", ARCHIVE, file="a.tar.gz")
    put_conversion(home, "test-a", "torch-float32.safetensors", hashlib.sha256(ARCHIVE).hexdigest())
    put_entry(home, "test-b", BODY, file="b.pth", days_ago=10)
    return home


@pytest.fixture
def remembered(home: Home) -> list[str]:
    """What the lock file knows: both files of the cache, and one that is not there."""
    from ckptkit.store.lockfile import LockEntry, LockFile

    known = {("test-a", "a.tar.gz"): ARCHIVE, ("test-b", "b.pth"): BODY, ("gone", "g.pth"): b"g"}
    for (id, file), body in known.items():
        seen = LockEntry(
            hashlib.sha256(body).hexdigest(), len(body), "2026-01-02T03:04:05+00:00", "https://a.org"
        )
        LockFile.default().remember(id, file, seen)
    return [
        f"{hashlib.sha256(body).hexdigest()}  artefacts/{id}/{file}"
        for (id, file), body in sorted(known.items(), key=lambda item: item[0])
    ]


def sorted_by_path(lines: list[str]) -> list[str]:
    return sorted(lines, key=lambda line: line.split("  ")[1])


def test_checksums_are_those_that_sha256sum_checks(
    run: Runner, home: Home, remembered: list[str], tmp_path: Path
) -> None:
    assert sorted_by_path(run("cache", "checksums").out.splitlines()) == sorted_by_path(remembered)
    assert run("cache", "checksums", "test-*").out.splitlines() == [r for r in remembered if "/test-" in r]
    file = tmp_path / "SHA256SUMS"
    assert run("cache", "checksums", "-o", file).code == 0
    assert run("cache", "checksums", "-o", file).code == 2, "an existing file is not replaced"
    tool = ["sha256sum", "-c", "--ignore-missing", "--quiet", str(file)]
    if shutil.which("sha256sum"):
        assert subprocess.run(tool, cwd=home.path, check=False).returncode == 0
    assert run("cache", "verify", "--checksums", file).code == 0
    flip_byte(home.artefact_folder("test-b") / "b.pth", 5)
    assert subprocess.run(tool, cwd=home.path, check=False, capture_output=True).returncode == 1
    done = run("cache", "verify", "--checksums", file, "test-b")
    assert done.code == 1 and f"but {file} says {hashlib.sha256(BODY).hexdigest()}" in done.out
    assert run("cache", "checksums", "nobody").code == 3


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (f"{hashlib.sha256(BODY).hexdigest()} *b.pth", 0),  # a name alone, binary mode
        (f"{hashlib.sha256(BODY).hexdigest().upper()}  /anywhere/test-b/b.pth", 0),
        (f"{hashlib.sha256(b'other').hexdigest()}  b.pth", 1),
        (f"{hashlib.sha256(b'other').hexdigest()}  artefacts/other/b.pth", 0),  # of another entry
    ],
)
def test_checksums_of_another_tool(run: Runner, home: Home, tmp_path: Path, line: str, code: int) -> None:
    (tmp_path / "sums").write_text(f"\n{line}\n")
    assert run("cache", "verify", "test-b", "--checksums", tmp_path / "sums").code == code


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no checksum in it"),
        ("abc  b.pth\n", "line 1: not a line of sha256sum"),
        (f"{'0' * 64}  b.pth\n{'1' * 64}  ./b.pth\n", "line 2: another checksum of b.pth"),
    ],
)
def test_what_is_no_file_of_checksums(run: Runner, home: Home, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "sums").write_text(text)
    done = run("cache", "verify", "--checksums", tmp_path / "sums")
    assert done.code == 5 and says in done.err


def test_ls(run: Runner, home: Home) -> None:
    result = run("cache", "ls")
    lines = [line.split() for line in result.out.splitlines()]
    assert result.code == 0 and lines[0][:3] == ["id", "file", "unpacked"]
    assert lines[2][:3] == ["test-b", "1.0", "kB"] and lines[2][-1] == "intact"
    ten_days_ago = time.strftime("%Y-%m-%d", time.localtime(time.time() - 10 * 86400))
    assert ten_days_ago in lines[2]
    assert lines[1][0] == "test-a" and "1:" in lines[1] and lines[3][:3] == ["total", "of", "2"]
    (home.artefact_folder("test-b") / "b.pth").write_bytes(b"x")
    put_conversion(home, "test-a", "torch-float16.safetensors", "0" * 64)
    said = run("cache", "ls").out
    assert "file damaged" in said and "torch-float16.safetensors stale" in said


def test_ls_json(run: Runner, home: Home) -> None:
    found = json.loads(run("cache", "ls", "--json").out)
    assert found["folders"] == [str(home.path)]
    a, b = found["entries"]
    assert (b["id"], b["size"], b["intact"]) == ("test-b", 1000, True)
    assert [item["kind"] for item in a["items"]] == ["artefact", "unpacked", "converted"]
    assert a["items"][0]["path"] == str(home.artefact_folder("test-a") / "a.tar.gz")
    assert found["total"]["artefact"] == len(ARCHIVE) + 1000
    assert found["total"]["all"] == a["size"] + b["size"]
    only = json.loads(run("cache", "ls", "*-b", "--json").out)
    assert [entry["id"] for entry in only["entries"]] == ["test-b"]


def test_an_empty_cache(run: Runner) -> None:
    result = run("cache", "ls")
    assert (result.code, result.out) == (0, "") and "nothing in the cache" in result.err
    assert json.loads(run("cache", "ls", "--json").out)["entries"] == []
    assert run("cache", "verify").code == 0
    assert run("cache", "prune", "--max-size", "0").code == 0
    assert not (Home.default().path / "locks").exists()


def test_rm(run: Runner, home: Home) -> None:
    dry = run("cache", "rm", "test-*", "--dry-run")
    assert [line.split()[0] for line in dry.out.splitlines()] == ["test-a", "test-b"]
    assert "would be freed" in dry.err and home.is_cached("test-a")
    converted = run("cache", "rm", "test-*", "--converted")
    assert [line.split()[0] for line in converted.out.splitlines()] == ["test-a"]
    assert home.is_cached("test-a") and not home.converted_folder("test-a").exists()
    done = json.loads(run("cache", "rm", "test-a", "--json").out)
    assert done["freed"] > len(ARCHIVE) and done["entries"][0]["removed"] == [
        str(home.artefact_folder("test-a")),
        str(home.unpacked_folder("test-a")),
    ]
    assert home.fetched_ids() == ["test-b"]


def test_rm_of_what_is_held(run: Runner, home: Home) -> None:
    with home.lock("test-a"):
        result = run("cache", "rm", "test-*")
    assert result.code == 0 and "warning: test-a: in use by another process" in result.err
    assert home.fetched_ids() == ["test-a"]


def test_prune(run: Runner, home: Home) -> None:
    dry = run("cache", "prune", "--older-than", "9d", "--dry-run")
    assert dry.out.split()[0] == "test-b" and home.is_cached("test-b")
    assert run("cache", "prune", "--older-than", "11d").out == ""
    assert run("cache", "prune", "--older-than", "9d").out.split()[0] == "test-b"
    assert home.fetched_ids() == ["test-a"]
    with home.lock("test-a"):
        held = run("cache", "prune", "--max-size", "1kB")
    assert held.code == 0 and "; skipped" in held.err and "are left, more than 1.0 kB" in held.err
    assert run("cache", "prune", "--max-size", "1kB").out.split()[0] == "test-a"


def test_prune_leaves_imported_files(run: Runner) -> None:
    put_entry(Home.default(), "test-a", BODY, note="imported by hand")
    result = run("cache", "prune", "--max-size", "0")
    assert result.out == "" and "by hand" in result.err
    assert run("cache", "prune", "--max-size", "0", "--imported").out.split()[0] == "test-a"


def test_verify(run: Runner, home: Home) -> None:
    result = run("cache", "verify")
    assert result.code == 0 and result.out.count(" ok ") == 3 and "all passed" in result.err
    path = home.artefact_folder("test-b") / "b.pth"
    times = path.stat()
    flip_byte(path, 500)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    result = run("cache", "verify")
    assert result.code == 1 and result.out.count(" wrong ") == 1 and "1 failed" in result.err
    assert run("cache", "verify", "test-a").code == 0
    found = json.loads(run("cache", "verify", "test-b", "--json").out)
    assert [(item["id"], item["ok"]) for item in found] == [("test-b", False)]
    assert found[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_verify_against_the_pin(run: Runner, home: Home, tmp_path: Path) -> None:
    pin = {
        "sha256": "1" * 64,
        "hash_provenance": {"observed_at": "2026-01-02T03:04:05Z", "url": "https://a.org/b"},
    }
    overlay = registry_file(tmp_path, {"id": "test-b", "sources": [{"url": "https://a.org/b.pth"}], **pin})
    result = run("cache", "verify", "test-b", "--registry", overlay)
    assert result.code == 1 and f"the registry says {'1' * 64}" in result.out


def test_path(run: Runner, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("cache", "path").out == f"{home.path}\n"
    assert run("cache", "path", "test-a").out == f"{home.unpacked_folder('test-a') / 'm'}\n"
    assert json.loads(run("cache", "path", "test-b", "--json").out) == {
        "id": "test-b",
        "path": str(home.artefact_folder("test-b") / "b.pth"),
    }
    monkeypatch.setenv("CKPTKIT_HOME", f"{tmp_path / 'mine'}{os.pathsep}{home.path}")
    assert run("cache", "path").out == f"{tmp_path / 'mine'}\n{home.path}\n"
    assert run("cache", "path", "test-a").out == f"{home.unpacked_folder('test-a') / 'm'}\n"


def test_several_folders(run: Runner, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Home(tmp_path / "mine")
    put_entry(mine, "test-c", BODY)
    monkeypatch.setenv("CKPTKIT_HOME", f"{mine.path}{os.pathsep}{home.path}")
    lines = run("cache", "ls").out.splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == [str(mine.path), str(home.path), str(home.path)]
    result = run("cache", "rm", "test-*")
    assert result.out.split()[0] == "test-c" and f"test-a, test-b: left in {home.path}" in result.err
    assert home.fetched_ids() == ["test-a", "test-b"] and mine.fetched_ids() == []
    listed = run("list", "--cached", "--columns", "id")
    assert listed.code == 0


def test_graphs_and_evaluations(run: Runner, home: Home, tmp_path: Path) -> None:
    graph, evaluation = put_shared(home, days_ago=20)
    lines = run("cache", "ls").out.splitlines()
    assert lines[3].split()[:3] == ["total", "of", "2"]
    assert [line.split()[0] for line in lines[-2:]] == [f"eval/{evaluation.name}", f"onnx/{graph.name}"]
    found = json.loads(run("cache", "ls", "--json").out)
    assert [entry["id"] for entry in found["entries"]] == ["test-a", "test-b"]
    assert [(kept["kind"], kept["path"], kept["size"], kept["state"]) for kept in found["kept"]] == [
        ("evaluation", str(evaluation), evaluation.stat().st_size, "intact"),
        ("graph", str(graph), 500, "intact"),
    ]
    assert found["total"]["graph"] == 500
    only = run("cache", "ls", "onnx/*").out.splitlines()
    assert len(only) == 2 and only[0].split()[0] == "kept"
    assert run("cache", "rm", "eval/*", "--dry-run").out.split()[0] == f"eval/{evaluation.name}"
    assert run("cache", "rm", "eval/*").code == 0 and not evaluation.exists() and graph.exists()
    pruned = run("cache", "prune", "--older-than", "15d", "--json")
    assert [entry["id"] for entry in json.loads(pruned.out)["entries"]] == [f"onnx/{graph.name}"]
    assert not graph.exists() and home.fetched_ids() == ["test-a", "test-b"]
    (home.path / "eval").rmdir()
    (home.path / "eval").symlink_to(tmp_path)
    assert f"{home.path / 'eval'} is a link; left as it is" in " ".join(
        run("cache", "prune", "--older-than", "15d").err.split()
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["rm", "nobody"], 3, "nothing in the cache matches 'nobody'"),
        (["rm", "../x"], 3, "nothing in the cache matches '../x'"),
        (["ls", "nobody-*"], 3, "see 'ckptkit cache ls'"),
        (["verify", "nobody"], 3, "nothing in the cache matches 'nobody'"),
        (["path", "nobody"], 3, "ckptkit fetch nobody"),
        (["path", "../x"], 2, "cannot be an entry id"),
        (["prune"], 2, "give --older-than 30d, --max-size 20GB, or both"),
        (["prune", "--older-than", "soon"], 2, "invalid age 'soon'"),
        (["prune", "--max-size", "-1"], 2, "invalid size '-1'"),
    ],
)
def test_errors_are_one_line_and_a_code(
    run: Runner, home: Home, arguments: list[str], code: int, said: str
) -> None:
    result = run("cache", *arguments)
    assert (result.code, result.out) == (code, "") and said in result.err
    assert home.fetched_ids() == ["test-a", "test-b"]
