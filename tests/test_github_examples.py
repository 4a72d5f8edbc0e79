"""What others use in their CI: the action, the workflow that they copy, the hooks of pre-commit."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from typer.core import TyperGroup

import ckptkit
from ckptkit.cli.app import hoist_global_options, load_commands
from ckptkit.formats.names import EXTENSIONS
from ckptkit.models.synth import Synthetic, synthetic_for, write_checkpoint
from ckptkit.registry.loading import load_registry
from tests.conftest import REPOSITORY
from tests.support.preloaded import FRAMEWORKS, write_command
from tests.support.showground import published_hosts

EXAMPLES = REPOSITORY / ".github" / "examples"
PATHS = sorted(EXAMPLES.glob("*.yml"))
CI = REPOSITORY / ".github" / "workflows" / "ci.yml"
ACTION = yaml.safe_load((REPOSITORY / "action.yml").read_text())


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def actions(text: str) -> dict[str, str]:
    """Name -> version of every action used."""
    return dict(re.findall(r"uses: ([\w/-]+)@(\S+)", text))


@pytest.fixture(scope="module")
def commands() -> TyperGroup:
    return load_commands()


def parse(root: TyperGroup, line: str) -> None:
    """Let the real command line parse a line of shell, without running it; raises what it would print."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "ckptkit"
    context = root.make_context("ckptkit", hoist_global_options(arguments))
    words = [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
    name, command, rest = root.resolve_command(context, list(words))
    assert command is not None
    command.make_context(name, list(rest), parent=context)


def test_there_is_an_example() -> None:
    assert [path.name for path in PATHS] == ["converted-weights.yml"]


def test_every_command_of_the_action_is_one_that_ckptkit_understands(commands: TyperGroup) -> None:
    text = "\n".join(step.get("run", "") for step in ACTION["runs"]["steps"])
    lines = [found.partition(" ||")[0] for found in re.findall(r"ckptkit (?:fetch|verify|parity) .*", text)]
    assert [line.split()[1] for line in lines] == ["fetch", "fetch", "verify", "parity", "parity"]
    for line in lines:
        words = line.replace('"${files[@]}"', "").replace('"${converted[@]}"', "--converted x.pth")
        words = words.replace('"${cases[number]}"', "a.yaml").replace("case-$((number + 1))", "case-1")
        words = words.replace('"${options[@]}"', "--resolution 64").replace('"${ids[@]}"', "moat0-224")
        parse(commands, words.replace('"$id"', "moat0-224").replace('"$REPORTS/$id.xml"', "report.xml"))


@pytest.mark.parametrize(
    "line", ["ckptkit parity x --convert y", "ckptkit prove x", "ckptkit fetch x --deep"]
)
def test_a_wrong_command_line_would_be_noticed(line: str, commands: TyperGroup) -> None:
    with pytest.raises(Exception, match="No such"):
        parse(commands, line)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_ids_are_in_the_registry_and_files_are_of_formats_that_can_be_written(path: Any) -> None:
    registry = load_registry()
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        for row in job["strategy"]["matrix"]["include"]:
            assert row["id"] in registry
            assert row["file"].endswith(tuple(EXTENSIONS.values()))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_it_may_read_and_nothing_else(path: Any) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in workflow["jobs"].values())
    assert all(job["timeout-minutes"] <= 120 for job in workflow["jobs"].values())
    assert set(workflow[True]) == {"push", "pull_request", "workflow_dispatch"}  # YAML reads `on` as true
    for step in steps(workflow):  # values reach the shell as variables, never as text pasted into a script
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_actions_are_pinned_and_no_other_than_ours(path: Any) -> None:
    used, ours = actions(path.read_text()), actions(CI.read_text())
    assert all(re.fullmatch(r"v\d+", version) for version in used.values())
    assert {name: used[name] for name in used.keys() & ours.keys()} == {
        name: ours[name] for name in used.keys() & ours.keys()
    }
    assert set(used) <= {*ours, "OWNER/ckptkit"}


