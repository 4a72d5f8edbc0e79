"""Sizes, ages, counts and resolutions: what is read, and what is refused."""

from __future__ import annotations

import pytest

from ckptkit.base.errors import UsageError
from ckptkit.base.parse import (
    parse_age,
    parse_bytes,
    parse_count,
    parse_inches,
    parse_num_classes,
    parse_percent,
    parse_rate,
    parse_resolution,
    parse_side,
    parse_size,
)


@pytest.mark.parametrize(
    ("asked", "size"), [(224, (224, 224)), ((224, 192), (224, 192)), ([192, 256], (192, 256))]
)
def test_size(asked, size):
    assert parse_size(asked, "resolution") == size


@pytest.mark.parametrize("asked", [0, None, (224,), (224, -1), "224", 224.0, False])
def test_nonsensical_sizes_are_refused(asked):
    with pytest.raises(UsageError, match="resolution is"):
        parse_size(asked, "resolution")


@pytest.mark.parametrize(("asked", "classes"), [(1000, 1000), (1, 1), (0, None), (None, None)])
def test_number_of_classes(asked, classes):
    assert parse_num_classes(asked) == classes


@pytest.mark.parametrize("asked", [-1, 2.5, "10", True, False, [10]])
def test_nonsensical_numbers_of_classes_are_refused(asked):
    with pytest.raises(UsageError, match="num_classes is") as caught:
        parse_num_classes(asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("12h", 43200), ("30d", 2592000), ("2W", 1209600), ("0d", 0), ("1.5h", 5400)],
)
def test_ages(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("12", 12), ("12B", 12), ("3k", 3000), ("20GB", 20 * 10**9), ("20 gb", 20 * 10**9),
     ("1.5 MiB", 1572864),     ("1.5GiB", 1610612736), ("2Mi", 2097152), ("1TB", 10**12)],
)  # fmt: skip
def test_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "d", "30", "-3d", "1e3d", "3y", "30d x", "nan", "9" * 30 + "d"])
def test_no_ages(text: str) -> None:
    with pytest.raises(UsageError):
        parse_age(text)


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "1iB", "1XB", "1 2GB", "inf", "9" * 30])
def test_no_bytes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1", 1),
        ("10MB", 1e7),
        ("10 mb/s", 1e7),
        ("1k", 1000),
        ("500k", 5e5),
        ("1.5MiB/s", 1572864),
        ("2KiB", 2048),
        ("0.5G", 5e8),
        ("3B", 3),
    ],
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "0", "0MB", "-1", "MB", "1TB", "ten", "1e6", "nan", "inf", "1 2", "1.2.3"]
)
def test_no_rates(text: str) -> None:
    with pytest.raises(UsageError, match="invalid rate"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["", "x", "9x", "9x5x3", "-9x5", "9 5", "1e3x5", "nanxnan"])
def test_no_inches(text: str) -> None:
    with pytest.raises(UsageError):
        parse_inches(text)


def test_inches() -> None:
    assert parse_inches(" 3.5X2 ") == parse_inches("3.5×2") == (3.5, 2.0)
    assert parse_inches("9x5.6") == (9.0, 5.6)


@pytest.mark.parametrize(("text", "value"), [("83.5", 83.5), ("83.5%", 83.5), (" 0 % ", 0), ("100", 100)])
def test_percentages(text: str, value: float) -> None:
    assert parse_percent(text) == value


@pytest.mark.parametrize("text", ["", "%", "x", "-1", "100.1", "nan", "1e3", "5%%"])
def test_no_percentages(text: str) -> None:
    with pytest.raises(UsageError, match=r"invalid percentage .*; write it like 83\.5"):
        parse_percent(text)


@pytest.mark.parametrize("text", ["224", "224x224", "224×224"])
def test_sides(text: str) -> None:
    assert parse_side(text) == 224
    with pytest.raises(UsageError, match="published inputs are square"):
        parse_side("192x256")


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("192x256", (192, 256)), (None, None)])
def test_resolutions(text: str | None, size: tuple[int, int] | None) -> None:
    assert parse_resolution(text) == size


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("27.8M", 27_800_000),
        ("4.97G", 4_970_000_000),
        ("5.7B", 5_700_000_000),
        ("0.80G", 800_000_000),
        ("271.0B", 271_000_000_000),
        ("2.97m", 2_970_000),
        ("12K", 12_000),
        ("3,355,348", 3_355_348),  # as show prints it
        ("1.5T", 1_500_000_000_000),
        (" 30 M ", 30_000_000),
        ("30e6", 30_000_000),
        ("30_000_000", 30_000_000),
        (".5M", 500_000),
        (3e7, 30_000_000),
        (30_000_000, 30_000_000),
    ],
)
def test_counts_are_exact(text: object, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M",
        "30X",
        "1,5",
        "1,2345",
        "3,3553,348",
        "-3M",
        "3M0",
        "1e9999",
        "nan",
        "inf",
        "٣M",
        "3 0M",
        "0x10",
    ],
)
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a number; write it like 30M"):
        parse_count(text)
