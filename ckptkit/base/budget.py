"""What reading one foreign file may cost: steps, nodes, names and bytes, in proportion to the file's size.

Every reader of something that others wrote (a checkpoint, an archive, a registry, rules, a log) spends from
one `Budget` before it does the work. So a small file never costs much, and a large one may cost more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

MAX_RATIO = 64
"""Bytes that a compressed byte may become, beyond the floor in `LIMITS`; weights hardly compress at all."""


@dataclass(frozen=True)
class Limit:
    """How much of one thing a file of some size may cost."""

    what: str
    floor: int
    a_byte: float
    ceiling: int

    def of(self, nbytes: int) -> int:
        """The amount for a file of this size."""
        return min(self.ceiling, self.floor + int(self.a_byte * nbytes))


LIMITS = {
    "steps": Limit("steps of work", 1_200_000, 4, 7_000_000),
    "nodes": Limit("values and entries", 100_000, 0.25, 1_500_000),
    "names": Limit("bytes of names", 4 << 20, 8, 64 << 20),
    "nbytes": Limit("bytes unpacked", 64 << 20, MAX_RATIO, 1 << 62),
}


class Budget:
    """What is left of the cost that one file may cause; all parts of the file spend from the same.

    >>> from ckptkit.base.errors import FormatError
    >>> budget = Budget(100, lambda reason: FormatError("a.index", reason))
    >>> budget.spend(nodes=90_000)
    >>> budget.spend(nodes=90_000)
    Traceback (most recent call last):
        ...
    ckptkit.base.errors.FormatError: a.index: more than 100,025 values and entries in a file of 100 bytes
    """

    __slots__ = ("_file", "_limits", "_refuse", "names", "nbytes", "nodes", "steps")

    def __init__(
        self, nbytes: int, refuse: Callable[[str], Exception], limits: Mapping[str, Limit] = LIMITS
    ) -> None:
        self._file = nbytes
        self._refuse = refuse
        self._limits = limits
        self.steps = limits["steps"].of(nbytes)
        self.nodes = limits["nodes"].of(nbytes)
        self.names = limits["names"].of(nbytes)
        self.nbytes = limits["nbytes"].of(nbytes)

    def spend(self, *, steps: int = 0, nodes: int = 0, names: int = 0, nbytes: int = 0) -> None:
        """Take from what is left; a hot loop may subtract from an attribute, and call this below zero."""
        self.steps -= steps
        self.nodes -= nodes
        self.names -= names
        self.nbytes -= nbytes
        if self.steps < 0 or self.nodes < 0 or self.names < 0 or self.nbytes < 0:
            self._over()

    def _over(self) -> NoReturn:
        limit = next(limit for name, limit in self._limits.items() if getattr(self, name) < 0)
        raise self._refuse(
            f"more than {limit.of(self._file):,} {limit.what} in a file of {self._file:,} bytes"
        )
