"""From entries to a file, by the ending of its name."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

import ckptkit
from ckptkit.analysis.drawing import picture_kind
from ckptkit.analysis.plot.figure import _KINDS, save_plot
from ckptkit.base.errors import MissingDependencyError, NotFoundError, StorageError, UsageError
from tests.support.commands import pip_install
from tests.support.registries import published

TINY = published().find(variant="tiny-moat*")


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.png", "png"), ("a.SVG", "svg"), ("a.b.pdf", "pdf"), ("a.html", "html"), ("a.htm", "html")],
)
def test_the_ending_says_the_form(name: str, form: str) -> None:
    assert picture_kind(Path(name), _KINDS) == form


@pytest.mark.parametrize("name", ["a.jpg", "a", "png", "a.png.gz", ".png"])
def test_other_endings_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"choose from \.png, \.svg, \.pdf, \.html, \.htm"):
        save_plot(TINY, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_was_drawn_is_said(tmp_path: Path) -> None:
    registry = published()
    ids = ("moganet-b-224", "moganet-b-224-timm", "moganet-s-224", "moganet-s-224-nofp32gate")
    saved = save_plot([registry[id] for id in ids], tmp_path / "a.html")
    assert (saved.points, saved.entries) == (2, 3)
    assert saved.missing == "1 entry is not shown: no published top-1 accuracy"


@pytest.mark.parametrize("ending", [".png", ".html"])
def test_an_existing_file_stays_unless_forced(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    path.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        save_plot(TINY, path)
    assert path.read_text() == "mine"
    save_plot(TINY, path, force=True)
    assert path.stat().st_size > 5000
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no entry to draw"):
        save_plot([], tmp_path / "a.png")
    with pytest.raises(UsageError, match="none of 8 entries has published parameters and top-5 accuracy"):
        save_plot(TINY, tmp_path / "a.png", y="top5")
    with pytest.raises(UsageError, match="unknown axis 'size'; choose from params, flops"):
        save_plot(TINY, tmp_path / "a.png", x="size")


def test_without_matplotlib_there_are_pages_but_no_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("a.png", "a.svg", "a.pdf"):
        with pytest.raises(MissingDependencyError, match=re.escape(pip_install("matplotlib"))):
            save_plot(TINY, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    save_plot(TINY, tmp_path / "a.html")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    import os

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="no space left"):
        save_plot(TINY, tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_the_python_face(tmp_path: Path) -> None:
    path = ckptkit.plot(tmp_path / "a.html", TINY, x="flops", log=False, title="Mine")
    assert path == tmp_path / "a.html"
    text = path.read_text()
    assert "<h1>Mine</h1>" in text
    assert '"start":{"x":"flops","y":"top1","log":false,"labels":true,"pareto":true}' in text


def test_the_python_face_draws_the_registry_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(
        "entries:\n"
        "  - {id: mine, family: moat, variant: moat0, display_name: Mine, layout: deeplab2, format: tf,\n"
        "     published_params: 5M, published_top1: 80.0, sources: [{url: 'https://a.org/x.pth'}]}\n"
    )
    monkeypatch.setenv("CKPTKIT_REGISTRY", str(overlay))
    text = ckptkit.plot(tmp_path / "a.html").read_text()
    assert text.count('"id":"mine"') == 1
    assert text.count('"label":') == len(published().find(task="image-classification")) + 1
