"""Whether a checkpoint holds what it should: one pass over the file, then an answer to each of six questions.

Are these the bytes that were published, is the container whole, are these the architecture's tensors and are
its BatchNorm statistics among them, could their values be those of a trained model, and is the parameter
count the published one? Each answer is a `Check` of a `VerifyReport`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ckptkit.base.checksums import Digests, hash_file
from ckptkit.base.errors import ConversionError, FormatError, UsageError, listed
from ckptkit.base.progress import Advance, Progress, no_progress
from ckptkit.base.shown import Marked, Note, Piece, Shown
from ckptkit.base.tensors import TensorSpec
from ckptkit.base.text import counted
from ckptkit.compare.arrays import ValueRange, value_range
from ckptkit.families.base import Family, Structure, families, family_of_variant, get_family
from ckptkit.families.binding import FileFacts, Match, Weights, match
from ckptkit.families.layouts import training_rule, whole_model
from ckptkit.families.recognition import Recognition, recognise
from ckptkit.families.synthetic import is_counter, is_statistic
from ckptkit.formats.base import Reader
from ckptkit.formats.builtin import format_of
from ckptkit.rules.language import Binding, Shape

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry
    from ckptkit.workspace import Located

Status = Literal["ok", "failed", "skipped"]

CHECKSUM = "checksum"
CONTAINER = "container"
NAMES = "names and shapes"
BATCH_NORM = "BatchNorm statistics"
VALUES = "values"
PARAMETERS = "parameter count"


@dataclass(frozen=True)
class Check:
    """One question put to a checkpoint, and its answer."""

    name: str
    status: Status  # "skipped" says that the question could not be put, never that all is well
    detail: str
    items: tuple[str, ...] = ()  # every offender, one line each; in a check that passed, remarks


@dataclass(frozen=True, repr=False)
class VerifyReport(Shown):
    """Every check of one checkpoint."""

    name: str  # the entry's id, or the path
    path: Path  # where the tensors were read
    entry: str | None  # id of the registry entry
    format: str
    family: str | None
    variant: str | None
    layout: str | None
    weights: str | None  # "ema" or "raw": which copy was matched, where the file holds both
    deep: bool  # whether the tensors' stored checksums were verified too
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()  # what the reader could not read or found unusual

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def damaged(self) -> bool:
        """Whether the container itself is damaged, as against holding the wrong tensors."""
        return any(check.name == CONTAINER for check in self.failed)

    @property
    def verdict(self) -> str:
        """All of it in one line.

        Examples
        --------
        >>> report = VerifyReport(
        ...     "a.npz", Path("a.npz"), None, "npz", None, None, None, None, False,
        ...     (Check("values", "failed", "1 NaN"), Check("checksum", "skipped", "no entry")),
        ... )
        >>> report.verdict
        'a.npz: failed: values; skipped: checksum'
        """
        skipped = [check.name for check in self.checks if check.status == "skipped"]
        left = f"; skipped: {', '.join(skipped)}" if skipped else ""
        if self.failed:
            return f"{self.name}: failed: {', '.join(check.name for check in self.failed)}{left}"
        if skipped:
            return (
                f"{self.name}: passed {len(self.checks) - len(skipped)} of "
                f"{counted(len(self.checks), 'check')}{left}"
            )
        return f"{self.name}: passed {counted(len(self.checks), 'check')}"

    @property
    def headline(self) -> str:
        """The result in one line."""
        return self.verdict

    def pieces(self, *, everything: bool = False) -> Iterator[Piece]:
        """The verdict, then a line for each check, with its offenders."""
        yield self.verdict
        width = max(len(check.name) for check in self.checks)
        for check in self.checks:
            line = f"{check.status:<7}  {check.name:<{width}}  {check.detail}"
            yield Marked.of(line, check.status, _COLOURS[check.status])
            yield from (f"         {item}" for item in _shown_items(check, everything=everything))
        yield from (Note(f"{self.name}: {note}") for note in self.notes)

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes."""
        values = asdict(self)
        values["path"] = str(self.path)
        return {"ok": self.ok, "damaged": self.damaged, **values}


