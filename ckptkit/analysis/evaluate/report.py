"""What came out of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ckptkit.analysis.evaluate.interval import Score, sign_test

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
        def said(value: bool, hits: int) -> str:
            return f"{self.setting}={str(value).lower()} {100 * hits / max(1, self.images):.2f}%"

        figures = f"{said(self.value, self.hits)}, {said(not self.value, self.other_hits)} top-1"
        ending = {
            "this": f"{self.setting}={str(self.value).lower()} fits better, as evaluated",
            "other": f"{self.setting}={str(not self.value).lower()} fits better: give it with --set",
            "undecided": "these images do not tell which fits better",
        }[self.better]
        return f"on the same {self.images:,} images {figures} (p = {self.p_value:.2g}): {ending}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "p_value": self.p_value, "better": self.better}


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a checkpoint on labelled images."""

    name: str
    entry: str | None  # the registry's entry whose published figures stand beside the measured ones
    variant: str
    settings: Mapping[str, Any]  # behaviour settings that were said
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
