"""For every test: none touches the user's cache or environment, depends on chance, or fills the disk."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import itertools
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Generator
from pathlib import Path
from time import monotonic  # by name: tests replace that of the module
from typing import Any

import pytest
from hypothesis import settings

gc.set_threshold(10_000)  # one of Keras' models is 100,000 objects, which were looked through again and again

REPOSITORY = Path(__file__).resolve().parent.parent
MOST_TEMPORARY = 500 << 20
"""Bytes of temporary files that one process of a run may have: with four processes that is under 2 GB."""

# The same examples in every run, however slow the machine. The nightly run searches at random and says how
# to repeat what it finds: pytest -m hypothesis --hypothesis-profile nightly
settings.register_profile("default", derandomize=True, database=None, deadline=None)
settings.register_profile("nightly", derandomize=False, database=None, deadline=None, print_blob=True)
settings.load_profile("default")

# One thread each: sums come out alike in every run, and processes that share the cores do not wait for all
# threads of a pool (on a busy machine some files took seven times the processor's time).
for variable in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
    os.environ.setdefault(variable, "1")

os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir(), "ckptkit-tests-matplotlib")))

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


LONGEST = (
    *("tests/test_github_examples.py", "tests/test_ports.py", "tests/test_docs.py"),
    *("tests/test_end_to_end.py", "tests/parity/test_backends.py", "tests/models/test_onnx_model.py"),
    *("tests/cli/test_terminal.py", "tests/cli/test_predict_commands.py", "tests/parity/test_sides.py"),
    *("tests/cli/test_eval_commands.py", "tests/test_plugin_example.py", "tests/test_notebook.py"),
    *("tests/test_new_user.py", "tests/parity/test_all_entries.py", "tests/parity/test_faults.py"),
    *("tests/cli/test_parity_with_onnxruntime.py", "tests/test_examples.py", "tests/cli/test_matrix.py"),
    *("tests/families/moat/test_keras_model.py", "tests/families/moganet/test_keras_model.py"),
)
"""Files of few tests that take long. Begun last, they would leave the other processes without work."""


def pytest_configure(config: pytest.Config) -> None:
    """Have pytest-xdist take files in our order; its own begins with those of most tests."""
    config.option.loadscopereorder = False


DOCTESTS_NEED = {
    "ckptkit.analysis.profile.profile_model": "torch",
    "ckptkit.api.pictures.transform": "torch",
    "ckptkit.api.proving.profile": "torch",
    "ckptkit.models.images.preprocessing.Preprocessing": "PIL",
    "ckptkit.models.create.create_model": "torch",
}
"""Examples that run an optional package, in modules that can be imported without it."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip examples whose package is missing; refuse names that differ by process, as pytest-xdist does.

    For several processes, the longest files come first, then those of most tests.
    """
    if hasattr(config, "workerinput"):
        rank = {REPOSITORY / name: place for place, name in enumerate(LONGEST)}
        count = Counter(item.path for item in items)
        items.sort(key=lambda item: (rank.get(item.path, len(rank)), -count[item.path]))
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid} has an address in its name")
        package = DOCTESTS_NEED.get(item.name)
        if package is not None and importlib.util.find_spec(package) is None:
            item.add_marker(pytest.mark.skip(reason=f"{package} is not installed"))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Remove what a fixture made with `tmp_path_factory` when the fixture ends, not when the session does.

    Those of one test, `tmp_path` and `_isolated_home`, see to it themselves, without looking at all files.
    """
    if fixturedef.scope in {"session", "function"} or "tmp_path_factory" not in fixturedef.argnames:
        return (yield)
    factory, failed = request.getfixturevalue("tmp_path_factory"), request.session.testsfailed
    before = set(factory.getbasetemp().iterdir())

    def remove() -> None:
        if request.session.testsfailed != failed:
            _KEPT.update(made)
            return
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)

    made: set[Path] = set()
    fixturedef.addfinalizer(remove)
    try:
        return (yield)
    finally:
        made.update(set(factory.getbasetemp().iterdir()) - before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test whose process has too much in temporary files; what is quick cannot have written much.

    What a failed test left to be looked at is not counted again: no other test fails for it.
    """
    base = item.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    slow = monotonic() - item.stash.get(_STARTED, 0.0) > 0.1
    taken = bytes_below(base, _KEPT) if slow and "slow" not in item.keywords else 0
    own = getattr(item, "funcargs", {}).get("tmp_path")
    try:
        yield
    finally:
        if taken > MOST_TEMPORARY:
            _KEPT.update(base.iterdir())
        elif own is not None and own.exists():  # pytest keeps it if the test failed
            _KEPT.add(own)
        elif own is not None:  # thousands of dead links make each look at the folder slow
            own.with_name(f"{own.name.rstrip('0123456789')}current").unlink(missing_ok=True)
    assert taken <= MOST_TEMPORARY, f"{taken >> 20} MB in temporary files; share them, or make them smaller"


_STARTED = pytest.StashKey[float]()
_KEPT: set[Path] = set()
"""What failed tests left behind."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note when a test begins, and spare the collector the frameworks: half a million objects each time."""
    item.stash[_STARTED] = monotonic()
    if loaded := {"torch", "keras"}.intersection(sys.modules) - _FROZEN:
        _FROZEN.update(loaded)
        gc.collect()
        gc.freeze()


_FROZEN: set[str] = set()


def bytes_below(folder: Path, without: Collection[Path] = ()) -> int:
    """What the files in a folder take on disk, holes not counted."""
    total = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(place, name) not in without]
        for name in names:
            with contextlib.suppress(OSError):  # a process of the test may still be at work there
                status = os.lstat(Path(place, name))
                total += status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
    return total


