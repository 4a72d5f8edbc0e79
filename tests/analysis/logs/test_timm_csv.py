"""timm's summaries, in the columns of several versions; expectations are worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ckptkit.analysis.logs import TrainingLog, parse_log
from ckptkit.base.errors import FormatError, UsageError
from tests.support.training_logs import PLAIN, summary

ROWS = [(0, 6.5, 5.0, 10.5, 30.5), (1, 5.5, 4.0, 77.0, 93.5), (2, 4.5, 3.0, 76.5, 94.0)]


def parsed(folder: Path, text: str) -> TrainingLog:
    path = folder / "some.name"
    path.write_bytes(text.encode())
    return parse_log(path)


def test_the_columns_of_the_published_summaries(tmp_path: Path):
    log = parsed(tmp_path, summary(PLAIN, ROWS))
    assert (log.framework, log.remarks) == ("timm", ())
    assert [(e.number, e.train_loss, e.val_loss, e.top1, e.top5) for e in log.epochs] == ROWS
    assert all(epoch.lr is None and epoch.seconds is None for epoch in log.epochs)
    assert (log.best().number, log.last.number) == (1, 2)


def test_a_learning_rate_and_columns_of_ones_own(tmp_path: Path):
    log = parsed(tmp_path, summary((*PLAIN, "lr", "gpu"), [(*ROWS[0], 0.001, 71.0)]))
    assert (log.last.lr, log.last.others) == (0.001, {"gpu": 71.0})


@pytest.mark.parametrize(
    ("column", "figure"),
    [
        ("eval_ema_top1", "ema_top1"),
        ("eval_top1_ema", "ema_top1"),
        ("ema_top1", "ema_top1"),
        ("ema_eval_top1", "ema_top1"),
        ("eval_top1 (EMA)", "ema_top1"),
        ("ema_eval_loss", "ema_val_loss"),
        ("Val_Acc1", "top1"),
        ("test_acc5", "top5"),
    ],
)
def test_what_columns_may_be_called(tmp_path: Path, column: str, figure: str):
    log = parsed(tmp_path, summary(("epoch", "train_loss", column), [(0, 5.0, 42.5)]))
    assert log.last.figure(figure) == 42.5
    assert log.last.others == {}


def test_both_copies_and_which_of_them_counts(tmp_path: Path):
    columns = ("epoch", "train_loss", "eval_top1", "eval_ema_top1")
    log = parsed(tmp_path, summary(columns, [(0, 5.0, 70.0, 60.0), (1, 4.0, 69.0, 71.0)]))
    assert (log.metric, log.best().number, log.best("top1").number) == ("ema_top1", 1, 0)


def test_epochs_that_were_not_validated_have_no_figures(tmp_path: Path):
    log = parsed(tmp_path, summary(PLAIN, [(0, 6.5, "", "", ""), ROWS[1]]))
    assert [epoch.top1 for epoch in log.epochs] == [None, 77.0]


def test_nan(tmp_path: Path):
    log = parsed(tmp_path, summary(PLAIN, [ROWS[0], (1, "nan", "nan", 0.1, 0.5)]))
    assert log.diverged == (1,)
    assert math.isnan(log.last.train_loss)
    assert log.best("val_loss").number == 0


def test_a_resumed_run_writes_its_header_again(tmp_path: Path):
    text = summary(PLAIN, ROWS) + summary((*PLAIN, "lr"), [(1, 1.5, 1.0, 80.0, 95.0, 0.5)])
    log = parsed(tmp_path, text)
    assert [(epoch.number, epoch.top1, epoch.lr) for epoch in log.epochs] == [(0, 10.5, None), (1, 80.0, 0.5)]
    assert log.remarks[0].startswith("resumed at epoch 1 (line 6)")


def test_a_last_row_that_is_cut_off(tmp_path: Path):
    text = summary(PLAIN, ROWS)
    log = parsed(tmp_path, text[: text.index("76.5")])
    assert (log.last.number, log.remarks) == (1, ("line 4, the last, is cut off and was left out",))
    whole = parsed(tmp_path, text.rstrip("\r\n"))
    assert whole.last.top5 == 94.0
    assert "its last figure may be cut off" in whole.remarks[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("epoch,train_loss\n0,1\n1,2,3\n", "line 3: 3 cells, but the header has 2"),
        ("epoch,train_loss\n0\n", "line 2: 1 cells"),
        ("epoch,train_loss\nzero,1\n", "line 2: epoch is 'zero', not a number"),
        ("epoch,train_loss\n0.5,1\n", "line 2: epoch is '0.5', not a whole number"),
        ("epoch,train_loss\n,1\n", "line 2: epoch is '', not a number"),
        ("epoch,train_loss\n0,low\n", "line 2: train_loss is 'low', not a number"),
        ("epoch,train_loss\n0,1\n0,\0\n", "line 3:"),
        ("epoch,loss,LOSS\n0,1,1\n", "line 1: two columns have one name"),
        ("epoch,train_loss\n", "a header and no epoch"),
        ("epoch,x\n0," + "1" * 140_000 + "\n", "line 2: not a row of comma-separated values"),
        ('epoch,"train_loss,eval_top1\n0,6.5,1\n', "line 1: not a row"),  # a quote would swallow the columns
        ('epoch,train"_loss\n0,1\n', "line 1: not a row"),
        ('epoch,"train"_loss\n0,1\n', "line 1: not a row"),
        ('epoch,"train""loss"\n0,1\n', "line 1: not a row"),
        ('epoch,train_loss\n0,"1\n\n\n1,2"\n', "line 2: not a row"),
        ('epoch,train_loss\n"0,1\n', "line 2: not a row"),
        ('epoch,train_loss\n0,1\n"epoch",",train_loss\n1,1\n', "line 3: not a row"),
        ("epoch,train_loss\n\n0,\n\n1, \n", "its epochs have no figures"),
        ("epoch,train_loss\nepoch\n0\n1\n", "its epochs have no figures"),
        ("step,train_loss\n0,1\n", "no training log"),
        ("epochs and epochs\n", "no training log"),
    ],
)
def test_damaged_rows_are_named(tmp_path: Path, text: str, reason: str):
    with pytest.raises(FormatError) as raised:
        parsed(tmp_path, text)
    assert reason in str(raised.value)


def test_quoted_names_and_cells_are_read(tmp_path: Path):
    log = parsed(tmp_path, '"epoch","train_loss","eval_top1"\r\n"0","6.5","12.5"\r\n1,5.5,"13.5"\r\n')
    assert [(e.number, e.train_loss, e.top1) for e in log.epochs] == [(0, 6.5, 12.5), (1, 5.5, 13.5)]


def test_a_last_row_that_is_cut_off_within_its_quotes(tmp_path: Path):
    log = parsed(tmp_path, 'epoch,train_loss\n0,6.5\n1,"5')
    assert (log.last.number, log.remarks) == (0, ("line 3, the last, is cut off and was left out",))


def test_figures_nobody_knows_have_no_best_epoch_of_their_own(tmp_path: Path):
    log = parsed(tmp_path, "epoch,perplexity,lr\n0,9.5,0.5\n1,7.5,0.25\n")
    assert (log.metric, log.best(), log.to_json()["metric"], log.to_json()["best"]) == (
        None,
        None,
        None,
        None,
    )
    assert log.best("perplexity").number == 0
    with pytest.raises(UsageError, match=r"no figure 'train_loss'; it has lr, perplexity"):
        log.best("train_loss")


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path):
    assert parsed(tmp_path, "\ufeff" + summary(PLAIN, ROWS)).last.top1 == 76.5
