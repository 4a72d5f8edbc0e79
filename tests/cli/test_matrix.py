"""Globs, several targets, --all, --json, --dry-run, `-o folder/` and `-o -` mean the same in every command.

`TABLE` says for each command what each of them does: it works, it is refused with a hint, or it is not meant,
for a reason. A command without its row fails, and so does a row that the command's options contradict.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ckptkit.cli.app import load_commands, main
from ckptkit.models.synth import Synthetic, write_checkpoint
from tests.support.commands import Runner, runner
from tests.support.examples import commands
from tests.support.parity_cases import models_here

ID, OTHER, GLOB = "tiny-moat0-256", "tiny-moat1-256", "'tiny-moat[01]-256'"
FEATURES = ("glob", "several", "all", "json", "dry-run", "folder", "stdout")


@dataclass(frozen=True)
class Works:
    """The line ends with 0; ``shows`` are in what it prints."""

    line: str
    shows: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    slow: bool = False


@dataclass(frozen=True)
class Refused:
    """The line is refused, and the message says this."""

    line: str
    says: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotMeant:
    """The command has no such thing."""

    reason: str


Cell = Works | Refused | NotMeant

BOTH = (ID, OTHER)
ONE = "is a glob, and one entry is needed here: it matches tiny-moat0-256, tiny-moat1-256; name one of them"
EXTRA = "got unexpected extra argument"
PRINTS = NotMeant("writes no file")
READS = NotMeant("changes nothing")
NOT_HERE = NotMeant("works on one thing")
RULES = """version: 2
rules:
  - {source: "x/kernel", target: "x.weight", axes: "i o -> o i"}
"""
NETS = """
def build():
    import torch
    return torch.nn.Linear(3, 2)