_COLOURS = {"ok": "green", "failed": "red", "skipped": "yellow"}

_SHOWN_ITEMS = 8
"""Offenders shown per check; --verbose and --json give all."""


def _shown_items(check: Check, *, everything: bool) -> list[str]:
    if everything or len(check.items) <= _SHOWN_ITEMS:
        return list(check.items)
    more = len(check.items) - _SHOWN_ITEMS
    return [*check.items[:_SHOWN_ITEMS], f"… and {more:,} more; --verbose shows all"]


# -- the verification ----------------------------------------------------------------------------------------

_EMA_BUFFERS = "ema_"
"""How mmcv's hook begins the names of moving averages, which a file may have of every part."""

_COPIES = frozenset({"moving averages", "raw weights"})
"""Rules that leave out the copy of the weights that was not chosen: its values are looked at all the same."""


@dataclass(frozen=True)
class VerifyRequest:
    """How to verify a checkpoint; see `ckptkit.verify`."""

    deep: bool = False
    weights: Weights = "auto"
    variant: str | None = None
    structure: bool = False  # names, shapes and types alone


def verify_checkpoint(
    located: Located, request: VerifyRequest = VerifyRequest(), progress: Progress = no_progress
) -> VerifyReport:
    """Put every question to a checkpoint; tensors that differ from their stored checksum are all listed."""
    entry, deep = located.entry, request.deep
    if deep and request.structure:
        raise UsageError("--deep reads the values that --structure leaves", hint="give only one of them")
    with located.open(request.weights) as reader:
        fitted = fit(
            reader.specs,
            entry=entry,
            variant=request.variant,
            weights=request.weights,
            known=FileFacts.of(reader, entry),
        )
        if request.structure:
            return _structure_report(located, reader, fitted)
        checksum = check_checksum(located, progress)
        roles = fitted.roles(reader.specs)
        wanted, left_out = _to_look_at(reader, fitted, around_in(entry))
        total = sum(spec.nbytes for spec in reader.specs.values())
        with progress(f"reading {located.name}", total) as advance:
            passed = _read_once(reader, wanted, deep=deep, advance=advance)
        return _report(
            located,
            reader,
            fitted,
            deep=deep,
            checks=(
                checksum,
                _check_container(reader, passed, deep=deep),
                fitted.check,
                check_batch_norm(fitted.match, passed.ranges, entry, reader.metadata),
                check_values(
                    passed.ranges,
                    reader.specs,
                    roles,
                    left_out={
                        **left_out,
                        "damaged": len(passed.damaged),
                        "that cannot be read": len(reader.left_out),
                    },
                ),
                check_parameters(fitted.match, reader.specs, entry),
            ),
        )


_LEFT = "left by --structure"


def _structure_report(located: Located, reader: Reader, fitted: Fit) -> VerifyReport:
    """What names, shapes and types alone answer."""
    checks = (
        Check(CHECKSUM, "skipped", _LEFT),
        Check(CONTAINER, "ok", f"{_contents(reader)}: its description is sound; no tensor was read"),
        fitted.check,
        check_batch_norm(fitted.match, {}, located.entry, reader.metadata),
        Check(VALUES, "skipped", _LEFT),
        check_parameters(fitted.match, reader.specs, located.entry),
    )
    return _report(located, reader, fitted, deep=False, checks=checks)


def _report(
    located: Located, reader: Reader, fitted: Fit, *, deep: bool, checks: tuple[Check, ...]
) -> VerifyReport:
    found = fitted.recognition
    return VerifyReport(
        name=located.name,
        path=located.path,
        entry=located.entry.id if located.entry else None,
        format=reader.format,
        family=found.family.name if found else None,
        variant=found.variant if found else None,
        layout=found.layout if found else None,
        weights=fitted.match.weights if fitted.match else None,
        deep=deep,
        checks=checks,
        notes=(
            *reader.notes,
            *(f"{name} cannot be read: {why}" for name, why in reader.left_out.items()),
        ),
    )


def _contents(reader: Reader) -> str:
    """Format, number of tensors and bytes."""
    count = counted(len(reader.specs), "tensor")
    return f"{reader.format}, {count}, {sum(spec.nbytes for spec in reader.specs.values()):,} bytes of data"


