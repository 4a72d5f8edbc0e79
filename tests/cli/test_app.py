"""The root of the command line: global options anywhere, one line for an error, the documented status."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import typer

from ckptkit import errors
from ckptkit._version import __version__
from ckptkit.cli.app import _MODULES, hoist_global_options
from ckptkit.cli.exit_codes import ExitCode, exit_code
from tests.support.commands import runner

COMMANDS = [name for names in _MODULES.values() for name in names]


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


def test_the_version():
    assert run("--version").stdout == f"ckptkit {__version__}\n"


def test_help_lists_every_command_without_boxes_in_a_pipe():
    done = run("--help")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line.strip()]
    assert sorted(listed) == sorted(COMMANDS)
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
    listed = run("--help").stdout.split("Commands:")[1]
    for names in _MODULES.values():
        for name, summary in names.items():
            assert any(line.split() == [name, *summary.split()] for line in listed.splitlines()), name


def test_each_module_registers_the_commands_that_the_table_gives_it():
    for module, names in _MODULES.items():
        fresh = typer.Typer()
        importlib.import_module(f"ckptkit.cli.{module}").register(fresh)
        found = {c.name or c.callback.__name__ for c in fresh.registered_commands}
        found |= {group.name for group in fresh.registered_groups}
        assert found == names.keys(), module


def test_after_the_roots_help_the_same_process_still_has_the_commands(capsys):
    ran = runner(capsys)
    assert ran("--help").code == 0
    assert "moat0-224" in ran("list", "moat0-224").out
    assert ran("cache", "path").code == 0
