"""Packages that are there, missing, too old, or only recorded: with metadata made for the purpose."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ckptkit._version import __version__
from ckptkit.base.extras import Requirement
from ckptkit.doctor.findings import Finding
from ckptkit.doctor.packages import examine_packages, examine_versions
from tests.conftest import REPOSITORY


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that Python finds first."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(site: Path, name: str, version: str, *, module: str | None = None) -> None:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if module:
        (site / f"{module}.py").write_text("raise RuntimeError('nobody may import this')\n")


def named(findings: list[Finding], name: str) -> Finding:
    (finding,) = (one for one in findings if one.name == name)
    return finding


def test_versions():
    found = {one.name: one.said for one in examine_versions()}
    assert found["ckptkit"] == __version__
    assert found["Python"].startswith(platform.python_version()) and sys.executable in found["Python"]


def test_packages_of_extras(site: Path):
    install(site, "fakeone", "1.5", module="fakeone")
    install(site, "fakeold", "0.9", module="fakeold")
    install(site, "fakegone", "1.5")
    found = examine_packages(
        [
            Requirement("fakeone", ">=1,<2", "a"),
            Requirement("fakeone", ">=1,<2", "b"),
            Requirement("fakeold", ">=1,<2", "a"),
            Requirement("fakegone", "", "a"),
            Requirement("fakemissing", ">=1,<2", "b"),
        ]
    )
    assert named(found, "fakeone") == Finding("packages", "fakeone", "ok", "1.5, extra a, b")
    assert named(found, "fakeold") == Finding(
        "packages",
        "fakeold",
        "note",
        "0.9, but >=1,<2 is supported, extra a",
        "pip install 'fakeold>=1,<2'",
    )
    assert named(found, "fakemissing") == Finding(
        "packages", "fakemissing", "note", "not installed, extra b", "pip install 'fakemissing>=1,<2'"
    )
    assert named(found, "fakegone").verdict == "note"
    assert "is recorded, but the package itself is not there" in named(found, "fakegone").said


def test_what_is_always_needed(site: Path):
    install(site, "fakeone", "1.5", module="fakeone")
    install(site, "fakeold", "0.9", module="fakeold")
    found = examine_packages([Requirement(name, ">=1") for name in ("fakeone", "fakeold", "fakemissing")])
    assert [one.verdict for one in found] == ["ok", "note", "problem"]
    assert found[0].said == "1 packages, as supported"
    assert found[2].advice == "pip install 'fakemissing>=1'"


def test_a_package_that_an_import_hook_hides(site: Path, monkeypatch: pytest.MonkeyPatch):
    install(site, "fakeone", "1.5", module="fakeone")
    monkeypatch.setitem(sys.modules, "fakeone", None)
    (_, finding) = examine_packages([Requirement("fakeone", "", "a")])
    assert finding.verdict == "note"
    assert finding.advice == "pip install --force-reinstall fakeone"


def test_every_package_installed_here_is_found():
    """Each has a module of the name that is looked for, or is listed under another."""
    found = examine_packages()
    assert [one for one in found if "itself is not there" in one.said] == []
    assert named(found, "always needed").verdict == "ok"


def test_without_metadata(monkeypatch: pytest.MonkeyPatch):
    def nothing(_name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(_name)

    monkeypatch.setattr(importlib.metadata, "requires", nothing)
    (finding,) = examine_packages()
    assert finding.verdict == "note" and "without being installed" in finding.said


def test_another_project_of_the_same_name_is_a_problem(site: Path):
    assert [one for one in examine_versions() if one.verdict != "ok"] == []
    install(site, "ckptkit", "0.3.0")
    (finding,) = [one for one in examine_versions() if one.verdict == "problem"]
    assert str(site / "ckptkit-0.3.0.dist-info") in finding.said
    assert finding.advice.startswith("pip uninstall ckptkit; then install ckptkit-cli again")


def test_a_second_copy_of_the_package_is_noted(site: Path):
    (site / "ckptkit").mkdir()
    (site / "ckptkit" / "__init__.py").touch()
    found = named(examine_versions(), "ckptkit twice")
    assert found.verdict == "note" and found.said.startswith(str(site / "ckptkit"))


@pytest.mark.parametrize(
    ("folder", "file", "author", "told"),
    [
        ("ckptkit-0.3.0.dist-info", "METADATA", "Somebody else", True),
        ("ckptkit.egg-info", "PKG-INFO", "Somebody else", True),
        ("ckptkit-0.1.0.dist-info", "METADATA", "The ckptkit authors", False),  # from before the new name
        ("ckptkit_cli-0.1.0.dist-info", "METADATA", "The ckptkit authors", False),
        ("ckptkit_more-1.0.dist-info", "METADATA", "Somebody else", False),
    ],
)
def test_an_import_tells_of_another_project_in_the_same_environment(
    tmp_path: Path, folder: str, file: str, author: str, told: bool
):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / file).write_text(f"Name: ckptkit\nVersion: 0.3.0\nAuthor: {author}\nLicense: MIT\n")
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)]), "PATH": ""}
    command = [sys.executable, "-c", "import ckptkit; import ckptkit.cli.options"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (str(tmp_path / folder) in done.stderr) is told
    assert done.stderr.count("pip uninstall ckptkit; then install ckptkit-cli again") == told