@dataclass
class _Pass:
    """What one pass over a file's tensors gave."""

    ranges: dict[str, ValueRange] = field(default_factory=dict)
    verified: int = 0
    damaged: dict[str, str] = field(default_factory=dict)


def _to_look_at(reader: Reader, fitted: Fit, around: Collection[str]) -> tuple[frozenset[str], Counter[str]]:
    """Names whose values are looked at, and how many are not, by reason."""
    specs = reader.specs
    if fitted.match is None:
        leftovers = {name for name in specs if name in reader.optimizer or training_rule(name, specs)}
    else:
        ignored = (one for one in fitted.match.ignored if one.rule not in _COPIES)
        leftovers = {one.name for one in ignored if one.name not in around}
    wanted = {name for name, spec in specs.items() if name not in leftovers and has_values(spec)}
    why = Counter(
        "left out by rule"
        if name in leftovers
        else "of a type without numbers"
        if spec.dtype.is_opaque
        else "of integers or empty"
        for name, spec in specs.items()
        if name not in wanted
    )
    return frozenset(wanted), why


def _read_once(reader: Reader, wanted: frozenset[str], *, deep: bool, advance: Advance) -> _Pass:
    passed = _Pass()
    for name, spec in reader.specs.items():
        try:
            if deep:
                passed.verified += reader.check(name)
            if name in wanted:
                passed.ranges[name] = value_range(reader.read(name))
        except FormatError as error:
            passed.damaged[name] = str(error)
        reader.release(name)
        advance(spec.nbytes)
    if deep and not passed.damaged:
        try:
            reader.check_rest()
        except FormatError as error:
            passed.damaged[""] = str(error)
    return passed


def _check_container(reader: Reader, passed: _Pass, *, deep: bool) -> Check:
    what = _contents(reader)
    if passed.damaged:
        detail = f"{what}: {len(passed.damaged):,} damaged; fetch or copy the file again"
        return Check(CONTAINER, "failed", detail, tuple(passed.damaged.values()))
    if not deep:
        return Check(
            CONTAINER, "ok", f"{what}: sound; its tensors' checksums were not verified (--deep does)"
        )
    if not passed.verified:
        return Check(CONTAINER, "ok", f"{what}: sound; it stores no checksums of its tensors")
    kind = format_of(reader.format).checksum
    apart = f", {len(reader.specs) - passed.verified:,} have none" * (passed.verified < len(reader.specs))
    return Check(CONTAINER, "ok", f"{what}: {passed.verified:,} agree with their {kind}{apart}")


# -- checksum ------------------------------------------------------------------------------------------------

_NOT_PUBLISHED = "as first fetched, which was taken on trust: no checksum of this file is published"


def check_checksum(located: Located, progress: Progress) -> Check:
    """Compare the published file with the registry's pin, the lock file and the record of its first fetch."""
    if located.artefact is None or located.entry is None:
        return _check_own_file(located.path, progress)
    if located.companions:
        return _check_each((replace(located, companions=()), *located.companions), progress)
    found = _hash(located.artefact, located.name, progress, located.entry)
    faults = _other_bytes(found, located.entry, located)
    if faults:
        return Check(CHECKSUM, "failed", f"{located.artefact.name} has other bytes than it should", faults)
    facts = _facts(found)
    kept = f"; the server's {' and '.join(located.server_hashes)} held" if located.server_hashes else ""
    if located.entry.sha256 is not None:
        whose = (
            "as the publisher states" if located.entry.is_published_checksum else "as pinned in the registry"
        )
        return Check(CHECKSUM, "ok", f"{whose}{kept}", facts)
    if located.entry.md5 is not None:
        return Check(CHECKSUM, "ok", f"{_ONLY_MD5}{kept}", (*facts, f"md5 {found.md5}"))
    if located.trusted is not None:
        remembered = f"remembered in {located.trusted.origin}"
        return Check(CHECKSUM, "ok", f"{_NOT_PUBLISHED}{kept}", (*facts, remembered))
    if located.sha256 is not None:
        return Check(CHECKSUM, "ok", f"{_NOT_PUBLISHED}{kept}", facts)
    return Check(CHECKSUM, "skipped", "nothing pinned and no record of its fetch to compare with", facts)


