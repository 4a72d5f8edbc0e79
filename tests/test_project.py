"""The project's own promises: what CI runs, what imports what, what the package ships."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ckptkit._version import DISTRIBUTION
from ckptkit._version import REPOSITORY as ADDRESS
from tests import conftest
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
FRAMEWORKS = {"torch", "tensorflow", "keras"}
HEAVY = sorted(FRAMEWORKS | {"h5py", "matplotlib"})


def readme_commands():
    return re.findall(r"```sh\n(pip install .*)\n```", README)


def test_the_readme_opens_with_its_three_commands():
    assert readme_commands() == [
        "pip install . && ckptkit convert model.pth -o model.safetensors --layout as-is",
        "pip install '.[torch,tf]' && ckptkit demo",
        "pip install -e '.[dev]' && python -m pytest",
    ]


def test_ci_runs_the_readmes_commands_word_for_word_and_fails_with_them():
    lines = [line.strip() for line in (REPOSITORY / ".ci" / "run").read_text().splitlines()]
    base, *others = readme_commands()
    for command in others:
        assert f"{command} || exit" in lines  # errexit does not see a fault before &&
    install, convert = base.split(" && ")
    start = lines.index(f"{install} || exit")
    assert f"{convert} || exit" in lines[start:]  # there a model is made in between


def test_ci_tests_every_python_that_the_metadata_name_and_the_oldest_dependencies():
    project = (REPOSITORY / "pyproject.toml").read_text()
    named = re.findall(r'^    "Programming Language :: Python :: (3\.\d+)"', project, re.M)
    oldest = re.search(r'^requires-python = ">=(.*)"', project, re.M)[1]
    jobs = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    everything, base = (jobs[job]["strategy"]["matrix"]["python"] for job in ("everything", "base-install"))
    assert everything == named
    assert set(base) >= {oldest, *named}
    commands = [step["run"] for step in jobs["oldest-dependencies"]["steps"] if "run" in step]
    line = " && ".join(commands).removeprefix("pip install uv && ")
    assert f"\n{line}\n" in (REPOSITORY / "CONTRIBUTING.md").read_text()
    assert f"--python {oldest} " in line


INSTALLS = re.compile(
    r"\b(?:pip3?|pipx|uv|conda)[\"', ]+(?:tool |pip )?(?:install|add|download|run|index versions)\b"
    r"[\"', ]*\s+([^\n`&;|#]*)|\b(?:uvx|--from)\s+([^\n`&;|#]*)|(ckptkit\[)"
)
THE_OTHER = re.compile(r"(?<![-\w./@+:])ckptkit(?![-\w/]|\.\w)")


def leads_astray(text):
    """What in a text would install the distribution ``ckptkit``, which is another project's."""
    return [
        found[0]
        for found in INSTALLS.finditer(text)
        if THE_OTHER.search(" ".join(filter(None, found.groups())))
    ]


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("pip install {}", True),
        ("python -m pip install -U '{}==0.3'", True),
        ('["pip", "install", "{}"]', True),
        ("pip install\n    {}", True),
        ("`pip install '{}[torch]'`", True),
        ("CKPTKIT: {}[torch,tf]", True),
        ("uvx {} --help", True),
        ("uv tool install {}", True),
        ("uvx --from '{} @ git+https://a.org/x' x", True),
        ("pip install '{}-cli[torch] @ git+https://a.org/{}.git'", False),
        ("pip install '.[all]' && {} demo", False),
        ("pip install ./{} torch", False),
        ("pip uninstall {}", False),
    ],
)
def test_what_installs_the_other_project_is_noticed(command, wrong):
    assert bool(leads_astray(command.replace("{}", "ckpt" + "kit"))) is wrong


def test_nothing_installs_the_other_project():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    paths = [
        Path(name) for name in listed.stdout.split("\0") if name
    ] or [  # an unpacked archive has no index
        path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("*") if path.is_file()
    ]
    assert len(paths) > 500
    texts = {
        path: (REPOSITORY / path).read_bytes().decode(errors="replace")
        for path in paths
        if (REPOSITORY / path).is_file()
    }
    assert {str(path): found for path, text in texts.items() if (found := leads_astray(text))} == {}


def test_name_and_repository_are_those_of_the_metadata():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nname = "{DISTRIBUTION}"' in text
    assert f'\nRepository = "{ADDRESS}"' in text
    assert 'authors = [{ name = "The ckptkit authors" }]' in text  # by which an older install is known


