"""What training codes put beside the weights, as real torch saves it.

Nothing here uses ckptkit. The file is imported without torch; what needs it gets it handed in.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import importlib
import io
import pickletools
import struct
import sys
import zipfile
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np

MODULE = "trap_mmcv"

SOURCE = """
import enum, pathlib
pathlib.Path({canary!r}).touch()

class ConfigDict(dict):
    __getattr__ = dict.__getitem__

class Config:
    def __init__(self):
        self.filename, self.text = "moga_xtiny.py", "model = dict()"

class Slotted:
    __slots__ = ("lr", "steps")

    def __init__(self):
        self.lr, self.steps = 0.1, (10, 20)

class Policy(enum.Enum):
    COSINE = "cosine"

class Opaque:
    def __reduce__(self):
        return opened, ("somewhere",)

def opened(where):
    pathlib.Path({canary!r}).touch()
"""
"""A training code: importing it leaves a mark, and so does calling its function."""


def training_code(folder: Path, canary: Path) -> ModuleType:
    """Write the module into ``folder``, which must be importable from, and import it."""
    (folder / f"{MODULE}.py").write_text(SOURCE.format(canary=str(canary)))
    importlib.invalidate_caches()
    sys.modules.pop(MODULE, None)
    return importlib.import_module(MODULE)


CONFIG = "\n".join(
    ["model = dict(", "    type='MixUpClassification',", "    backbone=dict(type='MogaNet'))", ""]
)
CLASSES = tuple(f"class_{k}" for k in range(1000))


def mmcv_meta(torch: Any, code: ModuleType) -> tuple[dict[str, Any], dict[str, str]]:
    """``meta`` of an mmcv checkpoint with all that hooks have been seen to put there; and what it says."""
    loop: list[Any] = [1]
    loop.append(loop)
    rows: list[tuple[str, Any, str]] = [
        ("mmcv_version", "1.7.2", "1.7.2"),
        ("time", "Sat Nov 19 03:12:45 2022", "Sat Nov 19 03:12:45 2022"),
        ("epoch", 300, "300"),
        ("iter", np.int64(375300), "375300"),
        ("config", CONFIG, CONFIG.rstrip("\n")),
        ("CLASSES", CLASSES, f"({', '.join(CLASSES[:8])}, … 1,000 values in total)"),
        ("PALETTE", None, "None"),
        (
            "hook_msgs",
            {"best_score": np.float64(76.48), "last_ckpt": "a.pth"},
            "{best_score: 76.48, last_ckpt: a.pth}",
        ),
        ("best", np.float32(0.25), "0.25"),
        ("improved", np.bool_(True), "True"),
        ("means", np.array([123.675, 116.28]), "[123.675, 116.28]"),
        ("confusion", np.zeros((1000, 1000), "uint8"), "array of uint8 [1000, 1000]"),
        ("started", datetime.datetime(2022, 11, 19, 3, 12, 45), "2022-11-19 03:12:45"),
        ("took", datetime.timedelta(hours=30), "1 day, 6:00:00"),
        ("work_dir", PurePosixPath("/work_dirs/moganet"), "/work_dirs/moganet"),
        ("device", torch.device("cuda", 0), "cuda:0"),
        ("dtype", torch.float16, "torch.float16"),
        ("shape", torch.Size([3, 224, 224]), "(3, 224, 224)"),
        ("seen", {7}, "[7]"),
        ("frozen", frozenset({8}), "[8]"),
        ("raw", b"\x00\xffx", "3 bytes"),
        ("seed", 2**200, hex(2**200)),
        ("nothing", (), "()"),
        ("endless", float("inf"), "inf"),
        ("history", collections.defaultdict(list, loss=[6.9, 2.5]), "{loss: [6.9, 2.5]}"),
        ("counts", collections.Counter(a=2), "collections.Counter({a: 2})"),
        ("loop", loop, "[1, [1, [1, list of 2 values]]]"),
        ("cfg", code.ConfigDict(lr=0.1), f"{MODULE}.ConfigDict(lr=0.1)"),
        ("file", code.Config(), f"{MODULE}.Config(filename=moga_xtiny.py, text=model = dict())"),
        ("slots", code.Slotted(), f"{MODULE}.Slotted(lr=0.1, steps=(10, 20))"),
        ("opaque", code.Opaque(), f"{MODULE}.opened(somewhere)"),
        ("function", code.opened, f"{MODULE}.opened"),
        ("escape", "bell\x07 and \x1b[2J", "bell\\x07 and \\x1b[2J"),
        ("ünïcode", "🦊 \ud800", "🦊 \\ud800"),
    ]
    return {key: value for key, value, _ in rows}, {f"meta.{key}": said for key, _, said in rows}


def timm_args() -> tuple[argparse.Namespace, dict[str, str]]:
    """The arguments of a training script, one of them a Namespace itself; and what they say."""
    inner = argparse.Namespace(beta=(0.9, 0.999), eps=None)
    said = {
        "args.model": "moganet_xtiny",
        "args.lr": "0.001",
        "args.opt_args": "argparse.Namespace(beta=(0.9, 0.999), eps=None)",
        "args.amp": "True",
        "args.data": "/data/imagenet",
    }
    values = {"model": "moganet_xtiny", "lr": 1e-3, "opt_args": inner, "amp": True}
    return argparse.Namespace(**values, data=PurePosixPath("/data/imagenet")), said


# -- numpy's two names for its inner modules -----------------------------------------------------------------


def with_numpy_core(raw: bytes, core: str) -> bytes:
    """Rewrite a file of torch's so that numpy's globals stand under ``core``: ``numpy.core`` before 2.0."""
    if raw[:2] != b"PK":
        return _renamed_stream(raw, core)
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as source, zipfile.ZipFile(target, "w") as written:
        for info in source.infolist():
            content = source.read(info)
            written.writestr(
                info.filename, _renamed(content, core) if info.filename.endswith("/data.pkl") else content
            )
    return target.getvalue()


def _renamed_stream(raw: bytes, core: str) -> bytes:
    """A legacy file: magic number, version, system, content, then the keys and bytes of the storages."""
    file = io.BytesIO(raw)
    starts = []
    for _ in range(4):
        starts.append(file.tell())
        for _ in pickletools.genops(file):
            pass
    stop = file.tell()
    return raw[: starts[3]] + _renamed(raw[starts[3] : stop], core) + raw[stop:]


def _renamed(pickled: bytes, core: str) -> bytes:
    """One pickle with its globals renamed; frames, whose lengths would change, are left out."""
    steps = list(pickletools.genops(pickled))
    stops = [position for _, _, position in steps[1:]] + [len(pickled)]
    pieces = []
    for (operation, argument, start), stop in zip(steps, stops, strict=True):
        old = next((c for c in ("numpy._core", "numpy.core") if str(argument).startswith(f"{c}.")), None)
        if operation.name == "FRAME":
            continue
        if operation.name == "GLOBAL" and old:
            module, attribute = str(argument).split(" ")
            pieces.append(f"c{module.replace(old, core)}\n{attribute}\n".encode())
        elif operation.name in ("SHORT_BINUNICODE", "BINUNICODE") and old:
            text = str(argument).replace(old, core).encode()
            pieces.append(b"X" + struct.pack("<I", len(text)) + text)
        else:
            pieces.append(pickled[start:stop])
    return b"".join(pieces)
