"""Every example that a user reads, in README, documentation and the commands' help, does what it should."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ckptkit.registry.loading import load_registry
from tests.support.commands import runner
from tests.support.examples import (
    TUTORIAL,
    Example,
    commands,
    examples_of,
    page_examples,
    page_programs,
    printed_examples,
    programs_of,
)
from tests.support.s3_server import s3_server
from tests.support.showground import prepare, published_hosts
from tests.support.training_logs import long_log

REGISTRY = load_registry()
READS_NO_WEIGHTS = ("list", "show", "profile", "plot", "registry", "logs", "cache", "doctor")
SLOW = re.compile(
    r"--to (onnx|saved-model)|(--with|--framework) onnxruntime|^ckptkit doctor|^ckptkit demo|s3://bucket/$"
    r"|--to keras -o moat.keras|--synthetic --to keras|^ckptkit parity moganet-xt-224 --converted"
    r"|--compare methods|--stage 4|--framework tf --json$"
)
"""Exporting a graph takes half a minute, importing both frameworks to ask them for GPUs ten seconds; of the
others a shorter one of the same command is always run."""

LARGE = 10_000_000
"""Parameters from which on an entry's example is a slow test."""

RUN_ELSEWHERE = {
    "ckptkit profile --all --check": ".ci/run",
}
"""Slow here, because something that always runs has run it already."""

MADE_BY_AN_EXAMPLE = ("ported.pth", "SHA256SUMS")
"""What other examples of a page read; the one that makes it begins without it."""

_SHELL = re.compile(r"[$|>;&]")


def _is_slow(example: Example) -> bool:
    if example.line in RUN_ELSEWHERE or SLOW.search(example.line):
        return True
    words = shlex.split(example.line)
    if words[1] in READS_NO_WEIGHTS and words[1:3] != ["cache", "path"]:
        return False
    named = [REGISTRY[word] for word in words[2:] if word in REGISTRY]
    return any((entry.params or 0) > LARGE for entry in named)


def _cases() -> list[object]:
    examples = [*page_examples(), *(e for command in commands() for e in printed_examples(command))]
    once = {example.line: example for example in reversed(examples)}
    return [
        pytest.param(example, id=example.line, marks=pytest.mark.slow if _is_slow(example) else ())
        for example in reversed(once.values())
    ]


@pytest.mark.parametrize("command", commands())
def test_every_help_has_two_examples(command):
    lines = [example.line for example in printed_examples(command)]
    assert len(lines) >= 2, lines
    assert all(f"ckptkit {command}" in line for line in lines)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Everything examples need, made once."""
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("showground")
    logs = {str(REGISTRY["moganet-xt-224"].log_url): long_log().encode()}
    with pytest.MonkeyPatch.context() as patch, published_hosts(folder / "published", logs) as mirrors:
        patch.setenv("CKPTKIT_HOME", str(folder / "home"))
        patch.setenv("CKPTKIT_TRUST", str(folder / "ckptkit.lock"))
        patch.setenv("CKPTKIT_MIRROR", mirrors)
        yield prepare(folder), mirrors


@pytest.fixture(scope="module")
def bucket():
    """s3://bucket, for the examples that write there."""
    with s3_server() as files:
        yield files


@pytest.fixture
def _own_copy(ground, tmp_path, monkeypatch):
    """The test's own copy of it all: working folder, cache, lock file."""
    prepared, mirrors = ground
    mine = prepared.copy(tmp_path)
    monkeypatch.chdir(mine.folder)
    monkeypatch.setenv("CKPTKIT_HOME", str(mine.home))
    monkeypatch.setenv("CKPTKIT_TRUST", str(mine.trust))
    monkeypatch.setenv("CKPTKIT_MIRROR", mirrors)


@pytest.mark.usefixtures("_own_copy")
@pytest.mark.parametrize("example", _cases())
def test_example(example, request, capsys):
    if "s3://" in example.line:
        request.getfixturevalue("bucket")
    if _SHELL.search(example.line):
        _run_in_a_shell(example.line)
        return
    words = shlex.split(example.line)
    assert words[0] == "ckptkit"
    if "-o" in words and (made := words[words.index("-o") + 1]) in MADE_BY_AN_EXAMPLE:
        Path(made).unlink()
    done = runner(capsys)(*words[1:])
    assert done.code == 0, done.out[-2000:] + done.err[-2000:]
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("_own_copy")
@pytest.mark.parametrize("page", page_programs())
def test_the_python_of_a_page_runs(page):
    names: dict[str, object] = {}
    exec(compile(page_programs()[page], page, "exec"), names)
    report = names.get("report")
    assert "model" in names if report is None else report.ok


def test_the_tutorial_from_top_to_bottom(ground, tmp_path, monkeypatch, capsys):
    for name, folder in (("CKPTKIT_HOME", "home"), ("CKPTKIT_TRUST", "ckptkit.lock")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("CKPTKIT_MIRROR", ground[1])
    monkeypatch.chdir(tmp_path)
    for example in examples_of(TUTORIAL):
        done = runner(capsys)(*shlex.split(example.line)[1:])
        assert done.code == 0, example.line + done.out[-2000:] + done.err[-2000:]
    (program,) = programs_of(TUTORIAL)
    names: dict[str, Any] = {}
    exec(compile(program, TUTORIAL.name, "exec"), names)
    assert names["logits"].shape == (1, 1000)


def _run_in_a_shell(line: str) -> None:
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PATH": search},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stderr
