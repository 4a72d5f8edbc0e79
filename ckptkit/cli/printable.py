"""What stands in a file, made safe for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Escape what a file's names could do to a terminal: control characters, line breaks.

    Examples
    --------
    >>> print(printable("a\x1b[2J\nb"))
    a\x1b[2J\nb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
