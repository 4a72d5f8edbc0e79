"""Models in processes of their own: what is imported where, what a killed one says, what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ckptkit
from ckptkit.base.errors import CkptkitError, ConversionError
from ckptkit.base.packages import is_installed
from ckptkit.formats.detect import open_reader
from ckptkit.parity.apart import ModelProcess, ModelProcesses, kept_processes
from tests.conftest import REPOSITORY
from tests.support.commands import runner
from tests.support.running import is_running, wait_until

TWO = ("tiny-moat0-256-noposemb", "moganet-xt-224-timm")

LOOKING_ON = """
import json, os, sys
from pathlib import Path
from ckptkit.cli.app import main
from ckptkit.parity import apart

pids, leave = {}, apart.ModelProcesses.__exit__

def exit(processes, *error):
    for framework, one in processes._running.items():
        maps = Path(f"/proc/{one._process.pid}/maps")
        text = maps.read_text() if maps.exists() else None
        pids[one._process.pid] = text and [name for name in ("torch", "tensorflow") if f"/{name}/" in text]
    started.append(len(pids))
    leave(processes, *error)

started = []
start = apart.ModelProcess.__init__
def init(process, *given):
    started.append(given[0])
    start(process, *given)

apart.ModelProcess.__init__, apart.ModelProcesses.__exit__ = init, exit
try:
    main()
finally:
    here = sorted({"torch", "tensorflow", "keras", "onnxruntime", "jax"} & set(sys.modules))
    Path(os.environ["SEEN"]).write_text(json.dumps([started, list(pids.items()), here]))
"""


pytestmark = pytest.mark.skipif(
    not (is_installed("torch") and is_installed("tensorflow")), reason="both frameworks run"
)  # without importing them here


def test_two_processes_serve_all_entries_and_no_framework_meets_another(tmp_path: Path):
    command = ["parity", "--synthetic", *TWO, "--resolution", "64", "--json"]
    seen = tmp_path / "seen.json"
    done = subprocess.run(
        [sys.executable, "-c", LOOKING_ON, *command],
        cwd=REPOSITORY,
        env={**os.environ, "SEEN": str(seen), "CKPTKIT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [(report["name"], report["ok"]) for report in json.loads(done.stdout)] == [
        (name, True) for name in TWO
    ]
    started, processes, here = json.loads(seen.read_text())
    assert sorted(map(str, started)) == ["2", "keras", "torch"], "each once, for both entries"
    assert here == [], "ckptkit's own process has imported none"
    if sys.platform == "linux":
        assert [loaded for _, loaded in processes] == [["torch"], ["tensorflow"]]
    for pid, _ in processes:
        wait_until(lambda pid=pid: not is_running(pid))


@pytest.mark.skipif(os.name != "posix", reason="signals are Unix's")
def test_a_side_that_is_killed_is_an_error_of_its_entry_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    begin, killed = ModelProcess.begin, []

    def kill_once(process: ModelProcess, what: str, **how: Any) -> None:
        begin(process, what, **how)
        if (process.framework, what) == ("torch", "run") and not killed:
            killed.append(process._process.pid)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(ModelProcess, "begin", kill_once)
    done = runner(capsys)("parity", "--synthetic", *TWO, "--resolution", "64", "--json")
    assert done.code == 5
    first, second = json.loads(done.out)
    assert first["error"].startswith(f"{TWO[0]}: the PyTorch side ended with signal SIGKILL")
    assert "a smaller batch needs less" in first["error"]
    assert (second["name"], second["ok"]) == (TWO[1], True), "it runs in a new process"
    said = f"warning: {TWO[0]} could not be compared: the PyTorch side ended with signal SIGKILL"
    assert [line for line in done.err.splitlines() if "SIGKILL" in line and line.startswith(said)]


def test_processes_are_kept_while_a_block_lasts():
    """Those of `prove` are of the block that it is in; another thread, and what follows, has others."""
    with ckptkit.keep_processes() as first, kept_processes() as second:
        with ThreadPoolExecutor(1) as other:
            third = other.submit(lambda: kept_processes().__enter__()).result()
        assert second is first is not third
        assert Path(first._logs.name).exists()
    with kept_processes() as fourth:
        assert fourth is not first
    assert not Path(first._logs.name).exists()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelProcess]:
    with ModelProcesses() as processes:
        yield processes.of("torch", "model")
        running = processes.of("torch", "model")
    assert running.ended


def begin(process: ModelProcess, path: Path) -> None:
    place = {"path": str(path), "state_dict": None, "strip_prefix": [], "where_it_fits": False}
    place |= {"copy": "auto", "weights": "auto", "variant": None, "allow_missing_bn": False}
    process.begin(
        "run", file=place, known={}, graphs=None, images=str(path.parent / "images.npy"), outputs=""
    )


@pytest.mark.parametrize("content", [None, b"", b"neither this nor that", b"\x80\x02}q\x01X"])
def test_what_ckptkit_refuses_in_there_is_the_error_that_it_is_here(
    content: bytes | None, process: ModelProcess, tmp_path: Path
):
    import numpy

    numpy.save(tmp_path / "images.npy", numpy.zeros((1, 64, 64, 3), "f4"))
    path = tmp_path / "model.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CkptkitError) as here:
        open_reader(path)
    begin(process, path)
    with pytest.raises(CkptkitError) as there:
        process.receive()
    assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))
    assert (there.value.verdict, there.value.hint) == (here.value.verdict, here.value.hint)


def test_anything_else_names_the_side_in_one_line(process: ModelProcess):
    process.begin("run")
    with pytest.raises(ConversionError, match=r"^model: the PyTorch side: KeyError: 'file'$"):
        process.receive()


def test_an_answer_that_nobody_waited_for_is_not_the_next_ones(process: ModelProcess, tmp_path: Path):
    process.begin("run")
    process.begin("open")
    assert process.receive() == {"number": process._asked}
