"""A counted figure beside the published one: whether they agree, and if not, whether that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ckptkit.compare.verify.parameters import rounds_to
from ckptkit.registry.query import parse_count

if TYPE_CHECKING:
    from ckptkit.registry import DeviationFacts

FigureName = Literal["params", "flops"]
Verdict = Literal["exact", "close", "known", "off", "stale", "not compared"]

TOLERANCE = 0.02
"""Share of the published figure by which a count may differ from it."""

FAILING = frozenset({"off", "stale"})


@dataclass(frozen=True)
class FigureCheck:
    """One counted figure set against the published one.

    Parameters
    ----------
    figure : {"params", "flops"}
    counted : float
    published : str or None
        As published; None where nothing is published that it could be compared with.
    verdict : str
        ``exact``: it rounds to the published figure, at that figure's precision. ``close``: it does not, but
        differs by no more than 2%. ``known``: it does not, and the registry lists the deviation.
        ``off``: it differs by more, or the exact count of the published code is another. ``stale``: the
        registry lists a deviation that is none. ``not compared``: nothing to compare with.
    reason : str
        What there is to say about the verdict; may be empty.
    """

    figure: FigureName
    counted: float
    published: str | None
    verdict: Verdict
    reason: str = ""

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
    figure: FigureName, counted: float, published: str, known: DeviationFacts | None = None
) -> FigureCheck:
    """Set a count against a published figure.

    Parameters
    ----------
    figure : {"params", "flops"}
    counted : float
    published : str
        As published: ``27.8M``.
    known : KnownDeviation, optional
        What the registry says about this figure of this entry.

    Examples
    --------
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
