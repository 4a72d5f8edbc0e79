"""mmcv's log lines: what is made of them, and what is refused; expectations are worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ckptkit.analysis.logs import TrainingLog, parse_log
from ckptkit.base.errors import FormatError
from tests.support.training_logs import THREE_EPOCHS, mmcv_log, train_line, val_line


def parsed(folder: Path, text: str | bytes) -> TrainingLog:
    path = folder / "some.name"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse_log(path)


def test_three_epochs(tmp_path: Path):
    log = parsed(tmp_path, THREE_EPOCHS)
    assert (log.framework, log.remarks, log.diverged) == ("mmcv", (), ())
    assert [epoch.number for epoch in log.epochs] == [1, 2, 3]
    assert [epoch.train_loss for epoch in log.epochs] == pytest.approx([6.4, 5.25, 4.3])
    assert [epoch.top1 for epoch in log.epochs] == [10.25, 76.75, 76.25]
    assert [epoch.top5 for epoch in log.epochs] == [25.5, 93.5, 93.75]
    assert [epoch.lr for epoch in log.epochs] == [0.0002, 0.0005, 1e-05]
    assert [epoch.seconds for epoch in log.epochs] == [100.0] * 3
    assert (log.metric, log.best().number, log.last.number) == ("top1", 2, 3)
    assert log.best("train_loss").number == log.best("top5").number == 3


@pytest.mark.parametrize(
    ("names", "top1", "top5", "others"),
    [
        ({"accuracy_top-1": 71.0, "accuracy_top-5": 90.0}, 71.0, 90.0, {}),
        ({"head0_top1": 71.0, "head0_top5": 90.0}, 71.0, 90.0, {}),
        ({"head1_top1": 60.0, "head0_top1": 71.0}, 71.0, None, {"head1_top1": 60.0}),
        ({"acc1": 71.0, "f1_score": 0.5}, 71.0, None, {"f1_score": 0.5}),
        ({"mAP": 0.5}, None, None, {"mAP": 0.5}),
        ({"head0_top1": 71.0, "note": "text", "flag": True}, 71.0, None, {}),
    ],
)
def test_what_validations_call_their_figures(tmp_path: Path, names, top1, top5, others):
    line = {"mode": "val", "epoch": 1, "iter": 5, "lr": 0.1, **names}
    (epoch,) = parsed(tmp_path, mmcv_log([line])).epochs
    assert (epoch.top1, epoch.top5) == (top1, top5)
    assert epoch.others == others


def test_a_validation_loss_and_what_training_measures_besides(tmp_path: Path):
    lines = [train_line(1, 10, 2.0, grad_norm=1.0), train_line(1, 20, 4.0, grad_norm=3.0)]
    log = parsed(tmp_path, mmcv_log([*lines, val_line(1, 50.0, 60.0, loss=2.5)]))
    (epoch,) = log.epochs
    assert (epoch.train_loss, epoch.val_loss) == (3.0, 2.5)
    assert epoch.others == {"train_grad_norm": 2.0}
    assert log.figures() == [
        *("train_loss", "val_loss", "top1", "top5", "lr", "seconds"),
        "train_grad_norm",
    ]


def test_several_optimizers_give_the_learning_rate_of_the_first(tmp_path: Path):
    log = parsed(tmp_path, mmcv_log([train_line(1, 10, 2.0, lr={"backbone": 0.25, "head": 0.5})]))
    assert log.last.lr == 0.25


def test_a_resumed_run_counts_from_where_it_goes_back(tmp_path: Path):
    lines = [train_line(epoch, 100, 9.0 - epoch) for epoch in (1, 2, 3, 4)]
    lines.insert(2, val_line(2, 40.0, 60.0))
    lines += [train_line(2, 100, 1.5), val_line(2, 41.0, 61.0), train_line(3, 100, 1.25)]
    log = parsed(tmp_path, mmcv_log(lines))
    assert [(epoch.number, epoch.train_loss, epoch.top1) for epoch in log.epochs] == [
        (1, 8.0, None),
        (2, 1.5, 41.0),
        (3, 1.25, None),  # and the fourth epoch of the abandoned run is gone
    ]
    (remark,) = log.remarks
    assert remark.startswith("resumed at epoch 2 (line 7)")


def test_a_run_resumed_within_an_epoch(tmp_path: Path):
    lines = [train_line(1, 100, 8.0), train_line(1, 200, 7.0), train_line(1, 100, 2.0)]
    log = parsed(tmp_path, mmcv_log(lines))
    assert log.last.train_loss == 2.0
    assert log.remarks[0].startswith("resumed at epoch 1 (line 4)")


def test_a_second_environment_line_is_no_fault(tmp_path: Path):
    text = mmcv_log([train_line(1, 1, 5.0)]) + mmcv_log([train_line(2, 1, 4.0)])
    assert [epoch.number for epoch in parsed(tmp_path, text).epochs] == [1, 2]


def test_what_is_no_number_is_kept_and_told(tmp_path: Path):
    lines = [
        train_line(1, 1, 5.0),
        val_line(1, 3.0, 4.0),
        train_line(2, 1, math.nan),
        val_line(2, math.nan, 1.0),
    ]
    log = parsed(tmp_path, mmcv_log([*lines, train_line(3, 1, math.inf)]))
    assert log.diverged == (2, 3)
    assert log.best().number == 1
    values = log.to_json()
    assert values["not_finite"] == [2, 3]
    assert values["epochs"][1]["train_loss"] is None
    json.dumps(values, allow_nan=False)


def test_a_last_line_that_is_cut_off_is_left_out(tmp_path: Path):
    log = parsed(tmp_path, THREE_EPOCHS[:-20])
    assert log.last.train_loss == pytest.approx(4.3)
    assert log.last.top1 is None
    assert log.remarks == ("line 10, the last, is cut off and was left out",)


def test_a_last_line_without_its_end_is_whole(tmp_path: Path):
    log = parsed(tmp_path, THREE_EPOCHS.rstrip("\n"))
    assert (log.last.top1, log.remarks) == (76.25, ())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"mode": "train", "epoch"', "line 2: no JSON"),
        ("[1, 2]", "line 2: no JSON object"),
        ('{"mode": "train", "loss": 1}', "line 2: no epoch"),
        ('{"mode": "dream", "epoch": 1}', "line 2: mode is 'dream', neither"),
        ('{"mode": ["train"], "epoch": 1}', "line 2: mode is"),
        ('{"mode": "train", "epoch": -1}', "line 2: epoch is -1, not a whole"),
        ('{"mode": "train", "epoch": 1.5}', "line 2: epoch is 1.5"),
        ('{"mode": "train", "epoch": 1e99}', "line 2: epoch is 1e+99"),
        ('{"mode": "train", "epoch": NaN}', "line 2: epoch is nan"),
        ('{"mode": "train", "epoch": true}', "line 2: epoch is True, not a number"),
        ('{"mode": "train", "epoch": "one"}', "line 2: epoch is 'one', not a number"),
        ('{"mode": "train", "epoch": 1, "iter": Infinity}', "line 2: iter is inf"),
        ('{"mode": "train", "epoch": 1, "loss": "low"}', "line 2: loss is 'low', not a number"),
        ('{"mode": "train", "epoch": 1, "loss": ' + "9" * 400 + "}", "line 2: loss is a very long number"),
        ('{"mode": "train", "epoch": 1, "loss": ' + "9" * 5000 + "}", "line 2: no JSON"),
        ('{"mode": "train", "epoch": 1, "lr": {}}', "line 2: lr is {}, not a number"),
        ('{"mode": "val", "epoch": 1, "head0_top1": null}', "line 2: head0_top1 is None, not a number"),
        ("[" * 100_000, "line 2: no JSON"),
        ('{"mode": "val", "epoch": 1, "x": "\\ud800"}', None),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, line: str, reason: str | None):
    text = mmcv_log([]) + line + "\n" + mmcv_log([train_line(1, 1, 5.0)], environment=False)
    if reason is None:
        assert parsed(tmp_path, text).last.train_loss == 5.0
        return
    with pytest.raises(FormatError) as raised:
        parsed(tmp_path, text)
    assert reason in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / "some.name"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"  \n\r\n ", "empty file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"training started\n", "no training log"),
        (b'{"lr": 0.1, "step": 1}\n', "no line with the mode"),
        (b'{"mode": "train", "epoch": 1, "iter": 1, "memory": 9}\n', "its epochs have no figures"),
        (b'{"mode": "train", "epoch": 1, "loss": 1}\n\xff\xfe\n', "line 2: no UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", "no training log"),
    ],
)
def test_other_files_are_named_as_what_they_are(tmp_path: Path, content: bytes, reason: str):
    with pytest.raises(FormatError, match=reason):
        parsed(tmp_path, content)


def test_a_log_that_goes_back_all_the_time_is_refused(tmp_path: Path):
    lines = [train_line(1, 5, 1.0) for _ in range(102)]
    with pytest.raises(FormatError, match=r"line 103: the epochs go back more than 100 times"):
        parsed(tmp_path, mmcv_log(lines))


def test_a_log_that_is_too_large_is_refused(tmp_path: Path):
    path = tmp_path / "large.log.json"
    with path.open("wb") as stream:
        stream.truncate((64 << 20) + 1)
    with pytest.raises(FormatError, match="larger than 67,108,864 bytes"):
        parse_log(path)
