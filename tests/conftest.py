"""Fixtures for every test: no test touches the user's own cache or environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: a pool of threads in each would only wait
    for variable in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ.setdefault(variable, "1")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process a core, at most four (each loads both frameworks), for the whole suite; none for a part of it."""
    whole = config.args == config.getini("testpaths")
    return min(os.cpu_count() or 1, 4) if whole else 0


@pytest.fixture(autouse=True)
def _isolated_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache folder of its own and no ckptkit settings from outside."""
    monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path_factory.mktemp("home")))
    for name in ("CKPTKIT_REGISTRY", "CKPTKIT_MIRROR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Folder of reference material beside a developer's checkout; a clone of the project has none."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "checkpoints").is_dir():
        pytest.skip("no ../shared beside this checkout")
    return folder