def _check_each(files: Sequence[Located], progress: Progress) -> Check:
    """Compare every file of an entry; the verdict is the worst of theirs."""
    checks = {}
    for one in files:
        path = one.artefact or one.path
        gone = Check(CHECKSUM, "failed", f"{path.name} is not there")
        checks[path.name] = check_checksum(one, progress) if path.is_file() else gone
    worst = max((check.status for check in checks.values()), key=("ok", "skipped", "failed").index)
    details = dict.fromkeys(check.detail for check in checks.values() if check.status == worst)
    items = (f"{name}: {item}" for name, check in checks.items() for item in check.items)
    return Check(CHECKSUM, worst, "; ".join(details), tuple(items))


_ONLY_MD5 = "MD5 as the publisher states, which shows damage and can be forged; no sha256 is published"


def _facts(found: Digests) -> tuple[str, ...]:
    return f"sha256 {found.sha256}", f"{found.size:,} bytes"


def _other_bytes(found: Digests, entry: Entry, located: Located) -> tuple[str, ...]:
    recorded, trusted = located.sha256, located.trusted
    faults = []
    for one in entry.expected:
        if (actual := found.of(one.algorithm)) != one.value:
            faults.append(f"{one.algorithm} is {actual}, but {one.origin} says {one.value}")
    if entry.size not in (None, found.size):
        faults.append(f"{found.size:,} bytes, but the registry says {entry.size:,}")
    if recorded not in (None, found.sha256):
        faults.append(f"sha256 is {found.sha256}, but at its first fetch it was {recorded}")
    if trusted is not None and entry.sha256 is None and trusted.value not in (found.sha256, recorded):
        faults.append(f"sha256 is {found.sha256}, but {trusted.origin} says {trusted.value}")
    return tuple(faults)


def _check_own_file(path: Path, progress: Progress) -> Check:
    if not path.is_file():
        return Check(CHECKSUM, "skipped", "several files, and no registry entry to compare them with")
    found = _hash(path, path.name, progress)
    return Check(CHECKSUM, "skipped", "no registry entry to compare it with", _facts(found))


def _hash(path: Path, name: str, progress: Progress, entry: Entry | None = None) -> Digests:
    size = path.stat().st_size if path.is_file() else None
    with progress(f"hashing {name}", size) as advance:
        kinds = {"sha256", *(one.algorithm for one in (entry.expected if entry else ()))}
        return hash_file(path, kinds, advance=advance)


# -- names and shapes, BatchNorm statistics ------------------------------------------------------------------

_STATISTICS = "bn_statistics"
_MEANINGLESS = "predictions would be meaningless"

UNKNOWN = "nothing to compare with (see names and shapes)"
"""Why checks that need the architecture are skipped."""


@dataclass(frozen=True)
class Fit:
    """A file matched to the architecture it should be of, and the verdict on names and shapes."""

    check: Check
    match: Match | None = None  # None when the architecture is not known, or the file is not of it

    @property
    def recognition(self) -> Recognition | None:
        """What the file was taken for."""
        return self.match.recognition if self.match else None

    def roles(self, specs: Mapping[str, TensorSpec]) -> dict[str, Binding]:
        """Name in the file → tensor of the architecture, for both copies where the file holds both."""
        if self.match is None:
            return {}
        table = self.match.recognition.table
        second = table.layout.second_copy
        return {
            name: row
            for row in table.bindings
            for plain in (row.external, *row.aliases)
            for name in ((plain, second.of(plain)) if second else (plain,))
            if name in specs
        }