def test_on_a_package_index_the_readme_leads_to_the_repository():
    tomllib = pytest.importorskip("tomllib")
    tool = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    shown = README
    for rule in tool["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        shown = re.sub(rule["pattern"], rule["replacement"], shown)
    named = ["".join(one) for one in re.findall(r'\]\(([^)\s]+)\)|(?:src|srcset)="([^"]+)"', shown)]
    here = re.compile(re.escape(ADDRESS.removesuffix(".git")) + r"/(blob|raw)/main/(.+)")
    found = [match for url in named if (match := here.fullmatch(url))]
    assert len(found) == len(named) > 20
    for match in found:
        assert (REPOSITORY / match[2]).is_file()
        assert (match[1] == "raw") is match[2].startswith("docs/pictures/")


def modules_imported(code, home):
    program = f"import sys\n{code}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    child = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "CKPTKIT_HOME": str(home), "HOME": str(home)},
    )
    return set(child.stdout.splitlines()[-1].split())


RUN = """
from ckptkit.cli.app import main
try:
    main({arguments!r})
except SystemExit as stop:
    assert not stop.code, stop.code
"""


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import ckptkit", [*HEAVY, "numpy", "requests", "pydantic", "typer"]),
        (RUN.format(arguments=["list"]), [*HEAVY, "requests", "numpy"]),
        (RUN.format(arguments=["show", "moat0-224"]), [*HEAVY, "requests", "numpy"]),
        (RUN.format(arguments=["--help"]), [*HEAVY, "requests", "numpy", "pydantic"]),
    ],
    ids=["import", "list", "show", "help"],
)
def test_what_a_start_imports(tmp_path, code, forbidden):
    assert modules_imported(code, tmp_path) & set(forbidden) == set()


def test_conversions_between_all_formats_import_no_framework(tmp_path):
    code = "\n".join(
        RUN.format(arguments=arguments)
        for arguments in (
            ["synth", "tiny-moat0", "-o", str(tmp_path / "a.ckpt")],
            ["verify", str(tmp_path / "a.ckpt"), "--deep"],
            ["inspect", str(tmp_path / "a.ckpt"), "--stats"],
            [
                "convert",
                str(tmp_path / "a.ckpt"),
                "--to",
                "safetensors",
                "-o",
                str(tmp_path / "b.safetensors"),
            ],
            ["convert", str(tmp_path / "b.safetensors"), "--to", "torch", "-o", str(tmp_path / "c.pth")],
            ["convert", str(tmp_path / "c.pth"), "--to", "keras", "-o", str(tmp_path / "c.weights.h5")],
            ["convert", str(tmp_path / "c.weights.h5"), "--to", "tf", "-o", str(tmp_path / "d.ckpt")],
        )
    )
    assert modules_imported(code, tmp_path) & {*HEAVY, "requests"} == set()
    assert (tmp_path / "d.ckpt.index").exists()


