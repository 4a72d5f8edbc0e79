"""What appears in a new user's home folder: files of ckptkit in its own folders, and nothing else."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ckptkit.base.home import keep_home_clean
from ckptkit.models.synth import write_checkpoint
from ckptkit.registry.loading import load_registry
from tests.conftest import REPOSITORY
from tests.support.showground import picture, published_hosts, synthetic_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the folders' names are those of Linux")

OURS = ".cache/ckptkit/"
LOCK_FILE = {".config/ckptkit/ckptkit.lock", ".config/ckptkit/.ckptkit.lock.guard"}
FETCHED = "moganet-xt-224"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a checkpoint and the same again in another format."""
    folder = tmp_path_factory.mktemp("files")
    write_checkpoint(synthetic_for(load_registry()[FETCHED]), folder / "m.pth")
    done = new_user(folder.parent / "maker", folder, "convert m.pth -o m.safetensors --layout as-is")
    assert done == set()
    return folder


def new_user(home: Path, folder: Path, line: str, **more: str) -> set[str]:
    """Run a command for a user with an empty home folder; returns every file and empty folder there."""
    (home / "tmp").mkdir(parents=True)
    before = sorted(folder.rglob("*"))
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS")}
    here = {"HOME": str(home), "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    here["TMPDIR"] = str(home / "tmp")
    done = subprocess.run(
        [sys.executable, "-m", "ckptkit", *shlex.split(line)],
        cwd=folder,
        env=kept | here | more,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])
    assert line.startswith("convert m.pth -o m") or sorted(folder.rglob("*")) == before
    found = (path for path in home.rglob("*") if not path.is_dir() or not any(path.iterdir()))
    return {path.relative_to(home).as_posix() for path in found} - {"tmp"}


@pytest.mark.parametrize(
    "line",
    [
        "list",
        "show moat0-224",
        "inspect m.pth",
        "verify m.pth",
        "diff m.pth m.safetensors",
        "convert m.pth --to npz -o {out}/m.npz",
        "synth moganet-xt -o {out}/synthetic.pth",
        "registry validate",
        "cache ls",
        "fetch moat0-224 --dry-run --offline",
    ],
)
def test_commands_that_write_nothing_by_themselves(line, files, tmp_path):
    assert new_user(tmp_path / "home", files, line.format(out=tmp_path)) == set()


@pytest.mark.parametrize("cache", [None, "elsewhere"])
def test_fetch_writes_into_the_cache_and_the_lock_file(cache, files, tmp_path):
    with published_hosts(tmp_path / "published") as mirrors:
        more = {"CKPTKIT_HOME": str(tmp_path / cache)} if cache else {}
        found = new_user(tmp_path / "home", files, f"fetch {FETCHED}", CKPTKIT_MIRROR=mirrors, **more)
    if cache:
        assert found == set()
        assert (tmp_path / cache / "ckptkit.lock").is_file()
    else:
        assert {path for path in found if not path.startswith(OURS)} == LOCK_FILE
        assert any(path.startswith(f"{OURS}artefacts/{FETCHED}/") for path in found)


FRAMEWORKS = (f"{OURS}matplotlib/", f"{OURS}torchinductor")
RUN = {
    "plot -o {out}/x.png": ("matplotlib",),
    "predict m.pth {out}/cat.png --set attn_force_fp32=true": ("torch", "PIL"),
    "cam m.pth {out}/cat.png --set attn_force_fp32=true -o {out}/cam.png": ("torch", "captum"),
    "profile moganet-xt-224": ("torch",),
    "export m.pth --to onnx --set attn_force_fp32=true -o {out}/m.onnx": ("torch", "onnx", "onnxruntime"),
    "export m.pth --to hf --set attn_force_fp32=true -o {out}/hf": ("torch",),
    "export m.pth --to keras --set attn_force_fp32=true -o {out}/m.keras": ("torch", "tensorflow"),
    "export m.pth --to saved-model --set attn_force_fp32=true -o {out}/saved": ("torch", "tensorflow"),
    "doctor --offline": (),
    "parity tiny-moat0-256 --synthetic --resolution 64": ("torch", "tensorflow"),
    "demo": ("torch", "tensorflow"),
}
"""Command → the packages that it takes."""


@pytest.mark.slow
@pytest.mark.parametrize("line", RUN)
def test_commands_that_import_a_framework_leave_its_files_in_the_cache_only(line, files, tmp_path):
    for package in RUN[line]:
        pytest.importorskip(package)
    if "cat.png" in line:
        picture(1).save(tmp_path / "cat.png")
    found = new_user(tmp_path / "home", files, line.format(out=tmp_path))
    assert [path for path in found if not path.startswith(FRAMEWORKS)] == []


def test_onnx_runtime_leaves_no_id(tmp_path):
    pytest.importorskip("onnxruntime")
    done = subprocess.run(
        [sys.executable, "-c", "from ckptkit.models.graphs.onnx_graph import onnx_runtime; onnx_runtime()"],
        env={"HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},  # as outside of continuous integration
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


class TestWhatTheUserHasSet:
    @pytest.fixture(autouse=True)
    def _new(self, tmp_path, monkeypatch):
        for name in ("KERAS_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"):
            monkeypatch.setenv(name, "")  # put back afterwards
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))

    def test_a_new_user_has_set_nothing(self, tmp_path):
        keep_home_clean()
        assert os.environ["MPLCONFIGDIR"] == f"{os.environ['CKPTKIT_HOME']}/matplotlib"
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == f"{os.environ['CKPTKIT_HOME']}/torchinductor"
        with pytest.raises(OSError):
            Path(os.environ["KERAS_HOME"]).mkdir(parents=True)
        assert list(tmp_path.iterdir()) == []

    def test_folders(self, monkeypatch):
        monkeypatch.setenv("KERAS_HOME", "/of/mine")
        monkeypatch.setenv("MPLCONFIGDIR", "/of/mine/too")
        keep_home_clean()
        assert (os.environ["KERAS_HOME"], os.environ["MPLCONFIGDIR"]) == ("/of/mine", "/of/mine/too")

    def test_a_configuration_of_keras(self, tmp_path):
        (tmp_path / ".keras").mkdir()
        (tmp_path / ".keras" / "keras.json").write_text("{}")
        keep_home_clean()
        assert "KERAS_HOME" not in os.environ

    def test_a_cache_that_cannot_be_written(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path / "file"))
        keep_home_clean()
        assert "MPLCONFIGDIR" not in os.environ
