"""Running ckptkit inside the test's process, and a cache that holds what it should find."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckptkit.cli.app import main
from ckptkit.registry.loading import load_registry
from ckptkit.store.cache import Home, Record, write_json
from tests.conftest import REPOSITORY

SHA = "0123456789abcdef" * 4
_TYPER = tuple(map(int, importlib.metadata.version("typer").split(".")[:2]))
NOT_AN_INT = "'y' is not a valid int" if _TYPER < (0, 28) else "Input should be a valid integer"
BELOW_0 = "-1 is not in the range" if _TYPER < (0, 28) else "Input should be greater than or equal to 0"
WHEN = "2026-01-02T03:04:05.000001+00:00"


@dataclass
class Run:
    """What a command left."""

    code: int
    out: str
    err: str


Runner = Callable[..., Run]


def runner(capsys: pytest.CaptureFixture[str]) -> Runner:
    """Return a function that runs ckptkit."""

    def run(*arguments: str | Path) -> Run:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([*map(str, arguments)])
        captured = capsys.readouterr()
        return Run(int(left.value.code or 0), captured.out, captured.err)

    return run


def pip_install(*packages: str) -> str:
    """Return the command that installs packages in the ranges of pyproject.toml."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    words = [re.findall(rf'"({re.escape(name)}[<>=][^";]*)[";]', text)[0] for name in packages]
    return f"pip install {' '.join(map(repr, words))}"


def cache(id: str, *, sha256: str = SHA, bn_statistics: bool | None = True) -> Record:
    """Put a small artefact and its record in the cache."""
    home = Home.default()
    url = load_registry()[id].sources[0].url
    record = Record(id, url, url.rpartition("/")[2], 5, sha256, WHEN, url, bn_statistics=bn_statistics)
    home.artefact_folder(id).mkdir(parents=True)
    home.artefact(record).write_bytes(b"12345")
    write_json(home.artefact_folder(id) / f"{record.file}.json", record.to_json())
    return record
