"""Whole verifications of real files with faults planted in them."""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ckptkit.base.errors import FormatError, NotFoundError, UsageError
from ckptkit.compare.verify import verify_checkpoint
from ckptkit.workspace import Located
from tests.support.entries import entry_of
from tests.support.moat_files import AVERAGE, data_offset, flip_byte, write_tiny
from tests.support.tensors import OPAQUE, raw_safetensors

KERNEL = "moat/block_01_00/expand_conv/kernel"
VARIANCE = "moat/stem/norm_0/moving_variance"
BETA = "moat/block_03_01/pre_norm/beta"
ENTRY = entry_of(
    "https://a.org/tiny.tar.gz",
    id="tiny-moat0-256",
    pos_emb=True,
    exact_parameters=3_355_348,
    published_params="3.4M",
)


def statuses(report) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def check_of(report, name: str):
    (check,) = (check for check in report.checks if check.name == name)
    return check


SOUND = {
    "checksum": "skipped",
    "container": "ok",
    "names and shapes": "ok",
    "BatchNorm statistics": "ok",
    "values": "ok",
    "parameter count": "ok",
}


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_checkpoint(tmp_path, deep):
    report = verify_checkpoint(Located(write_tiny(tmp_path / "m"), ENTRY), deep=deep)
    assert statuses(report) == SOUND
    assert report.ok
    assert (report.format, report.family, report.variant, report.layout) == (
        "tf",
        "moat",
        "tiny-moat0",
        "deeplab2",
    )
    assert ("362 agree with their crc32c" in check_of(report, "container").detail) is deep
    assert ("not verified (--deep does)" in check_of(report, "container").detail) is not deep
    assert "361 tensors finite" in check_of(report, "values").detail


def set_at(name: str, value: float, count: int = 1):
    def plant(tensors):
        tensors[name].reshape(-1)[:count] = value

    return plant


def remove(*parts: str):
    def plant(tensors):
        for name in [name for name in tensors if any(part in name for part in parts)]:
            del tensors[name]

    return plant


def add(name: str, array: np.ndarray):
    return lambda tensors: tensors.update({name: array})


def reshape(name: str, *shape: int):
    return lambda tensors: tensors.update({name: tensors[name].reshape(shape)})


def initial_statistics(tensors):
    for name, array in tensors.items():
        if "/moving_" in name:
            array[...] = 1 if name.endswith("variance") else 0


@pytest.mark.parametrize(
    ("plant", "failed", "item"),
    [
        (set_at(KERNEL, math.nan, 3), {"values"}, f"{KERNEL}: 3 NaN"),
        (set_at(BETA, -math.inf), {"values"}, f"{BETA}: 1 infinite"),
        (set_at(KERNEL, 0, 32 * 256), {"values"}, f"{KERNEL}: all of its 8,192 elements are zero"),
        (
            set_at(VARIANCE, -0.25, 2),
            {"values"},
            f"{VARIANCE}: 2 variances not positive (the lowest is -0.25)",
        ),
        (set_at(VARIANCE, 0.0), {"values"}, f"{VARIANCE}: 1 variance not positive (the lowest is 0)"),
        (remove(KERNEL), {"names and shapes", "parameter count"}, f"missing: {KERNEL}"),
        (add("moat/spare", np.ones(7, "f4")), {"names and shapes"}, "unexpected: moat/spare [7]"),
        (
            reshape(KERNEL, 1, 1, 256, 32),
            {"names and shapes"},
            f"wrong shape: {KERNEL} is [1, 1, 256, 32] instead of [1, 1, 32, 256]",
        ),
        (remove("/moving_"), {"BatchNorm statistics"}, f"missing: {VARIANCE}"),
        (remove(VARIANCE), {"BatchNorm statistics"}, f"missing: {VARIANCE}"),
        (initial_statistics, {"BatchNorm statistics"}, None),
        (
            remove("relative_position_embedding"),
            {"names and shapes", "parameter count"},
            "missing: moat/block_02_00/attention/relative_position_embedding",
        ),
    ],
)
def test_planted_fault_is_found_and_nothing_else(tmp_path, plant, failed, item):
    report = verify_checkpoint(Located(write_tiny(tmp_path / "m", plant), ENTRY))
    assert {check.name for check in report.failed} == failed
    assert not report.ok
    assert not report.damaged
    if item:
        assert item in [one for check in report.failed for one in check.items]


def test_vectors_of_zeros_are_remarked_on_and_hold(tmp_path):
    report = verify_checkpoint(Located(write_tiny(tmp_path / "m", set_at(BETA, 0, 256)), ENTRY))
    assert report.ok
    (remark,) = check_of(report, "values").items
    assert remark.startswith(f"remark: {BETA}: all zero")


@pytest.mark.parametrize("weights", ["auto", "ema", "raw"])
@pytest.mark.parametrize("copy", ["", AVERAGE])
def test_both_copies_are_looked_at_whichever_is_chosen(tmp_path, weights, copy):
    prefix = write_tiny(tmp_path / "m", set_at(KERNEL + copy, math.nan), twins=True)
    report = verify_checkpoint(Located(prefix), weights=weights)
    assert report.weights == ("raw" if weights == "raw" else "ema")
    assert check_of(report, "values").items == (f"{KERNEL}{copy}: 1 NaN",)
    assert check_of(report, "names and shapes").status == "ok"
    assert check_of(report, "parameter count").status == "ok"