def test_frameworks_are_imported_at_module_level_in_model_files_only():
    offenders = []
    for path in sorted((REPOSITORY / "ckptkit").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            in_families = "families" in (path.parent.name, path.parent.parent.name)
            in_model = in_families and path.name.startswith(("torch_", "keras_"))
            if FRAMEWORKS & {name.partition(".")[0] for name in names} and not in_model:
                offenders.append(str(path))
    assert offenders == []


RUN_OF_FOUR = """
import os
import pathlib
import random
import time
import pytest

drawn = []

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    yield folder
    assert folder.is_dir()

def test_large(folder, tmp_path):
    (folder / "model").write_bytes(bytes(3 << 20))
    (tmp_path / "own").write_bytes(bytes(3 << 20))
    time.sleep(0.2)

def test_small(tmp_path):
    (tmp_path / "own").touch()
    (pathlib.Path(os.environ["CKPTKIT_HOME"]) / "cache").mkdir(parents=True)
    pathlib.Path(os.environ["CKPTKIT_TRUST"]).touch()
    drawn.append(random.random())

def test_that_fails(tmp_path):
    assert not list(tmp_path.parent.glob("test_small*[0-9]"))
    (tmp_path / "own").write_bytes(bytes(4 << 20))
    pathlib.Path(os.environ["CKPTKIT_HOME"]).mkdir()
    pathlib.Path(os.environ["CKPTKIT_TRUST"]).touch()
    raise ValueError

def test_last(folder, tmp_path):
    (tmp_path / "own").write_bytes(bytes(4 << 20))  # with what the failed test left it would be too much
    time.sleep(0.2)
    assert (folder / "model").exists()
    assert [random.random()] == drawn
"""


def test_temporary_files_are_bounded_and_only_those_of_a_failed_test_are_kept(tmp_path, monkeypatch, capfd):
    (tmp_path / "test_run.py").write_text(RUN_OF_FOUR)
    monkeypatch.setattr(conftest, "MOST_TEMPORARY", 5 << 20)
    base = tmp_path / "base"
    options = ["-n0", "-c", str(REPOSITORY / "pyproject.toml"), f"--rootdir={tmp_path}", f"--basetemp={base}"]
    code = pytest.main([*options, str(tmp_path / "test_run.py")], plugins=[conftest])
    out = capfd.readouterr().out
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 3 passed, 1 error" in out and "ValueError" in out
    assert "6 MB in temporary files" in out
    kept = [re.sub(r"\d+", "", path.name) for path in base.iterdir() if not path.is_symlink()]
    assert sorted(kept) == ["home", "shared", "test_that_fails", "trust.ckptkit.lock"]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_whichever_step_of_ci_fails_the_run_fails(tmp_path):
    def run(failing, status=1):
        log.write_text("")
        values = {"PATH": f"{tools}:/usr/bin:/bin", "LOG": str(log), "FAILING": str(failing)}
        done = subprocess.run(
            ["bash", script],
            env={**values, "STATUS": str(status)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, log.read_text().splitlines(), "all checks hold" in done.stdout

    log, tools, script = tmp_path / "log", tmp_path / "bin", tmp_path / ".ci" / "run"
    tools.mkdir()
    script.parent.mkdir()
    script.write_bytes((REPOSITORY / ".ci" / "run").read_bytes())
    for name in ("python3", "python", "pip", "ckptkit", "ruff", "mypy", "lint-imports", "chromedriver"):
        (tools / name).write_text(FAKE)
        (tools / name).chmod(0o755)

    code, steps, holds = run(failing=0)
    assert (code, holds) == (0, True)
    for command in " && ".join(readme_commands()).replace("'", "").split(" && "):
        assert command in steps, command
    assert len(steps) >= 12
    for number, step in enumerate(steps, 1):
        assert run(number) == (1, steps[:number], False), step
    assert run(steps.index("python -m pytest") + 1, status=5)[0] == 5  # no test was collected


FAKE = """#!/bin/sh
said="${0##*/} $*"
echo "${said%% /*}" >> "$LOG"
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && : > "$3/bin/activate"; fi
if [ "$(wc -l < "$LOG")" -eq "$FAILING" ]; then exit "$STATUS"; fi
"""
"""Stands for each program of `.ci/run`: says how it was called, without the temporary folder, or fails."""


def test_the_default_run_searches_alike_and_the_nightly_one_says_how_to_repeat_its_own(tmp_path):
    def run(name, *more):  # a process of its own has less to look through when it explains a fault
        (tmp_path / name).write_text(SEARCH)
        options = ["-n0", "-c", str(REPOSITORY / "pyproject.toml"), f"--rootdir={tmp_path}", *more]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "tests.conftest", *options, str(tmp_path / name)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stderr
        return done.stdout, re.findall(r"drew -?\d+", done.stdout)

    _, drawn = run("test_first.py")
    assert len(drawn) > 10 and run("test_second.py")[1] == drawn
    said, drawn_at_random = run("test_third.py", "--hypothesis-profile=nightly")
    assert drawn_at_random != drawn and "@reproduce_failure(" in said


def test_the_files_that_are_begun_first_are_there():
    assert [name for name in conftest.LONGEST if not (REPOSITORY / name).is_file()] == []


SEARCH = """
from hypothesis import given, strategies

@given(strategies.integers())
def test(n):
    print("drew", n)
    assert n < 300
"""


def test_each_security_promise_names_tests_that_exist():
    text = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    promised = text.partition("## What is promised")[2].partition("\n## ")[0].strip()
    for promise in promised.split("\n\n"):
        named = re.findall(r"`(tests/[\w/]+\.py)`", promise)
        assert promise.startswith("**") and named, promise
        assert [file for file in named if not (REPOSITORY / file).is_file()] == []


def test_security_reports_go_to_the_repository():
    assert f"<{ADDRESS}>" in (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")


def test_the_source_distribution_has_every_page():
    include = re.search(
        r"^include = (\[.*\])", (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    pages = {f"/{path.name}" for path in REPOSITORY.glob("*.md")}
    assert pages <= {*ast.literal_eval(include[1])}
