"""The sha256 of a source is that of its file, whenever and by whichever thread it is taken."""

from __future__ import annotations

import hashlib
import importlib
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.errors import StorageError
from ckptkit.convert import pipeline as module
from ckptkit.convert.pipeline import Options, Provenance, convert_checkpoint
from ckptkit.formats.detect import open_reader
from ckptkit.formats.names import EXTENSIONS
from ckptkit.models.synth import Synthetic, write_bundle, write_checkpoint
from ckptkit.store.cache import Home
from ckptkit.workspace import Located, Workspace


@pytest.fixture(params=[0, 1 << 40], ids=["by a thread", "when asked"])
def threshold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Size up to which no thread is started."""
    monkeypatch.setattr(module, "_SMALL_BYTES", request.param)
    return int(request.param)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as published, of the smallest variant."""
    path = tmp_path_factory.mktemp("source") / "published.pth"
    write_checkpoint(Synthetic("moganet-xt"), path)
    return path


def module_of_pipeline() -> Any:
    return importlib.import_module("ckptkit.convert.pipeline")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [1, (1 << 20) + 1, 3 << 20])
def test_a_file_is_known_by_its_sha256(size: int, threshold: int, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(bytes(range(256)) * (size // 256 + 1))
    with Provenance(Located(path)) as provenance:
        assert provenance.placeholder == {"source_sha256": "0" * 64}
        assert provenance.wait() == {"source_sha256": sha256_of(path)}
        assert provenance.wait() == provenance.placeholder


def test_a_published_file_by_what_was_fetched(tmp_path: Path, threshold: int) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(b"unpacked from something else")
    with Provenance(Located(path, sha256="ab" * 32)) as provenance:
        assert provenance.placeholder == provenance.wait() == {"source_sha256": "ab" * 32}


@pytest.mark.parametrize("name", ["m", "m.index"])
def test_a_tensorflow_checkpoint_by_its_index(name: str, tmp_path: Path, threshold: int) -> None:
    write_bundle(Synthetic("tiny-moat0"), tmp_path / "m")
    with Provenance(Located(tmp_path / name)) as provenance:
        assert provenance.placeholder == {"source_index_sha256": "0" * 64}
        assert provenance.wait() == {"source_index_sha256": sha256_of(tmp_path / "m.index")}


def test_a_folder_by_nothing(tmp_path: Path) -> None:
    with Provenance(Located(tmp_path)) as provenance:
        assert provenance.placeholder == provenance.wait() == {}


def test_leaving_early_does_not_wait_for_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "large.pth"
    with path.open("wb") as file:
        file.truncate(200 << 30)  # a hole: hashing it would take minutes
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Provenance(Located(path)):
        raise KeyboardInterrupt
    assert time.monotonic() - begun < 10


def test_a_file_that_goes_away_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(b"here")
    with Provenance(Located(path)) as provenance:
        path.unlink()
        with pytest.raises(StorageError, match=r"file\.pth"):
            provenance.wait()


@pytest.mark.parametrize("to", EXTENSIONS)
def test_every_format_holds_the_sha256_of_its_source(
    to: str, source: Path, threshold: int, tmp_path: Path
) -> None:
    path = tmp_path / f"converted{EXTENSIONS[to]}"
    workspace = Workspace(home=Home(tmp_path / "home"))
    options = Options(to=to, settings={"attn_force_fp32": False})  # what code that reads Keras 2's file has
    outcome = convert_checkpoint(Located(source), options, workspace, output=path)
    with open_reader(path) as reader:
        assert reader.metadata["source_sha256"] == sha256_of(source)
    assert outcome.plan.metadata["source_sha256"] == sha256_of(source)


def test_a_dry_run_says_the_true_sha256(source: Path, threshold: int, tmp_path: Path) -> None:
    workspace = Workspace(home=Home(tmp_path / "home"))
    outcome = convert_checkpoint(Located(source), Options(to="npz"), workspace, output=tmp_path, dry_run=True)
    assert outcome.plan.metadata["source_sha256"] == sha256_of(source)


def test_a_source_that_goes_away_before_it_is_hashed_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copy(source, tmp_path / "copy.pth"))
    plan = module_of_pipeline().plan

    def plan_and_remove(*arguments: object, **options: object) -> object:
        copy.unlink()  # the reader holds it open; the hash cannot be taken any more
        return plan(*arguments, **options)

    monkeypatch.setattr(module, "_SMALL_BYTES", 1 << 40)
    monkeypatch.setattr(module_of_pipeline(), "plan", plan_and_remove)
    target = tmp_path / "out" / "m.safetensors"
    with pytest.raises(StorageError, match=r"copy\.pth"):
        convert_checkpoint(
            Located(copy), Options(to="safetensors"), Workspace(home=Home(tmp_path)), output=target
        )
    assert list(target.parent.iterdir()) == []
