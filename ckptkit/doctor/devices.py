"""Graphics processors: what the driver sees, and what each framework sees of it.

Each question is asked in a process of its own with a time limit: importing a framework takes seconds, and a
broken installation may crash or hang.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ckptkit.doctor.findings import Finding

SECONDS = 40.0
"""How long a framework may take: TensorFlow's first import from a slow disk takes half a minute."""
_MOST_OUTPUT = 1 << 20
_NONE = "no GPU; models run on the processor"

_TORCH = """
import json, torch
names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] \
    if torch.cuda.is_available() else []
if not names and torch.backends.mps.is_available():
    names = ["Apple GPU (mps)"]
built = torch.version.cuda or getattr(torch.version, "hip", None)
print("\\n" + json.dumps({"names": names, "built_for": built}))
"""
_TENSORFLOW = """
import json, tensorflow
found = tensorflow.config.list_physical_devices("GPU")
names = [tensorflow.config.experimental.get_device_details(one).get("device_name", one.name) for one in found]
built = "CUDA" if tensorflow.test.is_built_with_cuda() else None
print("\\n" + json.dumps({"names": names, "built_for": built}))
"""


@dataclass(frozen=True)
class Said:
    """What a process left."""

    code: int | None
    out: str
    err: str


def ask(arguments: Sequence[str], seconds: float) -> Said:
    """Run a process for so long at most; the exit code is None where it had to be ended.

    Raises
    ------
    OSError
        When it cannot be started.
    """
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUTF8": "1"}
    process = subprocess.Popen(  # noqa: S603 (Python and nvidia-smi, with arguments of our own)
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=os.name != "nt",
    )
    code: int | None
    try:
        out, err = process.communicate(timeout=seconds)
        code = process.returncode
    except subprocess.TimeoutExpired:
        _end(process)
        out, err, code = b"", b"", None
    return Said(code, _text(out), _text(err))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, without waiting for pipes that somebody else may hold."""
    with contextlib.suppress(OSError):
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=1)


def _text(output: bytes) -> str:
    return output[-_MOST_OUTPUT:].decode("utf-8", "replace")


def driver() -> Finding:
    """What NVIDIA's driver sees."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("devices", "NVIDIA driver", "ok", "not installed: " + _NONE)
    try:
        said = ask([tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"], 15.0)
    except OSError as error:
        said = Said(126, "", str(error))
    lines = [line.strip() for line in said.out.splitlines() if line.strip()]
    if said.code == 0 and lines:
        return Finding("devices", "NVIDIA driver", "ok", "; ".join(lines[:8]))
    why = "gave no answer in time" if said.code is None else _last_line(said.err + said.out)
    return Finding(
        "devices", "NVIDIA driver", "note", f"nvidia-smi: {why}", "check the driver's installation"
    )


def framework(package: str, seconds: float = SECONDS) -> Finding | None:
    """What a framework sees; None where it is not installed.

    Parameters
    ----------
    package : {"torch", "tensorflow"}
    seconds : float
        How long it may take.
    """
    if not _installed(package):
        return None
    code = {"torch": _TORCH, "tensorflow": _TENSORFLOW}[package]
    said = ask([sys.executable, "-c", code], seconds)
    if said.code is None:
        return Finding(
            "devices", package, "note", f"gave no answer within {seconds:.0f} s", _reinstall(package)
        )
    if said.code != 0:
        why = _last_line(said.err) or f"ended with {said.code}"
        return Finding("devices", package, "note", f"cannot be imported: {why}", _reinstall(package))
    try:
        found = json.loads(said.out.strip().splitlines()[-1])
        names, built_for = [str(name) for name in found["names"]], found["built_for"]
    except (ValueError, LookupError, TypeError):
        return Finding("devices", package, "note", "gave an answer that cannot be read", _reinstall(package))
    if names:
        return Finding("devices", package, "ok", "; ".join(names))
    return Finding("devices", package, "ok", _NONE + ("" if built_for else " (built without GPU support)"))


def questions() -> list[Callable[[], Finding | None]]:
    """Every question about devices, to be asked at the same time."""
    return [driver, lambda: framework("torch"), lambda: framework("tensorflow")]


def compared(findings: Sequence[Finding]) -> list[Finding]:
    """The same findings; a framework that sees none of the driver's GPUs becomes a note."""
    seen = next((one for one in findings if one.name == "NVIDIA driver"), None)
    has_gpu = seen is not None and seen.verdict == "ok" and _NONE not in seen.said
    return [
        Finding(
            "devices", one.name, "note", f"does not see the GPU that the driver sees: {one.said}", _cuda(one)
        )
        if has_gpu and one is not seen and one.said.startswith(_NONE)
        else one
        for one in findings
    ]


def _cuda(one: Finding) -> str:
    how = (
        "pip install 'tensorflow[and-cuda]'"
        if one.name == "tensorflow"
        else "see pytorch.org for CUDA builds"
    )
    return f"{how}; check CUDA_VISIBLE_DEVICES"


def _reinstall(package: str) -> str:
    return f"try: python -c 'import {package}'; then pip install --force-reinstall {package}"


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
