"""What a library cannot do as Pillow does it."""

from __future__ import annotations

NEAREST = "of two pixels equally near, 'nearest' takes another one than Pillow's"


class NoEquivalentError(Exception):
    """A framework has nothing that does the same: the comparison is skipped, and says so."""
