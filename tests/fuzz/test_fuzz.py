"""The short run of the fuzzer, and that it would notice a fault."""

from __future__ import annotations

import gc
import sys

import pytest

from tests.fuzz import target
from tests.fuzz.campaign import Plan, Tally, minimised, run, save
from tests.fuzz.planted import PLANTED
from tests.fuzz.seeds import FORMATS, seeds

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory by /proc")

PER_FORMAT = 300


@pytest.fixture(scope="module")
def short_run() -> Tally:
    return run(Plan(FORMATS, PER_FORMAT * len(FORMATS), seed=20))


def test_every_damaged_file_is_read_or_refused(short_run: Tally) -> None:
    assert [(fault.format, fault.number, fault.outcome) for fault in short_run.faults] == []
    assert short_run.count == PER_FORMAT * len(FORMATS)


@pytest.mark.parametrize("format", FORMATS)
def test_damage_is_neither_always_nor_never_fatal(short_run: Tally, format: str) -> None:
    """Else the mutations would be too coarse to reach the parsers, or too fine to matter."""
    kinds = short_run.kinds[format]
    assert kinds["refused (FormatError)"] > PER_FORMAT // 10
    assert kinds["read"] + kinds["opened, a tensor refused"] > 0


@pytest.mark.parametrize("format", FORMATS)
def test_undamaged_layers_make_good_files(format: str, tmp_path) -> None:
    """A mutation is then the only thing wrong with a damaged file."""
    for seed in seeds(format):
        for layer in seed.layers:
            files = {**seed.files, layer.file: layer.wrap(layer.payload)}
            found = target.examine(format, files, seed.opened, tmp_path / "good", 1)
            assert found.kind == "read", (seed.name, layer.payload[:20], found)


def test_cases_are_the_same_in_every_run() -> None:
    assert target.case("npz", 3, 77) == target.case("npz", 3, 77)
    assert target.case("npz", 3, 77) != target.case("npz", 4, 77)


def test_the_campaign_notices_every_kind_of_fault(tmp_path) -> None:
    count = len(PLANTED) + 4
    plan = Plan(("safetensors",), count, seed=5)
    tally = run(plan, target="tests.fuzz.planted:examine", hang_seconds=3)
    assert {fault.number: fault.outcome.kind for fault in tally.faults} == dict(enumerate(PLANTED))
    assert tally.count == count, "the campaign went on behind lost workers"
    assert tally.slowest[0] > 0.9 * target.MAX_SECONDS
    fault = next(one for one in tally.faults if one.outcome.kind == "fault: ValueError")
    assert "not a refusal" in fault.outcome.trace
    home = save(fault, plan.seed, tmp_path)
    assert f"--seed 5 --format safetensors --case {fault.number}" in (home / "FAULT.txt").read_text()
    assert (home / "m.safetensors").is_file()


def test_memory_is_measured(tmp_path, monkeypatch) -> None:
    def use(path, opener):
        return f"read {len(bytearray(b'x' * (40 << 20)))}"

    monkeypatch.setattr(target, "read_to_the_end", use)
    gc.collect()  # what earlier tests left would be freed meanwhile
    found = target.examine("npz", {"m.npz": b""}, "m.npz", tmp_path / "x", 0)
    assert 39 << 20 <= found.nbytes < 120 << 20


def test_damage_is_undone_where_it_does_not_matter(monkeypatch) -> None:
    """A reader that chokes on any bang in its file: nothing but one bang stays of the damage."""

    def chokes(path, opener):
        if b"!" in path.read_bytes():
            raise ValueError("bang")
        return "read"

    monkeypatch.setattr(target, "read_to_the_end", chokes)
    good = seeds("safetensors")[0].files["m.safetensors"]
    damaged = bytearray(good)
    damaged[40:60] = b"\xff" * 20
    damaged[300:302] = b"!!"
    files = {"m.safetensors": bytes(damaged)}
    monkeypatch.setattr("tests.fuzz.campaign.case", lambda *_: ("one file", files, "m.safetensors", 0))
    from tests.fuzz.campaign import Fault

    fault = Fault("safetensors", 0, "one file", target.Outcome("fault: ValueError", 0, 0, "trace"))
    (left,) = minimised(fault, 0).values()
    differing = [place for place in range(len(good)) if left[place] != good[place]]
    assert b"!" not in good
    assert differing in ([300], [301])