def fit(
    specs: Mapping[str, TensorSpec],
    *,
    entry: Entry | None = None,
    variant: str | None = None,
    weights: Weights = "auto",
    known: FileFacts | None = None,
) -> Fit:
    """Match a file's tensors to the architecture of ``variant``, else of its entry, else as recognised."""
    if variant is not None:
        family_of_variant(variant)
    wanted = variant or (entry.variant if entry else None)
    likeliest = recognise(specs)
    if variant is None and entry is not None and entry.family not in families():
        return Fit(_without_model_code(specs, entry, likeliest))
    found = recognise(specs, variant=wanted) if wanted else likeliest
    if found is None:
        return Fit(_unrecognised(specs, wanted, likeliest))
    found = _settled(found, specs, entry if variant is None else None)
    around = around_in(entry)
    known = known or FileFacts(default_copy=entry.weights if entry else None)
    try:
        matched = match(specs, found, weights=weights, known=known)
    except ConversionError as error:  # only some parameters have the copy that is to be taken
        second = found.table.layout.second_copy
        matched = match(specs, found, weights=second.plain if second else "raw", known=known)
        check = _check_names(matched, specs, likeliest, around)
        return Fit(
            Check(NAMES, "failed", str(error), check.items if check.status == "failed" else ()), matched
        )
    return Fit(_check_names(matched, specs, likeliest, around), matched)


def around_in(entry: Entry | None) -> Mapping[str, Shape]:
    """What is known of the tensors around the backbone in an entry's file."""
    if entry is None or entry.serves != "backbone" or entry.family not in families():
        return {}
    return get_family(entry.family).parts_around(entry)


def _unrecognised(
    specs: Mapping[str, TensorSpec], wanted: str | None, likeliest: Recognition | None
) -> Check:
    tensors = f"{counted(len(specs), 'tensor')} ({listed(specs, 3)})"
    if wanted is None:
        return Check(NAMES, "skipped", f"{tensors} of no architecture known here")
    instead = f"; they look like {likeliest.variant} (layout {likeliest.layout})" if likeliest else ""
    return Check(NAMES, "failed", f"{tensors} unlike {wanted}{instead}")


def _without_model_code(
    specs: Mapping[str, TensorSpec], entry: Entry, likeliest: Recognition | None
) -> Check:
    if likeliest is not None:  # whatever the entry's own tensors are called, these are another family's
        return _unrecognised(specs, entry.variant, likeliest)
    return Check(NAMES, "skipped", f"there is no model code for family {entry.family} to compare with")


def _settled(found: Recognition, specs: Mapping[str, TensorSpec], entry: Entry | None) -> Recognition:
    """Hold the file to what its entry promises and its own parts imply, where recognition is lenient.

    Recognition takes absent position tables for a model without them, and an absent head's bias for a
    headless one; here both are losses to report.
    """
    structure = found.structure
    if entry is not None and entry.pos_emb is not None:
        structure = replace(structure, pos_emb=entry.pos_emb)
    if structure.num_classes is None and _has_head(found, specs):
        structure = replace(structure, num_classes=Structure().num_classes)
    if structure == found.structure:
        return found
    return replace(
        found, structure=structure, table=found.family.table(found.layout, found.variant, structure)
    )


def _has_head(found: Recognition, specs: Mapping[str, TensorSpec]) -> bool:
    rule = found.table.layout.by_canonical.get("head.weight")
    return rule is not None and any(name in specs for name in (rule.external, *rule.aliases))


