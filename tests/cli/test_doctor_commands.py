"""``ckptkit doctor`` as people call it: words, JSON, exit codes, a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ckptkit import doctor
from ckptkit.doctor import Examination, Finding
from tests.support.commands import Runner, runner


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setattr(doctor, "questions", lambda: [])
    return runner(capsys)


def test_offline_on_a_machine_where_all_is_well(run: Runner):
    done = run("doctor", "--offline")
    assert done.code == 0
    lines = done.out.splitlines()
    headings = [line for line in lines if not line.startswith(" ")][:-1]
    assert headings == [
        *("versions", "packages", "cache", "registry", "environment", "network", "machine", "terminal")
    ]
    assert lines[-1].endswith("fetching, verifying and converting should work")
    assert any(re.fullmatch(r"  ok {7}hosts +not asked: --offline is given", line) for line in lines)
    assert "\x1b" not in done.out


def test_json(run: Runner):
    values = json.loads(run("doctor", "--json", "--offline").out)
    assert values["ok"] is True and values["problems"] == 0
    assert {"section", "name", "verdict", "detail", "hint"} == set(values["findings"][0])


def test_a_problem_is_said_with_what_to_do(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path / "file"))
    done = run("doctor", "--offline")
    assert done.code == 1
    lines = done.out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("  problem  folder"))
    assert lines[at].endswith(f"{tmp_path / 'file'} is a file")
    assert lines[at + 1].strip() == "set CKPTKIT_HOME to another folder"
    assert lines[at + 1].index("set") == lines[at].index(str(tmp_path))
    assert lines[-1].startswith("1 problem") and lines[-1].endswith("; see what to do above")


def test_a_broken_registry_of_ones_own(run: Runner, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("entries:\n  - id: moat0-224\n    colour: red\n")
    done = run("doctor", "--offline", "--registry", str(tmp_path / "mine.yaml"))
    assert done.code == 1
    assert re.search(r"  problem  mine\.yaml +.*mine\.yaml: 1 fault: line 3", done.out)


def test_what_an_environment_puts_into_the_output_is_harmless(run: Runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "\x1b[2Jevil")
    assert "\x1b" not in run("doctor", "--offline").out


def test_how_many(run: Runner, monkeypatch: pytest.MonkeyPatch):
    import ckptkit.doctor

    one = Finding("a", "b", "note", "c")
    for found, words in (
        ((Finding("a", "b", "ok", "c"),), "all well; fetching"),
        ((one,), "1 note; fetching"),
        ((one, one, Finding("a", "b", "problem", "c")), "1 problem and 2 notes; see"),
    ):
        monkeypatch.setattr(ckptkit.doctor, "examine", lambda found=found, **_options: Examination(found))
        assert run("doctor").out.splitlines()[-1].startswith(words)


def test_colours_on_a_terminal(tmp_path: Path):
    leader, follower = pty.openpty()
    code = (
        "import ckptkit.doctor as doctor\n"
        "doctor.questions = lambda: []\n"
        "from ckptkit.cli.app import main\n"
        "main(['doctor', '--offline'])"
    )
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "PYTHONUTF8": "1"}
    environment["NO_PROXY"] = "one " * 40
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    shown = b""
    try:
        while piece := os.read(leader, 65536):
            shown += piece
    except OSError:  # Linux says so when the other side has closed
        pass
    os.close(leader)
    assert process.wait(timeout=30) == 0
    text = shown.decode()
    assert "\x1b[32mok" in text and "\x1b[1mversions" in text
    assert (
        "checking this machine" in text
    )  # the progress bar, which puts a stream of its own in stdout's place
    assert "colours, TERM=xterm-256color" in text and re.search(r"letters +UTF-8", text)
    words = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if " one one" in line]
    assert len(words) > 2 and max(map(len, words)) <= 80, "words are broken at spaces"
