"""Names and shapes: are these the architecture's tensors, and are its BatchNorm statistics among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptkit.base.errors import ConversionError, listed
from ckptkit.base.tensors import TensorSpec
from ckptkit.compare.verify.report import BATCH_NORM, NAMES, Check, counted
from ckptkit.families.base import Recognition, Structure, families, family_of_variant, recognise
from ckptkit.families.binding import FileFacts, Match, Weights, match
from ckptkit.families.leftovers import whole_model
from ckptkit.rules.language import Binding

if TYPE_CHECKING:
    from ckptkit.compare.verify.values import ValueRange
    from ckptkit.registry import Entry

_STATISTICS = "bn_statistics"
_MEANINGLESS = "predictions would be meaningless"

UNKNOWN = "nothing to compare with (see names and shapes)"
"""Why checks that need the architecture are skipped."""


@dataclass(frozen=True)
class Fit:
    """A file set against the architecture it should be of.

    Parameters
    ----------
    check : Check
        The verdict on names and shapes.
    match : Match or None
        None when the architecture is not known, or the file is not of it.
    """

    check: Check
    match: Match | None = None

    @property
    def recognition(self) -> Recognition | None:
        """What the file was taken for."""
        return self.match.recognition if self.match else None

    def roles(self, specs: Mapping[str, TensorSpec]) -> dict[str, Binding]:
        """Name in the file → tensor of the architecture, for both copies where the file holds both."""
        if self.match is None:
            return {}
        table = self.match.recognition.table
        twin = table.layout.second_copy
        return {
            name: row
            for row in table.bindings
            for plain in (row.external, *row.aliases)
            for name in ((plain, twin.of(plain)) if twin else (plain,))
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
    """Set a file's tensors against the architecture of its entry, of ``variant``, or as recognised.

    Parameters
    ----------
    specs : mapping of str to TensorSpec
        The file's tensors.
    entry : Entry, optional
        The registry entry it belongs to.
    variant : str, optional
        Overrides the entry's variant and any recognition.
    weights : {"auto", "ema", "raw"}
        Which copy where the file holds both; ``auto`` takes what the entry says, else the moving averages.
    known : FileFacts, optional
        What is known of the copies besides the tensors' names.

    Raises
    ------
    NotFoundError
        When ``variant`` is unknown.
    UsageError
        When a copy is asked for that the file does not hold.
    """
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
    known = known or FileFacts(default_copy=entry.weights if entry else None)
    try:
        matched = match(specs, found, weights=weights, known=known)
    except ConversionError as error:  # only some parameters have the copy that is to be taken
        twin = found.table.layout.second_copy
        matched = match(specs, found, weights=twin.plain if twin else "raw", known=known)
        check = _check_names(matched, specs, likeliest)
        return Fit(
            Check(NAMES, "failed", str(error), check.items if check.status == "failed" else ()), matched
        )
    return Fit(_check_names(matched, specs, likeliest), matched)


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


def _check_names(found: Match, specs: Mapping[str, TensorSpec], likeliest: Recognition | None) -> Check:
    recognition = found.recognition
    table = recognition.table
    missing = [row.external for row in found.missing if row.part != _STATISTICS]
    counters = {row.canonical for row in table.bindings if row.part == "counter"}
    not_float = [
        name
        for canonical, name in found.sources.items()
        if canonical not in counters and not specs[name].dtype.is_float
    ]
    faults = {
        "unreadable": [f"cannot be read: {name}: {why}" for name, why in found.unread.items()],
        "missing": [f"missing: {name}" for name in missing if name not in found.unread],
        "unexpected": [f"unexpected: {name} {list(specs[name].shape)}" for name in found.unexpected],
        "of another shape": [
            f"wrong shape: {spec.name} is {list(spec.shape)} instead of {list(row.external_shape)}"
            for row, spec in found.wrong_shape
        ],
        "not floating point": [f"wrong type: {name} is {specs[name].dtype}" for name in not_float],
    }
    what = _in_words(found)
    ignored = _ignored_by_rule(found)
    if not any(faults.values()):
        there = counted(len(found.sources), "tensor")
        return Check(NAMES, "ok", f"all {there} of {what}{_absent_in_words(found)}{ignored}")
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


def _absent_in_words(found: Match) -> str:
    """Which kinds of tensors are absent, of those that may be without being missed here."""
    kinds = {"BatchNorm statistics": _STATISTICS, "BatchNorm step counters": "counter"}
    absent = {row.part for row in found.recognition.table.bindings if row.canonical not in found.sources}
    apart = " and ".join(what for what, part in kinds.items() if part in absent)
    return f" ({apart} apart)" if apart else ""


def _in_words(found: Match) -> str:
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
        parts.append(f"with {structure.num_classes:,} classes")
    return ", ".join([*parts, f"layout {recognition.layout}"])


def _ignored_by_rule(found: Match) -> str:
    rules = Counter(one.rule for one in found.ignored)
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
    """Check that BatchNorm's moving statistics are there, and have moved.

    Parameters
    ----------
    found : Match or None
        None when the architecture is not known.
    ranges : mapping of str to ValueRange
        Extremes of the tensors, by name in the file.
    entry : Entry or None
        Names the sources that have the statistics.
    metadata : mapping of str to str, optional
        What the file says of itself: whether its statistics were recomputed.
    """
    if found is None:
        return Check(BATCH_NORM, "skipped", UNKNOWN)
    family = found.recognition.family.name
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


def _remedy(entry: Entry | None, family: str) -> str:
    """Where a file with the statistics can be had."""
    if entry is None:
        return (
            ""
            if family != "moat"
            else "; MOAT's first uploads (2022-10) lack them, the files of 2022-11-05 have them"
        )
    urls = [source.url for source in entry.sources if source.bn_statistics]
    if not urls:
        return "; the registry knows no source that has them"
    return f"; {urls[0]} has them: ckptkit fetch {entry.id} --force"
