"""Sides in processes of their own: crashes, hangs, interrupts; recordings; and the commands."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import ckptkit
from ckptkit.base.errors import ConversionError, FormatError, NotFoundError, UsageError
from ckptkit.parity.any_model import emit_recorder, prove_case
from ckptkit.parity.recorder import Recorder
from ckptkit.parity.sides import read_recording
from tests.support import preloaded
from tests.support.cases import side, write_case
from tests.support.commands import runner

CODE = """
import os, signal, sys, time


def crash():
    print("about to fail", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    print("no license found", file=sys.stderr)
    os._exit(7)


def hang():
    time.sleep(1000)


def wait():
    with open("started.part", "w") as file:
        file.write(str(os.getpid()))
    os.rename("started.part", "started")
    time.sleep(1000)


def wrong():
    def deeper():
        raise ValueError("three channels wanted")

    deeper()


def number():
    return 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "port.py").write_text(CODE)
    with Recorder(tmp_path / "left.npz") as recorder:
        recorder.record("stage", np.arange(12, dtype="f4").reshape(2, 6))
        recorder.output(np.arange(6, dtype="f4").reshape(2, 3))
    return tmp_path


def case(folder: Path, right: str, **more: Any) -> Path:
    return write_case(
        folder, side("recorded", "left.npz"), right, stages=None, inputs="{shape: [2, 6]}", **more
    )


WAYS: dict[str, tuple[str, type[Exception], str]] = {
    "signal": ("port:crash", ConversionError, r"right \(torch\) ended with signal SIGSEGV: about to fail"),
    "exit": ("port:leave", ConversionError, r"right \(torch\) ended with status 7: no license found"),
    "exception": (
        "port:wrong",
        ConversionError,
        r"right \(torch\): ValueError: three channels wanted \(port\.py, line 28\)",
    ),
    "no module": ("nowhere:f", NotFoundError, r"right \(torch\): no module 'nowhere'; it is looked for in "),
    "no function": ("port:crahs", NotFoundError, r"port has no crahs; it has crash, leave"),
    "no model": ("port:number", UsageError, r"port:number gives int, not a torch\.nn\.Module"),
}


@pytest.mark.parametrize(("model", "kind", "words"), WAYS.values(), ids=WAYS.keys())
def test_what_ends_a_side_is_said_in_one_line(model: str, kind: type[Exception], words: str, folder: Path):
    pytest.importorskip("torch")
    with pytest.raises(kind, match=words) as caught:
        prove_case(case(folder, side("torch", model)))
    assert "\n" not in str(caught.value)


def test_a_side_that_hangs_is_ended(folder: Path):
    pytest.importorskip("torch")
    began = time.monotonic()
    with pytest.raises(ConversionError, match=r"right \(torch\): no answer within 1 s; a larger timeout"):
        prove_case(case(folder, side("torch", "port:hang"), timeout=1))
    assert time.monotonic() - began < 30


