"""Small registry entries and archives for tests of the store."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path
from typing import Any

from ckptkit.registry import Entry


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
    return Entry.model_validate(values)


def random_bytes(size: int, seed: int = 1) -> bytes:
    """Bytes that no two offsets share, so that a wrongly joined file cannot look right."""
    return random.Random(seed).randbytes(size)


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
