from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from ckptkit.base import plugins
from tests.support.plugins import install

GROUP = "ckptkit.tests"
SOURCE = """
class Thing:
    def __init__(self, name): self.name = name
one, two, other = Thing("one"), Thing("two"), Thing("another")
"""


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    plugins.forget()


def _warned(*arguments: object) -> tuple[dict[str, object], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = plugins.load(*arguments)  # type: ignore[arg-type]
    assert all(one.category is plugins.PluginWarning for one in caught)
    return found, [str(one.message) for one in caught]


def test_objects_of_installed_packages_are_found_by_name(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, SOURCE, {GROUP: {"one": "ckptkit_toy:one", "two": "ckptkit_toy:two"}})

    found, warned = _warned(GROUP)

    assert [type(thing).__name__ for thing in found.values()] == ["Thing", "Thing"]
    assert list(found) == ["one", "two"]
    assert warned == []
    assert plugins.load("ckptkit.others") == {}


def test_the_installed_packages_are_looked_through_once(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, SOURCE, {GROUP: {"one": "ckptkit_toy:one"}})

    assert plugins.load(GROUP)["one"] is plugins.load(GROUP)["one"]
    assert plugins.load.cache_info().misses == 1


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
    "import": ("ckptkit_toy:one", "cannot be loaded (SyntaxError: invalid syntax (ckptkit_toy.py, line 1))"),
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