"""
CASE = """
left: {framework: torch, model: "nets:build"}
right: {framework: torch, model: "nets:build"}
inputs: {shape: [2, 3]}
"""
RECORD = "record --case case.yaml --side left"
ADD = "registry add my-moat https://example.org/x.tar.gz --file mine.yaml --checkpoint tiny0.tar.gz"


def _of_one(line: str, needs: tuple[str, ...] = (), **others: Cell) -> dict[str, Cell]:
    """A command that takes one source; ``line`` has it as {}. What it ``needs`` it asks for first."""
    return {
        "glob": Refused(line.format(GLOB), ONE, needs),
        "several": NOT_HERE,
        "all": NOT_HERE,
        "dry-run": READS,
        "folder": PRINTS,
        "stdout": PRINTS,
        **others,
    }


def _of_several(line: str, shows: tuple[str, ...] = BOTH, needs: tuple[str, ...] = (), **others: Cell):
    """A command that takes several; of ``--all`` it does every fetched entry, or every one."""
    return {
        "glob": Works(line.format(GLOB), shows, needs),
        "several": Works(line.format(f"{ID} {OTHER}"), shows, needs),
        "all": Works(line.format("--all"), shows, needs),
        "json": Works(f"{line.format(ID)} --json", (), needs),
        "dry-run": READS,
        "folder": PRINTS,
        "stdout": PRINTS,
        **others,
    }


TABLE: dict[str, dict[str, Cell]] = {
    "list": _of_several(
        "list {}",
        all=NotMeant("lists every entry by itself"),
        **{"dry-run": Works("list -o x.csv --dry-run", ("x.csv",))},
        folder=Refused("list -o folder/", "folder/ is a folder"),
        stdout=Works("list -o - --format csv", ("moganet-xl-224-timm",)),
    ),
    "show": _of_several("show {}", all=NotMeant("show '*' does")),
    "fetch": _of_several(
        "fetch --offline {}",
        all=Works("fetch --all --offline --dry-run", BOTH),
        **{"dry-run": Works(f"fetch {ID} moat4-512 --offline --dry-run", (ID, "moat4-512"))},
    ),
    "import": _of_one(
        "import {} tiny0.tar.gz",
        json=Works(f"import {ID} tiny0.tar.gz --json"),
        **{"dry-run": Works(f"import {ID} tiny0.tar.gz --dry-run", ("artefacts",))},
    ),
    "convert": _of_several(
        "convert {} --to npz",
        **{"dry-run": Works(f"convert {ID} -o x.pth --dry-run", ("x.pth",))},
        folder=Works(f"convert {ID} {OTHER} -o out/", (f"out/{ID}.safetensors", f"out/{OTHER}.safetensors")),
        stdout=Works(f"convert {ID} --to safetensors -o -", ("__metadata__",)),
    ),
    "synth": _of_one(
        "synth {}",
        several=NotMeant("makes one file, mostly for a test"),
        json=Works("synth tiny-moat0 --json"),
        **{"dry-run": Works("synth tiny-moat0 -o out/ --dry-run", ("out/tiny-moat0.tar.gz",))},
        folder=Works("synth tiny-moat0 -o out/", ("out/tiny-moat0.tar.gz",)),
        stdout=Works("synth tiny-moat0 -o -", ("\x1f",)),
    ),
    "export": _of_several(
        "export {} --to hf --dry-run",
        json=Works(f"export {ID} --to hf --json"),
        **{"dry-run": Works(f"export {ID} --to hf --dry-run", (f"{ID}-hf", "config.json"))},
        folder=Works(f"export {ID} {OTHER} --to hf -o out/", (f"out/{ID}-hf", f"out/{OTHER}-hf")),
        stdout=Refused(f"export {ID} --to hf -o -", "--to hf writes a folder, which standard output cannot"),
    ),
    "verify": _of_several("verify {}"),
    "diff": _of_one(
        f"diff {ID} {{}}",
        several=NotMeant("compares two"),
        json=Works(f"diff {ID} {ID} --json"),
    ),
    "parity": _of_several(
        "parity {} --resolution 32",
        needs=("torch", "tensorflow"),
    ),
    "eval": _of_one(
        "eval {} --data imagenet/val",
        needs=("torch", "PIL"),
        json=Works(f"eval {ID} --data imagenet/val --resolution 32 --json", (), ("torch", "PIL")),
    ),
    "calibrate": _of_one(
        "calibrate {} --data imagenet/val -o x.safetensors",
        needs=("torch", "PIL"),
        json=Works(
            f"calibrate {ID} --data imagenet/val -o x.safetensors --dry-run --json", (), ("torch", "PIL")
        ),
        **{
            "dry-run": Works(
                f"calibrate {ID} --data imagenet/val -o out/ --dry-run",
                (f"out/{ID}.safetensors",),
                ("torch", "PIL"),
            )
        },
        folder=Works(
            f"calibrate {ID} --data imagenet/val -o out/ --images 2 --resolution 32",
            (f"out/{ID}.safetensors",),
            ("torch", "PIL"),
        ),
        stdout=Works(
            f"calibrate {ID} --data imagenet/val -o - --images 2 --resolution 32",
            ("__metadata__",),
            ("torch", "PIL"),
            slow=True,
        ),
    ),
    "inspect": _of_one(
        "inspect {}",
        several=Works(f"inspect --security {ID} {OTHER}", BOTH),
        json=Works(f"inspect {ID} --json"),
    ),
    "profile": _of_several(
        "profile {}", needs=("torch",), all=Works("profile --all", BOTH, ("torch",), slow=True)
    ),
    "predict": _of_one(
        "predict {} picture.png",
        needs=("torch", "PIL"),
        several=Works(f"predict {ID} picture.png other.png", ("picture.png", "other.png"), ("torch", "PIL")),
        json=Works(f"predict {ID} picture.png --json", (), ("torch", "PIL")),
    ),
    "cam": _of_one(
        "cam {} picture.png -o x.png",
        needs=("torch", "captum", "PIL"),
        several=Works(
            f"cam {ID} picture.png other.png -o out/ --dry-run",
            ("out/picture.png", "out/other.png"),
            ("captum",),
        ),
        json=Works(f"cam {ID} picture.png -o x.png --dry-run --json", (), ("captum",)),
        **{"dry-run": Works(f"cam {ID} picture.png -o x.png --dry-run", ("x.png",), ("captum",))},
        folder=Works(f"cam {ID} picture.png -o out/", ("out/picture.png",), ("captum",)),
        stdout=Works(f"cam {ID} picture.png -o -", ("PNG",), ("captum",), slow=True),
    ),
    "plot": _of_several(
        "plot {} -o x.html --dry-run",
        shows=("2 entries",),
        all=NotMeant("draws every entry by itself"),
        json=Works("plot -o x.html --json"),
        **{"dry-run": Works("plot -o x.svg --dry-run", ("x.svg",), ("matplotlib",))},
        folder=Refused("plot -o folder/", "folder/ is a folder; name a file in it"),
        stdout=Refused("plot -o -", "cannot tell the picture format from '-'; choose from .png"),
    ),
    "logs": _of_one(
        "logs {}",
        json=Works("logs own.log.json --json"),
        **{"dry-run": Works("logs own.log.json -o x.png --dry-run", ("would write x.png",), ("matplotlib",))},
        folder=Refused("logs own.log.json -o folder/", "folder/ is a folder; name a file in it"),
        stdout=Refused("logs own.log.json -o -", "cannot tell the picture format from '-'"),
    ),
    "cache ls": _of_several("cache ls {}", all=NotMeant("lists everything by itself")),
    "cache path": _of_one("cache path {}", json=Works(f"cache path {ID} --json")),
    "cache rm": _of_several(
        "cache rm {}",
        all=NotMeant("cache rm '*' does; a slip should not empty the cache"),
        **{"dry-run": Works(f"cache rm {ID} --dry-run", (ID, "would be freed"))},
    ),
    "cache prune": _of_one(
        "cache prune {}",
        glob=NotMeant("chooses by age and size"),
        several=NotMeant("chooses by age and size"),
        json=Works("cache prune --older-than 1d --json"),
        **{"dry-run": Works("cache prune --max-size 1kB --dry-run", (ID, "would be freed"))},
    ),
    "cache verify": _of_several("cache verify {}", all=NotMeant("verifies everything by itself")),
    "cache checksums": _of_several(
        "cache checksums {}",
        all=NotMeant("exports everything by itself"),
        folder=Refused("cache checksums -o folder/", "folder/ is a folder; name a file in it"),
        stdout=Works("cache checksums -o -", (f"artefacts/{ID}/",)),
    ),
    "registry validate": _of_one(
        "registry validate {}",
        glob=NotMeant("takes files, whose globs a shell resolves"),
        several=Works("registry validate mine.yaml other.yaml", ("mine.yaml: ", "other.yaml: ")),
        json=Works("registry validate mine.yaml --json"),
    ),
    "registry schema": _of_one(
        "registry schema",
        glob=NotMeant("works on nothing"),
        json=Works("registry schema --json"),
    ),
    "registry pin": _of_several(
        "registry pin {} --file mine.yaml",
        **{"dry-run": Works(f"registry pin {ID} --file mine.yaml --dry-run", (ID, "sha256"))},
    ),
    "registry add": _of_one(
        "registry add {} https://example.org/x.pth",
        glob=NotMeant("the id is a new one"),
        json=Works(f"{ADD} --json"),
        **{
            "dry-run": Works(
                f"{ADD} --dry-run",
                ("my-moat",),
            )
        },
    ),
    "record": _of_one(
        "record {}",
        glob=NotMeant("runs one side of one case"),
        json=Works("record --emit recorder.py --json", ("recorder.py",)),
        **{"dry-run": NotMeant("what takes time is the run itself")},
        folder=Works(f"{RECORD} -o out/", ("out/left.npz",), needs=("torch",)),
        stdout=Works(f"{RECORD} -o -", ("PK", "ckptkit:"), needs=("torch",)),
    ),
    "rules check": _of_one(
        "rules check rules.yaml {}",
        several=NotMeant("checks one file of rules against one model"),
        json=Works("rules check rules.yaml a.npz --json"),
    ),
    "rules suggest": _of_one(
        "rules suggest {} b.npz",
        several=NotMeant("pairs two models"),
        json=Works("rules suggest a.npz b.npz --json"),
        **{"dry-run": NotMeant("prints the rules without -o")},
        folder=Refused("rules suggest a.npz b.npz -o folder/", "folder/ is a folder; name a file in it"),
        stdout=Works("rules suggest a.npz b.npz -o -", ("x/kernel",)),
    ),
    "doctor": _of_one(
        "doctor",
        glob=NotMeant("works on nothing"),
        json=Works("doctor --offline --json", slow=True),  # asks both frameworks
    ),
    "demo": _of_one(
        "demo {}",
        json=Works(f"demo {ID} --dry-run --json"),
        **{"dry-run": Works(f"demo {ID} --dry-run", (ID,))},
    ),
}
CELLS = [
    pytest.param(command, feature, marks=pytest.mark.slow if getattr(cell, "slow", False) else ())
    for command, row in TABLE.items()
    for feature, cell in row.items()
    if not isinstance(cell, NotMeant)
]
BARE = {
    *(
        "list",
        "doctor",
        "demo",
        "cache ls",
        "cache path",
        "cache verify",
        "cache checksums",
        "registry validate",
        "registry schema",
    ),
}
"""Commands that have work to do where nothing is named."""


def test_every_command_has_its_row() -> None:
    assert sorted(TABLE) == commands()
    for command, row in TABLE.items():
        assert sorted(row) == sorted(FEATURES), command


@pytest.mark.parametrize("command", TABLE)
def test_the_row_and_the_options_agree(command: str) -> None:
    found = load_commands()
    for word in command.split():
        found = found.commands[word]
    options = {name for param in found.params for name in param.opts}
    row = TABLE[command]
    for feature, option in (("all", "--all"), ("dry-run", "--dry-run"), ("folder", "-o"), ("stdout", "-o")):
        assert (option in options) is not isinstance(row[feature], NotMeant), (feature, options)
    assert "--json" in options and isinstance(row["json"], Works)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two entries' files, and what else the lines name."""
    from tests.support.showground import WNIDS, picture
    from tests.support.training_logs import long_log

    folder = tmp_path_factory.mktemp("matrix")
    write_checkpoint(Synthetic("tiny-moat0"), folder / "tiny0.tar.gz")
    write_checkpoint(Synthetic("tiny-moat1"), folder / "tiny1.tar.gz")
    (folder / "mine.yaml").write_text("entries: []\n")
    (folder / "other.yaml").write_text("entries: []\n")
    (folder / "rules.yaml").write_text(RULES)
    (folder / "nets.py").write_text(NETS)
    (folder / "case.yaml").write_text(CASE)
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(folder / "a.npz", **{"x/kernel": kernel})
    np.savez(folder / "b.npz", **{"x.weight": kernel.T})
    (folder / "own.log.json").write_text(long_log())
    places = [folder / "picture.png", folder / "other.png"]
    places += [folder / "imagenet" / "val" / wnid / "0.JPEG" for wnid in WNIDS]
    for number, place in enumerate(places):
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(number, 48, 48).save(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CKPTKIT_HOME", str(folder / "home"))
        patch.setenv("CKPTKIT_TRUST", str(folder / "lock"))
        for number, id in enumerate(BOTH):
            with pytest.raises(SystemExit) as left:
                main(["import", id, str(folder / f"tiny{number}.tar.gz")])
            assert not left.value.code
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of them by hard links, with the cache."""
    shutil.copytree(made, tmp_path / "work", copy_function=os.link)
    monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path / "work" / "home"))
    monkeypatch.setenv("CKPTKIT_TRUST", str(tmp_path / "work" / "lock"))
    monkeypatch.chdir(tmp_path / "work")
    with models_here():
        yield tmp_path / "work"


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.parent.name != "locks" and path.suffix not in (".used", ".guard"):
            yield str(path.relative_to(folder)), path.stat().st_size


@pytest.mark.parametrize(("command", "feature"), CELLS)
def test_the_matrix(command: str, feature: str, place: Path, request: pytest.FixtureRequest) -> None:
    cell = TABLE[command][feature]
    before = list(_files(place))
    for package in getattr(cell, "needs", ()):
        pytest.importorskip(package)
    words = shlex.split(cell.line)  # type: ignore[union-attr]
    if isinstance(cell, Works) and feature == "stdout":
        captured = request.getfixturevalue("capfdbinary")
        with pytest.raises(SystemExit) as left:
            main(words)
        written = captured.readouterr()
        assert not left.value.code, written.err
        assert all(one.encode() in written.out for one in cell.shows)
        assert list(_files(place)) == before  # no file called -
        return
    run: Runner = runner(request.getfixturevalue("capsys"))
    if isinstance(cell, Refused):
        done = run(*words)
        assert (done.code in (2, 3), done.out) == (True, "")
        assert cell.says in done.err and list(_files(place)) == before
        return
    assert isinstance(cell, Works)
    ran = run(*words)
    assert ran.code == 0, ran.err
    if feature == "json":
        json.loads(ran.out)
    assert [one for one in cell.shows if one not in ran.out + ran.err] == []
    if "--dry-run" in words:
        assert list(_files(place)) == before
    if feature == "folder":
        made = {name for name, _ in _files(place)} - {name for name, _ in before}
        assert made and all(name.startswith("out/") for name in made)


@pytest.mark.parametrize("command", TABLE)
def test_a_bare_command_works_or_shows_its_usage(
    command: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command in BARE:
        return
    done = runner(capsys)(*command.split())
    assert (done.code, done.out) == (2, "")
    first, *_, last = done.err.splitlines()
    assert first.startswith(f"Usage: ckptkit {command} [OPTIONS]")
    assert f"\nExamples:\n  ckptkit {command} " in done.err
    assert last.startswith("error: ")
