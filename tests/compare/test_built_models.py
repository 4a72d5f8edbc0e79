"""Models that the user's own function builds, in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.compare.built_models import is_factory, outline_of_factory
from ckptkit.workspace import Workspace
from tests.support.running import wait_until


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a module into the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "their_nets") -> None:
        (tmp_path / f"{name}.py").write_text(text)

    return write


def shapes(where: str, seconds: float = 300) -> dict[str, tuple[int, ...]]:
    return {n: s.shape for n, s in outline_of_factory(Workspace(), where, seconds=seconds).specs.items()}


def test_a_torch_module_takes_no_memory_and_the_frameworks_stay_outside(module) -> None:
    pytest.importorskip("torch")
    module(
        "import torch\n"
        "print('hello')\n"
        "def build():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(10**6, 10**6), torch.nn.BatchNorm1d(3))\n"
    )
    found = shapes("their_nets:build")
    assert found["0.weight"] == (10**6, 10**6)  # 4 TB
    assert found["1.num_batches_tracked"] == ()
    assert "their_nets" not in sys.modules


def test_a_keras_model_has_the_names_of_its_file(module) -> None:
    pytest.importorskip("keras")
    module(
        "import keras\n"
        "class Nets:\n"
        "    @staticmethod\n"
        "    def small():\n"
        "        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])\n"
    )
    assert shapes("their_nets:Nets.small") == {"layers/dense/vars/0": (4, 3), "layers/dense/vars/1": (3,)}


def test_a_state_dict_will_do(module) -> None:
    module("import numpy\ndef build():\n    return {'a.w': numpy.zeros((2, 3)), 'epoch': 3}\n")
    assert shapes("their_nets:build") == {"a.w": (2, 3)}


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("def build():\n    return 5\n", "their_nets:build", "it gives a int, not a PyTorch module"),
        ("x = 3\n", "their_nets:x", "'x' is not a function"),
        ("", "their_nets:build", "module 'their_nets' has no 'build'"),
        ("", "no_such_nets.deep:build", "no module 'no_such_nets' here or among the installed packages"),
        ("def build():\n    return {}\n", "their_nets:build", "the model has no tensors"),
    ],
)
def test_what_is_no_model_is_refused(module, text: str, where: str, says: str) -> None:
    module(text)
    with pytest.raises(UsageError, match=says):
        shapes(where)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "def build():\n    raise ValueError('width must be even')\n",
            "failed: ValueError: width must be even",
        ),
        ("import no_such_thing\n", "failed: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def build(:\n", "failed: SyntaxError"),
        (
            "import os, signal\ndef build():\n    os.kill(os.getpid(), signal.SIGKILL)\n",
            "was ended by SIGKILL",
        ),
        ("import sys\ndef build():\n    sys.exit(3)\n", "failed: it said nothing"),
    ],
)
def test_a_crash_is_a_message(module, text: str, says: str) -> None:
    module(text)
    with pytest.raises(ConversionError, match=says):
        shapes("their_nets:build")


def test_a_hang_is_a_message_and_what_it_started_ends_with_it(module, tmp_path: Path) -> None:
    module(
        "import subprocess, sys, time\n"
        "def build():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        "    open('pid', 'w').write(str(child.pid))\n"
        "    time.sleep(100)\n"
    )
    with pytest.raises(ConversionError, match="was still running after 8 seconds and was ended"):
        shapes("their_nets:build", seconds=8)
    pid = int((tmp_path / "pid").read_text())
    state = Path(f"/proc/{pid}/stat")
    if sys.platform == "linux":  # it is killed when the message comes, and gone when the system gets to it
        wait_until(
            lambda: not state.exists() or state.read_text().rpartition(")")[2].split()[0] in ("Z", "X")
        )
    else:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_only_the_colon_asks_for_code(module, tmp_path: Path) -> None:
    module("raise SystemExit\n")
    assert is_factory("their_nets:build")
    for name in (
        "their_nets.py",
        "their_nets",
        "a/b:c",
        "C:\\nets",
        "https://example.org/x:y",
        "a:b:c",
        ":b",
        "a:",
    ):
        assert not is_factory(name)
    (tmp_path / "file:name").write_text("")
    assert not is_factory("file:name")
