"""Published figures against counted ones: of one entry, of one model, of the whole registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ckptkit.analysis.profile import Profile, Subject, profile, subject_of
from ckptkit.base.errors import NotFoundError
from ckptkit.base.parse import Size, parse_count
from ckptkit.compare.verify import rounds_to
from ckptkit.families.base import Family, family_of_variant, get_family

if TYPE_CHECKING:
    from ckptkit.registry.query import Registry
    from ckptkit.registry.schema import Entry, KnownDeviation

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
        """Plain values."""
        return {**vars(self), "deviation": self.deviation, "ok": self.ok}


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


@dataclass(frozen=True)
class ProfileReport:
    """A profile beside the figures that were published of the same model."""

    name: str  # the id or variant
    profile: Profile
    entry: Entry | None  # whose figures stand beside it
    checks: tuple[FigureCheck, FigureCheck]  # of parameters, then of FLOPs

    @property
    def ok(self) -> bool:
        """Whether each figure that can be compared holds, and nothing was left uncounted."""
        return all(check.ok for check in self.checks) and not self.profile.uncounted

    def to_json(self, depth: int | None = None) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes, modules down to ``depth`` (None: all)."""
        return {
            "name": self.name,
            "entry": self.entry.id if self.entry else None,
            "ok": self.ok,
            "checks": [check.to_json() for check in self.checks],
            **self.profile.to_json(depth),
        }

    def summary(self) -> dict[str, Any]:
        """The figures alone, as plain values."""
        return {
            "id": self.name,
            "ok": self.ok,
            "variant": self.profile.subject.variant,
            "resolution": list(self.profile.subject.resolution),
            "checks": [check.to_json() for check in self.checks],
            "uncounted": dict(self.profile.uncounted),
        }


def profile_model(
    name: str,
    *,
    registry: Registry | None = None,
    resolution: int | Size | None = None,
    num_classes: int | None = 1000,
    pos_emb: bool | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ProfileReport:
    """Count a model's parameters and multiply-adds and set them beside the published figures.

    >>> report = profile_model("moganet-xt-224")
    >>> report.profile.parameters, f"{float(report.profile.multiply_adds):,.0f}"
    (2956066, '799,674,138')
    >>> [check.verdict for check in report.checks]
    ['known', 'exact']
    """
    if registry is None:
        from ckptkit.families.base import registry_families
        from ckptkit.registry.loading import load_registry

        registry = load_registry(families=registry_families)
    entry = registry.get(name)
    family, variant = _family_and_variant(name, entry)
    subject = subject_of(
        variant,
        family,
        entry,
        resolution=resolution,
        num_classes=num_classes,
        pos_emb=pos_emb,
        settings=settings,
    )
    entry = entry or _fitting_entry(subject, registry)
    found = profile(subject)
    return ProfileReport(name, found, entry, _checks(found, entry))


def _family_and_variant(name: str, entry: Entry | None) -> tuple[Family, str]:
    if entry is not None:
        return get_family(entry.family), entry.variant
    try:
        return family_of_variant(name), name
    except NotFoundError as error:
        raise NotFoundError(
            f"unknown entry or variant {name!r}", hint=f"see 'ckptkit list'; {error.hint}"
        ) from error


def _fitting_entry(subject: Subject, registry: Registry) -> Entry | None:
    """Return the first entry of the same model, at the same resolution if there is one."""
    of_variant = [
        entry
        for entry in registry.values()
        if entry.variant == subject.variant and entry.pos_emb in (None, subject.pos_emb)
    ]
    same_size = [e for e in of_variant if (e.test_resolution, e.test_resolution) == subject.resolution]
    return next(iter([*same_size, *of_variant]), None)


def audit_registry(
    entries: Iterable[Entry], *, advance: Callable[[int], None] = lambda _steps: None
) -> list[ProfileReport]:
    """Set the published parameters and FLOPs of entries against what their models cost.

    Entries of the same model at the same resolution are counted once.
    """
    counted: dict[Subject, Profile] = {}
    reports = []
    for entry in entries:
        subject = _published_subject(entry)
        if subject not in counted:
            counted[subject] = profile(subject)
        found = counted[subject]
        reports.append(ProfileReport(entry.id, found, entry, _checks(found, entry)))
        advance(1)
    return reports


def _published_subject(entry: Entry) -> Subject:
    """What the figures of an entry are about."""
    return subject_of(entry.variant, get_family(entry.family), entry)


def _checks(found: Profile, entry: Entry | None) -> tuple[FigureCheck, FigureCheck]:
    return _check_parameters(found, entry), _check_flops(found, entry)


def _check_parameters(found: Profile, entry: Entry | None) -> FigureCheck:
    if entry is None:
        return _not_compared("params", found, "no entry of the registry is of this model")
    asked, published = found.subject, _published_subject(entry)
    if (asked.num_classes, asked.pos_emb) != (published.num_classes, published.pos_emb):
        return _not_compared("params", found, f"published {_conditions(published, size=False)}")
    exact = entry.exact_parameters
    if exact is not None and found.parameters != exact:
        reason = f"the published code has {exact:,}"
        return FigureCheck("params", found.parameters, entry.published_params, "off", reason)
    if entry.published_params is None:
        return _not_compared("params", found, "no figure is published")
    known = entry.known_deviation("params")
    return check_figure("params", found.parameters, entry.published_params, known)


def _check_flops(found: Profile, entry: Entry | None) -> FigureCheck:
    if entry is None:
        return _not_compared("flops", found, "no entry of the registry is of this model")
    published = _published_subject(entry)
    if replace(found.subject, settings=()) != replace(published, settings=()):
        return _not_compared("flops", found, f"published {_conditions(published)}")
    if found.subject.settings != published.settings:
        given = ", ".join(f"{key} {value}" for key, value in published.settings)
        return _not_compared("flops", found, f"published for {given}")
    if entry.published_flops is None:
        return _not_compared("flops", found, "no figure is published")
    known = entry.known_deviation("flops")
    return check_figure("flops", float(found.multiply_adds), entry.published_flops, known)


def _conditions(subject: Subject, *, size: bool = True) -> str:
    """What a published figure is for, in words."""
    height, width = subject.resolution
    parts = [f"at {height}×{width}"] if size else []
    if subject.pos_emb is not None:
        parts.append(f"{'with' if subject.pos_emb else 'without'} position embedding")
    parts.append(f"with {subject.num_classes:,} classes" if subject.num_classes else "without head")
    return ", ".join(parts)


def _not_compared(figure: FigureName, found: Profile, reason: str) -> FigureCheck:
    counted = found.parameters if figure == "params" else float(found.multiply_adds)
    return FigureCheck(figure, counted, None, "not compared", reason)
