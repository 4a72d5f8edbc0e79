"""What came out of an evaluation, and whether a published figure is compatible with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

from ckptkit.base.shown import Column, Piece, Shown, Table
from ckptkit.base.text import counted

Verdict = Literal["inside", "measured below", "measured above", "not compared"]

CONFIDENCE = 0.95
_DECIMALS = 1
"""Decimals of a percent to which published accuracies are rounded, unless they show more."""


def wilson_interval(hits: int, images: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval for the share of hits that a sample of this size is compatible with.

    The score interval of E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", J. Amer. Stat. Assoc. 22 (1927): with p = hits / n and z the normal quantile of
    (1 + confidence) / 2 it is (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n). It takes the images for
    independent draws from all that could be taken, so it is a little too wide for a sample spread evenly
    over the classes.

    >>> [round(bound, 4) for bound in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    if images == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = hits / images
    middle = share + z * z / (2 * images)
    reach = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    scale = 1 + z * z / images
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


@dataclass(frozen=True)
class Score:
    """How many images had their class among the best guesses."""

    best: int  # how many guesses count: 1 or 5
    hits: int
    images: int
    published: float | None = None  # what the publication says, percent
    reason: str = ""  # why the published figure is not compared

    @property
    def percent(self) -> float:
        """Accuracy measured, percent."""
        return 100 * self.hits / self.images if self.images else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval, percent; see `wilson_interval`."""
        low, high = wilson_interval(self.hits, self.images)
        return 100 * low, 100 * high

    @property
    def verdict(self) -> Verdict:
        """Whether the interval contains a value that rounds to the published one."""
        if self.published is None or self.reason:
            return "not compared"
        low, high = self.interval
        half = rounding_of(self.published)
        if high < self.published - half:
            return "measured below"
        return "measured above" if low > self.published + half else "inside"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        low, high = self.interval
        return {
            "top": self.best,
            "hits": self.hits,
            "images": self.images,
            "percent": self.percent if self.images else None,
            "interval": [low, high],
            "confidence": CONFIDENCE,
            "published": self.published,
            "verdict": self.verdict,
            "reason": self.reason,
        }


def rounding_of(published: float) -> float:
    """How far the true value may lie from a published one: half a unit of its last decimal, or of 0.1.

    >>> rounding_of(76.5), rounding_of(77.0), rounding_of(79.25)
    (0.05, 0.05, 0.005)
    """
    decimals = len(f"{published:.10f}".rstrip("0").partition(".")[2])
    return round(0.5 * 10.0 ** -max(_DECIMALS, decimals), 12)


def sign_test(one: int, other: int) -> float:
    """How likely a split at least as uneven as this one is, were each case as likely either way (two-sided).

    On the images that only one of two models gets right this is the exact form of McNemar's test (Q. McNemar,
    Psychometrika 12, 1947).

    >>> sign_test(0, 6), sign_test(3, 3)
    (0.03125, 1.0)
    """
    cases = one + other
    logs = (
        math.lgamma(cases + 1) - math.lgamma(k + 1) - math.lgamma(cases - k + 1) - cases * math.log(2)
        for k in range(min(one, other) + 1)
    )
    return round(min(1.0, 2 * math.fsum(math.exp(value) for value in logs)), 12)


_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class BadImage:
    """An image that could not be decoded: in no count."""

    name: str
    reason: str


@dataclass(frozen=True)
class SettingComparison:
    """The same images with the other value of a setting that no tensor tells."""

    setting: str  # ``attn_force_fp32``
    value: bool  # the one evaluated
    images: int  # compared: all, or a sample spread over the classes
    hits: int  # top-1 hits among them with the one value and with the other
    other_hits: int
    only_this: int  # images that only the one of them got right
    only_other: int

    @property
    def p_value(self) -> float:
        """How likely so uneven a split is, were both as good; see `sign_test`."""
        return sign_test(self.only_this, self.only_other)

    @property
    def better(self) -> Literal["this", "other", "undecided"]:
        """Which value fits better."""
        if self.p_value >= _SIGNIFICANT:
            return "undecided"
        return "this" if self.only_this > self.only_other else "other"

    def __str__(self) -> str:
        def result(value: bool, hits: int) -> str:
            return f"{self.setting}={str(value).lower()} {100 * hits / max(1, self.images):.2f}%"

        figures = f"{result(self.value, self.hits)}, {result(not self.value, self.other_hits)} top-1"
        ending = {
            "this": f"{self.setting}={str(self.value).lower()} fits better, as evaluated",
            "other": f"{self.setting}={str(not self.value).lower()} fits better: give it with --set",
            "undecided": "these images do not tell which fits better",
        }[self.better]
        return f"on the same {counted(self.images, 'image')} {figures} (p = {self.p_value:.2g}): {ending}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "p_value": self.p_value, "better": self.better}


