"""Training logs read: which kind a file is, mmcv, timm, and damage."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptkit.analysis.logs.readers import TrainingLog, parse_log
from ckptkit.base.errors import FormatError, NotFoundError, StorageError, UsageError
from tests.support.training_logs import PLAIN, THREE_EPOCHS, mmcv_log, summary, train_line, val_line

SEEDS = [THREE_EPOCHS.encode(), summary((*PLAIN, "lr"), [(0, 6.5, 5.0, 10.5, 30.5, 0.1)] * 3).encode()]
FRAGMENTS = [
    *(b"\n", b"\r", b",", b'"', b"{", b"}", b"[", b":"),
    *(b"nan", b"-1", b"1e999", b"9" * 40, b"\0", b"\xff"),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(FRAGMENTS)), max_size=6),
)
def test_mutated_logs(tmp_path: Path, seed: bytes, changes: list[tuple[float, int, bytes]]):
    data = seed
    for where, removed, inserted in changes:
        at = int(where * len(data))
        data = data[:at] + inserted + data[at + removed :]
    path = tmp_path / "log"
    path.write_bytes(data)
    try:
        log = parse_log(path)
    except FormatError as error:
        assert str(error).startswith(str(path)) and len(str(error).splitlines()) == 1
        return
    numbers = [epoch.number for epoch in log.epochs]
    assert numbers and numbers == sorted(set(numbers))
    json.dumps(log.to_json(), allow_nan=False)


def test_the_kind_is_told_by_the_content(tmp_path: Path):
    for name, seed, framework in (("summary.csv", SEEDS[0], "mmcv"), ("a.log.json", SEEDS[1], "timm")):
        (tmp_path / name).write_bytes(seed)
        assert parse_log(tmp_path / name).framework == framework


def test_names(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(SEEDS[0])
    assert parse_log(path).name == str(path)
    assert parse_log(path, name="moganet-xt-224").name == "moganet-xt-224"


def test_what_cannot_be_read(tmp_path: Path):
    with pytest.raises(NotFoundError, match="no such file"):
        parse_log(tmp_path / "missing")
    with pytest.raises(NotFoundError, match="a folder, not a log"):
        parse_log(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError):
        parse_log(tmp_path / "loop")


TRAIN = '{"mode": "train", "epoch": 1, "iter": 50, "loss": 1.0}\n'

WIDE = "".join(
    f'{{"mode": "val", "epoch": {n}, '
    + ", ".join(f'"{k}": 1' for k in range(n * 3000, n * 3000 + 3000))
    + "}\n"
    for n in range(60)
)
WIDE_TABLE = (
    "epoch," + ",".join(map(str, range(9_000))) + "\n" + "".join(f"{n}{',1' * 9_000}\n" for n in range(60))
)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (TRAIN + "\n" * 5_000_000, "steps of work in a file of"),
        (TRAIN + '{"a": [' + "[]," * 1_000_000 + "[]]}\n", "line 2: longer than 1,048,576 bytes"),
        (TRAIN + '{"a": "' + "x" * 20_000_000, "line 2: longer than"),
        (TRAIN.replace(": 1,", ": " + "[" * 600 + "]" * 600 + ",", 1), "epoch is"),
        (TRAIN.replace('"train"', "[" * 600 + "]" * 600), "mode is"),
        (TRAIN.replace('"train"', '"' + "t" * 500_000 + '"'), "mode is 'ttt"),
        (TRAIN.replace(": 1,", ": 1e400,", 1), "epoch is inf"),
        (TRAIN.replace(": 1,", ": NaN,", 1), "epoch is nan"),
        (TRAIN.replace(": 1,", ": " + "9" * 4000 + ",", 1), "epoch is a very long number"),
        (TRAIN.replace(": 1,", ": " + "9" * 5000 + ",", 1), "no JSON"),
        (TRAIN + "[" * 100_000 + "\n", "line 2: no JSON"),
        (TRAIN + "x" * 1_000_000 + "\n", "line 2: no JSON"),
        (WIDE_TABLE, "values and entries in a file of"),
        ("epoch,train_loss\n" + '"' * 1_000_000 + "\n", "line 2: "),
        ("epoch,train_loss\n1e400,1\n", "epoch is '1e400'"),
        ("epoch,train_loss\n" + "9" * 5000 + ",1\n", "epoch is '999"),
        ("epoch,train_loss\n" + "1,1\n" * 1000, "epochs go back more than"),
    ],
)  # fmt: skip
def test_what_a_log_may_cost(tmp_path: Path, text: str, what: str):
    path = tmp_path / "hostile.log"
    path.write_text(text, newline="")
    started = time.process_time()
    with pytest.raises(FormatError, match=what) as caught:
        parse_log(path)
    assert time.process_time() - started < 5
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_the_time_for_many_figures_grows_with_their_number(tmp_path: Path):
    path = tmp_path / "log.json"
    path.write_text(WIDE)
    started = time.process_time()
    assert len(parse_log(path).figures()) == 60 * 3000
    assert time.process_time() - started < 8


def test_a_head_of_any_number_of_digits(tmp_path: Path):
    path = tmp_path / "log.json"
    path.write_text(TRAIN + '{"mode": "val", "epoch": 1, "head' + "1" * 5000 + '_top1": 5.0}\n')
    assert "1" * 5000 in parse_log(path).figures()[-1]


def test_lines_are_those_of_python(tmp_path: Path):
    path = tmp_path / "log.json"
    path.write_bytes(
        TRAIN.encode().replace(b"\n", b"\r") + b"\r\r\n" + TRAIN.replace("50", "60").strip().encode()
    )
    assert parse_log(path).last.number == 1


def test_a_pipe_is_refused_and_one_of_the_shell_is_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="pipe: a named pipe where a regular file is needed"):
        parse_log(tmp_path / "pipe")
    read, write_end = os.pipe()
    os.write(write_end, TRAIN.encode())
    os.close(write_end)
    try:
        assert parse_log(Path(f"/dev/fd/{read}")).last.number == 1
    finally:
        os.close(read)


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
        (b"training started\n", "not a training log"),
        (b'{"lr": 0.1, "step": 1}\n', "no line with the mode"),
        (b'{"mode": "train", "epoch": 1, "iter": 1, "memory": 9}\n', "its epochs have no figures"),
        (b'{"mode": "train", "epoch": 1, "loss": 1}\n\xff\xfe\n', "line 2: no UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not a training log"),
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


ROWS = [(0, 6.5, 5.0, 10.5, 30.5), (1, 5.5, 4.0, 77.0, 93.5), (2, 4.5, 3.0, 76.5, 94.0)]


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
        ("epoch,train_loss\n0\n", "line 2: 1 cell,"),
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
        ("step,train_loss\n0,1\n", "not a training log"),
        ("epochs and epochs\n", "not a training log"),
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
