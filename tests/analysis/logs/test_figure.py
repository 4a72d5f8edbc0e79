"""The pictures: deterministic, of the kind asked for, with everything in them that was asked for."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from ckptkit.analysis.drawing import picture_kind
from ckptkit.analysis.logs.figure import draw_log
from ckptkit.analysis.logs.readers import Epoch, TrainingLog
from ckptkit.base.errors import UsageError

pytest.importorskip("matplotlib")

LOG = TrainingLog(
    "moganet-xt-224",
    Path("a.log.json"),
    "mmcv",
    tuple(
        Epoch(number, train_loss=7 - number / 10, top1=40 + number, top5=50 + number, lr=0.001 / number)
        for number in range(1, 31)
    ),
    published_top1=69.5,
)


@pytest.mark.parametrize(("form", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_same_log_gives_the_same_bytes(form: str, magic: bytes):
    first = draw_log(LOG, form)
    assert first.startswith(magic)
    assert draw_log(LOG, form) == first
    assert draw_log(replace(LOG, published_top1=60.0), form) != first


def texts(log: TrainingLog, metric: str | None = None) -> str:
    """The picture as SVG: letters are drawn as outlines, with the text in a comment before them."""
    return draw_log(log, "svg", metric=metric).decode()


def test_what_stands_in_the_picture():
    text = texts(LOG)
    for wanted in (
        "loss",
        "accuracy, %",
        "learning rate",
        "published top-1 69.5%",
        "best: 70.00% at epoch 30",
    ):
        assert f"<!-- {wanted} -->" in text, wanted
    assert "published top-5" not in text
    assert "moganet-xt-224: training log, 30 epochs" in text


def test_a_log_of_figures_nobody_knows_is_drawn_with_them():
    own = replace(LOG, epochs=tuple(Epoch(n, others={"f1": n / 4}) for n in range(3)), published_top1=None)
    text = texts(own)
    assert "<!-- f1 -->" in text and "best" not in text


def test_panels_without_figures_are_left_out():
    bare = replace(LOG, epochs=tuple(Epoch(n, train_loss=5.0 - n) for n in range(3)), published_top1=None)
    text = texts(bare)
    assert "<!-- loss -->" in text and "best: 3 at epoch 2" in text
    assert "accuracy" not in text and "learning rate" not in text


def test_a_figure_of_the_logs_own_gets_a_panel():
    epochs = tuple(replace(epoch, others={"head1_top1": 30.0}) for epoch in LOG.epochs)
    text = texts(replace(LOG, epochs=epochs), "head1_top1")
    assert "<!-- head1_top1 -->" in text and "best: 30.00% at epoch 1" in text
    with pytest.raises(UsageError, match="no figure 'head2_top1'"):
        draw_log(LOG, "svg", metric="head2_top1")


def test_gaps_and_what_is_no_number_are_drawn_over():
    epochs = (Epoch(1, train_loss=5.0), Epoch(2, train_loss=float("nan")), Epoch(3), Epoch(4, train_loss=4.0))
    assert draw_log(replace(LOG, epochs=epochs)).startswith(b"\x89PNG")
    nothing = replace(LOG, epochs=(Epoch(1, train_loss=float("nan")),))
    assert draw_log(nothing).startswith(b"\x89PNG")


def test_the_picture_is_not_blank():
    data = draw_log(LOG, "png")
    width, height, _depth, colour = struct.unpack(">IIBB", data[16:26])
    assert (width, height) == (960, 1080) and colour == 6
    start, pixels = 8, b""
    while start < len(data):
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        pixels += data[start + 8 : start + 8 + length] if kind == b"IDAT" else b""
        start += 12 + length
    assert len(set(zlib.decompress(pixels))) > 50


def test_names_that_no_picture_has():
    assert picture_kind(Path("a.PDF")) == "pdf"
    for name in ("log.jpg", "log", "png"):
        with pytest.raises(UsageError, match=r"choose from \.png, \.svg, \.pdf"):
            picture_kind(Path(name))


def test_names_are_no_formulas_and_fit():
    text = texts(replace(LOG, name=r"/data/$\nosuch{/" + "long/" * 40 + "a.log.json"))
    assert "training log, 30 epochs" in text and "/data" not in text
    assert r"$\nosuch{" in texts(replace(LOG, name=r"$\nosuch{"))