def _check_names(
    found: Match,
    specs: Mapping[str, TensorSpec],
    likeliest: Recognition | None,
    around: Mapping[str, Shape],
) -> Check:
    recognition = found.recognition
    table = recognition.table
    missing = [row.external for row in found.missing if row.part != _STATISTICS]
    counters = {row.canonical for row in table.bindings if row.part == "counter"}
    not_float = [
        name
        for canonical, name in found.sources.items()
        if canonical not in counters and not specs[name].dtype.is_float
    ]
    unexpected = list(found.unexpected)
    if around:
        missing += [name for name in around if name not in specs and not is_counter(name)]
        parts = [one.name for one in found.ignored if one.rule in found.around]
        unexpected += [name for name in parts if name not in around and not name.startswith(_EMA_BUFFERS)]
    other_shapes = [
        *((spec, row.external_shape) for row, spec in found.wrong_shape),
        *((specs[n], shape) for n, shape in around.items() if n in specs and specs[n].shape != shape),
    ]
    faults = {
        "unreadable": [f"cannot be read: {name}: {why}" for name, why in found.unread.items()],
        "missing": [f"missing: {name}" for name in missing if name not in found.unread],
        "unexpected": [f"unexpected: {name} {list(specs[name].shape)}" for name in unexpected],
        "of another shape": [
            f"wrong shape: {spec.name} is {list(spec.shape)} instead of {list(shape)}"
            for spec, shape in other_shapes
        ],
        "not floating point": [f"wrong type: {name} is {specs[name].dtype}" for name in not_float],
    }
    what = _describe(found)
    ignored = _ignored_by_rule(found, around)
    if not any(faults.values()):
        there = counted(len(found.sources), "tensor")
        beside = counted(sum(name in specs for name in around), "tensor")
        whole = f", and all {beside} of {', '.join(found.around)}" if around else ""
        return Check(NAMES, "ok", f"all {there} of {what}{_allowed_absences(found)}{whole}{ignored}")
    counts = ", ".join(f"{len(items):,} {kind}" for kind, items in faults.items() if items)
    instead = ""
    if likeliest is not None and likeliest.variant != recognition.variant:
        instead = f"; it looks like {likeliest.variant}"
    return Check(
        NAMES,
        "failed",
        f"{counts}, for {what}{instead}{ignored}",
        tuple(i for f in faults.values() for i in f),
    )


def _allowed_absences(found: Match) -> str:
    """Which kinds of tensors are absent, of those that may be without being missed here."""
    kinds = {"BatchNorm statistics": _STATISTICS, "BatchNorm step counters": "counter"}
    absent = {row.part for row in found.recognition.table.bindings if row.canonical not in found.sources}
    apart = " and ".join(what for what, part in kinds.items() if part in absent)
    return f" ({apart} apart)" if apart else ""


def _describe(found: Match) -> str:
    """Describe variant, structure, and the layout it is stored in."""
    recognition = found.recognition
    structure = recognition.structure
    parts = [recognition.variant]
    if recognition.family.has_pos_emb:
        parts[0] += f" {'with' if structure.pos_emb else 'without'} position embedding"
    if found.around:
        whole = whole_model(one.reason for one in found.ignored)
        parts.append(f"the backbone of a {whole}")
    elif structure.num_classes is None:
        parts.append("without a head, good for features only")
    elif structure.num_classes != Structure().num_classes:
        parts.append(f"with {counted(structure.num_classes, 'class')}")
    return ", ".join([*parts, f"layout {recognition.layout}"])


def _ignored_by_rule(found: Match, around: Collection[str]) -> str:
    rules = Counter(one.rule for one in found.ignored if one.name not in around)
    taken = f"; {found.weights} weights taken" if found.weights else ""
    if not rules:
        return taken
    return f"{taken}; left out by rule: " + ", ".join(f"{rule} {count:,}" for rule, count in rules.items())


def check_batch_norm(
    found: Match | None,
    ranges: Mapping[str, ValueRange],
    entry: Entry | None,
    metadata: Mapping[str, str] | None = None,
) -> Check:
    """Check that BatchNorm's moving statistics are there, and have moved."""
    if found is None:
        return Check(BATCH_NORM, "skipped", UNKNOWN)
    family = found.recognition.family
    rows = [row for row in found.recognition.table.bindings if row.part == _STATISTICS]
    if not rows:
        return Check(BATCH_NORM, "skipped", f"{found.recognition.variant} has no BatchNorm")
    missing = [row.external for row in found.missing if row.part == _STATISTICS]
    if found.lacks_bn_statistics:
        detail = f"none of {len(rows):,} in this file: {_MEANINGLESS}{_remedy(entry, family)}"
        return Check(BATCH_NORM, "failed", detail, tuple(f"missing: {name}" for name in missing))
    if missing:
        detail = f"{len(missing):,} of {len(rows):,} missing: {_MEANINGLESS}"
        return Check(BATCH_NORM, "failed", detail, tuple(f"missing: {name}" for name in missing))
    if _never_moved([(row, ranges.get(found.sources[row.canonical])) for row in rows]):
        return Check(
            BATCH_NORM,
            "failed",
            f"all {len(rows):,} still at their initial 0 and 1: {_MEANINGLESS}{_remedy(entry, family)}",
        )
    made = ""
    if metadata and metadata.get("bn_statistics") == "recalibrated":
        made = f", recalibrated from {metadata.get('bn_images', 'some')} images by 'ckptkit calibrate'"
    return Check(BATCH_NORM, "ok", f"all {len(rows):,} moving means and variances are there{made}")


