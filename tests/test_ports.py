"""The worked ports of ``examples/ports``: the commands of their page, run in order in a copy of each folder.

Nothing is downloaded: weights are random, the models are the real library's or those of the port's own files.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.support import preloaded
from tests.support.commands import runner

PORTS = REPOSITORY / "examples" / "ports"
_SECTION = re.compile(r"^## (\w+)\n(.*?)```console\n(.*?)```", re.MULTILINE | re.DOTALL)
COMMANDS = {
    name: [line.removeprefix("$ ") for line in block.splitlines()]
    for name, _, block in _SECTION.findall((PORTS / "README.md").read_text(encoding="utf-8"))
}
LONG = {"mobilenet_v2", "unet"}
LEAST_EXACT = 5e-5
"""The relative difference that a case allows where it says nothing else."""


def test_every_port_is_on_the_page() -> None:
    assert COMMANDS.keys() == {folder.name for folder in PORTS.iterdir() if folder.is_dir()}
    for commands in COMMANDS.values():
        assert [line.split()[1] for line in commands if line.startswith("ckptkit")][-3:] == [
            "rules",
            "convert",
            "parity",
        ]


def test_the_tutorial_is_one_of_them() -> None:
    """Its commands are those of a port, and its case is the port's."""
    text = (REPOSITORY / "docs" / "port.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    assert lines == COMMANDS["t5_encoder"]
    case = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    assert case == yaml.safe_load((PORTS / "t5_encoder" / "case.yaml").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("factories_preloaded")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in COMMANDS],
)
def test_a_port_is_drafted_converted_and_proven(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("torch", "tensorflow"):
        pytest.importorskip(package)
    folder = tmp_path / name
    shutil.copytree(PORTS / name, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))

    def run(command: str) -> str:
        """Run one line of the page by this Python; gives standard output."""
        program, *arguments = command.split()
        if program == "ckptkit":
            done = runner(capsys)(*arguments)
            assert done.code == 0, (command, done.out, done.err)
            return done.out
        made = preloaded.run([sys.executable, *arguments], folder)
        assert made.returncode == 0, (command, made.stdout, made.stderr)
        return made.stdout

    *before, last = COMMANDS[name]
    for command in before:
        run(command)
    drafted = (folder / "rules.yaml").read_text(encoding="utf-8")
    assert "sure: ambiguous" not in drafted
    assert re.search(r"# case.yaml: all \d+ outputs agree", drafted)
    if name == "t5_encoder":
        page = (REPOSITORY / "docs" / "port.md").read_text(encoding="utf-8")
        shown = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
        assert all(rule in yaml.safe_load(drafted)["rules"] for rule in shown)
    (report,) = json.loads(run(f"{last} --json"))
    assert report["ok"]
    assert len(report["stages"]) >= 4
    assert all(stage["relative"] < LEAST_EXACT for stage in report["stages"])
