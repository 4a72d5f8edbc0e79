"""Arguments that every family's models take, read the same way by all builders."""

from __future__ import annotations

from typing import TypeAlias, TypeGuard

from ckptkit.base.errors import UsageError

Size: TypeAlias = tuple[int, int]
"""Height and width."""


MAX_SIDE = 16384
"""Pixels of a side, for whatever takes a size; no model here has been trained at a tenth of it."""


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value is an integer and no truth value, which Python counts among them."""
    return isinstance(value, int) and not isinstance(value, bool)


def parse_size(value: object, what: str) -> Size:
    """Read a height and width, given as one integer for both or as a pair.

    Parameters
    ----------
    value : int or pair of int
    what : str
        What it is, for the message.

    Raises
    ------
    UsageError
        When it is anything else, not positive, or more than any input has.

    Examples
    --------
    >>> parse_size(224, "resolution"), parse_size([192, 256], "resolution")
    ((224, 224), (192, 256))
    """
    pair = [value, value] if is_int(value) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(is_int(s) and s > 0 for s in pair):
        raise UsageError(f"{what} is {shown(value)}", hint="give a positive integer or (height, width)")
    if max(pair) > MAX_SIDE:
        size = shown(value) if is_int(value) else "x".join(map(shown, pair))
        raise UsageError(f"{what} is {size}", hint=f"at most {MAX_SIDE} pixels a side")
    return pair[0], pair[1]


def shown(value: object) -> str:
    """A value as an error quotes it: Python writes no integer of thousands of digits, nor deep nesting."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "too long to be shown"
    return text if len(text) <= 60 else text[:59] + "…"


def parse_num_classes(value: object) -> int | None:
    """Read the number of a head's outputs; 0 and None both mean no head.

    Raises
    ------
    UsageError
        When it is no number, or negative.

    Examples
    --------
    >>> parse_num_classes(10), parse_num_classes(0), parse_num_classes(None)
    (10, None, None)
    """
    if value is None:
        return None
    if not is_int(value) or value < 0:
        raise UsageError(f"num_classes is {shown(value)}", hint="give a positive number, or None for no head")
    return value or None
