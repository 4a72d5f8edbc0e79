"""The pickle machine: what it understands, what it refuses, and that it never acts."""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import pickle
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptkit.base.budget import LIMITS, Budget, Limit
from ckptkit.base.errors import FormatError
from ckptkit.formats import pickle_machine
from ckptkit.formats.pickle_machine import GlobalName, Inert, PickleMachine, dictionary_key
from ckptkit.formats.torch_pickle import TORCH_HANDLERS, parse_storage
from tests.support.damage import mutations
from tests.support.torch_files import hostile, name, number, refused, text, whole

FILE = Path("x.pth")


def load(raw: bytes) -> object:
    machine = PickleMachine(FILE, raw, 0, len(raw), handlers=TORCH_HANDLERS, persistent_load=parse_storage)
    return machine.run()


PLAIN = {
    "none": None,
    "booleans": [True, False],
    "integers": [0, 1, 255, 256, 65535, 65536, -1, -(2**31), 2**31, -(2**62), 2**100, -(2**200)],
    "floats": [0.0, -1.5, 1e300, float("inf")],
    "texts": ["", "a", "é\n\\", "x" * 70000, "🦊"],
    "bytes": [b"", b"ab", b"\xff" * 300],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "nested": {"a": {"b": [(1, [2])]}, 3: "x", None: 1, True: 2, 1.5: 3, b"k": 4},
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("case", PLAIN)
def test_plain_values_are_those_of_pickle(case: str, protocol: int) -> None:
    assert load(pickle.dumps(PLAIN[case], protocol)) == PLAIN[case]


@pytest.mark.parametrize("protocol", range(6))
def test_containers(protocol: int) -> None:
    value = collections.OrderedDict(a=1, b=collections.defaultdict(list, c=[2]))
    assert load(pickle.dumps(value, protocol)) == {"a": 1, "b": {"c": [2]}}
    assert sorted(load(pickle.dumps({3, 1, 2}, protocol))) == [1, 2, 3]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x04K\x01q\x03K\x02\x94K\x03q\x00h\x03h\x00\x87.",
        b"\x80\x04K\x01q\x01K\x02q\x00K\x03\x94h\x01h\x00h\x02\x87.",
        b"\x80\x04K\x01\x94K\x02q\x00K\x03\x94h\x01h\x00\x86.",
        b"\x80\x04M\x00\x01J\xff\xff\xff\xff\x94h\x00\x87\x85.",
    ],
)
def test_memos_out_of_order(raw: bytes) -> None:
    assert load(raw) == pickle.loads(raw)


