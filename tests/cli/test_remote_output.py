"""``--output s3://…``: written here, put there whole, and nothing replaced unasked."""

from __future__ import annotations

import hashlib
import io
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import UsageError
from ckptkit.cli.options import State
from ckptkit.cli.remote_output import Place
from ckptkit.models.synth import Synthetic, write_bundle
from ckptkit.store import remote
from ckptkit.store.remote import Store
from tests.support.commands import Runner, pip_install, runner
from tests.support.s3_server import BUCKET, s3_server

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model.ckpt"
    write_bundle(Synthetic("tiny-moat0"), path)
    return path


@pytest.fixture
def ckptkit(capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(capsys)


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Stand in for Google's store; temporary folders are made where a test can look."""
    monkeypatch.setitem(remote.STORES, "gs", Store("memory", "gcsfs"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()
    assert not list(tmp_path.glob("ckptkit-upload-*"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_convert_puts_the_same_bytes_as_into_a_file(
    ckptkit: Runner, objects: Any, source: Path, tmp_path: Path
) -> None:
    local = tmp_path / "m.safetensors"
    assert ckptkit("convert", source, "-o", local).code == 0
    done = ckptkit("convert", source, "-o", "gs://bucket/x/m.safetensors")
    assert (done.code, done.out) == (0, "gs://bucket/x/m.safetensors\n"), done.err
    assert sha256(objects.cat("/bucket/x/m.safetensors")) == sha256(local.read_bytes())
    again = ckptkit("convert", source, "-o", "gs://bucket/x/m.safetensors", "--no-head")
    assert again.code == 2 and "gs://bucket/x/m.safetensors exists already; give --force" in again.err
    assert sha256(objects.cat("/bucket/x/m.safetensors")) == sha256(local.read_bytes())
    assert ckptkit("convert", source, "-o", "gs://bucket/x/m.safetensors", "--no-head", "--force").code == 0
    assert sha256(objects.cat("/bucket/x/m.safetensors")) != sha256(local.read_bytes())


def test_convert_to_several_files_puts_what_leads_to_them_last(
    ckptkit: Runner, objects: Any, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[str] = []
    upload = remote.upload

    def watched(file: Path, url: str, *, force: bool = False) -> None:
        put.append(url.removeprefix("gs://bucket/"))
        upload(file, url, force=force)

    monkeypatch.setattr(remote, "upload", watched)
    options = ["--max-shard-size", "8MB"]
    assert ckptkit("convert", source, "-o", "gs://bucket/sharded/", *options).code == 0
    assert put[-1] == "sharded/model.safetensors.index.json"
    assert len(put) > 2 and put[0] == f"sharded/model-00001-of-0000{len(put) - 1}.safetensors"
    put.clear()
    done = ckptkit("convert", source, "--to", "tf", "-o", "gs://bucket/tf/new.ckpt")
    assert done.out == "gs://bucket/tf/new.ckpt\n"
    assert put == ["tf/new.ckpt.data-00000-of-00001", "tf/new.ckpt.index"]
    refused = ckptkit("convert", source, "--to", "tf", "-o", "gs://bucket/tf/new.ckpt")
    assert refused.code == 2 and "new.ckpt.data-00000-of-00001 exists already" in refused.err
    assert put == ["tf/new.ckpt.data-00000-of-00001", "tf/new.ckpt.index"]
    put.clear()
    done = ckptkit("convert", source, "-o", "gs://bucket/d/new.dcp")
    assert done.out == "gs://bucket/d/new.dcp\n"
    assert put == [f"d/new.dcp/{name}" for name in ("__0_0.distcp", "ckptkit.json", ".metadata")]
    assert ckptkit("convert", source, "-o", "gs://bucket/d/new.dcp").code == 2


def test_dry_runs_ask_and_write_nothing(ckptkit: Runner, objects: Any, source: Path) -> None:
    planned = ckptkit("convert", source, "-o", "gs://bucket/m.safetensors", "--dry-run")
    assert planned.code == 0 and "to gs://bucket/m.safetensors" in planned.err
    planned = ckptkit("synth", "tiny-moat0", "-o", "gs://bucket/", "--dry-run")
    assert planned.code == 0 and "to gs://bucket/tiny-moat0.tar.gz" in planned.err
    assert not objects.store


def test_synth(ckptkit: Runner, objects: Any) -> None:
    done = ckptkit("synth", "moganet-xt", "-o", "gs://bucket/x.pth")
    assert (done.code, done.out) == (0, "gs://bucket/x.pth\n"), done.err
    assert objects.cat("/bucket/x.pth").startswith(b"PK\x03\x04")
    assert ckptkit("synth", "moganet-xt", "-o", "gs://bucket/x.pth").code == 2


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("https://a.org/m.safetensors", "no place to write to; give a path, or a URL of s3://"),
        ("s3://bucket/..", "'..' cannot be a file name"),
        ("s3://bucket/.hidden", "cannot be a file name"),
    ],
)
def test_what_cannot_be_written_to(ckptkit: Runner, source: Path, output: str, said: str) -> None:
    refused = ckptkit("convert", source, "-o", output)
    assert refused.code == 2 and said in refused.err
    with pytest.raises(UsageError):
        Place(State(), output)


def test_one_object_for_several_conversions_is_refused(ckptkit: Runner, objects: Any, source: Path) -> None:
    refused = ckptkit("convert", source, source, "-o", "gs://bucket/m.safetensors")
    assert refused.code == 2 and "is one file, but there are 2 results; give -o FOLDER/" in refused.err


def test_a_missing_package_has_its_own_exit_code(
    ckptkit: Runner, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_protocol: str) -> None:
        raise ImportError

    monkeypatch.setattr(fsspec, "filesystem", missing)
    refused = ckptkit("convert", source, "-o", "s3://bucket/m.safetensors")
    assert refused.code == 6 and f"s3:// needs s3fs; {pip_install('s3fs')}" in refused.err


def test_paths_stay_paths(tmp_path: Path) -> None:
    for text in (None, "m.safetensors", str(tmp_path)):
        with Place(State(), text) as output:
            assert (output.url, output.path) == (None, text and Path(text))
    assert Place(State(), str(tmp_path), results=2).folder and Place(State(), "new", results=2).folder
    with pytest.raises(UsageError, match=r"m\.pth is one file, but there are 2 results"):
        Place(State(), "m.pth", results=2)


def test_s3(ckptkit: Runner, source: Path, tmp_path: Path) -> None:
    with s3_server() as files:
        url = f"s3://{BUCKET}/x/m.safetensors"
        local = tmp_path / "m.safetensors"
        assert ckptkit("convert", source, "-o", local).code == 0
        done = ckptkit("convert", source, "-o", url)
        assert (done.code, done.out) == (0, f"{url}\n"), done.err
        assert sha256(files.cat(url)) == sha256(local.read_bytes())
        assert ckptkit("convert", source, "-o", url).code == 2


# -- standard input and output -------------------------------------------------------------------------------


@pytest.fixture
def arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkpoint of no known model, in the current folder; temporary files are made beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    np.savez(tmp_path / "a.npz", w=np.arange(6, dtype=np.float32), n=np.array(3))
    return tmp_path / "a.npz"


def piped(
    *arguments: object, stdin: bytes | None = None, more: str = ""
) -> subprocess.CompletedProcess[bytes]:
    """Run ckptkit in a process of its own, between pipes; ``more`` is the rest of a shell's line."""
    line = [sys.executable, "-m", "ckptkit", *map(str, arguments)]
    command = ["bash", "-c", f"set -o pipefail; {shlex.join(line)} {more}"]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=120)


@pytest.mark.parametrize("to", ["safetensors", "torch", "npz"])
def test_a_conversion_between_pipes_gives_the_bytes_of_files(ckptkit: Runner, arrays: Path, to: str) -> None:
    assert ckptkit("convert", arrays, "--layout", "as-is", "--to", to, "-o", "o/").code == 0
    done = piped("convert", "-", "--layout", "as-is", "--to", to, "-o", "-", stdin=arrays.read_bytes())
    assert done.returncode == 0, done.stderr
    (written,) = Path("o").iterdir()
    assert done.stdout == written.read_bytes()
    assert b"standard input: npz" in done.stderr and b"/tmp/" not in done.stderr
    assert not any(Path("tmp").iterdir())


def test_synthetic_weights_go_to_standard_output(arrays: Path) -> None:
    done = piped("synth", "tiny-moat0", "-o", "-", more="| tar tz | wc -l")
    assert (done.returncode, done.stdout.strip()) == (0, b"3"), done.stderr


@pytest.mark.parametrize(
    ("more", "status"),
    [("| head -c 100 >/dev/null", 141), (">/dev/full", 5)],
)
def test_half_an_output_is_no_success(arrays: Path, more: str, status: int) -> None:
    np.savez(arrays, w=np.zeros(2_000_000, np.float32))
    done = piped("convert", arrays, "--layout", "as-is", "-o", "-", more=more)
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr
    if status == 5:
        assert b"error: standard output: no space left on the disk" in done.stderr
    assert not any(Path("tmp").iterdir())


def sent(monkeypatch: pytest.MonkeyPatch, data: bytes, *, terminal: bool = False) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(data))
    stdin.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", stdin)


@pytest.fixture
def arrays_sent(arrays: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent(monkeypatch, arrays.read_bytes())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["inspect", "-"], 0, "file        standard input"),
        (["inspect", "-", "--json"], 0, '"path": "standard input"'),
        (["verify", "-", "--json"], 0, '"name": "standard input"'),
        (["diff", "-", "a.npz", "--layout", "as-is"], 0, "A         standard input: npz"),
        (["diff", "a.npz", "-", "--layout", "as-is"], 0, "B         standard input: npz"),
        (["convert", "-", "--layout", "as-is", "--dry-run"], 0, "to stdin.safetensors"),
        (["convert", "-", "--layout", "as-is", "-o", "new/"], 0, "new/stdin.safetensors"),
        (["convert", "-"], 5, "error: standard input: "),
        (["diff", "-", "-"], 2, "standard input can be read only once"),
        (["convert", "-", "-", "-o", "x/"], 2, "standard input can be read only once"),
        (["convert", "-", "--layout", "as-is", "-o", "-", "--to", "tf"], 2, "this writes several files"),
        (["convert", "a.npz", "-o", "-", "--max-shard-size", "1MB"], 2, "this writes several files"),
        (
            ["export", "tiny-moat0", "--synthetic", "--to", "hf", "-o", "-"],
            2,
            "writes a folder, which standard",
        ),
        (["export", "tiny-moat0", "--to", "onnx", "-o", "-", "--json"], 2, "leave one of them out"),
    ],
    ids=str,
)
def test_what_stands_for_standard_input_and_output(
    ckptkit: Runner, arrays_sent: None, arguments: list[str], code: int, says: str
) -> None:
    done = ckptkit(*arguments)
    assert done.code == code, done.err
    assert says in done.out + done.err
    assert "ckptkit-stdin" not in done.out + done.err
    assert not any(Path("tmp").iterdir())


def test_terminals_are_neither_read_nor_written(
    ckptkit: Runner, arrays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent(monkeypatch, b"", terminal=True)
    assert "standard input is a terminal; send a file into it" in ckptkit("inspect", "-").err
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    refused = ckptkit("convert", arrays, "--layout", "as-is", "-o", "-")
    assert refused.code == 2 and "standard output is a terminal" in refused.err
    sent(monkeypatch, b"")
    assert ckptkit("inspect", "-").err.endswith("error: standard input is empty; fetch it again\n")


def test_a_file_of_that_name_is_a_file(ckptkit: Runner, arrays: Path) -> None:
    arrays.rename("-")
    done = ckptkit("convert", "./-", "--layout", "as-is", "-o", "./-.pth")
    assert (done.code, done.out) == (0, "-.pth\n"), done.err
