"""Files of pictures: the same bytes each time, and no state of matplotlib's touched."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

mpl = pytest.importorskip("matplotlib")

from ckptkit.analysis.drawing import FIGURES  # noqa: E402
from ckptkit.analysis.plot.figure import render  # noqa: E402
from ckptkit.analysis.plot.points import (  # noqa: E402
    X_MEASURES,
    Y_MEASURES,
    FigureOptions,
    collect,
)
from ckptkit.base.errors import UsageError  # noqa: E402
from tests.support.registries import published  # noqa: E402

X, Y = X_MEASURES["params"], Y_MEASURES["top1"]


def tiny(form: str, **options: Any) -> bytes:
    points = collect(published().find(variant="tiny-moat*"), X, Y)
    return render(points, X, Y, FigureOptions(**options), form)[0]


ELSEWHERE = """
import hashlib, sys
from ckptkit.analysis.drawing import FIGURES
from tests.analysis.plot.test_figure import tiny
for form in FIGURES.values():
    print(form, hashlib.sha256(tiny(form)).hexdigest())
assert "matplotlib.pyplot" not in sys.modules
"""


def test_another_process_draws_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "12345")
    monkeypatch.setenv("MPLBACKEND", "pdf")
    found = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, check=True)
    expected = [f"{form} {hashlib.sha256(tiny(form)).hexdigest()}" for form in FIGURES.values()]
    assert found.stdout.splitlines() == expected


@pytest.mark.parametrize(("form", "beginning"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF-")])
def test_each_form_is_what_it_says(form: str, beginning: bytes) -> None:
    data = tiny(form)
    assert data.startswith(beginning)
    for word in (b"CreationDate", b"dc:date", b"tIME", b"Software"):
        assert word not in data


def test_settings_of_the_caller_stay() -> None:
    before = dict(mpl.rcParams)
    tiny("svg")
    assert dict(mpl.rcParams) == before


def test_the_settings_of_the_caller_do_not_matter() -> None:
    plain = tiny("svg")
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "none", "axes.grid": False}):
        assert tiny("svg") == plain


def test_size_and_dpi_of_a_png() -> None:
    data = tiny("png", size=(5.0, 4.0), dpi=50)
    assert struct.unpack(">II", data[16:24]) == (250, 200)


def test_dark_pictures_are_dark() -> None:
    assert b"#14171c" in tiny("svg", dark=True)
    assert b"#14171c" not in tiny("svg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (2.0, 4.0)}, "2 x 4 inches"),
        ({"size": (float("nan"), 4.0)}, "nan x 4 inches"),
        ({"dpi": 10}, "at 10 pixels"),
        ({"dpi": 1201}, "at 1201 pixels"),
        ({"size": (60.0, 60.0), "dpi": 300}, "at 300 pixels"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FigureOptions(**options)


PICTURES = """
import os
from ckptkit.cli.app import main
for line in ("plot -o plot.png", "logs log.csv -o log.svg"):
    try:
        main(line.split())
    except SystemExit as left:
        assert not left.code, line
import matplotlib
print(os.environ["MPLBACKEND"], matplotlib.rcParams["backend"])
"""


@pytest.mark.parametrize(
    "backend",
    ["nonsense", "svg", pytest.param("module://matplotlib_inline.backend_inline", marks=pytest.mark.slow)],
)
def test_no_backend_of_the_environment_is_needed(tmp_path: Path, backend: str) -> None:
    (tmp_path / "log.csv").write_text("epoch,train_loss,eval_top1\n0,2,50\n1,1,60\n")
    done = subprocess.run(
        [sys.executable, "-c", PICTURES],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": backend, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plot.png").stat().st_size > 10_000 and (tmp_path / "log.svg").exists()
    kept, used = done.stdout.split()[-2:]
    assert kept == backend  # for the processes that this one starts, and for whoever shows pictures
    assert used == "svg" or backend != "svg"
