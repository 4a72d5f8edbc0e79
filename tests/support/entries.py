"""Small registry entries and archives for tests of the store."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from ckptkit.families.base import registry_families
from ckptkit.models.synth import Synthetic, write_checkpoint
from ckptkit.registry.schema import Entry, entry_model

ANY_MODEL = {"family": "other", "variant": "any", "layout": "torch", "format": "safetensors"}
"""Fields of an entry for which there is no model code: its container must open."""


def entry_of(
    *urls: str | dict[str, Any], id: str = "test-entry", sha256: str | None = None, **fields: Any
) -> Entry:
    """Make an entry with these sources."""
    provenance = {"observed_at": "2026-01-02T03:04:05Z", "url": "https://a.org/x"} if sha256 else None
    values = {
        "id": id,
        "family": "moat",
        "variant": "tiny-moat0",
        "display_name": "a test",
        "layout": "deeplab2",
        "format": "tf",
        "sources": [{"url": url} if isinstance(url, str) else url for url in urls],
        "sha256": sha256,
        "hash_provenance": provenance,
        **fields,
    }
    return entry_model(registry_families()).model_validate(values)


def anything(_path: Path, _entry: Entry, *, deep: bool = True) -> None:
    """Look into no file: for tests of how bytes come and lie, whatever they are."""


def random_bytes(size: int, seed: int = 1) -> bytes:
    """Bytes that no two offsets share, so that a wrongly joined file cannot look right."""
    return random.Random(seed).randbytes(size)


def a_checkpoint(size: int, seed: int = 1) -> bytes:
    """Make a safetensors file of so many bytes; but for its header they are random."""
    shape = size - 256 - 8
    said = json.dumps({"weights": {"dtype": "U8", "shape": [shape], "data_offsets": [0, shape]}})
    return (256).to_bytes(8, "little") + said.ljust(256).encode() + random_bytes(shape, seed)


def pinned(body: bytes) -> dict[str, Any]:
    """Make the fields of an entry that pin these bytes: a checksum held, so nobody looks into them."""
    provenance = {"observed_at": "2026-01-02T03:04:05Z", "url": "https://a.org/x"}
    return {"sha256": hashlib.sha256(body).hexdigest(), "hash_provenance": provenance}


XT = {"family": "moganet", "variant": "moganet-xt", "layout": "openmixup", "format": "torch"}
"""Fields of an entry whose file is `published_xt`."""


@functools.cache
def published_xt(more: bytes = b"") -> bytes:
    """Make MogaNet-XT's file as it would be published (12 MB); with ``more`` in it, another such file."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Synthetic("moganet-xt"), Path(folder) / "xt.pth")
        if more:
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr("archive/more", more)
        return path.read_bytes()


@functools.cache
def published_tiny() -> bytes:
    """Make tiny-MOAT-0's archive as it would be published (12 MB)."""
    with tempfile.TemporaryDirectory() as folder:
        return write_checkpoint(Synthetic("tiny-moat0"), Path(folder) / "tiny.tar.gz").read_bytes()


def tar_gz(files: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> bytes:
    """Archive with these files, then the given further members (links, devices)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
        for info in extra or []:
            archive.addfile(info)
    return buffer.getvalue()


def final_files(home: Path) -> list[Path]:
    """Every file under a final name in a cache folder: no temporary parts, no locks, no records."""
    return sorted(
        path
        for folder in ("artefacts", "unpacked")
        for path in (home / folder).rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(home).parts)
        and not (folder == "artefacts" and path.suffix == ".json")
    )
