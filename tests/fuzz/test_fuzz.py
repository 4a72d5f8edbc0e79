"""The short run of the fuzzer, and that it would notice a fault."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest

from tests.conftest import REPOSITORY
from tests.fuzz import differential, target
from tests.fuzz.__main__ import main as command
from tests.fuzz.campaign import Fault, Plan, Tally, again, minimised, run, save
from tests.fuzz.grammars import GRAMMARS
from tests.fuzz.hdf5_seeds import checked_spans, lookup3
from tests.fuzz.layers import tar, tar_layers, zip_layers, zipped
from tests.fuzz.planted import PLANTED
from tests.fuzz.seeds import FORMATS, seeds

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory by /proc")


@pytest.fixture(scope="module", params=[100, pytest.param(300, marks=pytest.mark.slow)])
def per_format(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def short_run(per_format: int) -> Tally:
    """In one process more, which makes the seeds."""
    return run(Plan(FORMATS, per_format * len(FORMATS), seed=20), jobs=1)


def test_every_damaged_file_is_read_or_refused(short_run: Tally, per_format: int) -> None:
    assert [(fault.format, fault.number, fault.outcome) for fault in short_run.faults] == []
    assert short_run.count == per_format * len(FORMATS)


@pytest.mark.parametrize("format", FORMATS)
def test_damage_is_neither_always_nor_never_fatal(short_run: Tally, per_format: int, format: str) -> None:
    """Else the mutations would be too coarse to reach the parsers, or too fine to matter."""
    kinds = short_run.kinds[format]
    refused = sum(count for kind, count in kinds.items() if kind.startswith("refused"))
    assert refused > per_format // 10
    assert kinds["read"] + kinds["opened, a tensor refused"] > 0


@pytest.mark.parametrize("format", FORMATS)
def test_undamaged_layers_make_good_files(format: str, tmp_path) -> None:
    """A mutation is then the only thing wrong with a damaged file."""
    for seed in seeds(format):
        for layer in seed.layers:
            files = {**seed.files, **layer.files(layer.payload)}
            found = target.examine(format, files, seed.opened, tmp_path / "good", 1)
            assert found.kind == seed.kind, (seed.name, layer.payload[:20], found)


@pytest.mark.parametrize("format", FORMATS)
def test_cases_are_the_same_in_every_run(format: str) -> None:
    """Also in another process, and later: files of h5py say when they were written."""
    first = [target.case(format, 3, number) for number in range(20)]
    seeds.cache_clear()
    assert [target.case(format, 3, number) for number in range(20)] == first
    assert [target.case(format, 4, number) for number in range(20)] != first


@pytest.mark.parametrize("format", [format for format in differential.FORMATS if "tf" not in format])
def test_valid_cases_are_the_same_in_every_run(format: str) -> None:
    if format == "keras":
        pytest.skip("Keras names a layer by how many there were, and a file by the time")
    first = differential.case(format, 3, 7)
    if format == "h5py":
        time.sleep(1.1)  # HDF5 files say in which second they were written
    assert differential.case(format, 3, 7) == first


@pytest.mark.parametrize("raw", [b"", b"a", b"x" * 12, bytes(range(200))])
def test_grammars_only_make_bytes(raw: bytes) -> None:
    """Whatever they are given: a payload may have been damaged before."""
    source = random.Random(1)
    for name, change in GRAMMARS.items():
        for _ in range(50):
            assert isinstance(change(source, raw, [b"foreign"]), bytes), name


def test_lookup3_is_libhdf5s() -> None:
    h5py = pytest.importorskip("h5py")
    file = io.BytesIO()
    with h5py.File(file, "w", libver="latest") as root:
        root["x"] = [1, 2, 3]
    raw = file.getvalue()
    assert lookup3(raw[:44]) == int.from_bytes(raw[44:48], "little")
    assert len(checked_spans(raw)) >= 3  # the superblock, and the headers of the root and of x


def test_tar_and_zip_layers_have_right_checksums() -> None:
    """Python's own readers take a damaged header for a header."""
    raw = tar({"a": b"x" * 700, "b": b"y"})
    for layer in tar_layers("m.tar", raw, bytes):
        if len(layer.payload) == 512:  # a member, or the pax header before it
            changed = layer.wrap(layer.payload[:100] + b"0000640" + layer.payload[107:])
            with tarfile.open(fileobj=io.BytesIO(changed)) as archive:
                assert len(archive.getnames()) == 2
    packed = zipped({"a": b"x" * 70, "b": b"y"}, zipfile.ZIP_DEFLATED)
    for layer in zip_layers("m.zip", packed):
        assert layer.wrap(layer.payload) == packed
        if layer.grammar == "zip local":  # a longer one: what is behind it moves, and is found
            longer = layer.wrap(layer.payload[:28] + b"\4\0" + layer.payload[30:] + b"abcd")
            found = zipfile.ZipFile(io.BytesIO(longer))
            assert found.testzip() is None and found.namelist() == ["a", "b"]


LIGHT = tuple(format for format in differential.FORMATS if format != "keras" and "tf" not in format)


