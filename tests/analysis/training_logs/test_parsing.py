"""Whatever bytes a log has, it is read or refused: nothing else happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptkit.analysis.training_logs import parse_log
from ckptkit.errors import FormatError, NotFoundError, StorageError
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
