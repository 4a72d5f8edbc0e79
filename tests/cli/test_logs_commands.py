"""``ckptkit logs`` as people call it: words, tables, pictures, exit codes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptkit.registry.loading import load_registry
from tests.support.commands import Runner, pip_install, runner
from tests.support.http_server import FaultServer, status
from tests.support.running import finish, start
from tests.support.training_logs import (
    PLAIN,
    THREE_EPOCHS,
    long_log,
    mmcv_log,
    summary,
    train_line,
    val_line,
)

WITHOUT_MATPLOTLIB = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("hidden: " + name)
sys.meta_path.insert(0, Hidden())
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "three.log.json").write_text(THREE_EPOCHS)
    return runner(capsys)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """A mirror of the place where the logs are published."""
    with FaultServer() as running:
        url = load_registry()["moganet-xt-224"].log_url or ""
        monkeypatch.setenv("CKPTKIT_MIRROR", f"{url.rpartition('/')[0]}={running.base}")
        running.serve("/" + url.rpartition("/")[2], THREE_EPOCHS.encode())
        yield running


def test_an_entry_beside_its_published_figures(run: Runner, server: FaultServer):
    done = run("logs", "moganet-xt-224")
    assert done.code == 0
    assert [line.split() for line in done.out.splitlines()] == [
        ["moganet-xt-224:", "mmcv", "log,", "3", "epochs", "(1", "to", "3)"],
        ["epoch", "training", "loss", "top-1", "top-5", "learning", "rate", "time"],
        ["best", "2", "5.2500", "76.75%", "93.50%", "5.00e-04", "1:40"],
        ["last", "3", "4.3000", "76.25%", "93.75%", "1.00e-05", "1:40"],
        ["published", "76.50%", "93.40%"],
        ["best", "top-1", "76.75%", "at", "epoch", "2,", "published", "76.5%:", "+0.25"],
    ]
    again = run("logs", "moganet-xt-224", "--offline")
    assert (again.code, again.out) == (0, done.out)
    assert len(server.requests) == 1
    run("logs", "moganet-xt-224", "--refresh")
    assert len(server.requests) == 2


DETECTOR = mmcv_log(
    [
        train_line(11, 50, 0.81, loss_rpn_cls=0.02, acc=95.1),
        {
            **{"mode": "val", "epoch": 11, "iter": 625, "lr": 0.0001, "bbox_mAP": 0.401, "bbox_mAP_50": 0.63},
            **{"segm_mAP": 0.372, "bbox_mAP_copypaste": "0.401 0.630 0.441 0.238 0.442 0.529"},
        },
        train_line(12, 50, 0.79, loss_rpn_cls=0.01, acc=95.3),
        {"mode": "val", "epoch": 12, "iter": 625, "lr": 1e-05, "bbox_mAP": 0.407, "segm_mAP": 0.376},
    ]
)
"""As mmdet 2 writes it: metrics are parts of one, and there is a text to paste into a spreadsheet."""


def test_a_detector_beside_its_published_metrics(
    run: Runner, server: FaultServer, monkeypatch: pytest.MonkeyPatch
):
    entry = load_registry()["moganet-xt-coco-maskrcnn-1x"]
    url = entry.log_url or ""
    server.serve("/" + url.rpartition("/")[2], DETECTOR.encode())
    monkeypatch.setenv("CKPTKIT_MIRROR", f"{url.rpartition('/')[0]}={server.base}")
    done = run("logs", entry.id)
    assert done.code == 0
    assert [line.split() for line in done.out.splitlines()[1:]] == [
        ["epoch", "training", "loss", "learning", "rate", "time", "bbox_mAP", "segm_mAP"],
        ["best", "12", "0.7900", "1.00e-05", "0:25", "0.4070", "0.3760"],
        ["last", "12", "0.7900", "1.00e-05", "0:25", "0.4070", "0.3760"],
        ["published", "0.4070", "0.3760"],
        ["best", "bbox_mAP", "0.4070", "at", "epoch", "12,", "published", "0.4070:", "+0.0000"],
    ]
    values = json.loads(run("logs", entry.id, "--json").out)
    assert (values["metric"], values["difference"], values["published"]["box_mAP"]) == ("bbox_mAP", 0.0, 40.7)


@pytest.mark.parametrize(
    ("figures", "metric"),
    [
        ({"aAcc": 0.8, "mIoU": 0.477, "mAcc": 0.598}, "mIoU"),
        ({"AP": 0.749, "AP .5": 0.907, "AR": 0.801, "AR (M)": 0.757}, "AP"),
        ({"segm_mAP": 0.4}, "segm_mAP"),
    ],
)
def test_what_decides_the_best_epoch_of_dense_tasks(run: Runner, figures: dict[str, float], metric: str):
    lines = [train_line(1, 50, 0.5), {"mode": "val", "epoch": 1, "iter": 5, "lr": 0.1, **figures}]
    Path("dense.log.json").write_text(mmcv_log(lines))
    done = run("logs", "dense.log.json", "-o", "dense.png")
    assert f"best {metric} {figures[metric]:.4f} at epoch 1" in done.out and Path("dense.png").exists()


def test_json_has_everything(run: Runner, server: FaultServer):
    values = json.loads(run("logs", "moganet-xt-224", "--json").out)
    assert (values["name"], values["framework"], values["metric"]) == ("moganet-xt-224", "mmcv", "top1")
    assert (values["best"]["epoch"], values["last"]["epoch"], values["difference"]) == (2, 3, 0.25)
    assert [epoch["top1"] for epoch in values["epochs"]] == [10.25, 76.75, 76.25]
    assert values == json.loads(run("logs", "moganet-xt-224", "--format", "json").out)


def test_csv_can_be_read_back(run: Runner):
    rows = list(csv.DictReader(io.StringIO(run("logs", "three.log.json", "--format", "csv").out)))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["top1"]) for row in rows] == [10.25, 76.75, 76.25]
    assert list(rows[0]) == ["epoch", "train_loss", "top1", "top5", "lr", "seconds"]


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ([], ["287", "300"]),
        (["--every", "100"], ["100", "200", "300", "287", "300"]),
        (["--every", "299"], ["299", "300", "287", "300"]),
    ],
)
def test_rows_of_their_own(run: Runner, options: list[str], epochs: list[str]):
    Path("long.json").write_text(long_log())
    lines = run("logs", "long.json", *options).out.splitlines()[2:-1]
    assert [line.replace("best", "").replace("last", "").split()[0] for line in lines] == epochs


@pytest.mark.parametrize("option", ["--all-epochs", "--verbose"])
def test_every_epoch(run: Runner, option: str):
    assert len(run("logs", "three.log.json", option).out.splitlines()) == 2 + 3 + 2 + 1


def test_another_metric(run: Runner):
    done = run("logs", "three.log.json", "--metric", "train_loss")
    assert done.out.splitlines()[-1].startswith("best training loss 4.3000 at epoch 3; no published figure")
    wrong = run("logs", "three.log.json", "--metric", "mAP")
    assert (wrong.code, wrong.out) == (2, "")
    assert "no figure 'mAP'" in wrong.err and "train_loss, top1, top5" in wrong.err


def test_a_log_without_a_known_loss_or_accuracy(run: Runner):
    Path("summary.csv").write_text("epoch,perplexity\n0,9.5\n1,7.5\n")
    *_, last, verdict = run("logs", "summary.csv").out.splitlines()
    assert last.split() == ["last", "1", "7.5000"]
    assert verdict == "no best epoch: no known loss or accuracy; choose a figure with --metric"
    best = run("logs", "summary.csv", "--metric", "perplexity").out.splitlines()[-1]
    assert best.startswith("best perplexity 9.5000 at epoch 0")


def test_a_summary_of_timm_and_its_remarks(run: Runner):
    rows = [(0, 6.5, 5.0, 10.5, 30.5), (1, "nan", 4.0, 77.0, 93.5), (1, 5.5, 3.0, 76.5, 94.0)]
    Path("summary.csv").write_text(summary(PLAIN, rows), newline="")
    done = run("logs", "summary.csv")
    assert done.out.splitlines()[0] == "summary.csv: timm log, 2 epochs (0 to 1)"
    assert "summary.csv: resumed at epoch 1 (line 4)" in done.err
    assert "warning" not in done.err  # the epoch with the NaN was trained again


def test_what_diverged_is_said(run: Runner):
    lines = [train_line(n, 1, float("nan")) for n in range(1, 8)]
    Path("bad.json").write_text(mmcv_log(lines))
    done = run("logs", "bad.json", "--quiet")
    assert done.code == 0
    assert "the loss is not a finite number in epochs 1, 2, 3, 4, 5 and 2 more" in done.err
    assert "best training loss: no epoch has a number" in done.out


def test_a_long_epoch_and_what_is_not_there(run: Runner):
    Path("few.json").write_text(mmcv_log([train_line(1, 3600, 2.0, time=2.5), val_line(2, 50.0, 60.0)]))
    out = run("logs", "few.json", "--all-epochs").out
    assert "2:30:00" in out and "–" in out


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture(run: Runner, ending: str):
    pytest.importorskip("matplotlib")
    dry = run("logs", "three.log.json", "-o", f"log.{ending}", "--dry-run")
    assert dry.code == 0 and f"would write log.{ending}" in dry.err
    assert not Path(f"log.{ending}").exists()
    done = run("logs", "three.log.json", "-o", f"log.{ending}")
    assert done.code == 0 and f"wrote log.{ending}" in done.err
    drawn = Path(f"log.{ending}").read_bytes()
    refused = run("logs", "three.log.json", "-o", f"log.{ending}")
    assert refused.code == 2 and "exists already" in refused.err
    assert run("logs", "three.log.json", "-o", f"log.{ending}", "--force").code == 0
    assert Path(f"log.{ending}").read_bytes() == drawn
    assert [path.name for path in Path().glob(".ckptkit-*")] == []


def test_what_is_no_picture_is_refused_before_anything_is_fetched(run: Runner, server: FaultServer):
    done = run("logs", "moganet-xt-224", "-o", "log.gif")
    assert done.code == 2 and "choose from .png, .svg, .pdf" in done.err
    assert server.requests == []


def test_without_matplotlib(tmp_path: Path, server: FaultServer):
    arguments = ["logs", "moganet-xt-224", "-o", str(tmp_path / "log.png")]
    code, _, err = finish(start(arguments, tmp_path, WITHOUT_MATPLOTLIB))
    assert code == 6
    assert err == f"error: drawing a training log needs matplotlib; {pip_install('matplotlib')}\n"
    assert server.requests == []


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("moat0-224", 3, "no training log is published"),
        ("moganet-xt-225", 3, "did you mean"),
        ("missing.log.json", 3, "no such file"),
        ("page.html", 5, "a web page"),
    ],
)
def test_exit_codes(run: Runner, what: str, code: int, words: str):
    Path("page.html").write_text("<html>")
    done = run("logs", f"./{what}" if what == "page.html" else what)
    assert (done.code, done.out) == (code, "")
    assert words in done.err and len(done.err.splitlines()) == 1


def test_the_network(run: Runner, server: FaultServer):
    server.fail(next(iter(server.files)), status(404))
    assert run("logs", "moganet-xt-224", "--offline").code == 4
    done = run("logs", "moganet-xt-224")
    assert done.code == 4 and "404 Not Found" in done.err
