"""Which versions are supported, by hand; lines of metadata; what is said of a missing package."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

from ckptkit._version import DISTRIBUTION
from ckptkit.base.errors import MissingDependencyError
from ckptkit.base.extras import Requirement, install_command, requirements
from tests.support.commands import pip_install


def requires(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", {DISTRIBUTION: lines}.__getitem__)


@pytest.mark.parametrize(
    ("supported", "inside", "outside"),
    [
        ("<2.14,>=2.6", ["2.6", "2.6.0", "2.13.1+cu121", "2.10"], ["2.14", "2.14.0", "2.5.9", "1.99", "3"]),
        (">=2024.2", ["2024.2", "2024.2.1", "2026.9.0"], ["2024.1", "2023.12.31"]),
        ("==1.5", ["1.5", "1.5.0"], ["1.5.1", "1.4"]),
        ("!=1.5,>1.4,<=1.7", ["1.6", "1.7.0", "1.4.1"], ["1.5", "1.5.0", "1.4", "1.7.1"]),
        ("~=1.4.2", ["1.4.2", "1.4.9"], ["1.5", "1.4.1", "2.0"]),
        ("", ["0", "99"], []),
    ],
)
def test_ranges(supported: str, inside: list[str], outside: list[str]):
    one = Requirement("anything", supported)
    assert [version for version in inside if not one.supports(version)] == []
    assert [version for version in outside if one.supports(version)] == []


@pytest.mark.parametrize(
    ("version", "supported"),
    [("2.13.0rc1", True), ("2.7.0.dev20260101+cu128", True), ("2.14.0rc1", False), ("of today", False)],
)
def test_versions_before_a_release_and_what_is_not_a_version(version: str, supported: bool):
    assert Requirement("torch", ">=2.6,<2.14").supports(version) is supported


def test_what_stands_in_ckptkits_own_metadata():
    found = {(one.name, one.extra): one.supported for one in requirements()}
    assert found["requests", ""] == ">=2.31,<3"
    assert ("torch", "torch") in found and ("matplotlib", "plot") in found
    assert not {extra for _, extra in found} & {"all", "dev"}


def test_lines_of_metadata(monkeypatch: pytest.MonkeyPatch):
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    requires(
        monkeypatch,
        "numpy<3,>=1.26",
        "moto[server]<6,>=5; extra == 's3'",
        f"older<2; (python_version < '{version}') and extra == 'zstd'",
        f"newer>=1; (python_version >= '{version}') and extra == \"zstd\"",
        "torch (>=2.6) ; extra == 'torch'",
        "everything; extra == 'all'",
        "???",
    )
    assert requirements() == [
        Requirement("numpy", ">=1.26,<3"),
        Requirement("moto", ">=5,<6", "s3"),
        Requirement("newer", ">=1", "zstd"),
        Requirement("torch", ">=2.6", "torch"),
    ]


def test_every_optional_package_has_one_range_and_a_command_that_names_it():
    ranges: dict[str, set[str]] = {}
    for one in requirements():
        ranges.setdefault(one.name, set()).add(one.supported)
        if one.extra:
            name = {"huggingface-hub": "huggingface_hub", "backports-zstd": "backports.zstd"}.get(
                one.name, one.name
            )
            assert install_command(name) == pip_install(name)
    assert {name: found for name, found in ranges.items() if len(found) > 1} == {}


def test_without_metadata_the_package_is_named_all_the_same(monkeypatch: pytest.MonkeyPatch):
    def nothing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", nothing)
    error = MissingDependencyError("a picture", "matplotlib", "pillow")
    assert str(error) == "a picture needs matplotlib and pillow; pip install matplotlib pillow"