def test_training_leftovers_are_not_looked_at(tmp_path):
    slots = add(f"{KERNEL}/AdamWeightDecay", np.zeros((1, 1, 32, 256), "f4"))
    report = verify_checkpoint(Located(write_tiny(tmp_path / "m", slots), ENTRY))
    assert report.ok
    assert check_of(report, "values").detail.endswith("not looked at: 2 left out by rule")
    assert "optimizer slots 1" in check_of(report, "names and shapes").detail


def test_ema_asked_for_where_there_is_none(tmp_path):
    with pytest.raises(UsageError, match="no moving averages"):
        verify_checkpoint(Located(write_tiny(tmp_path / "m")), weights="ema")


def test_flipped_bytes_are_found_by_deep_alone_and_all_of_them(tmp_path):
    """The lowest bit of two kernels' first elements: still plausible numbers."""
    prefix = write_tiny(tmp_path / "m")
    other = "moat/stem/conv_1/kernel"
    for name in (KERNEL, other):
        flip_byte(Path(f"{prefix}.data-00000-of-00001"), data_offset(prefix, name))
    assert verify_checkpoint(Located(prefix, ENTRY)).ok
    report = verify_checkpoint(Located(prefix, ENTRY), deep=True)
    assert report.damaged
    assert {check.name for check in report.failed} == {"container"}
    container = check_of(report, "container")
    assert "2 damaged" in container.detail
    assert len(container.items) == 2
    assert KERNEL in container.items[0]
    assert other in container.items[1]
    assert str(tmp_path) in container.items[0]
    assert check_of(report, "values").detail.endswith("1 left out by rule; 2 damaged")


@pytest.mark.parametrize("deep", [False, True])
def test_a_container_that_cannot_be_opened_is_an_error(tmp_path, deep):
    prefix = write_tiny(tmp_path / "m")
    data = Path(f"{prefix}.data-00000-of-00001")
    with data.open("r+b") as file:
        file.truncate(data.stat().st_size - 1)
    with pytest.raises(FormatError, match="data-00000-of-00001"):
        verify_checkpoint(Located(prefix), deep=deep)


def test_no_such_file(tmp_path):
    with pytest.raises(NotFoundError, match="nowhere"):
        verify_checkpoint(Located(tmp_path / "nowhere.safetensors"))


def test_any_file_of_any_model(tmp_path):
    """Numbers are looked at though the architecture is unknown, and nothing unknown is called ok."""
    np.savez(tmp_path / "net.npz", **{"fc.weight": np.zeros((2, 2), "f4"), "fc.bias": np.ones(2, "f4")})
    report = verify_checkpoint(Located(tmp_path / "net.npz"))
    assert statuses(report) == dict.fromkeys(SOUND, "skipped") | {"container": "ok", "values": "failed"}
    assert check_of(report, "values").items == ("fc.weight: all of its 4 elements are zero",)


def test_a_format_without_checksums_says_so_under_deep(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.ones((2, 2), "f4")}, tmp_path / "a.safetensors")
    report = verify_checkpoint(Located(tmp_path / "a.safetensors"), deep=True)
    assert check_of(report, "container").detail.endswith("it stores no checksums of its tensors")


def test_progress_covers_every_byte(tmp_path):
    shown = {}

    @contextmanager
    def display(description, total):
        steps = shown.setdefault(description, [total])
        yield steps.append

    prefix = write_tiny(tmp_path / "m")
    verify_checkpoint(Located(prefix, ENTRY), progress=display)
    total, *steps = shown["reading tiny-moat0-256"]
    data = Path(f"{prefix}.data-00000-of-00001").stat().st_size
    assert total == sum(steps) == data


@pytest.mark.parametrize(
    ("file", "entry", "sources"),
    [
        ("tiny_moat0_pe", ENTRY, 362),
        ("tiny_moat0_pe_tf2", ENTRY, 362),
        ("tiny_moat0_nope_ema", None, 684),
    ],
)
def test_files_written_by_the_published_code_hold(shared_folder, file, entry, sources):
    path = shared_folder / "checkpoints" / f"{file}.tar.gz"
    report = verify_checkpoint(Located(path, entry), deep=True)
    assert statuses(report) == SOUND
    assert f"{sources} agree with their crc32c" in check_of(report, "container").detail


def test_what_has_no_numbers_and_what_cannot_be_read_is_not_looked_at(tmp_path):
    path = raw_safetensors(tmp_path / "q.safetensors", {**OPAQUE, "w": ("F32", [1], b"\0\0\x80\x3f")})
    report = verify_checkpoint(Located(path), deep=True)
    assert report.ok
    assert check_of(report, "values").detail.endswith("; not looked at: 4 of a type without numbers")
    np.savez(tmp_path / "a.npz", w=np.ones(2), evil=np.array([None]))
    report = verify_checkpoint(Located(tmp_path / "a.npz"))
    assert check_of(report, "values").detail.endswith("; not looked at: 1 that cannot be read")
    assert report.notes == ("evil cannot be read: Python objects, which ckptkit never unpickles",)
