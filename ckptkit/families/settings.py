"""Arguments that every family's models take, read the same way by all builders."""

from __future__ import annotations

from typing import TypeAlias, TypeGuard

from ckptkit.errors import UsageError

Size: TypeAlias = tuple[int, int]
"""Height and width."""


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
        When it is anything else or not positive.

    Examples
    --------
    >>> parse_size(224, "resolution"), parse_size([192, 256], "resolution")
    ((224, 224), (192, 256))
    """
    pair = [value, value] if is_int(value) else value
    if isinstance(pair, (tuple, list)) and len(pair) == 2 and all(is_int(side) and side > 0 for side in pair):
        return pair[0], pair[1]
    raise UsageError(f"{what} is {value!r}", hint="give a positive integer or (height, width)")


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
        raise UsageError(f"num_classes is {value!r}", hint="give a positive number, or None for no head")
    return value or None
