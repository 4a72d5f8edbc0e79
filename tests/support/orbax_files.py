"""Orbax checkpoints, as tensorstore writes them without Orbax."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def tree(names: Mapping[str, str]) -> bytes:
    """``_METADATA`` of a tree: kinds of values by names, whose keys are joined by slashes."""
    values = {
        str((*name.split("/"),)): {
            "key_metadata": [{"key": key, "key_type": 2} for key in name.split("/")],
            "value_metadata": {"value_type": kind, "skip_deserialize": kind in ("None", "Dict")},
        }
        for name, kind in names.items()
    }
    return json.dumps({"tree_metadata": values, "use_ocdbt": True}).encode()


def orbax_files(
    held: Mapping[str, Any], driver: str = "zarr", *, ocdbt: bool = True, chunk: int | None = None
) -> dict[str, bytes]:
    """The files of a checkpoint of some arrays, each in one chunk, or in those of some length."""
    import tensorstore

    with tempfile.TemporaryDirectory() as folder:
        base: Any = {"driver": "file", "path": f"{folder}/"}
        for name, value in held.items():
            array = np.asarray(value)
            key = name.replace("/", ".") + "/"
            one = (
                {"driver": "ocdbt", "base": base, "path": key}
                if ocdbt
                else {**base, "path": folder + "/" + key}
            )
            sizes = [min(chunk or size, size) or 1 for size in array.shape]
            grid: Any = {"chunks": sizes}
            if driver == "zarr3":
                grid = {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": sizes}}}
            spec = {"driver": driver, "kvstore": one, "metadata": grid}
            made = tensorstore.open(spec, create=True, dtype=array.dtype, shape=array.shape).result()
            made.write(array).result()
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }
    return {**files, "_METADATA": tree(dict.fromkeys(held, "jax.Array"))}
