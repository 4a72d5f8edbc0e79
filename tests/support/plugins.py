"""Packages with plug-ins, as pip would have installed them, without installing anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptkit.base import packages


def install(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    entry_points: dict[str, dict[str, str]],
    *,
    package: str = "ckptkit-toy",
    module: str = "ckptkit_toy",
    version: str = "1.2",
) -> None:
    """Put a package of one module into a folder of the search path, with its metadata and entry points."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(source)
    metadata = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    lines = []
    for group, points in entry_points.items():
        lines += [f"[{group}]", *(f"{name} = {place}" for name, place in points.items()), ""]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(__import__("sys").modules, module, raising=False)
    packages.forget_plugins()
