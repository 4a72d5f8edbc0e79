"""Which versions are supported, by hand; lines of metadata; a missing package's message; plug-ins."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from ckptkit._version import DISTRIBUTION
from ckptkit.base import packages
from ckptkit.base.errors import MissingDependencyError
from ckptkit.base.packages import Requirement, install_command, requirements
from tests.support.commands import pip_install
from tests.support.plugins import install


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
    assert found["requests", ""] == ">=2.31"
    assert found["torch", "torch"] == ">=2.6,<2.14"
    assert ("matplotlib", "plot") in found
    assert not {extra for _, extra in found} & {"all", "test", "dev"}


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


GROUP = "ckptkit.tests"
SOURCE = """
class Thing:
    def __init__(self, name): self.name = name
one, two, other = Thing("one"), Thing("two"), Thing("another")
"""


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    packages.forget_plugins()


def _warned(*arguments: object) -> tuple[dict[str, object], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = packages.plugins(*arguments)  # type: ignore[arg-type]
    assert all(one.category is packages.PluginWarning for one in caught)
    return found, [str(one.message) for one in caught]


def test_objects_of_installed_packages_are_found_by_name(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, SOURCE, {GROUP: {"one": "ckptkit_toy:one", "two": "ckptkit_toy:two"}})

    found, warned = _warned(GROUP)

    assert [type(thing).__name__ for thing in found.values()] == ["Thing", "Thing"]
    assert list(found) == ["one", "two"]
    assert warned == []
    assert packages.plugins("ckptkit.others") == {}


def test_the_installed_packages_are_looked_through_once(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, SOURCE, {GROUP: {"one": "ckptkit_toy:one"}})

    assert packages.plugins(GROUP)["one"] is packages.plugins(GROUP)["one"]
    assert packages.plugins.cache_info().misses == 1


BROKEN = {
    "raise RuntimeError('no \\x1b[31mred\\nday')": (
        "ckptkit_toy:one",
        "cannot be loaded (RuntimeError: no \\x1b[31mred day)",
    ),
    "import nothing_of_this_name": (
        "ckptkit_toy:one",
        "cannot be loaded (ModuleNotFoundError: No module named 'nothing_of_this_name')",
    ),
    "raise SystemExit(3)": ("ckptkit_toy:one", "cannot be loaded (SystemExit: 3)"),
    "x ===": ("ckptkit_toy:one", "cannot be loaded (SyntaxError: invalid syntax (ckptkit_toy.py, line 1))"),
    "x = 1": (
        "ckptkit_toy:one",
        "cannot be loaded (AttributeError: module 'ckptkit_toy' has no attribute 'one')",
    ),
    "one = 'a text'": ("ckptkit_toy:one", "calls itself None"),
    SOURCE: ("ckptkit_toy:other", "calls itself 'another'"),
}


@pytest.mark.parametrize(("source", "expected"), BROKEN.items(), ids=[said for _, said in BROKEN.values()])
def test_a_broken_one_is_a_warning_that_names_its_package(tmp_path, monkeypatch, source, expected):
    place, reason = expected
    install(tmp_path / "broken", monkeypatch, source, {GROUP: {"one": place}}, package="ckptkit-broken")
    good = "class Thing: name = 'good'\ngood = Thing()"
    install(
        tmp_path / "good", monkeypatch, good, {GROUP: {"good": "ckptkit_good:good"}}, module="ckptkit_good"
    )

    found, warned = _warned(GROUP)

    assert list(found) == ["good"]
    assert warned == [f"the plug-in 'one' of ckptkit-broken 1.2 ({GROUP}) {reason} and is left out"]


def test_what_is_not_of_the_wanted_kind_is_left_out(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, SOURCE, {GROUP: {"one": "ckptkit_toy:one"}})

    found, warned = _warned(GROUP, dict)

    assert found == {}
    assert warned == [
        f"the plug-in 'one' of ckptkit-toy 1.2 ({GROUP}) is of type 'Thing', not dict, and is left out"
    ]


def test_names_that_are_taken_are_left_out(tmp_path, monkeypatch):
    points = {GROUP: {"one": "ckptkit_toy:one", "two": "ckptkit_toy:two"}}
    install(tmp_path / "first", monkeypatch, SOURCE, points)
    install(tmp_path / "second", monkeypatch, SOURCE, points, package="ckptkit-yet-another")

    found, warned = _warned(GROUP, object, ("two",))

    assert list(found) == ["one"]
    assert [text.partition(" (")[0] for text in warned] == [
        "the plug-in 'one' of ckptkit-yet-another 1.2",
        "the plug-in 'two' of ckptkit-toy 1.2",
        "the plug-in 'two' of ckptkit-yet-another 1.2",
    ]
    assert all(text.endswith("has a name that is taken and is left out") for text in warned)


def test_damaged_metadata_does_not_hide_the_warning(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "x = 1", {GROUP: {"one": "ckptkit_toy:one"}})
    (tmp_path / "ckptkit_toy-1.2.dist-info" / "METADATA").write_bytes(b"\xff\xfe\0")

    found, warned = _warned(GROUP)

    assert found == {}
    assert len(warned) == 1
    assert "ckptkit_toy:one" in warned[0] or "ckptkit-toy" in warned[0]


def test_no_command_of_built_in_things_looks_for_plug_ins():
    code = (
        "import importlib.metadata as m; real = m.entry_points\n"  # pydantic looks for its own
        "m.entry_points = lambda **k: 1/0 if k['group'].startswith('ckptkit') else real(**k)\n"
        "from ckptkit.cli.app import main; main(['list', '--json'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert run.returncode == 0, run.stderr