def _never_moved(rows: Sequence[tuple[Binding, ValueRange | None]]) -> bool:
    """Whether every mean is exactly 0 and every variance exactly 1, which training never leaves them at."""
    return all(
        found is not None and found.is_constant(1.0 if row.canonical.endswith("running_var") else 0.0)
        for row, found in rows
    )


def _remedy(entry: Entry | None, family: Family) -> str:
    """Where a file with the statistics can be had."""
    if entry is None:
        return f"; {family.missing_statistics}" if family.missing_statistics else ""
    urls = [source.url for source in entry.sources if source.bn_statistics]
    if not urls:
        return "; the registry knows no source that has them"
    return f"; {urls[0]} has them: ckptkit fetch {entry.id} --force"


# -- values --------------------------------------------------------------------------------------------------

# A tensor's extremes answer every question asked here (a NaN among the numbers makes both of them NaN), so a
# whole checkpoint is read once, piece by piece. What fails, and why:
# * NaN or infinity anywhere: every prediction would be NaN.
# * A variance that is not positive: no activation has one, and its square root is divided by.
# * A kernel, table or matrix (two or more axes longer than one) of nothing but zeros: training starts such
#   tensors at random and does not bring every element to exactly zero; it was never filled. Biases count as
#   vectors however the layout folds them.
# A vector of zeros is only remarked on: a bias or shift that starts at zero stays there when no gradient
# reaches it; attention's key bias never gets one, because softmax cancels what is the same for all keys.

_VARIANCE = re.compile(r"(?:.*[./])?(?:running_var|moving_variance)")
_BIAS = re.compile(r"(?:.*[./])?(?:bias|beta)")


def has_values(spec: TensorSpec) -> bool:
    """Whether there is anything to look at: floating or complex elements."""
    return spec.dtype.kind in ("float", "complex") and spec.size > 0


def check_values(
    ranges: Mapping[str, ValueRange],
    specs: Mapping[str, TensorSpec],
    roles: Mapping[str, Binding],
    *,
    left_out: Mapping[str, int],
) -> Check:
    """Judge the extremes of every tensor looked at."""
    faults: list[str] = []
    remarks: list[str] = []
    for name, found in ranges.items():
        faults += (f"{name}: {fault}" for fault in _faults(found, name, roles.get(name)))
        if found.is_constant(0.0):
            if _is_matrix(specs[name], roles.get(name)):
                faults.append(f"{name}: all of its {counted(specs[name].size, 'element')} are zero")
            else:
                remarks.append(f"remark: {name}: all zero, which an untouched bias or shift may be")
    looked_at = counted(len(ranges), "tensor")
    apart = "; ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
    apart = f"; not looked at: {apart}" if apart else ""
    if faults:
        return Check(
            VALUES, "failed", f"{counted(len(faults), 'fault')} in {looked_at}{apart}", (*faults, *remarks)
        )
    if not ranges:
        return Check(VALUES, "skipped", f"no floating-point tensor to look at{apart}")
    also = f"; {counted(len(remarks), 'vector')} all zero" if remarks else ""
    return Check(
        VALUES,
        "ok",
        f"{looked_at} finite, no kernel all zero, every variance positive{also}{apart}",
        tuple(remarks),
    )


def _faults(found: ValueRange, name: str, role: Binding | None) -> Iterable[str]:
    if found.nans:
        yield f"{found.nans:,} NaN"
    if found.infinities:
        yield f"{found.infinities:,} infinite"
    if found.not_positive and _VARIANCE.fullmatch(role.canonical if role else name):
        yield f"{counted(found.not_positive, 'variance')} not positive (the lowest is {found.lowest:.6g})"