def test_plain_opcodes_gone_over_at_once_are_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same value or fault, and the same cost, of a pickle that is sound, cut off or damaged."""
    rows = {f"w{n}": argparse.Namespace(at=(n, 300 * n), of=[(0,), (n, -n), ()]) for n in range(40)}
    sound = pickle.dumps(rows, 4)
    cut = [sound[:length] for length in range(0, len(sound), 7)]

    def outcome(raw: bytes) -> tuple[str, int]:
        budget = Budget(len(raw), ValueError)
        machine = PickleMachine(FILE, raw, 0, len(raw), budget=budget)
        try:
            value = machine.run()
        except FormatError as error:
            return str(error), 0
        return repr([value, [inert.state for inert in getattr(value, "values", list)()]]), budget.steps

    every = [sound, *cut, *mutations(sound, 300, seed=3)]
    at_once = [outcome(raw) for raw in every]
    monkeypatch.setattr(PickleMachine, "_run_plain", lambda _: None)
    assert [outcome(raw) for raw in every] == at_once


def test_python_2_strings_are_text_or_bytes() -> None:
    assert load(b"(U\x03abcT\x02\x00\x00\x00\xff\xfeS'a\\x62'\nVa\\u00e9\nt.") == (
        "abc",
        b"\xff\xfe",
        "ab",
        "aé",
    )


def test_text_integers() -> None:
    assert load(b"(I01\nI00\nI-5\nL123L\nF1.5\nt.") == (True, False, -5, 123, 1.5)


def test_shared_and_recursive_values() -> None:
    loop: list[object] = []
    loop.append(loop)
    found = load(pickle.dumps(loop))
    assert isinstance(found, list)
    assert found[0] is found


def test_unknown_classes_become_inert() -> None:
    found = load(pickle.dumps(argparse.Namespace(lr=0.1)))
    assert isinstance(found, Inert)
    assert (found.name, found.args, found.state) == ("argparse.Namespace", (), {"lr": 0.1})
    assert load(pickle.dumps(print)) == GlobalName("builtins.print")


def test_position_is_behind_the_pickle() -> None:
    raw = b"??" + pickle.dumps([1]) + pickle.dumps("second")
    first = PickleMachine(FILE, raw, 2, len(raw))
    assert first.run() == [1]
    assert PickleMachine(FILE, raw, first.position, len(raw)).run() == "second"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that must not appear, and a module that makes it appear when imported."""
    canary = tmp_path / "canary"
    (tmp_path / "ckptkit_trap.py").write_text(f"open({str(canary)!r}, 'w').close()\nanything = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield canary
    sys.modules.pop("ckptkit_trap", None)


@pytest.mark.parametrize("case", hostile(Path("x"), "x"))
def test_hostile_pickles_do_nothing(case: str, trap: Path) -> None:
    fragment = hostile(trap, "ckptkit_trap")[case]
    with contextlib.suppress(FormatError):
        load(whole(fragment))
    assert not trap.exists()
    assert "ckptkit_trap" not in sys.modules


@pytest.mark.parametrize("case", hostile(Path("x"), "x"))
def test_the_hostile_pickles_are_live(case: str, trap: Path) -> None:
    """Python's own unpickler falls for every one of them, so the test above means something."""
    with contextlib.suppress(Exception):
        pickle.loads(whole(hostile(trap, "ckptkit_trap")[case]))
    assert trap.exists()


@pytest.mark.parametrize("case", refused())
def test_refused(case: str) -> None:
    with pytest.raises(FormatError, match=r"^x\.pth: at byte \d+: bad pickle: [^\n]+$"):
        load(whole(refused()[case]))


def test_attributes_cannot_be_set_on_classes() -> None:
    """Python's BUILD with slot state would set ``argparse.Namespace.__init__`` for the whole process."""
    before = argparse.Namespace.__init__
    load(whole(name("argparse", "Namespace") + b"(N}(" + text("__init__") + name("os", "system") + b"utb"))
    load(whole(name("torch._utils", "_rebuild_tensor_v2") + b"(N}(" + text("__defaults__") + b")utb"))
    assert argparse.Namespace.__init__ is before


@pytest.mark.parametrize(
    ("what", "raw"),
    [
        ("nested lists", b"]" * 500_000 + b"a" * 499_999),
        ("nested tuples", b")" + b"\x85" * 500_000),
        ("nested marks", b"(" * 300_000 + b"t" * 300_000),
        ("nested dicts", b"}" + b"N}" * 200_000 + b"s" * 200_000),
    ],
)
def test_depth_does_not_recurse(what: str, raw: bytes) -> None:
    load(whole(raw))


BOMBS = {
    "quadratic OrderedDict": b"]("
    + b"N" * 100_000
    + b"eq\x000"
    + (b"ccollections\nOrderedDict\n(h\x00tR0") * 1000
    + b"N",
    "doubling by memo": b"]q\x00" + b"(h\x00h\x00tq\x00" * 3000,
    "colliding integers": b"}("
    + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(1, 3))
    + b"".join(b"\x8a\x0c" + (k * (2**61 - 1)).to_bytes(12, "little") + b"N" for k in range(5, 20_000))
    + b"u",
    "memo index": b"Nr\xff\xff\xff\xff",
    "sets": b"\x8f" * 300_000,
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_end_quickly_and_stay_small(case: str) -> None:
    raw = whole(BOMBS[case])
    tracemalloc.start()
    started = time.process_time()
    with contextlib.suppress(FormatError):
        load(raw)
    seconds = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 60  # a quadratic walk would take hours
    assert peak < 300 << 20


def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "steps", Limit("steps", 1000, 0, 1000))
    assert load(whole(b"N0" * 490 + b"N")) is None
    with pytest.raises(FormatError, match="more than 1,000 steps"):
        load(whole(b"N0" * 510 + b"N"))


def test_length_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "MAX_PICKLE_BYTES", 1000)
    with pytest.raises(FormatError, match="longer than 1000 bytes"):
        load(pickle.dumps("x" * 2000, 2))


def test_every_truncation_is_named() -> None:
    raw = pickle.dumps({"a": [1, 2.5, "text"], "b": (b"raw", None)}, 2)
    for stop in range(len(raw)):
        with pytest.raises(FormatError, match=r"x\.pth"):
            load(raw[:stop])


def test_mutations_give_nothing_but_format_errors() -> None:
    raw = pickle.dumps(
        {"w": [1, 2.5, "text", (3, 4)], "n": argparse.Namespace(a=collections.OrderedDict(b=1))}, 2
    )
    refusals = 0
    for damaged in mutations(raw, 4000, seed=11):
        try:
            load(damaged)
        except FormatError:
            refusals += 1
    assert 1000 < refusals < 4000


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("w", "w"),
        (3, 3),
        ((1, "a"), "(1, 'a')"),
        (2**61, str(2**61)),
        (2**70, hex(2**70)),
        (GlobalName("a.b"),) * 2,
    ],
)
def test_dictionary_keys(key: object, wanted: object) -> None:
    assert dictionary_key(key) == wanted
