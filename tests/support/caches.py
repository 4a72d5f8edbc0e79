"""Small caches for tests: entries put in place without a download."""

from __future__ import annotations

import datetime
import hashlib
import os
import time
from pathlib import Path

from ckptkit.store.cache import Home, Record, write_json
from ckptkit.store.unpack import is_archive_name, unpack


def put_entry(
    home: Home, id: str, body: bytes, *, file: str = "m.pth", days_ago: float = 0, note: str = ""
) -> Path:
    """Put an entry into a cache as a fetch some days ago would have left it; gives the artefact's path."""
    path = home.artefact_folder(id) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    then = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=days_ago)
    sha256 = hashlib.sha256(body).hexdigest()
    record = Record(
        id,
        f"https://a.org/{file}",
        file,
        len(body),
        sha256,
        then.isoformat(),
        mtime_ns=path.stat().st_mtime_ns,
        note=note,
    )
    write_json(path.with_name(f"{file}.json"), record.to_json())
    if is_archive_name(file):
        unpack(path, home.unpacked_folder(id), sha256=sha256)
    return path


def put_conversion(home: Home, id: str, name: str, source: str, *, days_ago: float = 0) -> Path:
    """Put a safetensors file that says which bytes it was made from (by the reference library)."""
    import numpy as np
    from safetensors.numpy import save_file

    path = home.converted_folder(id) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.zeros(4, np.float32)}, path, metadata={"source_sha256": source})
    then = datetime.datetime.now().timestamp() - days_ago * 86400
    os.utime(path, (then, then))
    return path


def put_shared(home: Home, *, days_ago: float = 0.0) -> tuple[Path, Path]:
    """A graph for ONNX Runtime and an evaluation that was not finished, as they are kept there."""
    graph = home.path / "onnx" / f"tiny-moat0-{'0a' * 16}"
    graph.mkdir(parents=True)
    (graph / "model.onnx").write_bytes(b"x" * 500)
    (home.path / "onnx" / "lock").touch()
    evaluation = home.path / "eval" / f"tiny-moat0-256-{'0a' * 8}.json"
    evaluation.parent.mkdir()
    evaluation.write_text('{"format": 1, "identity": {}, "progress": {}}')
    for path in (graph, evaluation):
        os.utime(path, (time.time() - days_ago * 86400,) * 2)
    return graph, evaluation
