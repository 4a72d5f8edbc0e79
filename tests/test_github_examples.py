"""The workflow that others copy: it must parse, name things that exist, and ask for no more than it needs."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup

from ckptkit._version import DISTRIBUTION
from ckptkit._version import REPOSITORY as ADDRESS
from ckptkit.cli.app import hoist_global_options, load_commands
from ckptkit.formats.names import EXTENSIONS
from ckptkit.registry.loading import load_registry
from tests.conftest import REPOSITORY

EXAMPLES = REPOSITORY / ".github" / "examples"
PATHS = sorted(EXAMPLES.glob("*.yml"))
CI = REPOSITORY / ".github" / "workflows" / "ci.yml"


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


def ckptkit_lines(workflow: dict[str, Any]) -> list[str]:
    """Every command line of ckptkit, as the shell sees it for each row of the job's matrix."""
    lines = []
    for job in workflow["jobs"].values():
        scripts = [line.strip() for step in job["steps"] for line in step.get("run", "").splitlines()]
        for row in job.get("strategy", {}).get("matrix", {}).get("include", [{}]):
            values = {name: str(value) for name, value in job.get("env", {}).items()}
            for name, value in values.items():
                values[name] = re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda m, row=row: row[m[1]], value)
            for line in scripts:
                if line.startswith("ckptkit "):
                    lines.append(re.sub(r"\$(\w+)", lambda m, values=values: values[m[1]], line))
    return lines


def test_there_is_an_example() -> None:
    assert [path.name for path in PATHS] == ["converted-weights.yml"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_every_command_line_is_one_that_ckptkit_understands(path: Any, commands: TyperGroup) -> None:
    lines = ckptkit_lines(yaml.safe_load(path.read_text()))
    assert {line.split()[1] for line in lines} == {"fetch", "verify", "parity"}
    for line in lines:
        assert "$" not in line
        parse(commands, line)


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
    assert set(used) <= {*ours, "actions/cache"}
    assert all(name.startswith("actions/") for name in used)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_what_is_cached_and_kept_is_what_the_commands_write(path: Any) -> None:
    workflow = yaml.safe_load(path.read_text())
    (job,) = workflow["jobs"].values()
    by_action = {step["uses"].partition("@")[0]: step["with"] for step in job["steps"] if "uses" in step}
    home = job["env"]["CKPTKIT_HOME"].removeprefix("${{ github.workspace }}/")
    assert by_action["actions/cache"]["path"] == f"{home}/artefacts"  # as ckptkit.store.cache lays it out
    assert "${{ matrix.id }}" in by_action["actions/cache"]["key"]
    reports = [shlex.split(line)[-1] for line in ckptkit_lines(workflow) if "--junit" in line]
    kept = by_action["actions/upload-artifact"]["path"]
    assert reports == [
        kept.replace("${{ matrix.id }}", row["id"]) for row in job["strategy"]["matrix"]["include"]
    ]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_torch_is_the_range_that_the_package_takes(path: Any) -> None:
    (wanted,) = re.findall(r"'(torch>=[^']+)'", path.read_text())
    assert f'"{wanted}"' in (REPOSITORY / "pyproject.toml").read_text()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_ckptkit_comes_from_its_repository(path: Any) -> None:
    (job,) = yaml.safe_load(path.read_text())["jobs"].values()
    assert job["env"]["CKPTKIT"] == f"{DISTRIBUTION}[torch,tf] @ git+{ADDRESS}"


def test_the_readme_points_to_it() -> None:
    assert "](.github/examples/converted-weights.yml)" in (REPOSITORY / "README.md").read_text()
