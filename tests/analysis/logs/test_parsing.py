"""Whatever bytes a log has, it is read or refused: nothing else happens."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptkit.analysis.logs import parse_log
from ckptkit.base.errors import FormatError, NotFoundError, StorageError
from tests.support.training_logs import PLAIN, THREE_EPOCHS, summary

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
