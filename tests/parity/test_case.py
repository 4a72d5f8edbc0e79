"""The engine: both sides at the same time where there is room, else one after the other."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ckptkit.parity import case, process
from ckptkit.parity.backends import Backend, Pass, Ran
from ckptkit.parity.compare import TOLERANCES

BATCH = np.arange(6, dtype="f4").reshape(2, 3)


class Side(Backend[Any]):
    """One that writes down what is asked of it."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name, self.seen = name, seen

    def start(self, given: Any, /, say: Any = None) -> None:
        self.seen.append(f"{self.name} starts")

    def run(self, given: Any, /, say: Any = None, reference: Ran | None = None) -> Ran:
        self.seen.append(f"{self.name} is waited for")
        assert (reference is None) == (self.name == "reference")
        return Ran({"": Pass({"logits": given})}, SimpleNamespace())  # type: ignore[arg-type]


class Toy(case.Case[Any]):
    given = BATCH

    def in_common(self, reference: Ran, candidate: Ran) -> case.Compared:
        return case.Compared(reference.outputs, candidate.outputs, self.tolerance, ("a", "b"))

    def report(self, *given: Any) -> Any:
        return given[-1]


@pytest.mark.parametrize(
    ("room", "order"),
    [
        (
            True,
            ["reference starts", "candidate starts", "reference is waited for", "candidate is waited for"],
        ),
        (False, ["reference is waited for", "candidate is waited for"]),
    ],
)
def test_both_run_at_the_same_time_where_there_is_room(
    room: bool, order: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(case, "is_room_for_two", lambda: room)
    seen: list[str] = []
    sides = {name: Side(name, seen) for name in ("reference", "candidate")}
    (stage,) = Toy(name="toy", tolerance=TOLERANCES["float32"], **sides).run()
    assert stage.ok
    assert seen == order


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux's")
@pytest.mark.parametrize(
    ("cores", "free", "expected"),
    [(2, 8 << 20, True), (1, 8 << 20, False), (4, 1 << 20, False), (4, None, True), (1, None, False)],
)
def test_room_is_two_cores_and_some_memory(
    cores: int, free: int | None, expected: bool, monkeypatch: pytest.MonkeyPatch
):
    def read(path: Path, **_: Any) -> str:
        if free is None:
            raise FileNotFoundError(path)
        return f"MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable:    {free} kB\n"

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(process.Path, "read_text", read)
    assert process.is_room_for_two() is expected
