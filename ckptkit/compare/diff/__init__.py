"""What differs between two checkpoints, whatever their formats and layouts; no framework is needed.

`compare_files` opens both, `pairing` says which tensor is compared with which, `values` compares two arrays
piece by piece, and a `Difference` is what came out.
"""

from __future__ import annotations

from ckptkit.compare.diff.report import Changed, Difference, Lone, OtherMetadata, Side
from ckptkit.compare.diff.run import compare_files
from ckptkit.compare.diff.values import Tolerance, ValueDifference, compare_arrays

__all__ = [
    "Changed",
    "Difference",
    "Lone",
    "OtherMetadata",
    "Side",
    "Tolerance",
    "ValueDifference",
    "compare_arrays",
    "compare_files",
]
