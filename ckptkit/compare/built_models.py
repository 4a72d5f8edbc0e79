"""Names and shapes of a model that the user's own function builds: ``package.module:factory``.

It runs the user's code, so only that form of a name asks for it, and in a child process: the frameworks stay
out of this one, and a crash or a hang becomes a message. A PyTorch module is built on the meta device,
without memory for its weights; of a Keras model a weights file is written to a temporary folder, because the
names in the file are not those in the model.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.base.files import storage_error
from ckptkit.base.tensors import DTYPES, DType, TensorSpec
from ckptkit.compare.outlines import Outline, outline_of
from ckptkit.workspace import Workspace

MOST_SECONDS = 300
"""After so long a function is taken to hang."""
_TAIL = 4_000
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")

_PROGRAM = """
import contextlib, importlib, json, os, sys
where, result, folder = sys.argv[1:]
sys.path.insert(0, os.getcwd())
module, _, name = where.partition(":")

def answer(**values):
    with open(result, "w") as file:
        json.dump(values, file)

def lookup():
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            answer(refused=f"no module {error.name!r} here or among the installed packages")
            sys.exit()
        raise
    for part in name.split("."):
        if not hasattr(found, part):
            answer(refused=f"module {module!r} has no {part!r}")
            sys.exit()
        found = getattr(found, part)
    if not callable(found):
        answer(refused=f"{name!r} is not a function")
        sys.exit()
    return found

def build(make):
    torch = sys.modules.get("torch")
    if torch is None:
        return make()
    try:
        with torch.device("meta"):
            return make()
    except Exception as error:  # what reads values cannot be built without them
        print(f"on the meta device: {error}", file=sys.stderr)
        return make()

make = lookup()
built = build(make)
torch = sys.modules.get("torch")
if torch is not None and isinstance(built, torch.nn.Module):
    built = built.state_dict(keep_vars=True)
kinds = [kind.__module__ for kind in type(built).__mro__]
if isinstance(built, dict):
    rows, first, same = [], {}, {}
    for key, value in built.items():
        if not hasattr(value, "shape"):
            continue
        if torch is not None and id(value) in first:
            same[str(key)] = first[id(value)]
        first.setdefault(id(value), str(key))
        dtype = str(getattr(value, "dtype", "float32")).replace("torch.", "")
        rows.append([str(key), [int(n) for n in value.shape], dtype])
    answer(tensors=rows, same=same)
elif any(kind.partition(".")[0] == "keras" for kind in kinds) and hasattr(built, "save_weights"):
    if not built.built:
        answer(refused="the Keras model is not built yet: call it once, or model.build(shape)")
        sys.exit()
    path = os.path.join(folder, "model.weights.h5")
    built.save_weights(path)
    answer(file=path)
else:
    answer(refused=f"it gives a {type(built).__name__}, not a PyTorch module, a Keras model or a state dict")
"""


def is_factory(what: object) -> bool:
    """Whether a name asks for a function.

    >>> is_factory("nets.vit:build"), is_factory("model.pth"), is_factory("s3://a/b")
    (True, False, False)
    """
    return isinstance(what, str) and bool(_NAME.fullmatch(what)) and not Path(what).exists()


def outline_of_factory(workspace: Workspace, where: str, *, seconds: float = MOST_SECONDS) -> Outline:
    """Run a function in a child process and take the names and shapes of what it builds."""
    with tempfile.TemporaryDirectory(prefix="ckptkit-model-") as folder:
        found = _run(where, Path(folder), seconds)
        if "refused" in found:
            raise UsageError(
                f"{where}: {found['refused']}", hint="name a function as package.module:function"
            )
        if "file" in found:
            outline = outline_of(workspace, Path(found["file"]))
            return replace(outline, name=where, path=Path(where))
        specs = {
            name: TensorSpec(name, _dtype(dtype), tuple(shape)) for name, shape, dtype in found["tensors"]
        }
        if not specs:
            raise UsageError(f"{where}: the model has no tensors")
        return Outline(where, Path(where), specs, same=found["same"])


def _dtype(name: str) -> DType:
    return DTYPES.get(name) or DType(name, 0, "opaque")


def _run(where: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Run the child; what it gave, or why it gave nothing."""
    result, log = folder / "result.json", folder / "log"
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONDONTWRITEBYTECODE": "1",  # nothing is left beside the user's code
    }
    with log.open("wb") as output:
        try:
            child = subprocess.Popen(  # noqa: S603 (Python itself, with a program of our own)
                [sys.executable, "-c", _PROGRAM, where, str(result), str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise storage_error(error, sys.executable) from error
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ConversionError(
                f"{where} was still running after {seconds:,.0f} seconds and was ended",
                hint="save the model's names and shapes in a JSON file, and name that",
            ) from None
        finally:
            _end(child)
    if status == 0 and result.exists():
        return dict(json.loads(result.read_text(encoding="utf-8")))
    said = log.read_bytes()[-_TAIL:].decode("utf-8", "replace").strip().splitlines()
    why = said[-1].strip() if said else "it said nothing"
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else "failed"
    raise ConversionError(f"{where} {how}: {why}")


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child that runs still, with whatever it started."""
    if child.poll() is None:
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(child.pid, signal.SIGKILL)
            else:
                child.kill()
        child.wait()
