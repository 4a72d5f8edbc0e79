"""A counted figure beside the published one: whether they agree, and if not, whether that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ckptkit.base.parse import parse_count
from ckptkit.compare.verify import rounds_to

if TYPE_CHECKING:
    from ckptkit.registry import KnownDeviation

FigureName = Literal["params", "flops"]
Verdict = Literal["exact", "close", "known", "off", "stale", "not compared"]

TOLERANCE = 0.02
"""Share of the published figure by which a count may differ from it."""

FAILING = frozenset({"off", "stale"})


@dataclass(frozen=True)
class FigureCheck:
    """One counted figure set against the published one."""

    figure: FigureName
    counted: float
    published: str | None  # as published
    verdict: Verdict  # ``exact``: it rounds to the published figure, at that figure's precision
    reason: str = ""  # what there is to say about the verdict

    @property
    def ok(self) -> bool:
        """Whether an audit may pass with it."""
        return self.verdict not in FAILING

    @property
    def deviation(self) -> float | None:
        """What was counted over what was published, less 1."""
        return None if self.published is None else self.counted / parse_count(self.published) - 1

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes."""
        return {
            "figure": self.figure,
            "counted": self.counted,
            "published": self.published,
            "deviation": self.deviation,
            "verdict": self.verdict,
            "reason": self.reason,
            "ok": self.ok,
        }


def check_figure(
    figure: FigureName, counted: float, published: str, known: KnownDeviation | None = None
) -> FigureCheck:
    """Set a count against a published figure.

    >>> check_figure("params", 27846892, "27.8M").verdict
    'exact'
    >>> check_figure("params", 2956066, "2.97M").verdict
    'close'
    >>> check_figure("params", 2956066, "3.05M").verdict
    'off'
    """
    if rounds_to(counted, published):
        if known is not None:
            reason = f"the registry lists a deviation, but this rounds to the published {published}"
            return FigureCheck(figure, counted, published, "stale", reason)
        return FigureCheck(figure, counted, published, "exact")
    if known is not None:
        return FigureCheck(figure, counted, published, "known", known.reason)
    value = parse_count(published)
    if abs(counted - value) <= TOLERANCE * value:
        return FigureCheck(figure, counted, published, "close")
    reason = f"{counted / value - 1:+.1%} off, and no known deviation"
    return FigureCheck(figure, counted, published, "off", reason)