@dataclass(frozen=True, repr=False)
class Evaluation(Shown):
    """Accuracy of a checkpoint on labelled images."""

    name: str
    entry: str | None  # the registry's entry whose published figures stand beside the measured ones
    variant: str
    settings: Mapping[str, Any]  # behaviour settings that are known
    preprocessing: str
    framework: str
    versions: str
    device: str
    precision: str
    processes: int
    data: str  # where the images are from
    rule: str  # how their classes were read
    in_set: int  # images there are
    images: int  # images evaluated
    classes: int  # classes among those chosen
    resumed: int  # images that earlier, interrupted runs had done
    bad: tuple[BadImage, ...]
    scores: tuple[Score, ...]  # top-1, then top-5 (where there are at least five classes)
    seconds: float  # that this run took over its images
    other_setting: SettingComparison | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no published figure is contradicted."""
        return all(score.verdict in ("inside", "not compared") for score in self.scores)

    @property
    def top1(self) -> Score:
        """How often the best guess is right."""
        return self.scores[0]

    @property
    def top5(self) -> Score | None:
        """How often one of the five best guesses is right; None with fewer than five classes."""
        return self.scores[1] if len(self.scores) > 1 else None

    @property
    def sampled(self) -> bool:
        """Whether some images of the set were left out on purpose."""
        return self.images + len(self.bad) < self.in_set

    @property
    def headline(self) -> str:
        """The result in one line."""
        scores = ", ".join(f"top-{score.best} {score.percent:.2f}%" for score in self.scores)
        return f"{self.name}: {scores} on {counted(self.images, 'image')}"

    def pieces(self) -> Iterator[Piece]:
        """What was evaluated and how, the scores, and what else there is to know."""
        chosen = counted(self.images, "image") + (f" of {self.in_set:,}, a sample" if self.sampled else "")
        yield f"{self.name}: {chosen}, {counted(self.classes, 'class')}"
        yield f"  images    {self.data}; {self.rule}"
        yield f"  input     {self.preprocessing}"
        settings = [f"{key} {str(value).lower()}" for key, value in self.settings.items()]
        if settings:
            yield f"  settings  {', '.join(settings)}"
        yield f"  model     {self.variant}, {self.versions}, {_device(self)}"
        outside = ("measured below", "measured above")
        styles = ["red" if score.verdict in outside else None for score in self.scores]
        yield Table(_COLUMNS, [_row(score) for score in self.scores], styles)
        if self.images_per_second is not None:
            yield f"{self.images_per_second:.1f} images/s over {self.seconds:.1f} s"
        yield from (f"note: {note}" for note in self.notes)
        if self.other_setting is not None:
            yield str(self.other_setting)

    @property
    def images_per_second(self) -> float | None:
        """Of this run; None where it had nothing left to do."""
        done = self.images + len(self.bad) - self.resumed
        return done / self.seconds if done and self.seconds > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        own = ("scores", "bad", "other_setting")
        plain = {key: value for key, value in vars(self).items() if key not in own}
        return {
            **plain,
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "sampled": self.sampled,
            "images_per_second": self.images_per_second,
            "scores": [score.to_json() for score in self.scores],
            "bad": [asdict(bad) for bad in self.bad],
            "other_setting": self.other_setting.to_json() if self.other_setting else None,
            "ok": self.ok,
        }


_COLUMNS = (
    Column("accuracy"),
    *(Column(figure, numeric=True) for figure in ("measured", "95% interval", "published")),
    Column("verdict"),
)


def _device(report: Evaluation) -> str:
    shared = f", {counted(report.processes, 'process')}" if report.processes > 1 else ""
    return f"{report.device}, {report.precision}{shared}"


def _row(score: Score) -> list[str]:
    low, high = score.interval
    published = "–" if score.published is None else str(score.published)
    verdict = f"{score.verdict}: {score.reason}" if score.reason else score.verdict
    return [f"top-{score.best}", f"{score.percent:.2f}%", f"{low:.2f}–{high:.2f}", published, verdict]
