"""What a user names means the same in every command, and one target that fails does not hide the others."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ckptkit.base.errors import UsageError
from ckptkit.models.synth import Synthetic, write_checkpoint
from tests.support.commands import Runner, runner

VERBS = ("convert", "verify", "fetch", "parity", "profile")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(capsys)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of three entries as their servers have them, in folders by host."""
    folder = tmp_path_factory.mktemp("published")
    write_checkpoint(Synthetic("tiny-moat0"), folder / "tiny.tar.gz")
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a file whose name is a glob, two plain ones, and one that is damaged."""
    for name in ("a[1].tar.gz", "b.tar.gz", "c.tar.gz"):
        shutil.copy(published / "tiny.tar.gz", tmp_path / name)
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><title>404</title>")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("named", "found"),
    [
        (["[bc].tar.gz"], ["b.tar.gz", "c.tar.gz"]),
        (["?.tar.gz", "b.tar.gz"], ["b.tar.gz", "c.tar.gz"]),
        (["a[1].tar.gz"], ["a[1].tar.gz"]),  # the file of that very name
    ],
)
@pytest.mark.parametrize("command", ["convert --dry-run", "verify"])
def test_globs_of_files(folder: Path, run: Runner, command: str, named: list[str], found: list[str]) -> None:
    done = run(*command.split(), *named, "--json")
    assert done.code == 0, done.err
    assert [Path(one.get("source") or one["path"]).name for one in json.loads(done.out)] == found


@pytest.mark.parametrize("verb", [*VERBS, "list", "show", "registry pin"])
def test_a_glob_that_fits_nothing_is_an_error_with_near_names(run: Runner, verb: str) -> None:
    done = run(*verb.split(), "tiny-moat9*")
    assert (done.code, done.out) == (3, "")
    assert "matches 'tiny-moat9*'; did you mean tiny-moat0-256" in done.err.splitlines()[-1]


@pytest.mark.parametrize("verb", VERBS)
def test_a_bare_command_shows_its_usage(run: Runner, verb: str) -> None:
    for line in ([verb], [verb, "--json"]):
        done = run(*line)
        assert (done.code, done.out) == (2, "")
        first, *_, last = done.err.splitlines()
        assert first.startswith(f"Usage: ckptkit {verb} ")
        assert f"\nExamples:\n  ckptkit {verb} " in done.err
        assert last.startswith("error: nothing to ") and last.endswith("or give --all")


@pytest.mark.parametrize("verb", VERBS)
def test_names_or_all_not_both(run: Runner, verb: str) -> None:
    done = run(verb, "tiny-moat0-256", "--all")
    assert done.code == 2
    assert "--all, not both" in done.err


@pytest.mark.parametrize(
    ("command", "counted"),
    [("convert --dry-run", "2 would be converted"), ("verify", "2 passed")],
)
def test_one_that_fails_does_not_hide_the_others(
    folder: Path, run: Runner, command: str, counted: str
) -> None:
    names = ["b.tar.gz", "page.pth", "nosuch.pth", "c.tar.gz"]
    done = run(*command.split(), *names)
    assert done.code == 5  # of page.pth: the first that failed
    assert done.err.splitlines()[-1] == f"warning: {counted}, 2 failed: page.pth, nosuch.pth"
    values = json.loads(run(*command.split(), *names, "--json").out)
    assert sorted(value.get("exit_code", 0) for value in values) == [0, 0, 3, 5]


def test_show_has_the_others(run: Runner) -> None:
    done = run("show", "moat0-224", "nosuch", "tiny-moat0-256")
    assert done.code == 3
    assert [line.split(":")[0] for line in done.out.splitlines() if "MOAT-0" in line] == [
        "moat0-224",
        "tiny-moat0-256",
    ]
    assert done.err.splitlines()[-1] == "warning: 2 shown, 1 failed: nosuch"
    assert run("show", "moat0-224", "tiny-moat0-256").err == ""


def test_several_that_are_all_good_are_counted(folder: Path, run: Runner) -> None:
    assert run("verify", "b.tar.gz", "c.tar.gz").err.splitlines()[-1] == "2 of 2 passed"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("a", "b"), "no file and no entry 'a'; no file and no entry 'b'"),
        (("a.pth", "b.pth"), "a.pth: no such file; b.pth: no such file"),
        (("nosuch.pth", "nosuch.pth"), "error: nosuch.pth: no such file; check"),
    ],
)
def test_diff_of_two_missing_files_names_both(run: Runner, names: tuple[str, str], says: str) -> None:
    done = run("diff", *names)
    assert done.code == 3
    assert says in done.err and "did you mean" not in done.err


def test_profile_of_several_is_one_table(run: Runner) -> None:
    pytest.importorskip("torch")
    done = run("profile", "tiny-moat0-256*", "moganet-xt", "nosuch")
    assert done.code == 3
    rows = [line.split() for line in done.out.splitlines()]
    assert {"tiny-moat0-256", "tiny-moat0-256-noposemb", "moganet-xt"} <= {row[0] for row in rows}
    assert done.out.startswith("3 entries, ")
    assert done.err.splitlines()[-1] == "warning: 3 counted, 1 failed: nosuch"
    assert [one.get("exit_code") for one in json.loads(run("profile", "nosuch", "moat0", "--json").out)] == [
        3,
        None,
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_of_verify_are_all_and_none_twice(folder: Path, run: Runner, count: int) -> None:
    names = ["a[1].tar.gz", "b.tar.gz", "c.tar.gz"]
    taken = []
    for number in range(1, count + 1):
        done = run("verify", *names, "--shard", f"{number}/{count}", "--json")
        assert done.code == 0
        found = json.loads(done.out)
        taken.append([Path(one["path"]).name for one in (found if isinstance(found, list) else [found])])
    assert taken == [names[number::count] for number in range(count)]


@pytest.mark.parametrize("verb", ["verify", "parity"])
@pytest.mark.parametrize("share", ["0/2", "3/2", "1", "1/0", "-1/2", "1/2/3", "x/y", ""])
def test_a_share_that_cannot_be(folder: Path, run: Runner, verb: str, share: str) -> None:
    done = run(verb, "b.tar.gz", f"--shard={share}")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: --shard: invalid share {share!r}; write it like 1/3, from 1/3 to 3/3\n"


def test_shards_of_parity_are_all_and_none_twice(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which entries a process would run, in the order of the registry."""
    proven: list[str] = []

    def prove(located: object, request: Any, *others: object) -> NoReturn:
        proven.append(request.name)
        raise UsageError("not run")

    run_module = import_module("ckptkit.parity.run")  # ckptkit.parity is a function of the Python API
    monkeypatch.setattr(run_module, "prove", prove)
    monkeypatch.setattr(
        "ckptkit.models.synth.named_checkpoint", lambda name, *_, **__: nullcontext((None, name))
    )
    processes = import_module("ckptkit.parity.apart").ModelProcesses
    monkeypatch.setattr(processes, "start", lambda *_: None)
    monkeypatch.setattr(run_module.ParityRequest, "require", lambda *_: None)
    run("parity", "--all", "--synthetic")
    whole, parts = proven.copy(), []
    for number in range(1, 4):
        proven.clear()
        run("parity", "--all", "--synthetic", "--shard", f"{number}/3")
        parts.append(proven.copy())
    assert len(whole) > 40
    assert parts == [whole[0::3], whole[1::3], whole[2::3]]
