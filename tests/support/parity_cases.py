"""Conversions of the small variant for parity tests, and the means to spoil them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ckptkit.base.progress import Say, say_nothing
from ckptkit.convert.execution import execute
from ckptkit.convert.pipeline import Options, plan
from ckptkit.formats.detect import open_reader
from ckptkit.formats.names import EXTENSIONS
from ckptkit.parity import apart
from ckptkit.parity.report import ParityReport
from ckptkit.parity.run import ParityRequest, prove
from ckptkit.workspace import Located
from tests.support.cases import AnswersHere

VARIANT = "tiny-moat0"
SIDE = 64
"""Smallest input at which the last stage's attention still sees more than one place."""

OUTPUTS = ("stage1", "stage2", "stage3", "stage4", "stage5", "logits")


class ModelHere(AnswersHere, apart.ModelProcess):
    """The model of a family; planted faults and toys are known to it."""

    models = dict.fromkeys(("keras", "torch"), apart._Models)


@contextmanager
def models_here() -> Iterator[None]:
    """Let models run in the test's process, while test_apart.py is about the others."""
    with mock.patch.object(apart, "ModelProcess", ModelHere):
        yield


def run_parity(located: Located, note: Say = say_nothing, **options: Any) -> ParityReport:
    """Prove a checkpoint by a request with these options, in this process."""
    with models_here():
        return prove(located, ParityRequest(**options), note)


def require_frameworks() -> None:
    """Skip a test where one of the frameworks is not installed."""
    pytest.importorskip("tensorflow")
    pytest.importorskip("torch")


def convert_to(source: Path, folder: Path, to: str, *, stem: str = "converted", **options: Any) -> Path:
    """Convert a checkpoint by the real code; returns the file, or the prefix of a bundle."""
    with open_reader(source) as reader:
        chosen = Options(to, **options)
        decided = plan(reader, chosen)
        return execute(decided, reader, chosen.target, folder / f"{stem}{EXTENSIONS[to]}").path


def overwrite_tensor(path: Path, name: str, values: bytes, at: int = 0) -> None:
    """Overwrite bytes of one tensor in a safetensors file, found by the format's description."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    assert at + len(values) <= end - begin
    with path.open("r+b") as file:
        file.seek(8 + length + begin + at)
        file.write(values)


def overwrite_metadata(path: Path, **values: str) -> None:
    """Rewrite a safetensors file with other metadata values."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"].update(values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
