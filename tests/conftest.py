"""Fixtures for every test: no test touches the user's own cache or environment."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: a pool of threads in each would only wait
    for variable in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ.setdefault(variable, "1")

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # in a shell's background job; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process a core and one more, for tests that wait, at most four; none for a part of the suite.

    Each loads both frameworks and takes 3 GB.
    """
    whole = config.args == config.getini("testpaths")
    return min((os.cpu_count() or 1) + 1, 4) if whole else 0


DOCTESTS_NEED = {
    "ckptkit.analysis.audit.profile_model": "torch",
    "ckptkit.images.preprocessing.Preprocessing": "PIL",
    "ckptkit.models.create.create_model": "torch",
}
"""Examples that run an optional package, in modules that can be imported without it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip them where the package is missing, as in a base install."""
    for item in items:
        package = DOCTESTS_NEED.get(item.name)
        if package is not None and importlib.util.find_spec(package) is None:
            item.add_marker(pytest.mark.skip(reason=f"{package} is not installed"))


@pytest.fixture(autouse=True)
def _isolated_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache folder of its own and no ckptkit settings from outside."""
    monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("CKPTKIT_TRUST", str(tmp_path_factory.mktemp("trust") / "ckptkit.lock"))
    for name in ("CKPTKIT_REGISTRY", "CKPTKIT_MIRROR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Folder of reference material beside a developer's checkout; a clone of the project has none."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "checkpoints").is_dir():
        pytest.skip("no ../shared beside this checkout")
    return folder