def _is_matrix(spec: TensorSpec, role: Binding | None) -> bool:
    """Whether a tensor is more than a vector; in canonical terms, where every bias has one axis."""
    if role is None and _BIAS.fullmatch(spec.name):
        return False
    shape = role.canonical_shape if role else spec.shape
    return sum(axis > 1 for axis in shape) >= 2


# -- parameter count -----------------------------------------------------------------------------------------

_POWERS = {"": 0, "K": 3, "M": 6, "B": 9, "G": 9, "T": 12}
_CLASSES = 1000


def rounds_to(count: float, figure: str) -> bool:
    """Whether a count rounds to a published figure at the figure's own precision.

    A count exactly between two figures rounds to both, since publishers do not say how they rounded.

    Examples
    --------
    >>> rounds_to(27846892, "27.8M"), rounds_to(27846892, "27.85M"), rounds_to(27846892, "27.9M")
    (True, True, False)
    >>> rounds_to(2956066, "2.97M")
    False
    """
    suffix = figure[-1] if figure[-1] in _POWERS else ""
    digits = Decimal(figure.removesuffix(suffix))
    unit = Decimal(10) ** _POWERS[suffix]
    last_place = Decimal(10) ** int(digits.as_tuple().exponent)
    return abs(Decimal(count) - digits * unit) * 2 <= last_place * unit


def check_parameters(found: Match | None, specs: Mapping[str, TensorSpec], entry: Entry | None) -> Check:
    """Count the trainable parameters and compare them with the entry's figures."""
    if found is None:
        return Check(PARAMETERS, "skipped", UNKNOWN)
    table, around = found.recognition.table, around_in(entry)
    count = sum(
        specs[found.sources[row.canonical]].size
        for row in table.bindings
        if row.trainable and row.canonical in found.sources
    )
    count += sum(specs[name].size for name in around if name in specs and not is_statistic(name))
    if entry is None or (entry.serves != "whole" and not around):
        whole = "" if entry is None else f"; the published {entry.published_params} are of the whole model"
        return _against_architecture(found, count, whole or _NO_ENTRY)
    if entry.exact_parameters is None and entry.published_params is None:
        return _against_architecture(found, count, _NO_ENTRY)
    head = 0 if around else _missing_head(found)
    apart = f" and {head:,} of the head that this file lacks" if head else ""
    faults = []
    exact = entry.exact_parameters
    if exact is not None and count + head != exact:
        faults.append(f"{counted(count, 'parameter')}{apart}, but the published code has {exact:,}")
    published = entry.published_params
    remark = ""
    if published is not None:
        remark = f"; published as {published}"
        if not rounds_to(count + head, published):
            known = entry.known_deviation("params")
            if exact == count + head and known is not None:
                remark += f", which it does not round to (known deviation: {known.reason})"
            else:
                faults.append(
                    f"{counted(count + head, 'parameter')} do not round to the published {published}"
                )
    if faults:
        return Check(PARAMETERS, "failed", "; ".join(faults))
    agrees = "as the published code has" if exact is not None else "no exact count in the registry"
    return Check(PARAMETERS, "ok", f"{counted(count, 'trainable parameter')}{apart}, {agrees}{remark}")


_NO_ENTRY = " (no registry entry to compare with)"


def _against_architecture(found: Match, count: int, remark: str) -> Check:
    wanted = found.recognition.table.parameters
    what = found.recognition.variant
    if count != wanted:
        return Check(
            PARAMETERS, "failed", f"{counted(count, 'trainable parameter')}, but {what} has {wanted:,}"
        )
    return Check(
        PARAMETERS,
        "ok",
        f"{counted(count, 'trainable parameter')}, as {what} has{remark}",
    )


def _missing_head(found: Match) -> int:
    """Parameters of the classification head that published counts include and a headless file lacks."""
    recognition = found.recognition
    if recognition.structure.num_classes is not None:
        return 0
    whole = recognition.family.table(
        recognition.layout, recognition.variant, Structure(recognition.structure.pos_emb, _CLASSES)
    )
    return whole.parameters - recognition.table.parameters
