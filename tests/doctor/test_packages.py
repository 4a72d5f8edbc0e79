"""Packages that are there, missing, too old, or only recorded: with metadata made for the purpose."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path

import pytest

from ckptkit._version import __version__
from ckptkit.doctor.findings import Finding
from ckptkit.doctor.packages import examine_packages, examine_versions
from ckptkit.doctor.requirements import Requirement


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
            Requirement("fakeone", "<2,>=1", "a"),
            Requirement("fakeone", "<2,>=1", "b"),
            Requirement("fakeold", "<2,>=1", "a"),
            Requirement("fakegone", "", "a"),
            Requirement("fakemissing", "<2,>=1", "b"),
        ]
    )
    assert named(found, "fakeone") == Finding("packages", "fakeone", "ok", "1.5, extra a, b")
    assert named(found, "fakeold") == Finding(
        "packages", "fakeold", "note", "0.9, but <2,>=1 is supported, extra a", "pip install 'ckptkit[a]'"
    )
    assert named(found, "fakemissing") == Finding(
        "packages", "fakemissing", "note", "not installed, extra b", "pip install 'ckptkit[b]'"
    )
    assert named(found, "fakegone").verdict == "note"
    assert "is recorded, but the package itself is not there" in named(found, "fakegone").said


def test_what_is_always_needed(site: Path):
    install(site, "fakeone", "1.5", module="fakeone")
    install(site, "fakeold", "0.9", module="fakeold")
    found = examine_packages([Requirement(name, ">=1") for name in ("fakeone", "fakeold", "fakemissing")])
    assert [one.verdict for one in found] == ["ok", "note", "problem"]
    assert found[0].said == "1 packages, as supported"
    assert found[2].advice == "pip install --upgrade ckptkit"


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
        raise importlib.metadata.PackageNotFoundError("ckptkit")

    monkeypatch.setattr(importlib.metadata, "requires", nothing)
    (finding,) = examine_packages()
    assert finding.verdict == "note" and "without being installed" in finding.said
