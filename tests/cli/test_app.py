"""The root of the command line: global options anywhere, one line for an error, the documented status."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import safetensors.numpy as safetensors_numpy
import typer
from safetensors.numpy import save_file

from ckptkit._version import __version__
from ckptkit.base import errors
from ckptkit.base.files import storage_error
from ckptkit.cli.app import _MODULES, hoist_global_options, load_commands, main
from ckptkit.cli.options import parse_settings
from ckptkit.cli.output import ExitCode, exit_code
from tests.support.commands import NOT_AN_INT, runner
from tests.support.running import registry_file

COMMANDS = list(_MODULES)


def run(*arguments, **options):
    command = [sys.executable, "-m", "ckptkit.cli.app", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        (["list"], ["list"]),
        (["list", "--quiet"], ["--quiet", "list"]),
        (["list", "-q", "x", "-v"], ["-q", "-v", "list", "x"]),
        (["fetch", "x", "--mirror", "a=b", "--offline"], ["--mirror", "a=b", "--offline", "fetch", "x"]),
        (["fetch", "x", "--mirror=a=b"], ["--mirror=a=b", "fetch", "x"]),
        (["verify", "--", "--quiet"], ["verify", "--", "--quiet"]),
        (["list", "--registry"], ["--registry", "list"]),
        (["registry", "validate", "f.yaml"], ["registry", "validate", "f.yaml"]),
    ],
    ids=str,
)
def test_global_options_come_first_wherever_they_stood(given, expected):
    assert hoist_global_options(given) == expected


def test_every_error_class_has_its_documented_status():
    made = {
        errors.UsageError("x"): 2,
        errors.NotFoundError("x"): 3,
        errors.NetworkError("x"): 4,
        errors.FormatError("f", "x"): 5,
        errors.IntegrityError("x"): 5,
        errors.RegistryError("f", ["x"]): 5,
        errors.ConversionError("x"): 5,
        errors.StorageError("x"): 5,
        errors.MissingDependencyError("p", "e", "x"): 6,
    }
    assert {type(error) for error in made} == set(errors.CkptkitError.__subclasses__())
    for error, status in made.items():
        assert exit_code(error) == status, type(error)
    assert (ExitCode.OK, ExitCode.CHECK_FAILED, ExitCode.INTERRUPTED) == (0, 1, 130)


def test_the_version(capsys):
    ran = runner(capsys)
    assert ran("--version").out == ran("-V").out == f"ckptkit {__version__}\n"
    started = [sys.executable, "-m", "ckptkit", "-V"]
    assert subprocess.check_output(started, text=True) == f"ckptkit {__version__}\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("convert x --layot as-is", "no such option: --layot; did you mean --layout?"),
        ("list --ofline", "no such option: --ofline; did you mean --offline?"),
        ("--registri f list", "no such option: --registri; did you mean --registry?"),
        ("cache rm --zzzz", "no such option: --zzzz. Run: ckptkit cache rm --help"),
        ("convrt x", "no such command 'convrt'; did you mean 'convert'?"),
        ("cache lss", "no such command 'lss'; did you mean 'ls'?"),
        ("zzzz", "no such command 'zzzz'. Run: ckptkit --help"),
        ("convert --output", "option '--output' requires an argument. Run: ckptkit convert --help"),
        (
            "convert x --weights y",
            "invalid value for '--weights': 'y' is not one of 'auto', 'ema', 'raw'",
        ),
        ("parity x --batch y", f"invalid value for '--batch': {NOT_AN_INT}"),
        (
            "convert x --to pytroch",
            "unknown format 'pytroch'; did you mean torch? choose from safetensors, torch, tf",
        ),
        ("convert x --dtype fp8", "unknown dtype 'fp8'; "),
        ("predict x y --framework jax", "unknown framework 'jax'; choose from torch, keras"),
        (
            "export x --to coreml",
            "unknown export target 'coreml'; choose from hf, onnx, saved-model",
        ),
        ("parity x --with jax", "unknown backend 'jax'; choose from keras, onnxruntime"),
        (
            "convert x --set attn_force_fp23=yes",
            "unknown setting 'attn_force_fp23'; did you mean attn_force_",
        ),
        ("convert x --set attn_force_fp32=ja", "cannot be 'ja'; attn_force_fp32 takes yes or no (true, "),
        ("convert x --set window_size=0", "cannot be '0'; window_size takes a whole number above 0, or none"),
    ],
)
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_usage_errors_are_said_as_all_others(capsys, monkeypatch, line, says, terminal):
    monkeypatch.setattr("ckptkit.cli.app.app.rich_markup_mode", "rich" if terminal else None)
    done = runner(capsys)(*line.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {says}") or says in done.err
    assert done.err.startswith("error: ") and done.err.count("\n") == 1


def test_a_missing_argument_is_said_below_the_usage(capsys):
    done = runner(capsys)("cam", "tiny-moat0-256", "-o", "x.png")
    usage, *_, said = done.err.splitlines()
    assert usage == "Usage: ckptkit cam [OPTIONS] -o PATH ID|FILE IMAGE…"
    assert said == "error: missing argument 'IMAGE…'. Run: ckptkit cam --help"


@pytest.mark.parametrize("value", ["yes", "true", "ON", "1"])
def test_settings_are_taken_as_they_are_shown(value):
    assert parse_settings([f"attn_force_fp32={value}"]) == {"attn_force_fp32": True}
    other = {"yes": "no", "true": "false", "ON": "Off", "1": "0"}[value]
    assert parse_settings([f"attn_force_fp32={other}", "window_size=none"]) == {
        "attn_force_fp32": False,
        "window_size": None,
    }


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["convert", "a.npz", "--layout", "as-is", "--output=~/deep/b.pth"], "deep/b.pth"),
        (["convert", "~/a.npz", "--layout", "as-is", "--output=~/"], "a.safetensors"),
        (["convert", "a.npz", "--layout", "as-is", "-o", "./~x.pth"], "~x.pth"),
        (["list", "--output=~/list.csv"], "list.csv"),
        (["list", "--registry=~/r.yaml", "-o", "list.csv"], "list.csv"),
    ],
    ids=str,
)
def test_home_folders_are_found_where_no_shell_looked(capsys, monkeypatch, tmp_path, arguments, file):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    numpy.savez(tmp_path / "a.npz", w=numpy.zeros(3))
    (tmp_path / "r.yaml").write_text("entries: []\n")
    done = runner(capsys)(*arguments)
    assert done.code == 0, done.err
    assert (tmp_path / file).is_file() and not (tmp_path / "~").exists()


@pytest.mark.parametrize("variable", ["CKPTKIT_HOME", "CKPTKIT_REGISTRY"])
def test_a_home_folder_of_nobody_is_one_line(capsys, monkeypatch, tmp_path, variable):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "~nobody-of-that-name/x")
    done = runner(capsys)("list", "moat0-224")
    assert done.code == 2
    assert "no home folder is known for ~nobody-of-that-name" in done.err and done.err.count("\n") == 1


def test_help_lists_every_command_without_boxes_in_a_pipe():
    done = run("--help")
    assert done.returncode == 0
    groups = done.stdout.split("\nFind:\n")[1].split("\n\nOptions:")[0].split("\n\n")
    listed = [line.split()[0] for group in groups for line in group.splitlines() if line.startswith("  ")]
    assert sorted(listed) == sorted(COMMANDS) and len(groups) == 6
    assert "│" not in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    done = run(command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: python -m ckptkit.cli.app {command}") or command in done.stdout


def test_an_error_is_one_line_and_verbose_adds_the_traceback():
    short = run("show", "moat9")
    assert short.returncode == 3
    assert [
        line for line in short.stderr.splitlines() if line.startswith("error: ")
    ] == short.stderr.splitlines()
    long = run("show", "moat9", "--verbose")
    assert long.returncode == 3
    assert "Traceback" in long.stderr and "NotFoundError" in long.stderr


def test_a_registry_with_unknown_keys_is_one_line_with_its_number(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("entries:\n  - id: moat0-224\n    colour: red\n")
    done = run("list", "--registry", str(file))
    assert done.returncode == 5
    (line,) = done.stderr.splitlines()
    assert "mine.yaml" in line and "line 3" in line and "colour" in line
    checked = run("registry", "validate", str(file))
    assert checked.returncode == 1
    assert "line 3" in checked.stdout + checked.stderr


def test_no_arguments_show_the_help():
    done = run()
    assert "Usage:" in done.stdout + done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    done = subprocess.run(
        f"{sys.executable} -m ckptkit.cli.app registry schema | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


def test_no_summary_of_the_roots_help_is_cut_off():
    listed = run("--help").stdout
    for name, command in load_commands().commands.items():
        assert any(
            line.split() == [name, *str(command.short_help).split()] for line in listed.splitlines()
        ), name


def test_each_module_registers_the_commands_that_the_table_gives_it():
    for module in set(_MODULES.values()):
        fresh = typer.Typer()
        importlib.import_module(f"ckptkit.cli.{module}").register(fresh)
        found = {c.name or c.callback.__name__ for c in fresh.registered_commands}
        found |= {group.name for group in fresh.registered_groups}
        assert found == {name for name, home in _MODULES.items() if home == module}, module


def test_after_the_roots_help_the_same_process_still_has_the_commands(capsys):
    ran = runner(capsys)
    assert ran("--help").code == 0
    assert "moat0-224" in ran("list", "moat0-224").out
    assert ran("cache", "path").code == 0


@pytest.mark.skipif(os.name == "nt", reason="a home folder is always known there")
def test_a_user_without_a_home_gets_no_folder_called_tilde(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    for name in ("HOME", "XDG_CACHE_HOME", "CKPTKIT_HOME", "CKPTKIT_TRUST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KERAS_HOME", "")  # put back afterwards
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.chdir(tmp_path)
    run = runner(capsys)
    assert run("show", "moat0-224").code == 0
    done = run("fetch", "moat0-224")
    assert (done.code, done.out) == (5, "")
    assert done.err.endswith("there is no place for the cache; set CKPTKIT_HOME to a folder\n")
    assert Path(os.environ["KERAS_HOME"]).is_absolute()
    with pytest.raises(OSError):
        Path(os.environ["KERAS_HOME"]).mkdir(parents=True)
    assert list(tmp_path.iterdir()) == []


class TestPathsOfBytes:
    """A folder whose name is no UTF-8 and full of signs that mean something to markup, globs and PATH."""

    NAME = os.fsdecode(b"h\xe9 [b] [red]:smile:*")

    @pytest.fixture
    def place(self, tmp_path, monkeypatch):
        place = tmp_path / self.NAME
        try:
            place.mkdir()
        except OSError:
            pytest.skip("no such names here")
        monkeypatch.chdir(place)
        monkeypatch.setenv("CKPTKIT_HOME", str(place / "home"))
        monkeypatch.setenv("CKPTKIT_TRUST", str(place / "lock"))
        tensors = {name: numpy.full((300, 300), value, numpy.float32) for value, name in enumerate("ab")}
        save_file(tensors, place / "m.safetensors")
        (place / "log.csv").write_text("epoch,train_loss,eval_top1\n0,2,50\n1,1,60\n")
        url = (place / "m.safetensors").as_uri()
        pin = hashlib.sha256((place / "m.safetensors").read_bytes()).hexdigest()
        seen = {"observed_at": "2026-01-02T03:04:05Z", "url": url}
        registry_file(
            place, {"id": "mine", "sources": [{"url": url}], "sha256": pin, "hash_provenance": seen}
        )
        return place

    def test_every_command_takes_it(self, place, capsys):
        pytest.importorskip("matplotlib")
        run = runner(capsys)
        for line in (
            "list --registry {}/registry.yaml -o {}/l[1].csv",
            "list --registry {}/registry.yaml -o {}/l[1].html",
            "registry validate {}/registry.yaml",
            "fetch mine --registry {}/registry.yaml --dry-run",
            "fetch mine --registry {}/registry.yaml",
            "show mine --registry {}/registry.yaml",
            "cache ls",
            "cache verify",
            "inspect {}/m.safetensors",
            "convert {}/m.safetensors --layout as-is --to torch -o {}/o[\udcff].pth",
            "convert {}/m.safetensors --layout as-is --to npz -o {}/o[\udcff].npz",
            "convert {}/m.safetensors --layout as-is --to tf -o {}/o[\udcff]",
            "convert {}/m.safetensors --layout as-is -o {}/s[\udcff].safetensors --max-shard-size 400kB",
            "diff {}/m.safetensors {}/o[\udcff].pth",
            "diff {}/m.safetensors {}/o[\udcff].npz",
            "diff {}/m.safetensors {}/o[\udcff]",
            "diff {}/m.safetensors {}/s[\udcff].safetensors.index.json",
            "logs {}/log.csv -o {}/log[\udcff].png",
            "plot -o {}/plot[\udcff].svg",
        ):
            done = run(*(word.format(place) for word in line.split(" ")))
            assert done.code == 0, (line, done.err)
            for word in line.split(" -o ")[1:]:
                name = Path(word.split(" ")[0]).name
                assert any(made.name.startswith(name.partition(".")[0]) for made in place.iterdir()), line

    def test_json_spells_it_whole(self, place, capsys):
        run = runner(capsys)
        (fetched,) = json.loads(run("fetch", "mine", "--registry", "registry.yaml", "--json").out)
        assert Path(fetched["path"]).read_bytes() == (place / "m.safetensors").read_bytes()
        assert json.loads(run("cache", "ls", "--json").out)["folders"] == [str(place / "home")]
        (record,) = (place / "home").glob("artefacts/*/*.json")
        assert json.loads(record.read_text(encoding="utf-8"))["used_url"].endswith("m.safetensors")

    def test_errors_are_one_line(self, place, capsys):
        run = runner(capsys)
        assert run("verify", "m.safetensors").code == 1  # a tensor of zeros
        missing = place / "\udcff"
        for words in (("inspect", missing), ("convert", missing), ("list", "--registry", missing)):
            done = run(*words)
            assert done.code == 3, words
            assert done.err.count("\n") == 1, done.err
            assert r"h\udce9 [b] [red]:smile:*/\udcff" in done.err

    @pytest.mark.parametrize("to", ["onnx", "saved-model"])
    def test_what_a_framework_cannot_write_is_refused_before_the_work(self, place, capsys, to):
        if not all(map(importlib.util.find_spec, ("torch", "onnx", "onnxruntime", "tensorflow", "keras"))):
            pytest.skip("asks for packages first")
        name = "out.onnx" if to == "onnx" else "out"
        done = runner(capsys)("export", "moat0-224", "--synthetic", "--to", to, "-o", place / name)
        assert (done.code, done.out) == (2, "")
        assert "this path is not UTF-8, and" in done.err


@pytest.mark.parametrize(
    ("names", "line"),
    [([], ""), (["a"], "a"), (list("abc"), "a, b, c"), (list("abcde"), "a, b, c and 2 more")],
)
def test_long_lists_are_cut_where_nobody_asked_for_them(names, line):
    assert errors.listed(names, 3) == line


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["convert", "many.npz", "--rules", "r.yaml"], 30),
        (["convert", "many.npz", "--layout", "as-is", "--to", "keras", "-o", "x.weights.h5"], 300),
        (["verify", "model.safetensors"], 363),
        (["inspect", "folder"], 9),
    ],
    ids=str,
)
def test_verbose_names_all_that_is_cut_otherwise(capsys, monkeypatch, tmp_path, arguments, names):
    monkeypatch.chdir(tmp_path)
    numpy.savez("many.npz", **{f"w{number:03}": numpy.zeros(1) for number in range(names)})
    with numpy.load("many.npz") as arrays:
        safetensors_numpy.save_file(dict(arrays), "model.safetensors")
    (tmp_path / "r.yaml").write_text("rules:\n  - {source: never, target: x, op: identity}\n")
    (tmp_path / "folder").mkdir()
    for number in range(names if "folder" in arguments else 0):
        shutil.copy("many.npz", f"folder/w{number:03}.npz")
    ran = runner(capsys)
    short, long = ran(*arguments), ran(*arguments, "--verbose")
    every = [f"w{number:03}" for number in range(names)]
    assert any(name not in short.out + short.err for name in every)
    assert [name for name in every if name not in long.out + long.err] == []
    assert short.code == long.code


def test_what_the_system_refuses_says_what_to_do(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("CKPTKIT_HOME", str(cache))
    secret = tmp_path / "secret.pth"
    secret.write_bytes(b"x")
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.R_OK)

    def said(number, path):
        return str(storage_error(OSError(number, os.strerror(number)), path)).partition(": ")[2]

    assert said(errno.EACCES, secret) == "permission denied; check who may read it"
    elsewhere = "choose another place"
    assert said(errno.EACCES, tmp_path) == f"permission denied; check who may write there, or {elsewhere}"
    assert said(errno.EROFS, tmp_path / "x") == f"read-only file system; {elsewhere}"
    assert said(errno.EROFS, cache / "x") == "read-only file system; set CKPTKIT_HOME to another folder"
    lost = "its folder is not there and cannot be created"
    assert said(errno.ENOENT, cache / "locks" / "x.lock") == f"{lost}; set CKPTKIT_HOME to another folder"
    assert said(errno.ENOENT, tmp_path / "gone.pth") == "No such file or directory"


def test_a_local_web_page_is_no_answer(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("page.tar.gz").write_text("<!DOCTYPE html><title>Sign in</title>")
    done = runner(capsys)("import", "tiny-moat0-256", "page.tar.gz")
    assert done.code == 5
    assert "page.tar.gz: a web page" in done.err and "answered" not in done.err


@pytest.mark.parametrize(
    ("line", "as_typed"),
    [
        (["help"], ["--help"]),
        (["help", "convert"], ["convert", "--help"]),
        (["help", "cache", "rm"], ["cache", "rm", "--help"]),
        (["version"], ["--version"]),
    ],
)
def test_help_and_version_as_commands(
    line: list[str], as_typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for words in (line, as_typed):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert not left.value.code
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""