@pytest.fixture
def waiting(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command whose side waits for ever, and the side's process."""
    pytest.importorskip("torch")
    path = case(folder, side("torch", "port:wait"))
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptkit", "parity", "--case", str(path)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (folder / "started").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    yield process, int((folder / "started").read_text())
    process.kill()
    process.wait()


@pytest.mark.skipif(os.name != "posix", reason="signals are Unix's")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_side_outlives_its_command(number: int, code: int, waiting: tuple[subprocess.Popen[bytes], int]):
    process, child = waiting
    process.send_signal(number)
    assert process.wait(30) == code
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("it still runs")


# -- recordings ----------------------------------------------------------------------------------------------


def test_the_recorder_keeps_order_names_inputs_and_layout(tmp_path: Path):
    x = np.ones((1, 3, 4, 4), "f4")
    with Recorder(tmp_path / "r.npz", layout="NCHW") as recorder:
        recorder.input("images", x)
        recorder.record("block", x)
        recorder.record("block", 2 * x)
        recorder.record("parts", {"b": x, "a": [x, None, x]})
        recorder.output({"logits": x[0, 0]})
    found = read_recording(tmp_path / "r.npz")
    assert list(found.arrays) == ["block", "block#2", "parts.b", "parts.a.0", "parts.a.2", "output.logits"]
    assert (found.told, found.layout) == (("output.logits",), "NCHW")
    np.testing.assert_array_equal(found.inputs["images"], x)
    np.testing.assert_array_equal(found.arrays["block#2"], 2 * x)
    with np.load(tmp_path / "r.npz") as file:
        assert "inputs/images" in file


def test_what_numpy_alone_saves_is_a_recording_too(tmp_path: Path):
    np.savez(tmp_path / "r.npz", stage1=np.ones((2, 3), "f4"), output=np.ones((2, 4)))
    found = read_recording(tmp_path / "r.npz")
    assert (list(found.arrays), found.told) == (["stage1", "output"], ("output",))


def test_a_file_without_outputs_is_no_recording(tmp_path: Path):
    np.savez(tmp_path / "r.npz", **{"inputs/x": np.ones(3)})
    with pytest.raises(FormatError, match="not a recording"):
        read_recording(tmp_path / "r.npz")


OLD_PYTHON = next(iter(sorted(Path.home().glob(".pyenv/versions/3.6.*/bin/python"))), None)
USE = """
import recorder, sys
assert not {"torch", "tensorflow", "ckptkit"} & set(sys.modules)
"""
RECORDS = """
import numpy as np
with recorder.Recorder("old.npz", layout="NHWC") as r:
    r.input("x", np.arange(12, dtype="f4").reshape(2, 6))
    r.record("stage", np.arange(12, dtype="f4").reshape(2, 6))
    r.session(type("S", (), {"run": lambda self, t, feed: [np.ones((2, 2))] * len(t)})(), {"a": "a:0"}, {})
    r.output(np.arange(6, dtype="f4").reshape(2, 3))
"""


def test_the_emitted_recorder_stands_alone_and_is_of_python_3_6(folder: Path):
    path = emit_recorder(folder / "recorder.py")
    text = path.read_text()
    tree = ast.parse(text, feature_version=(3, 6))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported == {"contextlib", "json", "zipfile", "numpy", "collections.abc", "typing"}
    subprocess.run([sys.executable, "-c", USE + RECORDS], cwd=folder, check=True)
    np.savez(folder / "x.npz", x=np.arange(12, dtype="f4").reshape(2, 6))
    sides = side("recorded", "left.npz"), side("recorded", "old.npz")
    report = prove_case(write_case(folder, *sides, stages=None, inputs="{file: x.npz}"))
    assert report.ok and [stage.name for stage in report.stages] == ["stage", "output"]
    with pytest.raises(UsageError, match="exists"):
        emit_recorder(path)


@pytest.mark.skipif(OLD_PYTHON is None, reason="there is no Python 3.6 here")
def test_the_emitted_recorder_compiles_on_python_3_6(folder: Path):
    emit_recorder(folder / "recorder.py")
    subprocess.run([str(OLD_PYTHON), "-m", "py_compile", "recorder.py"], cwd=folder, check=True)
    has_numpy = subprocess.run([str(OLD_PYTHON), "-c", "import numpy"], capture_output=True, check=False)
    if has_numpy.returncode == 0:
        subprocess.run([str(OLD_PYTHON), "-c", USE + RECORDS], cwd=folder, check=True)
        assert list(read_recording(folder / "old.npz").arrays) == ["stage", "a", "output"]


# -- commands ------------------------------------------------------------------------------------------------


def recorded_case(folder: Path, change: float = 0.0) -> Path:
    with Recorder(folder / "right.npz") as recorder:
        recorder.record("stage", np.arange(12, dtype="f4").reshape(2, 6) + change)
        recorder.output(np.arange(6, dtype="f4").reshape(2, 3))
    return case(folder, side("recorded", "right.npz"))


def test_the_command_prints_the_table_json_and_junit(folder: Path, capsys: Any):
    path = recorded_case(folder)
    run = runner(capsys)
    done = run("parity", "--case", str(path), "--junit", str(folder / "out.xml"))
    assert done.code == 0, done.err
    assert done.out.startswith(f"agree: {path}: all 2 outputs within tolerance")
    assert ElementTree.parse(folder / "out.xml").getroot().get("failures") == "0"

    done = run("parity", "--case", str(path), "--json")
    (report,) = json.loads(done.out)
    assert (report["ok"], report["first_departure"], report["cause"]) == (True, None, None)
    assert [stage["name"] for stage in report["stages"]] == ["stage", "output"]
    assert report["sides"]["left"]["reads"] == "left.npz"


def test_a_departure_is_exit_status_1_and_a_failure_for_ci(folder: Path, capsys: Any):
    path = recorded_case(folder, 0.5)
    with np.load(folder / "left.npz") as file:
        arrays = dict(file)
    np.savez(folder / "left.npz", stage=arrays["stage"], output=arrays["output"] + 1)
    done = runner(capsys)("parity", "--case", str(path), "--junit", str(folder / "out.xml"))
    assert done.code == 1
    assert "DISAGREE from stage on" in done.out
    (failure, _) = ElementTree.parse(folder / "out.xml").getroot().iter("failure")
    assert "difference 4.5e-02" in (failure.get("message") or "")


def test_several_cases_one_of_which_is_absent(folder: Path, capsys: Any):
    path = recorded_case(folder)
    done = runner(capsys)("parity", "--case", str(path), "--case", "none.yaml", "--json")
    assert done.code == 3
    reports = json.loads(done.out)
    assert [report["ok"] for report in reports] == [True, False]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("parity tiny-moat0 --case {}", "WHAT and --case contradict each other"),
        ("parity --case {} --batch 3", "--batch and --case contradict each other"),
        ("record", "record needs --case and --side and --output"),
        ("record --case {} --side middle -o x.npz", "unknown side 'middle'"),
        ("record --case {} --side left -o x.npz", "the left side is a recording already: left.npz"),
        ("record --emit r.py --side left", "--emit writes the recorder alone"),
    ],
)
def test_options_that_make_no_sense_together(
    line: str, said: str, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    done = runner(capsys)(*line.format(recorded_case(folder)).split())
    assert done.code == 2
    assert said in done.err


def test_python_has_it_too(folder: Path):
    report = ckptkit.parity(case=recorded_case(folder))
    assert report.ok and "agree" in repr(report)
    with pytest.raises(UsageError, match="case"):
        ckptkit.parity("tiny-moat0", case=recorded_case(folder))
    with pytest.raises(UsageError, match="what"):
        ckptkit.parity()


def test_the_example_in_two_processes(tmp_path: Path, capsys: Any):
    """Both frameworks at once, each in a process of its own; the checkpoint by rules for Keras."""
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    folder = Path(
        shutil.copytree(Path(ckptkit.__file__).parent.parent / "examples" / "case", tmp_path / "case")
    )
    assert preloaded.run([sys.executable, "nets.py"], folder).returncode == 0
    done = runner(capsys)("parity", "--case", str(folder / "case.yaml"), "--json")
    assert done.code == 0, done.err
    (report,) = json.loads(done.out)
    assert [stage["name"] for stage in report["stages"]] == ["stem", "norm", "mix", "attention", "output"]
    assert [one["framework"] for one in report["sides"].values()] == ["torch", "keras"]
