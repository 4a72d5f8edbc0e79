"""Every option that writes a file: what is no file is written into or refused, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ckptkit.analysis.evaluate.loop import Progress, StateFile
from ckptkit.base import files
from ckptkit.base.errors import UsageError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.cli.app import main
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.parity.report import Failure, junit_document
from ckptkit.parity.run import ParityRequest
from tests.base.test_files import TARGETS
from tests.support.running import finish, start, wait_until

LINES = {
    "convert": "convert m.safetensors --layout as-is --to npz -o x.npz",
    "convert into several": "convert m.safetensors --layout as-is --to tf -o x.ckpt",
    "convert into shards": "convert m.safetensors --layout as-is --max-shard-size 100 -o x.safetensors",
    "list": "list --format csv -o x.csv",
    "plot": "plot -o x.html",
    "parity": "parity nothing --junit x.xml",
}
SEVERAL = ("convert into several", "convert into shards")


def checkpoint(path: Path, names: str = "abc") -> None:
    specs = [TensorSpec(name, DTYPES["uint8"], (80,)) for name in names]
    with writer_for("safetensors")(path, specs, {}, force=True) as writer:
        for name in writer.order:
            writer.write(name, np.zeros(80, np.uint8))
        writer.finish()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a checkpoint of no known model; temporary files elsewhere are seen too."""
    checkpoint(tmp_path / "m.safetensors")
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(files, "_READER_SECONDS", 0.1)
    monkeypatch.setattr(ParityRequest, "require", lambda _: None)  # no framework is used
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def left_behind(folder: Path) -> list[str]:
    return [p.name for p in (*folder.glob(".ckptkit-*"), *(folder / "temporary").iterdir())]


@pytest.mark.parametrize(
    "line",
    [
        "list -o new/",
        "plot -o new/",
        "logs moganet-xt-224 -o new/",
        "parity tiny-moat0-256 --synthetic --junit new/",
        "eval tiny-moat0-256 --data . --state new/",
        "registry pin moat0-224 --file new/",
        "registry add x file:///m.pth --file new/",
    ],
)
def test_a_name_that_ends_in_a_slash_is_a_folder_where_one_file_is_written(
    place: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    code, out, err = run(capsys, *shlex.split(line))
    assert (code, out) == (2, "")
    assert err == "error: new/ is a folder; name a file in it\n"
    assert not (place / "new").exists()


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("kind", TARGETS)
def test_what_is_no_file_stays_what_it_is(
    place: Path, capsys: pytest.CaptureFixture[str], kind: str, line: str
) -> None:
    *words, name = shlex.split(LINES[line])
    force = ["--force"] if line != "parity" else []
    make, said = TARGETS[kind]
    if "folder" in kind and line.startswith("convert"):
        pytest.skip("a folder takes the default name there")
    make(place / name)
    before = (place / name).lstat()
    names = sorted(path.name for path in place.iterdir())
    code, _, err = run(capsys, "-q", *words, name, *force)
    after = (place / name).lstat()
    assert (after.st_ino, stat.S_IFMT(after.st_mode)) == (before.st_ino, stat.S_IFMT(before.st_mode))
    assert sorted(path.name for path in place.iterdir()) == names and left_behind(place) == []
    if said or line in SEVERAL:
        assert code in (2, 5) and len(err.splitlines()) == 1 and name in err
    else:
        assert code == (3 if line == "parity" else 0), err


@pytest.mark.parametrize("line", ["convert", "list", "plot"])
@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_gets_all_of_it_and_a_link_is_followed(
    place: Path, capsys: pytest.CaptureFixture[str], line: str, link: bool
) -> None:
    *words, name = shlex.split(LINES[line])
    assert run(capsys, "-q", *words, name)[0] == 0
    whole = (place / name).read_bytes()
    (place / name).unlink()
    if link:
        (place / "real").write_bytes(b"old")
        (place / name).symlink_to("real")
        assert run(capsys, "-q", *words, name)[0] == 2 and (place / "real").read_bytes() == b"old"
        assert run(capsys, "-q", *words, name, "--force")[0] == 0
        assert (place / "real").read_bytes() == whole and (place / name).is_symlink()
        return
    os.mkfifo(place / name)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((place / name).read_bytes()))
    reader.start()
    assert run(capsys, "-q", *words, name)[0] == 0
    reader.join(10)
    assert read == [whole] and left_behind(place) == []


