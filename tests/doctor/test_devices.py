"""GPUs: real processes that answer, fail, crash and hang, in place of nvidia-smi and the frameworks."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from ckptkit.doctor import devices
from ckptkit.doctor.devices import ask, compared, driver, framework
from ckptkit.doctor.findings import Finding


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts an nvidia-smi of its own first on the path."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(script: str) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)

    return make


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts a framework of its own first on Python's path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # two bodies of one second and one size look the same

    def make(name: str, body: str) -> None:
        (tmp_path / f"{name}.py").write_text(body)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return make


TORCH = """
class cuda:
    is_available = staticmethod(lambda: {gpus} > 0)
    device_count = staticmethod(lambda: {gpus})
    get_device_name = staticmethod(lambda n: f"Fake GPU {{n}}")
class backends:
    class mps:
        is_available = staticmethod(lambda: False)
class version:
    cuda = {built}
print("a greeting")
"""


def test_no_driver(tool):
    assert driver() == Finding(
        "devices", "NVIDIA driver", "ok", "not installed: no GPU; models run on the processor"
    )


def test_a_driver_with_gpus(tool):
    tool('echo "H200, 143771 MiB, 570.1"\necho "H200, 143771 MiB, 570.1"')
    assert driver().said == "H200, 143771 MiB, 570.1; H200, 143771 MiB, 570.1"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'could not communicate with the driver' >&2; exit 9", "could not communicate with the driver"),
        ("exit 0", "nvidia-smi: "),
    ],
)
def test_a_driver_that_fails(tool, script: str, said: str):
    tool(script)
    found = driver()
    assert found.verdict == "note" and said in found.said


def test_a_tool_that_cannot_be_started(tool, tmp_path: Path):
    tool("")
    (tmp_path / "nvidia-smi").write_bytes(b"\x7fELF and nothing more")
    assert driver().verdict == "note"


def test_what_a_framework_sees(package):
    package("torch", TORCH.format(gpus=2, built="'12.8'"))
    assert framework("torch") == Finding("devices", "torch", "ok", "Fake GPU 0; Fake GPU 1")
    package("torch", TORCH.format(gpus=0, built="'12.8'"))
    assert framework("torch").said == "no GPU; models run on the processor"
    package("torch", TORCH.format(gpus=0, built=None))
    assert framework("torch").said.endswith("(built without GPU support)")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "raise ImportError('libx.so.12: cannot open')",
            "cannot be imported: ImportError: libx.so.12",
        ),
        ("import os; os.abort()", "cannot be imported"),
        ("import os; os._exit(3)", "cannot be imported: ended with 3"),
        ("import os; os._exit(0)", "an answer that cannot be read"),
        ("import os; print('[1]', flush=True); os._exit(0)", "an answer that cannot be read"),
    ],
)
def test_frameworks_that_are_broken(package, body: str, said: str):
    package("torch", body)
    found = framework("torch")
    assert found.verdict == "note" and said in found.said and found.advice


def test_a_framework_that_hangs_is_ended_with_what_it_started(package, tmp_path: Path):
    body = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
time.sleep(60)
"""
    package("torch", body)
    began = time.monotonic()
    found = framework("torch", seconds=3.0)
    assert time.monotonic() - began < 30
    assert found.said == "gave no answer within 3 s"
    status = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    end = time.monotonic() + 10
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end, "the grandchild lives on"
        time.sleep(0.05)


def test_a_framework_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert framework("torch") is None


def test_a_process_that_says_too_much():
    said = ask([sys.executable, "-c", "print('x' * 3_000_000)"], 30)
    assert said.code == 0 and len(said.out) == devices._MOST_OUTPUT


def test_a_framework_that_does_not_see_what_the_driver_sees():
    none = "no GPU; models run on the processor"
    gpu = Finding("devices", "NVIDIA driver", "ok", "H200, 143771 MiB")
    blind, seeing = Finding("devices", "torch", "ok", none), Finding("devices", "tensorflow", "ok", "H200")
    assert [one.verdict for one in compared([gpu, blind, seeing])] == ["ok", "note", "ok"]
    absent = Finding("devices", "NVIDIA driver", "ok", f"not installed: {none}")
    assert compared([absent, blind]) == [absent, blind]
