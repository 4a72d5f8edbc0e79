"""Layers of a file: payloads inside it, each with the way back to a file that is right otherwise."""

from __future__ import annotations

import functools
import io
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckptkit.formats.detect import writer_for
from ckptkit.tensors import DTYPES, TensorSpec, dtype_of


@dataclass(frozen=True)
class Layer:
    """Bytes that may be damaged, and the way back to the file they are in."""

    file: str
    payload: bytes
    wrap: Callable[[bytes], bytes]


@dataclass(frozen=True)
class Seed:
    """A good checkpoint: its files by name, and which of them is opened."""

    format: str
    name: str
    files: Mapping[str, bytes]
    opened: str
    layers: Sequence[Layer]


def whole(raw: bytes) -> bytes:
    return raw


def raw_layers(files: Mapping[str, bytes]) -> list[Layer]:
    return [Layer(name, raw, whole) for name, raw in files.items()]


def arrays() -> dict[str, Any]:
    source = np.random.default_rng(4)
    made: dict[str, Any] = {
        "stem/kernel": source.standard_normal((3, 3, 2, 4)).astype("float32"),
        "stem/bias": source.standard_normal(4).astype("float32"),
        "half": source.standard_normal((2, 3)).astype("float16"),
        "brain": source.standard_normal(5).astype(DTYPES["bfloat16"].numpy),
        "step": np.array(7, "int64"),
        "flags": np.array([True, False, True]),
        "none": np.zeros((0, 3), "float32"),
        "double": source.standard_normal((4, 2)),
    }
    return made


def written(format: str, arrays: Mapping[str, Any], name: str, **options: Any) -> dict[str, bytes]:
    """Files of one of ckptkit's writers."""
    specs = [TensorSpec(key, dtype_of(array), array.shape) for key, array in arrays.items()]
    with tempfile.TemporaryDirectory() as folder:
        with writer_for(format)(Path(folder) / name, specs, {"layout": "torch"}, **options) as writer:
            for key in writer.order:
                writer.write(key, arrays[key])
            paths = writer.finish()
        return {path.name: path.read_bytes() for path in sorted(paths)}


# -- archives ------------------------------------------------------------------------------------------------


def tar(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(raw), 1234567890.5  # the fraction makes a pax header
            archive.addfile(info, io.BytesIO(raw))
    return file.getvalue()


def zipped(members: Mapping[str, bytes], method: int, comment: bytes = b"") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, raw in members.items():
            archive.writestr(zipfile.ZipInfo(name), raw, method)
        archive.comment = comment
    return file.getvalue()


def stored_zip(members: Mapping[str, bytes]) -> bytes:
    return zipped(members, zipfile.ZIP_STORED)


def member_layers(
    file: str, members: Mapping[str, bytes], pack: Callable[[Mapping[str, bytes]], bytes]
) -> list[Layer]:
    """One layer per member: the archive around a damaged member is right."""

    def wrap(name: str, damaged: bytes) -> bytes:
        return pack({**members, name: damaged})

    return [Layer(file, raw, functools.partial(wrap, name)) for name, raw in members.items() if raw]