def test_standard_output_by_its_names(place: Path) -> None:
    """The file that the shell opened is not replaced, and holds the checkpoint alone."""
    base = [sys.executable, "-c", "from ckptkit.cli.app import main; main()", "-q"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    line = shlex.split("convert m.safetensors --layout as-is --to npz -o")
    subprocess.run([*base, *line, "whole.npz"], env=environment, check=True, capture_output=True)
    with (place / "out").open("wb") as out:
        subprocess.run([*base, *line, "/dev/stdout"], env=environment, check=True, stdout=out)
    assert (place / "out").read_bytes() == (place / "whole.npz").read_bytes()
    done = subprocess.run([*base, *line, "/dev/stdout"], env=environment, check=True, capture_output=True)
    assert done.stdout == (place / "whole.npz").read_bytes() and done.stderr == b""
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        with (place / "out").open("wb") as out:
            out.write(b"before\n")
            out.flush()
            more = ["list", "--format", "csv", "-o", name]
            subprocess.run([*base, *more], env=environment, check=True, stdout=out)
        assert (place / "out").read_bytes().startswith(b"before\nfamily,id,")


@pytest.mark.parametrize("name", ["a\nb", "-o", "x" * 245, "a b'\"$(touch PWNED)", ".x", "ü" * 120])
@pytest.mark.parametrize("line", ["convert", "convert into several", "convert into shards", "list"])
def test_names(place: Path, capsys: pytest.CaptureFixture[str], name: str, line: str) -> None:
    *words, target = shlex.split(LINES[line])
    room = 255 - (40 if line in SEVERAL else 10)
    target = "./" * (line != "convert") + os.fsencode(name)[:room].decode(errors="ignore") + target[1:]
    words[-1] = "--output=" + target
    for force in ([], ["--force"]):
        assert run(capsys, "-q", *words, *force)[0] == 0, "a name is a name"
    code, _, err = run(capsys, "-q", *words)
    assert code == 2 and "exists already" in err and len(err.splitlines()) == 1
    assert left_behind(place) == [] and not (place / "PWNED").exists()


@pytest.mark.parametrize("old", ["m.safetensors.index.json", "m-00002-of-00003.safetensors"])
def test_a_source_is_never_made_room_of(place: Path, capsys: pytest.CaptureFixture[str], old: str) -> None:
    line = "-q convert m.safetensors --layout as-is --max-shard-size 100 -o s/m.safetensors"
    assert run(capsys, *line.split())[0] == 0
    before = {path.name: path.read_bytes() for path in (place / "s").iterdir()}
    line = f"-q convert s/{old} --layout as-is --force -o s/m.safetensors"
    code, _, err = run(capsys, *line.split())
    assert code == 2 and "is the source itself" in err
    assert {path.name: path.read_bytes() for path in (place / "s").iterdir()} == before


def test_an_older_result_needs_force_to_go(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(place / "n.safetensors", "n")
    line = "-q convert m.safetensors --layout as-is --max-shard-size 100 -o s/m.safetensors".split()  # noqa: SIM905
    assert run(capsys, *line)[0] == 0
    line = ["-q", "convert", "n.safetensors", "--layout", "as-is", "-o", "s/m.safetensors"]
    code, _, err = run(capsys, *line)
    assert code == 2 and "m.safetensors.index.json exists already" in err
    assert run(capsys, *line, "--force")[0] == 0
    assert [path.name for path in (place / "s").iterdir()] == ["m.safetensors"]
    with open_reader(place / "s") as reader:
        assert list(reader.specs) == ["n"]


# -- reports and states --------------------------------------------------------------------------------------

REPORT = junit_document([Failure("nothing", "no entry", "NotFoundError")])


@pytest.mark.parametrize(
    ("older", "kept"),
    [
        ("", False),
        (REPORT, False),
        ("<?xml version='1.0'?>\n<testsuite tests='1'/>", False),
        ("my thesis", True),
        ("\0" * 10, True),
    ],
)
def test_a_report_replaces_an_older_report_and_nothing_else(
    place: Path, capsys: pytest.CaptureFixture[str], older: str, kept: bool
) -> None:
    (place / "x.xml").write_text(older)
    code, _, err = run(capsys, "-q", "parity", "nothing", "--junit", "x.xml")
    if kept:
        assert code == 2 and "not a JUnit report" in err and (place / "x.xml").read_text() == older
    else:
        assert code == 3
        assert ElementTree.parse(place / "x.xml").getroot().get("errors") == "1"


@pytest.mark.parametrize("kind", [kind for kind in TARGETS if "link to nothing" not in kind])
def test_a_state_is_kept_in_a_file_alone(place: Path, kind: str) -> None:
    """What the evaluation would remove in the end is looked at before it begins."""
    path = place / "x.json"
    TARGETS[kind][0](path)
    before = path.lstat()
    state = StateFile(path, {"the data": "1"}, 5)
    if not stat.S_ISLNK(before.st_mode):
        with pytest.raises(UsageError, match=r"x\.json is "):
            state.refuse_other_file()
    state.load()
    if not stat.S_ISLNK(before.st_mode):  # an own link may be replaced
        state.save(Progress.of(5))
        assert state.refused is not None
    state.remove()
    assert path.lstat().st_ino == before.st_ino and left_behind(place) == []


@pytest.mark.parametrize("text", ["my thesis", "{}", '{"format": 1}', "\0" * 100, '[{"identity": 1}]'])
def test_a_state_replaces_no_other_file(place: Path, text: str) -> None:
    (place / "x.json").write_text(text)
    with pytest.raises(UsageError, match="is not a state file of an evaluation"):
        StateFile(place / "x.json", {}, 5).refuse_other_file()
    (place / "x.json").write_text("")
    state = StateFile(place / "x.json", {}, 5)
    state.refuse_other_file()
    state.save(Progress.of(5))
    state.refuse_other_file()
    assert "identity" in json.loads((place / "x.json").read_text())


@pytest.mark.parametrize("kind", ["null", "pipe that nobody reads", "socket", "folder", "link to a device"])
@pytest.mark.parametrize("what", ["--file", "CKPTKIT_TRUST"])
def test_registries_and_lock_files_are_files(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str, what: str
) -> None:
    path = place / "x.yaml"
    TARGETS[kind][0](path)
    before = path.lstat()
    if what == "--file":
        line = "registry add my https://example.org/my.pth --variant tiny-moat0 --layout torch --format torch"
        code, _, err = run(capsys, *line.split(), "--file", "x.yaml")
    else:
        monkeypatch.setenv("CKPTKIT_TRUST", str(path))
        (place / "my.pth").write_bytes(b"1234")
        code, _, err = run(capsys, "-q", "import", "moganet-xt-224", "my.pth", "--force")
    assert code in (2, 3, 5) and "Traceback" not in err
    assert path.lstat().st_ino == before.st_ino and left_behind(place) == []


# -- every way out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(
    ("line", "made"),
    [("inspect -", "ckptkit-stdin-*"), ("convert - --layout as-is --to npz -o x.npz", "ckptkit-stdin-*")],
)
def test_a_signal_leaves_no_copy_of_standard_input(
    place: Path, number: signal.Signals, line: str, made: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from ckptkit.cli.app import main; main()", *shlex.split(line)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(bytes(2_000_000))
    process.stdin.flush()
    wait_until(lambda: bool(list((place / "temporary").glob(made))))
    (folder,) = (place / "temporary").glob(made)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == (130 if number is signal.SIGINT else -number), err
    assert list((place / "temporary").iterdir()) == []
    assert b"Traceback" not in err


def test_a_scheduler_that_ends_a_conversion_finds_nothing_left(place: Path) -> None:
    prelude = """
import signal, os
from ckptkit.base import files
real = files.StagedFile.sync
def sync(self):
    os.kill(os.getpid(), signal.SIGTERM)
    real(self)
files.StagedFile.sync = sync
"""
    for target in ("x.npz", "x.ckpt", "x.safetensors --max-shard-size 100"):
        line = f"convert {place}/m.safetensors --layout as-is -o {place}/{target}"
        code, _, _ = finish(start(shlex.split(line), place / "home", prelude))
        assert code == -signal.SIGTERM
        assert left_behind(place) == [] and not list(place.glob("x*"))
