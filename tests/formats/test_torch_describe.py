"""Plain words for odd things: short, printable, and quick whatever the file says."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from ckptkit.formats.restricted_pickle import GlobalName, Inert, PickleMachine
from ckptkit.formats.torch_describe import describe, describe_extras
from ckptkit.formats.torch_pickle import TORCH_HANDLERS, StorageRef, TensorRef

TENSOR = TensorRef(StorageRef("0", "float32", 6), "float32", 0, (2, 3), (3, 1))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "3"),
        (2**200, hex(2**200)),
        (76.48, "76.48"),
        (None, "None"),
        ("plain", "plain"),
        ("a\n\x1b[31mb\u202e", "a\\n\\x1b[31mb\\u202e"),
        (b"abc", "3 bytes"),
        ([1, "a"], "[1, a]"),
        ((), "()"),
        ({"a": {"b": {"c": {"d": 1}}}}, "{a: {b: {c: table of 1 value}}}"),
        (TENSOR, "tensor of float32 [2, 3]"),
        ({"w": TENSOR}, "table of 1 value"),
        (GlobalName("os.system"), "os.system"),
        (Inert("os.system", ("rm",)), "os.system(rm)"),
        (Inert("argparse.Namespace", (), {"lr": 0.1}), "argparse.Namespace(lr=0.1)"),
    ],
)
def test_describe(value: object, said: str) -> None:
    assert describe(value) == said


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value", [np.float64(76.5), np.float32(0.25), np.int64(-3), np.uint8(200), np.bool_(True)]
)
def test_numpy_scalars(value: np.generic, protocol: int) -> None:
    raw = pickle.dumps(value, protocol)
    loaded = PickleMachine(Path("x"), raw, 0, len(raw), handlers=TORCH_HANDLERS).run()
    assert describe(loaded) == str(value)


def test_limits() -> None:
    assert describe("x" * 10**6, 50) == "x" * 49 + "…"
    assert len(describe(list(range(10**6)))) <= 1000


def test_values_that_share_each_other_do_not_explode() -> None:
    value: object = "leaf"
    for _ in range(60):
        value = [value] * 200
    started = time.process_time()
    assert len(describe(value)) <= 1000
    endless: list[object] = []
    endless.append(endless)
    assert describe(endless) == "[[[list of 1 value]]]"
    assert time.process_time() - started < 1


def test_extras() -> None:
    root = {
        "state_dict": {"w": TENSOR},
        "epoch": 3,
        "meta": {"time": "now", "nested": {"a": 1}},
        "optimizer": {"state": {0: {"m": TENSOR}}, "lr": 0.1},
        "odd": {"w": TENSOR},
    }
    assert describe_extras(root, ["state_dict"]) == {
        "epoch": "3",
        "meta.time": "now",
        "meta.nested": "{a: 1}",
        "optimizer.state": "{0: table of 1 value}",
        "optimizer.lr": "0.1",
        "odd": "table of 1 value",
    }
    assert describe_extras(root, [""]) == {}
    assert describe_extras([1], ["x"]) == {}


def test_thousands_of_extras_are_cut() -> None:
    assert len(describe_extras({f"k{i}": i for i in range(5000)}, [])) == 1000
