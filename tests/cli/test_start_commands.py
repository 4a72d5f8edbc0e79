"""doctor and demo, as a user runs them: words, JSON, exit codes, a terminal; a framework that is missing."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from ckptkit import doctor
from ckptkit.cli.output import Output
from ckptkit.cli.start_commands import print_examination
from ckptkit.demo import DEMO_ENTRY, serve_file
from ckptkit.doctor import Examination, Finding
from tests.support import preloaded
from tests.support.commands import Runner, pip_install, runner


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setattr(doctor, "questions", lambda: [])
    return runner(capsys)


def test_offline_on_a_machine_where_all_is_well(run: Runner):
    done = run("doctor", "--offline")
    assert done.code == 0
    lines = done.out.splitlines()
    headings = [line for line in lines if not line.startswith(" ") and "  " not in line][:-1]
    assert headings == [
        *("versions", "packages", "extras", "cache", "registry", "environment", "network", "machine"),
        "terminal",
    ]
    assert lines[-1].endswith("fetching, verifying and converting should work")
    assert any(re.fullmatch(r"  ok {7}hosts +not asked: --offline is given", line) for line in lines)
    assert "\x1b" not in done.out


def test_json(run: Runner):
    values = json.loads(run("doctor", "--json", "--offline").out)
    assert values["ok"] is True and values["problems"] == 0
    assert {"section", "name", "verdict", "detail", "hint", "purpose"} == set(values["findings"][0])


def test_extras_that_are_not_here_are_no_notes(capsys: pytest.CaptureFixture[str]):
    found = Examination(
        (
            Finding("extras", "cam", "optional", "not installed", "pip install 'captum>=0.8'", "heat maps"),
            Finding("extras", "tf", "ok", "tensorflow 2.21.0", "", "Keras models"),
        )
    )
    print_examination(Output(), found)
    assert found.ok and [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["extras"],
        ["extra", "what", "for", "installed"],
        ["cam", "heat", "maps", "no"],
        ["tf", "Keras", "models", "tensorflow", "2.21.0"],
        ["cam:", "not", "installed;", "pip", "install", "'captum>=0.8'"],
        ["all", "well;", "fetching,", "verifying", "and", "converting", "should", "work"],
    ]


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


# -- demo

COMMAND = [sys.executable, "-m", "ckptkit", "demo"]

WITHOUT_FRAMEWORKS = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "tensorflow", "keras"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
from ckptkit.cli.app import main
main(sys.argv[1:])
"""


def run_apart(command, env=None):
    """Run Python in a process that has imported what commands need; no framework."""
    return preloaded.run(command, Path.cwd(), env, modules=preloaded.COMMANDS)


def test_the_whole_job(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    done = preloaded.run([*COMMAND, "--keep", str(tmp_path / "kept")], tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "SYNTHETIC" in said.splitlines()[0]
    for step in ("fetch", "verify", "convert", "parity"):
        assert f"ckptkit {step} {DEMO_ENTRY}" in said
    assert "crc32c, md5 as the server promised" in said
    assert f"agree: {DEMO_ENTRY} (synthetic weights, float32): all 6 outputs within tolerance" in said
    assert "Traceback" not in done.stderr
    converted = tmp_path / "kept" / "home" / "converted" / DEMO_ENTRY
    assert sorted(p.name for p in converted.iterdir()) == ["torch-float32.pth", "torch-float32.safetensors"]


def test_with_the_base_install_it_stops_before_the_forward_passes_and_leaves_the_users_own_cache(tmp_path):
    home = tmp_path / "home"
    environment = {"CKPTKIT_HOME": str(home), "PATH": ""}
    done = run_apart([sys.executable, "-c", WITHOUT_FRAMEWORKS, "demo"], env=environment)
    assert done.returncode == 6, done.stderr
    assert "written, read back and compared" in done.stdout
    assert "the forward passes need both" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.endswith(pip_install("torch", "tensorflow"))
    assert not (home / "artefacts").exists()


def test_an_unknown_entry_is_refused():
    done = run_apart([*COMMAND, "moganet-xt-225"])
    assert done.returncode == 3
    assert "did you mean" in done.stderr and "moganet-xt-224" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("id", ["moganet-xt-224", "moganet-xt-224-timm"])
def test_the_whole_job_on_either_release_of_moganet(id):
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    done = run_apart([*COMMAND, id])
    assert done.returncode == 0, done.stderr
    assert f"agree: {id} (synthetic weights, float32): all 5 outputs within tolerance" in done.stdout


@pytest.mark.parametrize("kept", ["file", "folder"])
def test_what_is_kept_needs_a_folder_of_its_own(tmp_path, kept):
    (tmp_path / "folder" / "server").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    done = run_apart([*COMMAND, "--keep", str(tmp_path / kept)])
    assert done.returncode == 2
    assert done.stderr.endswith("; name a folder that is new or empty\n") and done.stderr.count("\n") == 1


def test_a_dry_run_does_nothing():
    done = run_apart([*COMMAND, "--dry-run"])
    assert (done.returncode, done.stdout) == (0, "")
    assert "would" in done.stderr


@pytest.mark.parametrize(
    ("headers", "status", "body"),
    [
        ({}, 200, b"0123456789"),
        ({"Range": "bytes=4-"}, 206, b"456789"),
        ({"Range": "bytes=4-", "If-Range": '"another"'}, 200, b"0123456789"),
        ({"Range": "bytes=99-"}, 200, b"0123456789"),
    ],
    ids=["whole", "rest", "changed", "beyond"],
)
def test_the_server_answers_ranges_as_the_real_one(tmp_path, headers, status, body):
    (tmp_path / "f").write_bytes(b"0123456789")
    with serve_file(tmp_path / "f", "/a/f.tar.gz") as port:
        answer = requests.get(f"http://127.0.0.1:{port}/a/f.tar.gz", headers=headers, timeout=10)
        assert requests.get(f"http://127.0.0.1:{port}/b", timeout=10).status_code == 404
    assert (answer.status_code, answer.content) == (status, body)
    # md5 of the ten digits is 781e5e245d69b566979b86e28d23f2c7; in base64, as Google Cloud Storage sends it:
    assert "md5=eB5eJF1ptWaXm4bijSPyxw==" in answer.headers["x-goog-hash"]
