"""Sizes, ages, resolutions and counts as people write them: one parser each, for options and arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard, TypeVar

from ckptkit.base.errors import UsageError

Size: TypeAlias = tuple[int, int]
"""Height and width."""

MAX_SIDE = 16384
"""Pixels of a side, for whatever takes a size; no model here has been trained at a tenth of it."""

T = TypeVar("T")

_BYTES = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*(?:([kmgt])(i)?)?b?", re.ASCII)
_AGE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SIDES = re.compile(r"(\d{1,6})(?:[x×](\d{1,6}))?", re.ASCII)
_INCHES = re.compile(r"(\d{1,4}(?:\.\d{1,4})?)[x×](\d{1,4}(?:\.\d{1,4})?)", re.ASCII)
_COUNT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:E([+-]?\d{1,3}))?\s*([KMBGT]?)", re.IGNORECASE | re.ASCII)
_THOUSANDS = re.compile(r"_|(?<=\d),(?=\d{3}(?!\d))", re.ASCII)
_TURN = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)
_POWERS = {"": 0, "K": 3, "M": 6, "B": 9, "G": 9, "T": 12}


def parse_bytes(text: str, option: str = "", *, example: str = "500MB or 2GB") -> int:
    """Read a size in bytes; kB, MB, GB and TB are powers of 1000, KiB, MiB, GiB and TiB of 1024."""
    found = _BYTES.fullmatch(text.strip().lower())
    if found is None:
        raise UsageError(f"{_named(option)}invalid size {text!r}", hint=f"write it like {example}")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit or " "))


def parse_rate(text: str) -> float:
    """Read bytes a second: ``10MB``, ``500k``, ``1.5 MiB/s``."""
    try:
        rate = parse_bytes(text.strip().removesuffix("/s"))
    except UsageError:
        rate = 0
    if not 0 < rate < 10**12:
        raise UsageError(f"invalid rate {text!r}", hint="write it like 500kB, 10MB or 1.5MiB (a second)")
    return float(rate)


def parse_age(text: str) -> float:
    """Read an age in seconds."""
    found = _AGE.fullmatch(text.strip().lower())
    if found is None:
        raise UsageError(f"invalid age {text!r}", hint="write it like 30d, 12h or 2w (s, m, h, d, w)")
    return float(found[1]) * _SECONDS[found[2]]


def parse_inches(text: str, option: str = "--size") -> tuple[float, float]:
    """Read the width and height of a picture in inches."""
    found = _INCHES.fullmatch(text.strip().lower())
    if found is None:
        raise UsageError(
            f"{_named(option)}invalid size {text!r}", hint="write width and height in inches, like 9x5.6"
        )
    return float(found[1]), float(found[2])


def parse_resolution(text: str | None, option: str = "--resolution") -> Size | None:
    """Read a side, or height and width, in pixels; None where nothing was given."""
    if text is None:
        return None
    found = _SIDES.fullmatch(text.strip().lower())
    if found is None:
        raise UsageError(f"{_named(option)}invalid size {text!r}", hint="write it like 224 or 192x256")
    size = int(found[1]), int(found[2] or found[1])
    if max(size) > MAX_SIDE:
        raise UsageError(f"{option} {text!r} is too large", hint=f"at most {MAX_SIDE} pixels a side")
    return size


def parse_size(value: object, what: str) -> Size:
    """Read a height and width, given as one integer for both or as a pair."""
    pair = [value, value] if is_int(value) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(is_int(s) and s > 0 for s in pair):
        raise UsageError(f"{what} is {shown(value)}", hint="give a positive integer or (height, width)")
    if max(pair) > MAX_SIDE:
        size = shown(value) if is_int(value) else "x".join(map(shown, pair))
        raise UsageError(f"{what} is {size}", hint=f"at most {MAX_SIDE} pixels a side")
    return pair[0], pair[1]


def size_text(size: Size) -> str:
    """Write a size as `parse_resolution` takes it.

    >>> size_text((224, 224)), size_text((192, 256))
    ('224', '192x256')
    """
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def parse_count(value: float | int | str) -> float:
    """Read a figure as people write it: a number, or one followed by K, M, B (= G) or T."""
    if not isinstance(value, str):
        return float(value)
    match = _COUNT.fullmatch(_THOUSANDS.sub("", value.strip()))
    if match is None:
        raise UsageError(f"{value!r} is not a number", hint="write it like 30M, 5.7B, 4.97G or 30000000")
    digits, exponent, suffix = match.groups()
    # One decimal literal rather than a product: 27.8 * 1e6 need not round to what 27800000 does.
    return float(f"{digits}e{int(exponent or 0) + _POWERS[suffix.upper()]}")


def parse_percent(text: str) -> float:
    """Read a percentage, with its sign or without: ``83.5%``, ``83.5``."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise UsageError(f"invalid percentage {text!r}", hint="write it like 83.5 or 83.5%")
    return value


def parse_side(text: str, option: str = "--resolution") -> int:
    """Read the side of a square input: ``224``, ``224x224``."""
    height, width = parse_resolution(text, option) or (0, 0)
    if height != width:
        raise UsageError(f"{option} {text}: published inputs are square", hint="write it like 224")
    return height


def parse_num_classes(value: object) -> int | None:
    """Read the number of a head's outputs; 0 and None both mean no head."""
    if value is None:
        return None
    if not is_int(value) or value < 0:
        raise UsageError(f"num_classes is {shown(value)}", hint="give a positive number, or None for no head")
    return value or None


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value is an integer and no truth value, which Python counts among them."""
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: object) -> str:
    """A value as an error quotes it: Python writes no integer of thousands of digits, nor deep nesting."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "too long to be shown"
    return text if len(text) <= 60 else text[:59] + "…"


def _named(option: str) -> str:
    return f"{option}: " if option else ""


def is_glob(pattern: str) -> bool:
    """Whether ``pattern`` has a wildcard of `fnmatch` in it."""
    return any(sign in pattern for sign in "*?[")


@dataclass(frozen=True)
class Turn:
    """Which of several processes this one is; each takes every so-manieth of what there is to do."""

    number: int  # from 1
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """What this process takes.

        >>> Turn(2, 3).of("abcdefg")
        'be'
        """
        return items[self.number - 1 :: self.count]


def parse_turn(text: str, option: str = "--shard") -> Turn:
    """Read ``K/N``, K from 1 to N."""
    found = _TURN.fullmatch(text.strip())
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"{_named(option)}invalid share {text!r}", hint="write it like 1/3, from 1/3 to 3/3")
    return Turn(int(found[1]), int(found[2]))


def turn_of_torchrun(environment: Mapping[str, str]) -> Turn | None:
    """The process that ``RANK`` (from 0) and ``WORLD_SIZE`` name; None without them, or for a single one."""
    rank, size = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and size.isdecimal()) or int(size) < 2:
        return None
    if int(rank) >= int(size):
        raise UsageError(
            f"RANK={rank} of WORLD_SIZE={size}", hint="RANK counts from 0; unset both to convert alone"
        )
    return Turn(int(rank) + 1, int(size))
