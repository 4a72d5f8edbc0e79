from __future__ import annotations

import io
import os
import tarfile
import time
from pathlib import Path

import pytest

from ckptkit.base.errors import CkptkitError, FormatError, NotFoundError, UsageError
from ckptkit.formats.tf_locate import locate


def lay(folder: Path, *names: str, state: str | None = None) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    if state is not None:
        folder.joinpath("checkpoint").write_text(state)
    return folder


def archive(path: Path, folder: Path, *, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        tar.add(folder, arcname=folder.name)
    return path


PAIR = ("m.index", "m.data-00000-of-00001")


@pytest.mark.parametrize("given", ["m", "m.index", "m.data-00000-of-00001", "m.meta", "checkpoint", ""])
def test_every_way_to_name_one_checkpoint(tmp_path: Path, given: str) -> None:
    folder = lay(tmp_path / "f", *PAIR, "m.meta", state='model_checkpoint_path: "m"')
    assert locate(folder / given) == (folder / "m", None)


@pytest.mark.parametrize(
    "state",
    [
        'model_checkpoint_path: "m-2"\nall_model_checkpoint_paths: "m-1"\n',
        'all_model_checkpoint_paths: "m-1"\nmodel_checkpoint_path: "m-2"\n',
        'model_checkpoint_path: "/home/somebody/training/m-2"\n',
        'model_checkpoint_path: "C:\\\\runs\\\\m-2"\n',
        'model_checkpoint_path: "./m-2"',
    ],
)
def test_the_state_file_chooses(tmp_path: Path, state: str) -> None:
    folder = lay(tmp_path / "f", "m-1.index", "m-2.index", state=state)
    assert locate(folder)[0] == folder / "m-2"


@pytest.mark.parametrize(
    "state",
    [
        "",
        "garbage",
        'model_checkpoint_path: "gone"',
        'model_checkpoint_path: ""',
        'model_checkpoint_path: ".."',
        f'model_checkpoint_path: "{"m" * 300}"',
        f'model_checkpoint_path: "{"ü" * 125}"',
        'model_checkpoint_path: "a\0b"',
    ],
)
def test_a_state_file_that_says_nothing_useful_is_passed_over(tmp_path: Path, state: str) -> None:
    folder = lay(tmp_path / "f", *PAIR, state=state)
    assert locate(folder)[0] == folder / "m"


def test_a_state_file_of_nothing_but_lines_is_read_at_once(tmp_path: Path) -> None:
    folder = lay(tmp_path / "f", *PAIR, state="\n" * 1_000_000 + "x")
    start = time.process_time()
    assert locate(folder)[0] == folder / "m"
    assert time.process_time() - start < 1


def test_a_state_file_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    lay(tmp_path, "secret.index")
    folder = lay(tmp_path / "f", *PAIR, state='model_checkpoint_path: "../secret"')
    assert locate(folder)[0] == folder / "m"


def test_saved_models(tmp_path: Path) -> None:
    folder = lay(tmp_path / "f", "saved_model.pb", "variables/variables.index", "assets/x.index")
    assert locate(folder)[0] == folder / "variables/variables"


def test_one_checkpoint_in_a_folder_below(tmp_path: Path) -> None:
    folder = lay(tmp_path / "f", "readme", "deep/er/m.index")
    assert locate(folder)[0] == folder / "deep/er/m"


def test_a_state_file_in_a_folder_below(tmp_path: Path) -> None:
    folder = lay(tmp_path / "f", "readme")
    lay(folder / "run", "m-1.index", "m-2.index", state='model_checkpoint_path: "m-2"')
    assert locate(folder)[0] == folder / "run/m-2"


def test_several_checkpoints_are_listed(tmp_path: Path) -> None:
    folder = lay(tmp_path / "f", "a.index", "b.index")
    with pytest.raises(UsageError, match=r"holds 2 checkpoints: a, b; give the prefix"):
        locate(folder)


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("nothing", NotFoundError, "no such file"),
        ("lonely.data-00000-of-00001", NotFoundError, r"lonely\.index: no such file"),
        ("empty", FormatError, "holds no TensorFlow checkpoint"),
        ("page.tar.gz", FormatError, r"is an HTML page \('404'\), not a tar archive"),
        ("zero.tar.gz", FormatError, "is empty, not a tar archive"),
        ("pipe", FormatError, "neither a file nor a folder"),
        ("", FormatError, "holds no TensorFlow checkpoint"),
    ],
)
def test_what_is_no_checkpoint(tmp_path: Path, name: str, error: type[CkptkitError], reason: str) -> None:
    folder = lay(tmp_path / "f", "lonely.data-00000-of-00001")
    (folder / "empty").mkdir()
    (folder / "page.tar.gz").write_text("<!DOCTYPE html><title>404</title>")
    (folder / "zero.tar.gz").touch()
    os.mkfifo(folder / "pipe")
    with pytest.raises(error, match=reason):
        locate(folder / name)


@pytest.mark.parametrize(
    ("name", "mode"), [("x.tar.gz", "w:gz"), ("x.tgz", "w:gz"), ("x.tar", "w"), ("x", "w:xz")]
)
def test_archives_are_read_directly(tmp_path: Path, name: str, mode: str) -> None:
    folder = lay(tmp_path / "run", *PAIR, "big.log", "._m.index", state='model_checkpoint_path: "m"')
    prefix, temporary = locate(archive(tmp_path / name, folder, mode=mode))
    assert temporary is not None
    root = Path(temporary.name)
    assert root.stat().st_mode & 0o077 == 0
    copied = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
    assert copied == ["run/checkpoint", "run/m.data-00000-of-00001", "run/m.index"]
    assert prefix == root / "run/m"
    temporary.cleanup()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_archives_behind_each_other_are_read_whole(tmp_path: Path, mode: str) -> None:
    parts = [
        archive(tmp_path / name, lay(tmp_path / f"of {name}" / "run", name), mode=mode).read_bytes()
        for name in PAIR
    ]
    (tmp_path / "joined").write_bytes(b"".join(parts))
    prefix, temporary = locate(tmp_path / "joined")
    assert temporary is not None
    assert {file.name for file in prefix.parent.iterdir()} == set(PAIR)
    temporary.cleanup()


def test_archived_saved_model(tmp_path: Path) -> None:
    folder = lay(tmp_path / "sm", "variables/variables.index", "variables/variables.data-00000-of-00001")
    prefix, temporary = locate(archive(tmp_path / "x.tar.gz", folder))
    assert temporary is not None
    assert prefix.relative_to(temporary.name) == Path("sm/variables/variables")
    temporary.cleanup()


def test_an_archive_pays_for_the_files_that_it_becomes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
        for number in range(2_500):
            tar.addfile(tarfile.TarInfo(f"d/m-{number}.index"))
    with pytest.raises(FormatError, match="steps of work in a file of"):
        locate(tmp_path / "m.tar.gz")


@pytest.mark.parametrize("names", [(), ("a.index", "b.index")])
def test_an_archive_that_is_refused_leaves_nothing(
    tmp_path: Path, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    folder = lay(tmp_path / "run", *names)
    target = archive(tmp_path / "x.tar.gz", folder)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.raises(FormatError, match=r"x\.tar\.gz"):
        locate(target)
    assert list(scratch.iterdir()) == []


def test_a_hostile_archive_writes_nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "deep" / "scratch"
    scratch.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    target = tmp_path / "x.tar"
    with tarfile.open(target, "w") as tar:
        for name in ("m.index", "../../evil.index"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(FormatError, match=r"'\.\.'"):
        locate(target)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "scratch", "x.tar"]
