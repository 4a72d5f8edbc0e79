"""registry validate, schema and pin, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ckptkit.registry import paths, writeback
from tests.support.commands import SHA, WHEN, Runner, cache, runner
from tests.support.registries import SMALL, write


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(capsys)


def test_validate_finds_no_fault_in_the_registry(run: Runner) -> None:
    result = run("registry", "validate")
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("registry.yaml: 42 entries, no fault\n")
    assert result.out.count("\n") == 1


def test_validate_lists_all_faults_of_all_files(run: Runner, tmp_path: Path) -> None:
    good = write(tmp_path, SMALL, "good.yaml")
    bad = write(tmp_path, SMALL.replace("variant:", "varient:"), "bad.yaml")
    worse = write(tmp_path, "entries: [", "worse.yaml")
    result = run("registry", "validate", good, bad, worse)
    assert (result.code, result.err) == (1, "")
    lines = result.out.splitlines()
    assert lines[0] == f"{good}: 44 entries, no fault"
    assert lines[1] == f"{bad}: line 9: entry 'one': variant is missing"
    assert lines[2] == f"{bad}: line 11: entry 'one': unknown key 'varient' (did you mean 'variant'?)"
    assert lines[5] == f"{bad}: 4 faults"
    assert lines[6].startswith(f"{worse}: line 2: not YAML: ")
    assert lines[7] == f"{worse}: 1 fault"
    data = json.loads(run("registry", "validate", good, bad, "--json").out)
    assert [(check["file"], check["entries"], len(check["faults"])) for check in data] == [
        (str(good), 44, 0),
        (str(bad), None, 4),
    ]


def test_validate_without_a_file_checks_those_in_use(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPTKIT_REGISTRY", str(write(tmp_path, SMALL)))
    assert run("registry", "validate").out == f"{tmp_path / 'mine.yaml'}: 44 entries, no fault\n"
    flag = write(tmp_path, "entries: [{id: one, colour: red}]", "flag.yaml")
    result = run("registry", "validate", "--registry", flag)
    assert result.code == 1
    assert result.out.startswith(f"{flag}: line 1: entry 'one': unknown key 'colour'")


def test_schema_is_json(run: Runner) -> None:
    schema = json.loads(run("registry", "schema").out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "sha256" in schema["$defs"]["Entry"]["properties"]


def test_pin_writes_what_was_observed(run: Runner, tmp_path: Path) -> None:
    record = cache("moat0-224")
    overlay = tmp_path / "mine.yaml"
    trial = run("registry", "pin", "moat0-224", "--file", overlay, "--dry-run")
    assert trial.code == 0 and not overlay.exists()
    assert f'+    sha256: "{SHA}"' in trial.out.splitlines()
    result = run("registry", "pin", "moat0-224", "--file", overlay)
    assert result.code == 0
    assert result.out == f"moat0-224  sha256 {SHA}  5 bytes  {WHEN}\n"
    assert yaml.safe_load(overlay.read_text())["entries"] == [
        {
            "id": "moat0-224",
            "sha256": SHA,
            "size": 5,
            "hash_provenance": {"observed_at": WHEN, "url": record.url},
        }
    ]
    again = run("registry", "pin", "moat0-224", "--registry", overlay)
    assert (again.code, again.err) == (0, f"{overlay}: holds all of this already\n")
    assert (
        "would stay as it is" in run("registry", "pin", "moat0-224", "--registry", overlay, "--dry-run").err
    )
    shown = run("show", "moat0-224", "--registry", overlay).out
    assert f"sha256              {SHA}\n" in shown
    assert f"observed {WHEN} from {record.url}" in shown


def test_pin_of_another_checksum_needs_force(run: Runner, tmp_path: Path) -> None:
    cache("moat0-224")
    overlay = tmp_path / "mine.yaml"
    run("registry", "pin", "moat0-224", "--file", overlay)
    before = overlay.read_text()
    overlay.write_text(before.replace(SHA, "f" * 64))
    result = run("registry", "pin", "moat0-224", "--registry", overlay)
    assert result.code == 5
    assert f"the fetched file has sha256 {SHA}, but {'f' * 64} is pinned" in result.err
    assert overlay.read_text() == before.replace(SHA, "f" * 64)
    assert run("registry", "pin", "moat0-224", "--registry", overlay, "--force").code == 0
    assert overlay.read_text() == before


def test_pin_refuses_the_upload_without_statistics(run: Runner, tmp_path: Path) -> None:
    cache("moat0-224", bn_statistics=False)
    overlay = tmp_path / "mine.yaml"
    result = run("registry", "pin", "moat0-224", "--file", overlay)
    assert result.code == 2
    assert "without BatchNorm statistics" in result.err
    assert not overlay.exists()
    assert run("registry", "pin", "moat0-224", "--file", overlay, "--force").code == 0


def test_pin_is_all_or_nothing(run: Runner, tmp_path: Path) -> None:
    cache("moat0-224")
    overlay = tmp_path / "mine.yaml"
    result = run("registry", "pin", "moat?-224", "--file", overlay)
    assert (result.code, result.out) == (3, "")
    assert "moat1-224 was never fetched here" in result.err
    assert not overlay.exists()


def test_an_installed_ckptkit_does_not_write_into_itself(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache("moat0-224")
    monkeypatch.setattr(paths, "in_source_tree", lambda: False)
    result = run("registry", "pin", "moat0-224")
    assert (result.code, result.out) == (2, "")
    assert "--file FILE" in result.err


def test_pin_in_a_source_tree_writes_its_registry(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache("moat0-224")
    original = paths.built_in_path().read_text(encoding="utf-8")
    tree = write(tmp_path, original, "registry.yaml")
    (tmp_path / "pyproject.toml").write_text("")
    for module in (paths, writeback):
        monkeypatch.setattr(module, "built_in_path", lambda: tree)
    assert run("registry", "pin", "moat0-224").code == 0
    changed = [line for line in tree.read_text().splitlines() if line not in original.splitlines()]
    assert [line.split(":")[0].strip() for line in changed] == ["sha256", "size", "hash_provenance"]