@pytest.mark.parametrize("count", [20, pytest.param(40, marks=pytest.mark.slow)])
def test_valid_files_are_read_as_the_real_libraries_read_them(count: int) -> None:
    valid_run = run(Plan(LIGHT, count * len(LIGHT), seed=20, module=differential.__name__), jobs=1)
    assert [(fault.format, fault.number, fault.outcome) for fault in valid_run.faults] == []
    assert valid_run.count == count * len(LIGHT)
    kinds = {format: one for format, one in valid_run.kinds.items() if format not in differential.DAMAGED}
    refused = sum(count for one in kinds.values() for kind, count in one.items() if kind not in EQUAL)
    assert refused < count * len(kinds) // 20
    read = sum(
        valid_run.kinds[format]["read by both, and equal"]
        for format in differential.DAMAGED
        if format in LIGHT
    )
    assert read >= count // 2


EQUAL = ("equal", "equal, some left out by name")


HEAVY = [one for one in differential.FORMATS if one not in (*LIGHT, *differential.DAMAGED)]


@pytest.mark.parametrize("format", HEAVY)
def test_tensorflow_and_keras_read_the_same_values(format: str, tmp_path) -> None:
    """In this process, which other tests have import them."""
    found = [_examined(format, number, tmp_path) for number in range(4)]
    assert [one for one in found if one.is_fault] == []
    assert sum(one.kind in EQUAL for one in found) >= 2


@pytest.mark.parametrize("format", ["npz", "safetensors", "to-npz"])
def test_one_wrong_bit_is_noticed(format: str, tmp_path, monkeypatch) -> None:
    pytest.importorskip("safetensors")
    true = differential._value
    monkeypatch.setattr(differential, "_value", lambda array, kind=None: wrong(true(array, kind), kind))

    def wrong(value: differential.Value, kind: str | None) -> differential.Value:
        ours = kind is not None and value.raw
        return value._replace(raw=bytes([value.raw[0] ^ 1]) + value.raw[1:]) if ours else value

    number = 0
    while b"wrong" not in (found := _examined(format, number, tmp_path)).kind.encode():
        number += 1
        assert number < 5, found


def _examined(format: str, number: int, folder) -> target.Outcome:
    _, files, opened, how = differential.case(format, 1, number)
    return differential.examine(format, files, opened, folder / "case", how)


def test_the_campaign_notices_every_kind_of_fault(tmp_path) -> None:
    count = len(PLANTED) + 4
    plan = Plan(("safetensors",), count, seed=5, module="tests.fuzz.planted")
    tally = run(plan, hang_seconds=6)
    assert {fault.number: fault.outcome.kind for fault in tally.faults} == dict(enumerate(PLANTED))
    assert tally.count == count, "the campaign went on behind lost workers"
    assert tally.slowest[0] > 0.9 * target.MAX_SECONDS
    fault = next(one for one in tally.faults if one.outcome.kind == "fault: ValueError")
    assert "not a refusal" in fault.outcome.trace
    home = save(fault, Plan(plan.formats, count, plan.seed), tmp_path)
    assert f"--seed 5 --format safetensors --case {fault.number}" in (home / "FAULT.txt").read_text()
    assert (home / "m.safetensors").is_file()


def test_a_campaign_ends_when_its_time_is_up() -> None:
    start = time.monotonic()
    tally = run(Plan(("log",), sys.maxsize, seed=5), jobs=1, seconds=0.2)
    assert time.monotonic() - start < 20
    assert tally.faults == []


def test_the_command_says_what_shows_a_fault_again(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(target, "_used", lambda use, path: "fault: planted")
    arguments = ["x", "--format", "log", "--seed", "7", "--case", "3"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert command() == 1
    assert "fault: planted" in capsys.readouterr().out
    fault = Fault("log", 3, "mmcv", target.Outcome("fault: planted", 0, 0))
    said = again(fault, Plan(FORMATS, 1, 7)).split()
    assert said[3:] == ["--seed", "7", "--format", "log", "--case", "3"]
    assert "--differential" in again(fault, Plan(FORMATS, 1, 7, module=differential.__name__))


MEASURED = """
import pathlib, sys
from tests.fuzz import target
target.read_to_the_end = lambda path, opener: f"read {len(bytearray(b'x' * (40 << 20)))}"
print(target.examine("npz", {"m.npz": b""}, "m.npz", pathlib.Path(sys.argv[1]), 0).nbytes)
"""


def test_memory_is_measured(tmp_path) -> None:
    """In a process of its own: what earlier tests left would be freed meanwhile."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "x")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 39 << 20 <= int(done.stdout) < 120 << 20


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
    monkeypatch.setattr(target, "case", lambda *_: ("one file", files, "m.safetensors", 0))
    fault = Fault("safetensors", 0, "one file", target.Outcome("fault: ValueError", 0, 0, "trace"))
    (left,) = minimised(fault, 0).values()
    differing = [place for place in range(len(good)) if left[place] != good[place]]
    assert b"!" not in good
    assert differing in ([300], [301])
