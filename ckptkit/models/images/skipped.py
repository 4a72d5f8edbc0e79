"""What a library cannot do as Pillow does it, and how much of a picture it takes at once."""

from __future__ import annotations

NEAREST = "of two pixels equally near, 'nearest' takes another one than Pillow's"

ROWS_AT_ONCE = 1024
"""Of a picture that is resized across: every row by itself."""


class NoEquivalentError(Exception):
    """A framework has nothing that does the same: the comparison is skipped, and says so."""