_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def _isolated_home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Generator[None, None, None]:
    """Give each test a cache folder and a lock file of its own and no ckptkit settings from outside.

    Most need neither: they are not made before something is put there. Some disks take 3 ms to remove one.
    """
    number, failed = next(_NUMBERS), request.session.testsfailed
    home, lock = (
        tmp_path_factory.getbasetemp() / name for name in (f"home{number}", f"trust{number}.ckptkit.lock")
    )
    monkeypatch.setenv("CKPTKIT_HOME", str(home))
    monkeypatch.setenv("CKPTKIT_TRUST", str(lock))
    for name in ("CKPTKIT_REGISTRY", "CKPTKIT_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    yield
    if request.session.testsfailed != failed:
        _KEPT.add(home)
    else:
        for left in lock.parent.iterdir():
            if left == home or lock.name in left.name:  # its guard and its drafts, too
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


@pytest.fixture(scope="session", autouse=True)
def _disks_not_waited_for() -> Generator[None, None, None]:
    """Let files and folders go to the disk when they will: a test ends before its machine loses power."""
    with pytest.MonkeyPatch.context() as patch:
        for name in {"fsync", "fdatasync"} & set(dir(os)):
            patch.setattr(os, name, functools.partial(_unless_kept, getattr(os, name)))
        yield


def _unless_kept(sync: Callable[[int], None], file: Any) -> None:
    mode = os.fstat(file if isinstance(file, int) else file.fileno()).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        sync(file)


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """Give each test the same random numbers, whatever ran before it; hypothesis sees to its own."""
    if "hypothesis" in request.keywords:
        return
    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Folder of reference material beside a developer's checkout; a clone of the project has none."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "checkpoints").is_dir():
        pytest.skip("no ../shared beside this checkout")
    return folder


@pytest.fixture
def onnx_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open others' ONNX files in forks of a process that has the libraries, whose import takes a second."""
    from ckptkit.models.graphs import onnx_apart
    from tests.support.preloaded import preloaded

    if hasattr(os, "fork"):
        modules = ("numpy", "onnx", "ckptkit.models.graphs.onnx_graph:onnx_runtime", onnx_apart.__name__)
        monkeypatch.setattr(onnx_apart, "subprocess", preloaded(*modules))


@pytest.fixture(scope="session", autouse=True)
def _models_preloaded() -> Generator[None, None, None]:
    """Start processes that run models as forks of one that has both frameworks, which takes seven seconds.

    What runs ckptkit itself in a process of its own, as test_apart.py does, starts them as users do.
    """
    from ckptkit.parity import process
    from tests.support.preloaded import FRAMEWORKS, preloaded

    with pytest.MonkeyPatch.context() as patch:
        if hasattr(os, "fork"):
            patch.setattr(process, "subprocess", preloaded(*FRAMEWORKS))
        yield


@pytest.fixture
def factories_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build models whose names and shapes are asked for in such forks, too."""
    from ckptkit.compare import built_models
    from tests.support.preloaded import FRAMEWORKS, preloaded

    if hasattr(os, "fork"):
        monkeypatch.setattr(built_models, "subprocess", preloaded(*FRAMEWORKS))