def test_the_action_installs_itself_with_the_torch_that_the_package_takes() -> None:
    install = next(step for step in ACTION["runs"]["steps"] if "pip" in step.get("run", ""))
    (wanted,) = re.findall(r"'(torch>=[^']+)'", install["run"])
    assert f'"{wanted}"' in (REPOSITORY / "pyproject.toml").read_text()
    assert install["env"] == {"SOURCE": "${{ github.action_path }}"}
    assert '"$SOURCE[torch,tf]"' in install["run"]


def test_the_action_caches_what_the_store_writes_and_pastes_no_input_into_a_script() -> None:
    steps = ACTION["runs"]["steps"]
    cache = next(step["with"] for step in steps if step.get("uses", "").startswith("actions/cache"))
    homes = {step["env"]["CKPTKIT_HOME"] for step in steps if "CKPTKIT_HOME" in step.get("env", {})}
    assert {f"{home}/artefacts" for home in homes} == {cache["path"]}  # as ckptkit.store.cache lays it out
    assert all("${{" not in step.get("run", "") for step in steps)
    assert "inputs.ids" not in cache["key"]  # a key holds no comma, and 512 characters
    assert (
        actions((REPOSITORY / "action.yml").read_text()).items()
        <= {
            **actions(CI.read_text()),
            "actions/cache": "v4",
        }.items()
    )


class Runner:
    """Runs the action's own scripts, as GitHub's runner does, on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, **inputs: str) -> tuple[int, str]:
        """Run the steps that call ckptkit; returns the status of the last one, and what they printed."""
        given = {name: rule.get("default", "") for name, rule in ACTION["inputs"].items()}
        given |= {name.replace("_", "-"): value for name, value in inputs.items()}
        printed = ""
        for step in ACTION["runs"]["steps"]:
            if "ckptkit" not in step.get("run", "") or "pip" in step["run"]:
                continue
            variables = {name: self._filled(value, given) for name, value in step["env"].items()}
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                cwd=self.folder,
                env={**os.environ, "GITHUB_OUTPUT": str(self.folder / "output"), **variables},
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            printed += done.stdout + done.stderr
            if done.returncode:
                return done.returncode, printed
        return 0, printed

    def _filled(self, value: str, inputs: dict[str, str]) -> str:
        value = value.replace("${{ runner.temp }}", str(self.folder / "temp"))
        return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: inputs[found[1]], value)


@pytest.fixture
def action(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """The action's scripts beside the published hosts."""
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    program = write_command(*FRAMEWORKS) if hasattr(os, "fork") else Path(sys.executable)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CKPTKIT_TRUST", raising=False)
    with published_hosts(tmp_path / "published") as mirrors:
        monkeypatch.setenv("CKPTKIT_MIRROR", mirrors)
        yield Runner(tmp_path)


@pytest.mark.slow
def test_the_action_proves_conversions_and_fails_on_a_wrong_one(action: Runner, tmp_path: Path) -> None:
    ids, files = ["tiny-moat0-256-noposemb", "moganet-xt-224"], ["a b.safetensors", "moga.safetensors"]
    for id, file in zip(ids, files, strict=True):
        model = write_checkpoint(synthetic_for(load_registry()[id]), tmp_path / f"{id}.published")
        ckptkit.convert(model, to="safetensors", output=tmp_path / file, variant=load_registry()[id].variant)
    assert action(ids=" ".join(ids), converted=files[0])[0] == 2
    code, printed = action(ids="\n".join(ids), converted="\n".join(files), options="--resolution\n64")
    assert code == 0, printed
    reports = dict(line.split("=") for line in (tmp_path / "output").read_text().splitlines())["reports"]
    assert sorted(path.name for path in Path(reports).iterdir()) == [f"{id}.xml" for id in sorted(ids)]

    state = load_file(tmp_path / files[0])
    name = next(name for name in state if name.endswith("expand_conv.weight"))
    metadata = json.loads(_header(tmp_path / files[0]))["__metadata__"]
    save_file({**state, name: -state[name]}, tmp_path / files[0], metadata)
    code, printed = action(ids=ids[0], converted=files[0], options="--resolution 64")
    assert code == 1
    assert "DISAGREE" in printed


