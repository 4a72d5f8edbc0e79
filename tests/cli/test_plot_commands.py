"""plot, as a user runs it."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from tests.support.commands import Runner, cache, pip_install, runner
from tests.support.pages import check_page


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.chdir(tmp_path)
    return runner(capsys)


def drawn(path: str) -> list[str]:
    """Ids in a page."""
    return [entry["id"] for entry in check_page(Path(path).read_text(encoding="utf-8")).data["entries"]]


def test_a_picture(run: Runner) -> None:
    pytest.importorskip("matplotlib")
    result = run("plot", "tiny-*", "-o", "a.png", "--size", "5x4", "--dpi", "60")
    assert (result.code, result.out, result.err) == (0, "a.png\n", "8 entries at 8 points\n")
    data = Path("a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (300, 240)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["moat[01]-224"], ["moat0-224", "moat1-224"]),
        (["--family", "moat", "--max-params", "5M"], ["tiny-moat0-256", "tiny-moat0-256-noposemb"]),
        (["--min-top1", "88.9"], ["moat4-512", "moat4-512-noposemb"]),
        (["--resolution", "384", "--no-pos-emb"], ["moat2-384-noposemb"]),
        (["--setting", "DeiT III"], ["moganet-xt-256-deit3", "moganet-t-256-deit3"]),
        (["--pretrain", "*22K*", "--min-flops", "600B"], ["moat4-512", "moat4-512-noposemb"]),
        (
            ["--variant", "moganet-xl", "--max-flops", "40G", "--min-params", "100M"],
            ["moganet-xl-224", "moganet-xl-224-timm", "moganet-xl-mmpretrain"],
        ),
        (["--max-top1", "75"], ["moganet-xt-160-rsba3"]),
    ],
)
def test_every_filter_of_list(run: Runner, arguments: list[str], expected: list[str]) -> None:
    assert run("plot", *arguments, "-o", "a.html").code == 0
    assert drawn("a.html") == expected


def test_cached_or_not(run: Runner) -> None:
    cache("moat1-224")
    assert run("plot", "--cached", "-o", "a.html").code == 0
    assert drawn("a.html") == ["moat1-224"]


def test_what_is_left_out_is_said(run: Runner) -> None:
    result = run(
        "plot", "moganet-s-*", "-o", "a.html", "--y", "top5", "--x", "flops", "--linear", "--no-pareto"
    )
    assert "4 entries are not shown: no published FLOPs or top-5 accuracy\n" in result.err
    assert "4 entries at 3 points" in result.err
    start = check_page(Path("a.html").read_text()).data["start"]
    assert start == {"x": "flops", "y": "top5", "log": False, "labels": True, "pareto": False}


@pytest.mark.parametrize("y", ["box_mAP", "box-map", "BOXMAP"])
def test_any_published_metric(run: Runner, y: str) -> None:
    result = run("plot", "moganet-[xb]*", "--y", y, "-o", "a.html")
    assert (result.code, result.err) == (0, "6 entries at 6 points\n")  # classifiers are not missed
    data = check_page(Path("a.html").read_text(encoding="utf-8")).data
    assert data["start"]["y"] == "box_mAP" and data["axes"]["box_mAP"] == "box_mAP, COCO 2017 val"
    assert {entry["id"]: entry["box_mAP"] for entry in data["entries"]} == {
        "moganet-xt-coco-retinanet-1x": 39.7,
        "moganet-b-coco-retinanet-1x": 47.7,
        "moganet-xt-coco-maskrcnn-1x": 40.7,
        "moganet-b-coco-maskrcnn-1x": 49.0,
        "moganet-b-coco-maskrcnn-ms3x": 50.3,
        "moganet-b-coco-cascade-giou-ms3x": 52.6,
    }
    assert [series["words"] for series in data["series"]][:2] == ["RetinaNet, 1x", "Mask R-CNN, 1x"]


def test_a_metric_that_nobody_has(run: Runner) -> None:
    result = run("plot", "moat*", "--y", "box_mAP", "-o", "a.html")
    assert result.code == 2 and "top1, top5" in result.err and not Path("a.html").exists()


def test_points_without_room_for_a_label_are_counted(run: Runner) -> None:
    pytest.importorskip("matplotlib")
    result = run("plot", "--family", "moganet", "-o", "a.svg", "--size", "2.5x2.5")
    assert "points left without a name: no room; try a larger --size, or fewer entries" in result.err
    assert "no label" not in run("plot", "-o", "b.svg", "--size", "2.5x2.5", "--no-labels").err


def test_a_dry_run_writes_nothing(run: Runner, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run("plot", "tiny-*", "-o", "a.png", "--dry-run")
    assert (result.code, result.out) == (0, "")
    assert "would draw 8 entries at 8 points into a.png" in result.err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused(run: Runner) -> None:
    Path("a.html").write_text("mine")
    assert run("plot", "tiny-*", "-o", "a.html").code == 2
    assert Path("a.html").read_text() == "mine"
    assert run("plot", "tiny-*", "-o", "a.html", "--force").code == 0
    assert len(drawn("a.html")) == 8


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["-o", "a.jpg"],
            2,
            "cannot tell the picture format from 'a.jpg'; choose from .png, .svg, .pdf, .html, .htm",
        ),
        (
            ["-o", "a.png", "--size", "9"],
            2,
            "--size: invalid size '9'; write width and height in inches, like 9x5.6",
        ),
        (["-o", "a.png", "--size", "1x1"], 2, "give sides from 2.5 to 60 inches"),
        (["-o", "a.png", "--dpi", "9999"], 2, "give a dpi from 30 to 1200"),
        (["-o", "a.png", "moat9"], 3, "no entry 'moat9'"),
        (["-o", "a.png", "x*"], 3, "no id matches 'x*'"),
        (["-o", "a.png", "--min-top1", "99.9"], 3, "no entry to draw"),
        (["-o", "a.png", "moat*", "--y", "top5"], 2, "none of 11 entries has published parameters and top-5"),
        (["-o", "a.png", "--min-params", "many"], 2, "'many' is not a number"),
    ],
)
def test_one_line_says_what_is_wrong(run: Runner, arguments: list[str], code: int, message: str) -> None:
    pytest.importorskip("matplotlib")
    result = run("plot", *arguments)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    assert not Path("a.png").exists()


def test_without_matplotlib_it_says_what_to_install(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("plot", "-o", "a.pdf")
    assert result.code == 6
    assert result.err == f"error: a PNG, SVG or PDF picture needs matplotlib; {pip_install('matplotlib')}\n"
    assert run("plot", "-o", "a.html").code == 0