@pytest.mark.parametrize(
    "ids", ["--force", "moat0-224\n-o", "../moat0-224", "$(touch hurt)", "a;b", "a,b", "`a`"]
)
def test_the_action_takes_nothing_but_ids(ids: str, tmp_path: Path) -> None:
    code, printed = Runner(tmp_path)(ids=ids)
    assert code == 2
    assert "::error::not an id" in printed
    assert list(tmp_path.iterdir()) == []


def test_the_action_proves_cases_beside_ids_or_alone(action: Runner, tmp_path: Path) -> None:
    x = np.arange(12, dtype="f4").reshape(2, 6)
    np.savez(tmp_path / "left.npz", output=x)
    np.savez(tmp_path / "right.npz", output=x + 1)
    text = "{}: {{framework: recorded, model: left.npz}}\nright: {{framework: recorded, model: {}.npz}}\n"
    for name in ("left", "right"):
        (tmp_path / f"-a $(touch ran) {name}.yaml").write_text(
            text.format("left", name) + "inputs: {shape: [2, 6]}\n"
        )
    assert action()[0] == 2
    good, wrong = (f"-a $(touch ran) {name}.yaml" for name in ("left", "right"))
    code, printed = action(case=f"{good}\n")
    assert (code, "agree" in printed) == (0, True), printed
    code, printed = action(case=f"{good}\n{wrong}")
    assert (code, "DISAGREE" in printed) == (1, True), printed
    reports = dict(line.split("=") for line in (tmp_path / "output").read_text().splitlines())["reports"]
    assert sorted(path.name for path in Path(reports).iterdir()) == ["case-1.xml", "case-2.xml"]
    assert not (tmp_path / "ran").exists()


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


@pytest.mark.parametrize(
    ("hook", "good", "bad"),
    [
        ("ckptkit-verify", "good.safetensors", "cut.safetensors"),
        ("ckptkit-security", "good.pkl", "evil.pkl"),
        ("ckptkit-registry-validate", "good/registry.yaml", "bad/registry.yaml"),
    ],
)
def test_a_pre_commit_hook_passes_what_is_whole_and_refuses_what_is_not(
    hook: str, good: str, bad: str, tmp_path: Path
) -> None:
    hooks = {one["id"]: one for one in yaml.safe_load((REPOSITORY / ".pre-commit-hooks.yaml").read_text())}
    ckptkit.convert(
        write_checkpoint(Synthetic("tiny-moat0"), tmp_path / "m.ckpt"),
        to="safetensors",
        output=tmp_path / "good.safetensors",
    )
    whole = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "good.pkl").write_bytes(pickle.dumps({"epoch": 3}))
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'id'\ntR.")
    for name, text in (("good", (REPOSITORY / "registry.yaml").read_text()), ("bad", "entries: [{id: 7}]\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "registry.yaml").write_text(text)
    assert hooks[hook]["language"] == "python"
    assert not re.search(hooks[hook]["files"], "firmware.bin")
    for file, expected in ((good, True), (bad, False)):
        assert re.search(hooks[hook]["files"], file)
        done = subprocess.run(
            [Path(sys.executable).parent / "ckptkit", *shlex.split(hooks[hook]["entry"])[1:], file],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (done.returncode == 0) is expected, done.stdout + done.stderr


def test_the_documentation_points_to_it() -> None:
    page = (REPOSITORY / "docs" / "howto" / "ci.md").read_text()
    assert "](../../.github/examples/converted-weights.yml)" in page
    for input in ACTION["inputs"]:
        assert f"`{input}`" in page
